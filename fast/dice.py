"""Dice loss and masked Dice loss; the twin of `reference/dice.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.fraction import fraction
from twinloss.fast.engine.segmentation.loss import ClassWeight, SegmentationLoss, checked_weight, weight_by_class
from twinloss.fast.engine.segmentation.statistics import Activation, Overlap, Statistics
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import Terms
from twinloss.fast.runtime.arguments import ShapeError, check_tensors, checked_flag
from twinloss.fast.runtime.ranks import ProcessGroup
from twinloss.fast.runtime.warn import warn


class DiceLoss(SegmentationLoss):
    r"""One minus the Dice overlap (or the Jaccard index) of prediction and target, for each item and class.

    .. math::
        L = 1 - \frac{2 \sum_i p_i g_i + \nu}{\sum_i p_i + \sum_i g_i + \delta}

    with the squares of p and g in the denominator for ``squared_pred`` (the form of Milletari et al. 2016, section 3)
    and :math:`L = 1 - (2I + \nu) / (2(D - I) + \delta)` for ``jaccard``, where I is the sum of products and D the
    denominator above without δ.

    Args:
        include_background: if False, channel 0 takes no part in the loss (it still does in the softmax).
        to_onehot_y: the target holds labels, (B, 1, *S), of any integer or float type.
        sigmoid: p is the sigmoid of the input.
        softmax: p is the softmax of the input over all its channels.
        other_act: p is ``other_act(input)``.
        squared_pred: squares in the denominator.
        jaccard: Jaccard index in place of Dice.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for (B, C', 1, …), C' the classes that take part.
        smooth_nr: ν.
        smooth_dr: δ; 0 gives NaN for a class absent from both prediction and target.
        batch: sum over the batch before dividing; ``"none"`` then gives (1, C', 1, …).
        weight: a number, or one for each class that takes part.
        soft_label: overlap min(p, g) in place of the product, so that p = g is the minimum for soft targets too
            (Wang et al. 2023, Dice semimetric losses).
        ignore_index: voxels with this label take no part, whatever they hold; for a target in one-hot form those
            with a 1 in this channel.
        process_group: add up the statistics of its ranks, so that all get the loss of all data. A rank holds voxels of
            the same items as the others or, with ``batch=True``, any items of its own; all call forward together. The
            gradient of a rank is that of its own data times the number of ranks: DistributedDataParallel, which takes
            the mean over ranks, makes of it the gradient that one process would have with all data. A copy of the loss
            shares the group. A pickle, as of ``torch.save``, keeps the default group of all ranks by name, and loads
            with that of the process that reads it, or with None and a warning; with any other group it is a TypeError.

    Shape:
        input (B, C, *S); target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``; any spatial rank, 0 included.

    Raises:
        TypeError: if ``other_act`` is neither None nor callable, or the input holds no floating-point numbers.
        ValueError: if more than one of ``sigmoid``, ``softmax``, ``other_act`` is given; for an unknown reduction,
            negative or NaN weights or as many as there are no classes, labels that name no class, an empty input.
        AssertionError: if the shapes of input and target differ (the error is a ValueError, too).

    Warns:
        UserWarning: once for each loss, in one of its first calls, if a target that is not labels lies outside [0, 1],
            or does not sum to 1 over the classes under a softmax.

    Reference:
        Milletari, F. et al. (2016) V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
        Segmentation, 3DV.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> DiceLoss(softmax=True, to_onehot_y=True)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0003)
    """

    option_checks: ClassVar = {
        **SegmentationLoss.option_checks,
        **dict.fromkeys(("squared_pred", "jaccard", "soft_label"), checked_flag),
        "weight": checked_weight,
    }

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        *,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch,
            ignore_index, process_group,
        )  # fmt: skip
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.weight: Any = weight
        self.soft_label = soft_label

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        return self._loss(input, target, None)

    def _loss(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        voxels = self.voxels(input, target, mask)
        if self.weight is None:
            return self.reduced_fraction(input, voxels, self.overlap(), self._terms(voxels))
        sums = voxels.sums(self.activation(input), overlap=self.overlap())
        return self.reduce(self.dice(sums, voxels), input)

    def overlap(self) -> Overlap:
        """Return the kind of overlap, see `Plan`; with squares min(p, g) gives the same sums as the product."""
        return "squared" if self.squared_pred else "minimum" if self.soft_label else "product"

    def dice(self, sums: Statistics, voxels: Voxels) -> Tensor:
        """Return the loss of each item and class that takes part, (B, C') or (1, C'), not yet reduced."""
        loss = fraction(sums.stack, self._terms(voxels))
        return loss if self.weight is None else loss * self.class_weight(loss, voxels)

    def _terms(self, voxels: Voxels) -> Terms:
        # D = 2 TP + FP + FN; Jaccard: 2 (D - I) = 2 TP + 2 (FP + FN).
        errors = 2.0 if self.jaccard else 1.0
        return self.terms(voxels, (2.0, errors, errors), squared=self.squared_pred)

    def class_weight(self, loss: Tensor, voxels: Voxels) -> Tensor:
        """Return the weight of each class that takes part."""
        return weight_by_class(self.weight, loss.shape[1], loss)


class MaskedDiceLoss(DiceLoss):
    """Dice loss of the voxels under a mask.

    The activation comes first, then the mask on prediction and target: voxels where the mask is 0 contribute nothing
    to value or gradient, whatever they hold; a soft mask multiplies both. Arguments, shapes and errors are those of
    :class:`DiceLoss`.
    """

    @entry_point
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss under `mask`, (B, 1, *S) or (1, 1, *S); without one a warning and plain Dice.

        Raises:
            ValueError: if the mask's shape does not fit the input's, or its values lie outside [0, 1].
        """
        if mask is None:
            warn("no mask given: the loss is that of DiceLoss")
        return self._loss(input, target, mask)


class CompoundDiceLoss(DiceLoss):
    """Dice loss beside a cross entropy of the logits; both from one pass where they share an activation."""

    def compound_voxels(self, input: Tensor, target: Tensor) -> Voxels:
        """Return the checked arguments; errors are those that the documentation of the compound losses promises."""
        check_tensors(input=input, target=target)
        if input.ndim != target.ndim:
            raise ShapeError(
                f"input and target must have as many dimensions, got shapes {tuple(input.shape)} and "
                f"{tuple(target.shape)}; labels are (B, 1, *S)"
            )
        if input.ndim >= 2 and target.shape[1] not in (1, input.shape[1]):
            raise ShapeError(
                f"target must have 1 channel or the {input.shape[1]} of the input, got shapes {tuple(input.shape)} and "
                f"{tuple(target.shape)}"
            )
        return self.voxels(input, target)

    def two_sums(self, voxels: Voxels, activation: Activation, plan: dict[str, Any]) -> tuple[Statistics, Statistics]:
        """Return the statistics of the Dice term, and those that the other term's `plan` asks for on its activation."""
        own = self.activation(voxels.input)
        if own == activation or not plan:
            sums = voxels.sums(own, overlap=self.overlap(), **plan)
            return sums, sums
        voxels = voxels.widened()
        return voxels.sums(own, overlap=self.overlap()), voxels.sums(activation, **plan)

    def seen(self, weight: float | tuple[float, ...], voxels: Voxels) -> float | tuple[float, ...]:
        """Return the part of a weight for all classes that belongs to those that take part."""
        classes = voxels.input.shape[1]
        if not isinstance(weight, tuple):
            return weight
        if len(weight) != classes:
            raise ValueError(
                f"weight has {len(weight)} values for {classes} classes: give one for each, background included, or a "
                "single number"
            )
        return weight if voxels.background else weight[1:]

    def class_weight(self, loss: Tensor, voxels: Voxels) -> Tensor:
        """Return the weight of each class that takes part."""
        return weight_by_class(self.seen(self.weight, voxels), loss.shape[1], loss)


Dice = dice = DiceLoss
