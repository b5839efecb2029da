"""The losses as the papers define them, in NumPy, each with its gradient in closed form.

Arrays are computed in the precision of the input: float32, float64 or longdouble.
"""

from twinloss.reference.dice import (
    dice_loss,
    dice_loss_gradient,
    masked_dice_loss,
    masked_dice_loss_gradient,
)
from twinloss.reference.dice_ce import dice_ce_loss, dice_ce_loss_gradient
from twinloss.reference.dice_focal import dice_focal_loss, dice_focal_loss_gradient
from twinloss.reference.focal import focal_loss, focal_loss_gradient
from twinloss.reference.generalized_dice import (
    generalized_dice_loss,
    generalized_dice_loss_gradient,
)
from twinloss.reference.generalized_wasserstein_dice import (
    generalized_wasserstein_dice_loss,
    generalized_wasserstein_dice_loss_gradient,
    wasserstein_distance_map,
)
from twinloss.reference.tversky import tversky_loss, tversky_loss_gradient

__all__ = [
    "dice_ce_loss",
    "dice_ce_loss_gradient",
    "dice_focal_loss",
    "dice_focal_loss_gradient",
    "dice_loss",
    "dice_loss_gradient",
    "focal_loss",
    "focal_loss_gradient",
    "generalized_dice_loss",
    "generalized_dice_loss_gradient",
    "generalized_wasserstein_dice_loss",
    "generalized_wasserstein_dice_loss_gradient",
    "masked_dice_loss",
    "masked_dice_loss_gradient",
    "tversky_loss",
    "tversky_loss_gradient",
    "wasserstein_distance_map",
]
