"""The losses as the papers define them, in NumPy, each with its gradient in closed form.

Each file implements one paper: the formula, its gradient, and an example that is checked. Steps that several papers
share are in ``steps``.

Shapes are written as tuples. ``()`` is a single number, and ``(B, C, *S)`` an array with B items, C channels and any
number of spatial axes. A gradient has the shape of the array that it belongs to. Its argument ``cotangent`` is the
gradient of some later function with respect to the loss, as in backpropagation. All arithmetic has the precision of the
input: float32, float64 or longdouble.
"""

from twinloss.reference.bending_energy import bending_energy_loss, bending_energy_loss_gradient
from twinloss.reference.deep_supervision import deep_supervision_loss, deep_supervision_loss_gradient
from twinloss.reference.dice import (
    dice_loss,
    dice_loss_gradient,
    masked_dice_loss,
    masked_dice_loss_gradient,
)
from twinloss.reference.dice_ce import dice_ce_loss, dice_ce_loss_gradient
from twinloss.reference.dice_focal import dice_focal_loss, dice_focal_loss_gradient
from twinloss.reference.diffusion import diffusion_loss, diffusion_loss_gradient
from twinloss.reference.focal import focal_loss, focal_loss_gradient
from twinloss.reference.focal_tversky import focal_tversky_loss, focal_tversky_loss_gradient
from twinloss.reference.generalized_dice import (
    generalized_dice_loss,
    generalized_dice_loss_gradient,
)
from twinloss.reference.generalized_dice_focal import (
    generalized_dice_focal_loss,
    generalized_dice_focal_loss_gradient,
)
from twinloss.reference.generalized_wasserstein_dice import (
    generalized_wasserstein_dice_loss,
    generalized_wasserstein_dice_loss_gradient,
    wasserstein_distance_map,
)
from twinloss.reference.global_mutual_information import (
    global_mutual_information_loss,
    global_mutual_information_loss_gradient,
)
from twinloss.reference.local_normalized_cross_correlation import (
    local_normalized_cross_correlation_loss,
    local_normalized_cross_correlation_loss_gradient,
)
from twinloss.reference.masked import masked_loss, masked_loss_gradient
from twinloss.reference.matthews_correlation import matthews_correlation_loss, matthews_correlation_loss_gradient
from twinloss.reference.multi_scale import multi_scale_loss, multi_scale_loss_gradient
from twinloss.reference.tversky import tversky_loss, tversky_loss_gradient

__all__ = [
    "bending_energy_loss",
    "bending_energy_loss_gradient",
    "deep_supervision_loss",
    "deep_supervision_loss_gradient",
    "dice_ce_loss",
    "dice_ce_loss_gradient",
    "dice_focal_loss",
    "dice_focal_loss_gradient",
    "dice_loss",
    "dice_loss_gradient",
    "diffusion_loss",
    "diffusion_loss_gradient",
    "focal_loss",
    "focal_loss_gradient",
    "focal_tversky_loss",
    "focal_tversky_loss_gradient",
    "generalized_dice_focal_loss",
    "generalized_dice_focal_loss_gradient",
    "generalized_dice_loss",
    "generalized_dice_loss_gradient",
    "generalized_wasserstein_dice_loss",
    "generalized_wasserstein_dice_loss_gradient",
    "global_mutual_information_loss",
    "global_mutual_information_loss_gradient",
    "local_normalized_cross_correlation_loss",
    "local_normalized_cross_correlation_loss_gradient",
    "masked_dice_loss",
    "masked_dice_loss_gradient",
    "masked_loss",
    "masked_loss_gradient",
    "matthews_correlation_loss",
    "matthews_correlation_loss_gradient",
    "multi_scale_loss",
    "multi_scale_loss_gradient",
    "tversky_loss",
    "tversky_loss_gradient",
    "wasserstein_distance_map",
]
