"""Dice loss and masked Dice loss; the twin of `reference/dice.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.fraction import fraction
from twinloss.fast.engine.segmentation.loss import (
    ClassWeight,
    ClassWeightedLoss,
    Fraction,
    numbers_by_class,
    weight_by_class,
    with_parts,
)
from twinloss.fast.engine.segmentation.parts import DiceCEParts, DiceFocalParts
from twinloss.fast.engine.segmentation.statistics import Activation, Overlap, Statistics
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import ClassWeights, Terms
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError, check_tensors, checked_flag
from twinloss.fast.runtime.ranks import ProcessGroup
from twinloss.fast.runtime.warn import warn


class DiceLoss(ClassWeightedLoss):
    r"""Dice loss: one minus the Dice overlap of prediction and target, for each item and class.

    .. math::
        L = 1 - \frac{2 \sum_i p_i g_i + \nu}{\sum_i p_i + \sum_i g_i + \delta}

    Here p is the prediction, g the target and i the voxel. With ``squared_pred``, the denominator has the squares of p
    and g (Milletari et al. 2016, section 3). With ``jaccard``, the loss is one minus the Jaccard index,
    :math:`L = 1 - (2I + \nu) / (2(D - I) + \delta)`, where I is the sum of the products and D is the denominator above
    without δ.

    Args:
        include_background: if False, channel 0 is excluded from the loss. The softmax still includes it.
        to_onehot_y: the target holds class labels, (B, 1, *S), of any integer or floating-point type.
        sigmoid: p is the sigmoid of the input.
        softmax: p is the softmax of the input over all its channels.
        other_act: p is ``other_act(input)``.
        squared_pred: sum the squares of p and g in the denominator.
        jaccard: use the Jaccard index instead of the Dice overlap.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each item and class, (B, C', 1, …), where C' is
            the number of classes that are not excluded.
        smooth_nr: ν, the smoothing term of the numerator.
        smooth_dr: δ, the smoothing term of the denominator. If it is 0, the loss of a class that is absent from both
            prediction and target is not finite.
        batch: sum over all items of the batch before the division. ``"none"`` then gives (1, C', 1, …).
        weight: factor on the loss: a number, or a list with one for each class that is not excluded.
        soft_label: use min(p, g) as the overlap instead of the product p g. The minimum of the loss is then at p = g
            for soft targets, too (Wang et al. 2023, Dice semimetric losses).
        ignore_index: voxels with this label are excluded, whatever values they hold. If the target has a channel
            for each class, these are the voxels with a 1 in this channel. The value C stands for an additional channel
            of the target, which is then (B, C + 1, *S).
        process_group: sum the statistics over the ranks of this group, so that every rank returns the loss of all data.
            All ranks must call ``forward`` together. With ``batch=True`` each rank may hold different items; otherwise
            the ranks hold different voxels of the same items. The gradient of a rank is the gradient of its own data
            times the number of ranks. DistributedDataParallel averages over the ranks, which gives the gradient that a
            single process with all data would compute. A copy of the loss shares the group. ``torch.save`` and pickle
            store the default group by its name; loading takes the default group of the loading process, or warns and
            takes None if there is none. Other groups cannot be pickled, and raise a TypeError.
        return_parts: return a tuple of the loss and :class:`~twinloss.fast.ClassParts`, the losses of the classes. They
            are detached from the graph, for logging, and take no further pass over the voxels.

    Shape:
        input (B, C, *S); target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``. Any number of spatial axes is allowed,
        including none.

    Raises:
        TypeError: if ``other_act`` is neither None nor callable, or if the input is not a floating-point tensor.
        ValueError: if more than one of ``sigmoid``, ``softmax`` and ``other_act`` is given; if the reduction is
            unknown; if weights are negative, NaN or not one for each class; if the input is empty; on the CPU, if a
            label is not a class. On other devices, the loss is then NaN, unless ``TWINLOSS_CHECK=1`` is set.
        AssertionError: if the shapes of input and target do not match. The error is also a ValueError.

    Warns:
        UserWarning: if a dense target (without ``to_onehot_y``) has values outside [0, 1] or, with a softmax, does not
            sum to 1 over the classes. Only the first calls check this, and each loss object warns once.

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
        **ClassWeightedLoss.option_checks,
        **dict.fromkeys(("squared_pred", "jaccard", "soft_label"), checked_flag),
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
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch,
            ignore_index, process_group, return_parts,
        )  # fmt: skip
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.weight = weight
        self.soft_label = soft_label

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def overlap(self) -> Overlap:
        """Return the kind of overlap; `squared_pred` comes first, as it sums the same with min(p, g) as with p g."""
        return "squared" if self.squared_pred else "minimum" if self.soft_label else "product"

    def fraction(self, voxels: Voxels) -> Fraction:
        """Return the fraction of each item and class."""
        return Fraction(self.overlap(), self.dice_terms(voxels))

    def dice_terms(self, voxels: Voxels) -> Terms:
        """Return the terms of the fraction."""
        # With I = TP, the denominator is D = 2 TP + FP + FN, or with `jaccard` 2 (D - I) = 2 TP + 2 (FP + FN).
        errors = 2.0 if self.jaccard else 1.0
        return self.terms(voxels, (2.0, errors, errors), squared=self.squared_pred)


class MaskedDiceLoss(DiceLoss):
    """Dice loss of the voxels within a mask.

    The mask multiplies the prediction, after the activation, and the target. It may be soft, with values in [0, 1].
    Voxels where it is 0 contribute nothing to the value or the gradient, even if the input is NaN there. Labels must be
    classes there, too. Arguments, shapes and errors are the same as in :class:`DiceLoss`.
    """

    @entry_point
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss within `mask`, (B, 1, *S) or (1, 1, *S). Without a mask, warn and return the Dice loss.

        Raises:
            ValueError: if the shape of the mask does not match the input, or, on the CPU, if its values lie outside
                [0, 1]. On other devices, the loss is then NaN, unless ``TWINLOSS_CHECK=1`` is set.
        """
        if mask is None:
            warn("no mask given: the loss is that of DiceLoss")
        return self.within(input, target, mask)


class CompoundDiceLoss(DiceLoss):
    """Base class of the losses that add a cross entropy or focal term to the Dice loss.

    If both terms use the same activation, one pass over the voxels computes their statistics.
    """

    def compound_voxels(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Voxels:
        """Check the arguments of `forward`, with the errors that the compound losses document."""
        check_tensors(input=input, target=target)
        if input.ndim != target.ndim:
            raise ShapeError(
                f"input and target must have as many dimensions, got shapes {tuple(input.shape)} and "
                f"{tuple(target.shape)}; labels are (B, 1, *S)"
            )
        marks_ignored = input.ndim >= 2 and self.ignore_index == input.shape[1] == target.shape[1] - 1
        if input.ndim >= 2 and target.shape[1] not in (1, input.shape[1]) and not marks_ignored:
            raise ShapeError(
                f"target must have 1 channel or the {input.shape[1]} of the input, got shapes {tuple(input.shape)} and "
                f"{tuple(target.shape)}"
            )
        return self.voxels(input, target, mask)

    def two_sums(self, voxels: Voxels, activation: Activation, plan: dict[str, Any]) -> tuple[Statistics, Statistics]:
        """Return the statistics of the Dice term, and those of the other term.

        The other term needs the statistics that `plan` lists, of the prediction by `activation`. If `plan` is empty,
        both are the statistics of the Dice term.
        """
        own = self.activation(voxels.input)
        if own == activation or not plan:
            sums = voxels.sums(own, overlap=self.overlap(), **plan)
            return sums, sums
        voxels = voxels.widened()
        return voxels.sums(own, overlap=self.overlap()), voxels.sums(activation, **plan)

    def total(self, parts: DiceCEParts | DiceFocalParts, input: Tensor) -> Tensor:
        """Return the sum of the two terms, and with `return_parts` a tuple of it and the terms."""
        first, second = parts
        loss = (first + second).to(dispatch.result_type(input))
        return with_parts(loss, parts) if self.return_parts else loss

    def fractions(self, voxels: Voxels, factor: float) -> tuple[float | None, ...]:
        """Return the factor of the fraction of each class in the reduced loss, None for one that is not included."""
        items, classes = voxels.input.shape[:2]
        included = classes if voxels.background else classes - 1
        share = factor / (included * (1 if self.batch else items) if self.reduction == "mean" else 1)
        weights = numbers_by_class(None if self.weight is None else self.seen(self.weight, voxels), included)
        return (*[None] * (classes - included), *(share * weight for weight in weights))

    def dice(self, sums: Statistics, voxels: Voxels) -> Tensor:
        """Return the unreduced Dice loss of each item and included class, (B, C'), or (1, C') with `batch`."""
        return self.by_class(fraction(sums.stack, self.dice_terms(voxels)), voxels)

    def weigh(self) -> ClassWeights | None:
        """Return the function that computes class weights from volumes, if the fraction pools the classes."""
        return None

    def seen(self, weight: float | tuple[float, ...], voxels: Voxels) -> float | tuple[float, ...]:
        """Return the weight of the included classes, given one for all classes or a single number."""
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
        """Return the weight of each included class."""
        return weight_by_class(self.seen(self.weight, voxels), loss.shape[1], loss)


Dice = dice = DiceLoss
