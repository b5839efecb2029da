"""Generalised Dice loss; the twin of `reference/generalized_dice.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.loss import SegmentationLoss
from twinloss.fast.engine.segmentation.statistics import Overlap
from twinloss.fast.runtime.arguments import checked_flag
from twinloss.fast.runtime.options import one_of
from twinloss.fast.runtime.ranks import ProcessGroup


class GeneralizedDiceLoss(SegmentationLoss):
    r"""One minus the Dice overlap of all classes together, each weighted by its volume in the target.

    .. math::
        L = 1 - \frac{2 \sum_c w_c \sum_i p_{ic} g_{ic} + \nu}{\sum_c w_c \sum_i (p_{ic} + g_{ic}) + \delta},
        \quad w_c = 1 / V_c^2,\; V_c = \sum_i g_{ic}

    (Sudre et al. 2017, section 2, with smoothing terms). A class absent from the target takes the largest finite weight
    of the same item (with ``batch``, of the batch). If no class is present, the weights of ``"square"`` and
    ``"simple"`` are 0 and the loss is the constant 1 - ν/δ: a patch with no foreground teaches nothing. The weights of
    ``"uniform"`` stay 1. The weights carry no gradient to p.

    Args:
        include_background: if False, channel 0 takes no part in the loss (it still does in the softmax).
        to_onehot_y: the target holds labels, (B, 1, *S), of any integer or float type.
        sigmoid: p is the sigmoid of the input.
        softmax: p is the softmax of the input over all its channels.
        other_act: p is ``other_act(input)``.
        w_type: ``"square"`` for 1/V², ``"simple"`` for 1/V, ``"uniform"`` for 1.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for (B, 1, 1, …).
        smooth_nr: ν.
        smooth_dr: δ.
        batch: sum over the batch before dividing: one value in all.
        soft_label: overlap min(p, g) in place of the product, so that p = g is the minimum for soft targets too
            (Wang et al. 2023, Dice semimetric losses).
        ignore_index: voxels with this label take no part, whatever they hold; for a target in one-hot form those
            with a 1 in this channel.
        normalize_weights: divide the weights of an item by their sum, so that ν and δ mean the same at any volume:
            at 96³ voxels w is about 1e-10, and ν = 1e-5 outweighs all data.
        process_group: see DiceLoss.

    Shape:
        input (B, C, *S); target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``; any spatial rank, 0 included.

    Raises:
        TypeError: if ``other_act`` is neither None nor callable, or the input holds no floating-point numbers.
        ValueError: if more than one of ``sigmoid``, ``softmax``, ``other_act`` is given; for an unknown reduction or
            ``w_type``, labels that name no class, an empty input.
        AssertionError: if the shapes of input and target differ (the error is a ValueError, too).

    Warns:
        UserWarning: about the target, as DiceLoss.

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
        **dict.fromkeys(("soft_label", "normalize_weights"), checked_flag),
        "w_type": one_of("square", "simple", "uniform"),
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
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch,
            ignore_index, process_group,
        )  # fmt: skip
        self.w_type = w_type
        self.soft_label = soft_label
        self.normalize_weights = normalize_weights

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        voxels = self.voxels(input, target)
        overlap: Overlap = "minimum" if self.soft_label else "product"
        return self.reduced_fraction(input, voxels, overlap, self.terms(voxels, (2.0, 1.0, 1.0)), self._weigh)

    def _weigh(self, volume: Any) -> tuple[Any]:
        """The weight of each class, of volumes (B or 1, C') in an array or a tensor."""
        xp: Any = np if isinstance(volume, np.ndarray) else torch
        weight = 1 / volume ** {"square": 2, "simple": 1, "uniform": 0}[self.w_type]
        present = xp.isfinite(weight)
        if xp is torch or not present.all():  # the rule; of a few numbers it takes longer than to see that it is idle
            weight = xp.where(present, weight, xp.amax(xp.where(present, weight, 0), axis=1, keepdims=True))
        if self.normalize_weights:
            total = weight.sum(axis=1, keepdims=True)
            weight = xp.where(total > 0, weight / total, 0)
        return (weight,)
