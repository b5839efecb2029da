"""Generalised Dice loss; the twin of `reference/generalized_dice.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.loss import Fraction, SegmentationLoss
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import ClassWeights, Weigh
from twinloss.fast.runtime.arguments import checked_flag
from twinloss.fast.runtime.options import Check, one_of
from twinloss.fast.runtime.ranks import ProcessGroup

GENERALIZED_CHECKS: Mapping[str, Check] = {
    **dict.fromkeys(("soft_label", "normalize_weights"), checked_flag),
    "w_type": one_of("square", "simple", "uniform"),
}
# These are made once, because older releases of torch.compile cannot follow their construction.
_WEIGHTS = {
    (name, normalized): ClassWeights(power, normalized=normalized)
    for name, power in (("square", 2), ("simple", 1), ("uniform", 0))
    for normalized in (False, True)
}


def volume_weights(w_type: str, normalize: bool) -> ClassWeights:
    """Return the function that computes the weight of each class, given the volumes, (B or 1, C')."""
    return _WEIGHTS[w_type, normalize]


class GeneralizedDiceLoss(SegmentationLoss):
    r"""Generalised Dice loss: one minus the Dice overlap of all classes together, weighted by their target volumes.

    .. math::
        L = 1 - \frac{2 \sum_c w_c \sum_i p_{ic} g_{ic} + \nu}{\sum_c w_c \sum_i (p_{ic} + g_{ic}) + \delta},
        \quad w_c = 1 / V_c^2,\; V_c = \sum_i g_{ic}

    Here p is the prediction, g the target, i the voxel and c the class (Sudre et al. 2017, section 2, with smoothing
    terms added). A class that is absent from the target gets the largest finite weight of its item, or with ``batch``
    of the batch. If all classes are absent, the weights ``"square"`` and ``"simple"`` are 0: the loss is the constant
    1 - ν/δ, so that a patch without foreground has no gradient. The ``"uniform"`` weights are always 1. The weights
    depend only on the target.

    Args:
        include_background: if False, channel 0 is excluded from the loss. The softmax still includes it.
        to_onehot_y: the target holds class labels, (B, 1, *S), of any integer or floating-point type.
        sigmoid: p is the sigmoid of the input.
        softmax: p is the softmax of the input over all its channels.
        other_act: p is ``other_act(input)``.
        w_type: the class weight: ``"square"`` for 1/V², ``"simple"`` for 1/V, or ``"uniform"`` for 1.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each item, (B, 1, 1, …).
        smooth_nr: ν, the smoothing term of the numerator.
        smooth_dr: δ, the smoothing term of the denominator.
        batch: sum over all items of the batch before the division, which gives a single value.
        soft_label: use min(p, g) as the overlap instead of the product p g. The minimum of the loss is then at p = g
            for soft targets, too (Wang et al. 2023, Dice semimetric losses).
        ignore_index: voxels with this label are excluded, whatever values they hold. If the target has a channel
            for each class, these are the voxels with a 1 in this channel. The value C stands for an additional channel
            of the target, which is then (B, C + 1, *S).
        normalize_weights: divide the weights of an item by their sum, so that the effect of ν and δ does not depend on
            the volume. Otherwise w is about 1e-10 for 96³ voxels, and ν = 1e-5 outweighs the data.
        process_group: see DiceLoss.
        return_parts: see DiceLoss. The parts are the shares of the classes.

    Shape:
        input (B, C, *S); target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``. Any number of spatial axes is allowed,
        including none.

    Raises:
        TypeError: if ``other_act`` is neither None nor callable, or if the input is not a floating-point tensor.
        ValueError: if more than one of ``sigmoid``, ``softmax`` and ``other_act`` is given; if the reduction or
            ``w_type`` is unknown; if a label is not a class; if the input is empty.
        AssertionError: if the shapes of input and target do not match. The error is also a ValueError.

    Warns:
        UserWarning: about the values of the target, as in DiceLoss.

    Reference:
        Sudre, C. et al. (2017) Generalised Dice overlap as a deep learning loss function for highly unbalanced
        segmentations, DLMIA.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> GeneralizedDiceLoss(softmax=True, to_onehot_y=True)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0003)
    """

    option_checks: ClassVar = {
        **SegmentationLoss.option_checks,
        **GENERALIZED_CHECKS,
    }

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        w_type: Any = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        *,
        soft_label: bool = False,
        ignore_index: int | None = None,
        normalize_weights: bool = False,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch,
            ignore_index, process_group, return_parts,
        )  # fmt: skip
        self.w_type = w_type
        self.soft_label = soft_label
        self.normalize_weights = normalize_weights

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def fraction(self, voxels: Voxels) -> Fraction:
        """Return the fraction of each item, in which the classes are pooled."""
        return Fraction("minimum" if self.soft_label else "product", self.terms(voxels, (2.0, 1.0, 1.0)), self._weigh())

    def _weigh(self) -> Weigh:
        """Return the function that computes the weight of each class, given the volumes, (B or 1, C')."""
        return volume_weights(self.w_type, self.normalize_weights)
