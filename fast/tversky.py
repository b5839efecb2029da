"""Tversky loss; the twin of `reference/tversky.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.loss import ClassWeight, ClassWeightedLoss, Fraction
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.runtime.arguments import checked_flag
from twinloss.fast.runtime.options import checked_number
from twinloss.fast.runtime.ranks import ProcessGroup


class TverskyLoss(ClassWeightedLoss):
    r"""Tversky loss: one minus the Tversky index of prediction and target, for each item and class.

    .. math::
        L = 1 - \frac{TP + \nu}{TP + \alpha FP + \beta FN + \delta}, \quad
        TP = \sum_i p_i g_i,\; FP = \sum_i p_i (1 - g_i),\; FN = \sum_i (1 - p_i) g_i

    Here p is the prediction, g the target and i the voxel (Salehi et al. 2017, eq. 3, with smoothing terms added).
    With α = β = ½ it equals the Dice loss with 2ν and 2δ.

    Args:
        include_background: if False, channel 0 is excluded from the loss. The softmax still includes it.
        to_onehot_y: the target holds class labels, (B, 1, *S), of any integer or floating-point type.
        sigmoid: p is the sigmoid of the input.
        softmax: p is the softmax of the input over all its channels.
        other_act: p is ``other_act(input)``.
        alpha: α, the weight of false positives.
        beta: β, the weight of false negatives.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each item and class, (B, C', 1, …), where C' is
            the number of classes that are not excluded.
        smooth_nr: ν, the smoothing term of the numerator.
        smooth_dr: δ, the smoothing term of the denominator. If it is 0, the loss of a class that is absent from both
            prediction and target is not finite.
        batch: sum over all items of the batch before the division. ``"none"`` then gives (1, C', 1, …).
        weight: factor on the loss: a number, or a list with one for each class that is not excluded. The mean divides
            by the number of classes, not by the sum of the weights.
        soft_label: use the sum of min(p, g) as TP. The minimum of the loss is then at p = g for soft targets, too (Wang
            et al. 2023, Dice semimetric losses).
        ignore_index: voxels with this label are excluded, whatever values they hold. If the target has a channel
            for each class, these are the voxels with a 1 in this channel. The value C stands for an additional channel
            of the target, which is then (B, C + 1, *S).
        process_group: see DiceLoss.
        return_parts: see DiceLoss.

    Shape:
        input (B, C, *S); target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``. Any number of spatial axes is allowed,
        including none.

    Raises:
        TypeError: if ``other_act`` is neither None nor callable, or if the input is not a floating-point tensor.
        ValueError: if more than one of ``sigmoid``, ``softmax`` and ``other_act`` is given; if the reduction is
            unknown; if α or β is negative; if weights are negative, NaN or not one for each class; if a label is not a
            class; if the input is empty.
        AssertionError: if the shapes of input and target do not match. The error is also a ValueError.

    Warns:
        UserWarning: about the values of the target, as in DiceLoss.

    Reference:
        Salehi, S. S. M. et al. (2017) Tversky loss function for image segmentation using 3D fully convolutional deep
        networks, MLMI (arXiv:1706.05721).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> TverskyLoss(softmax=True, to_onehot_y=True, alpha=0.3, beta=0.7)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0003)
    """

    option_checks: ClassVar = {
        **ClassWeightedLoss.option_checks,
        **dict.fromkeys(("alpha", "beta"), checked_number),
        "soft_label": checked_flag,
    }

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        *,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch,
            ignore_index, process_group, return_parts,
        )  # fmt: skip
        self.alpha = alpha
        self.beta = beta
        self.weight = weight
        self.soft_label = soft_label

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def fraction(self, voxels: Voxels) -> Fraction:
        """Return the fraction of each item and class."""
        return Fraction("minimum" if self.soft_label else "product", self.terms(voxels, (1.0, self.alpha, self.beta)))
