"""Focal loss; the twin of `reference/focal.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.compound import compound, is_served
from twinloss.fast.engine.segmentation.labels import checked_mask
from twinloss.fast.engine.segmentation.loss import (
    ClassWeight,
    SegmentationLoss,
    checked_weight,
    mean_of,
    numbers_by_class,
    weight_by_class,
)
from twinloss.fast.engine.segmentation.plain import focal_terms
from twinloss.fast.engine.segmentation.statistics import Activation, Statistics, Surprisal
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import CompoundPlan
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import checked_flag
from twinloss.fast.runtime.options import Check, Rule, checked_number, fixed
from twinloss.fast.runtime.warn import warn

Weight = float | tuple[float, ...] | None


def _checked_alpha(value: Any, name: str) -> Weight:
    alpha = checked_weight(value, name)
    if isinstance(alpha, float) and alpha > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got {alpha}: 1 - {name} is the weight of the other class, and a negative "
            "weight makes the loss unbounded below. For arbitrary weights, pass a list with one for each class"
        )
    return alpha


def shares_in_binary_form(alpha: Weight, use_softmax: bool) -> None:
    """Raise if the binary form would give the negatives of some class a negative weight 1 - α."""
    if not use_softmax and isinstance(alpha, tuple) and max(alpha, default=0) > 1:
        raise ValueError(
            "alpha must lie in [0, 1] in the binary form (use_softmax=False, or one channel), got "
            f"{list(alpha)}: 1 - alpha is the weight of negatives, and a negative weight makes the loss unbounded "
            "below. For arbitrary class weights, use weight"
        )


FOCAL_CHECKS: Mapping[str, Check] = {
    "gamma": checked_number,
    "alpha": _checked_alpha,
    "use_softmax": checked_flag,
}
FOCAL_RULES: tuple[Rule, ...] = ((("alpha", "use_softmax"), shares_in_binary_form),)


@dataclass
class FocalTerm:
    """The focal loss as a function of the statistics of the voxels, for FocalLoss and DiceFocalLoss."""

    gamma: float
    alpha: Weight
    use_softmax: bool

    def activation(self, channels: int) -> Activation:
        """Return the activation. One channel takes a sigmoid, because a softmax of one channel is constant."""
        return "softmax" if self.use_softmax and channels > 1 else "sigmoid"

    def warn(self, input: Tensor) -> None:
        """Warn that `use_softmax` is ignored if the input has one channel.

        Raises:
            ValueError: if α is not valid in the binary form, which one channel takes.
        """
        if self.use_softmax and input.shape[1] == 1:
            shares_in_binary_form(self.alpha, use_softmax=False)
            warn("single channel prediction, `use_softmax=True` ignored")

    def plan(self) -> dict[str, Any]:
        """Return the options of `Voxels.sums` for the statistics that the term needs."""
        surprisal: Surprisal = "target"
        return {"surprisal": surprisal, "gamma": self.gamma}

    def weighted(self, hits: Tensor, misses: Tensor, voxels: Voxels, weight: Weight) -> Tensor:
        """Return the weighted sum of the terms of each included class.

        `hits` and `misses` are (B, C, …): the terms of positives and of negatives. A softmax has no term of negatives.
        """
        binary = self.activation(hits.shape[1]) == "sigmoid"
        if not voxels.background:
            hits, misses = hits[:, 1:], misses[:, 1:]
        classes = hits.shape[1]
        shape = (1, -1, *[1] * (hits.ndim - 2))
        if self.alpha is not None:
            positive = weight_by_class(self.alpha, classes, hits, "alpha").expand(classes)
            negative = 1 - positive
            if not binary and not isinstance(self.alpha, tuple) and voxels.background:
                positive = torch.cat([negative[:1], positive[1:]])
            hits, misses = positive.reshape(shape) * hits, negative.reshape(shape) * misses
        loss = hits + misses if binary else hits
        if weight is not None:
            scale = weight_by_class(weight, classes, hits)
            loss = loss * (scale.reshape(shape) if scale.ndim else scale)
        return loss

    def unreduced(self, voxels: Voxels, weight: Any) -> Tensor:
        """Return the loss of each voxel and included class, (B, C', *S)."""
        x, target = voxels.cleaned()
        hits, misses = focal_terms(x, target, self.activation(x.shape[1]), self.gamma, voxels.labels)
        loss, taken, mask = self.weighted(hits, misses, voxels, weight), voxels.taking_part(), voxels.mask
        if mask is not None and mask.dtype != torch.bool:
            loss = checked_mask(mask, loss) * loss
        return loss if taken is None else torch.where(taken, loss, 0)

    def reduced(self, sums: Statistics, voxels: Voxels, reduction: str, weight: Any) -> Tensor:
        """Return the mean over all voxels and classes, or the sum over items and classes of the mean over voxels."""
        totals = self.weighted(sums.hits, sums.misses, voxels, weight)
        counts = voxels.counts()
        if reduction == "mean":
            return mean_of(totals.sum(), counts.sum() * totals.shape[1])
        return mean_of(totals.sum(1), counts).sum()

    def is_whole(self, voxels: Voxels, dice: object = None) -> bool:
        """Return whether kernels compute the whole loss, of which `dice` has the Dice term, or None without one.

        How many voxels are ignored must then follow from volumes.
        """
        methods = () if dice is None else ("dice", "by_class", "total", "reduced", "class_weight")
        return (voxels.ignore_index is None or voxels.labels) and is_served(voxels, dice, methods)

    def whole(
        self, voxels: Voxels, reduction: str, weight: Any, factor: float = 1.0
    ) -> tuple[tuple[float | None, ...], tuple[float | None, ...], tuple[float, ...], bool]:
        """Return hits, misses, volumes and `by_item` of the `CompoundPlan` of `reduced`, times a factor."""
        items, classes = voxels.input.shape[:2]
        binary, mean = self.activation(classes) == "sigmoid", reduction == "mean"
        counted = classes if voxels.background else classes - 1
        positive: Sequence[float] = (1.0,) * counted
        negative = positive
        if self.alpha is not None:
            positive = numbers_by_class(self.alpha, counted, "alpha")
            negative = [1 - a for a in positive]
            if not binary and not isinstance(self.alpha, tuple) and voxels.background:
                positive = [negative[0], *positive[1:]]
        scale = numbers_by_class(weight, counted)
        volumes: tuple[float, ...] = (counted if mean else 1.0,) * classes
        if voxels.ignore_index is None:
            volumes, factor = (), factor / (voxels.input[0, 0].numel() * (items * counted if mean else 1))
        out = [None] * (classes - counted)
        hits = *out, *(factor * a * w for a, w in zip(positive, scale, strict=True))
        misses = *out, *(factor * a * w if binary else None for a, w in zip(negative, scale, strict=True))
        return hits, misses, volumes, not mean

    def slopes(self, voxels: Voxels, reduction: str, weight: Any) -> Tensor:
        """Return the derivative of `reduced` with respect to the hits of each item and class, (B, C)."""
        each = torch.ones(voxels.input.shape[:2], dtype=torch.float64, device=voxels.input.device)
        added = self.weighted(each, 0 * each, voxels, weight)
        counts = voxels.counts()
        added = added / (counts.sum() * added.shape[1] if reduction == "mean" else counts.unsqueeze(1))
        return torch.nn.functional.pad(added, (each.shape[1] - added.shape[1], 0))


class FocalLoss(SegmentationLoss):
    r"""Focal loss: the cross entropy of each class, with less weight on voxels that are already predicted well.

    .. math::
        FL_{ic} = -\alpha_c (1 - p_{ic})^\gamma\, g_{ic} \log p_{ic}, \quad p = \mathrm{softmax}(x)

    Here i is the voxel and c the class (Lin et al. 2017, eq. 5, with a softmax as in Zhu et al. 2018). With
    ``use_softmax=False``, each channel is a binary problem with :math:`p = \sigma(x)`, and the loss also has the term
    of the negatives, :math:`-(1 - \alpha_c)\, p^\gamma (1 - g) \log(1 - p)`.

    Args:
        include_background: if False, channel 0 is excluded from the loss. The softmax still includes it.
        to_onehot_y: the target holds class labels, (B, 1, *S), of any integer or floating-point type.
        gamma: γ, the focusing exponent. With 0, the loss is the cross entropy.
        weight: factor on all terms of a class: a number, or a list with one for each class that is not excluded.
        reduction: ``"mean"`` over voxels and classes; ``"sum"`` over items and classes of the mean over voxels, as in
            every release of MONAI, which keeps the loss on the scale of a Dice term; or ``"none"`` for a value for each
            voxel and class, (B, C', *S), where C' is the number of classes that are not excluded.
        use_softmax: if False, treat each channel as a binary problem. One channel is always binary, and if this is True
            the loss warns.
        alpha: class balance. A number α in [0, 1] weights the foreground by α and the background by 1 - α, or in the
            binary form positives by α and negatives by 1 - α. A list has a value :math:`\alpha_c` for each class that
            is not excluded. In the binary form the values must lie in [0, 1]; with a softmax, where only
            :math:`\alpha_c` occurs, they must be at least 0.
        ignore_index: voxels with this label are excluded, whatever values they hold. Means are over the other voxels.

    Shape:
        input (B, C, *S), logits; target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``. Any number of spatial axes is
        allowed, including none.

    Raises:
        TypeError: if the input is not a floating-point tensor.
        ValueError: if the reduction is unknown; if γ is negative; if α would give a term a negative weight; if weights
            are negative, NaN or not one for each class; if a label is not a class; if the input is empty.
        AssertionError: if the shapes of input and target do not match. The error is also a ValueError.

    Warns:
        UserWarning: about the values of the target, as in DiceLoss.

    Reference:
        Lin, T. et al. (2017) Focal Loss for Dense Object Detection, ICCV.
        Zhu, W. et al. (2018) AnatomyNet: Deep learning for fast and fully automated whole-volume segmentation of head
        and neck anatomy, Medical Physics.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> FocalLoss(to_onehot_y=True)(logits, torch.tensor([[0], [1], [0]]))
        tensor(0.0113)
    """

    option_checks: ClassVar = {
        **SegmentationLoss.option_checks,
        **FOCAL_CHECKS,
        "weight": checked_weight,
        **dict.fromkeys(("sigmoid", "softmax", "batch", "return_parts"), fixed(False)),
        **dict.fromkeys(("other_act", "process_group"), fixed(None)),
        **dict.fromkeys(("smooth_nr", "smooth_dr"), fixed(0)),
    }
    option_rules: ClassVar = FOCAL_RULES

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        weight: ClassWeight | None = None,
        reduction: str = "mean",
        *,
        use_softmax: bool = True,
        alpha: ClassWeight | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(include_background, to_onehot_y, False, False, None, reduction, 0, 0, False, ignore_index)
        self.gamma = gamma
        self.weight: Any = weight
        self.use_softmax = use_softmax
        self.alpha: Any = alpha

    def exclusive(self, background: bool) -> tuple[bool, bool]:
        """Return whether a softmax makes the classes exclude each other, and whether the background counts."""
        return self.use_softmax, background

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        term = FocalTerm(self.gamma, self.alpha, self.use_softmax)
        voxels = self.voxels(input, target, mask)
        term.warn(input)
        if self.reduction == "none":
            return term.unreduced(voxels, self.weight).to(dispatch.result_type(input))
        arguments = voxels, self.reduction, self.weight
        kind = dispatch.result_type(input)
        if term.is_whole(voxels):
            plan = voxels.plan(term.activation(input.shape[1]), **term.plan())
            asked = CompoundPlan(plan, None, (), *term.whole(*arguments), kind)
            return compound(voxels, asked, lambda sums: term.reduced(sums, *arguments).to(kind))
        slopes = partial(term.slopes, *arguments)
        sums = voxels.sums(term.activation(input.shape[1]), slopes=slopes, **term.plan())
        return term.reduced(sums, *arguments).to(kind)
