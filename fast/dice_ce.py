"""Dice + cross entropy loss; the twin of `reference/dice_ce.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.dice import CompoundDiceLoss
from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.compound import compound, is_served
from twinloss.fast.engine.segmentation.labels import checked_labels
from twinloss.fast.engine.segmentation.loss import (
    ClassWeight,
    checked_weight,
    mean_of,
    numbers_by_class,
    times,
    weight_by_class,
)
from twinloss.fast.engine.segmentation.parts import DiceCEParts
from twinloss.fast.engine.segmentation.statistics import Activation, Statistics, Surprisal
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import CompoundPlan
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import checked_flag
from twinloss.fast.runtime.options import Rule, checked_number, checked_reduction
from twinloss.fast.runtime.ranks import ProcessGroup
from twinloss.fast.runtime.warn import warn_once


def _checked_reduction(value: Any, name: str) -> str:
    reduction: str = checked_reduction(value, name)
    if reduction == "none":
        raise ValueError(
            f'{name} must be "mean" or "sum", got {value!r}: the Dice loss has no value for a single voxel'
        )
    return reduction


def _checked_smoothing(value: Any, name: str) -> float:
    smoothing = checked_number(value, name)
    if smoothing > 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return smoothing


def _no_softmax(multilabel: bool, softmax: bool) -> None:
    if multilabel and softmax:
        raise ValueError(
            "softmax=True makes the classes exclude each other, and multilabel=True lets them overlap: give one of them"
        )


def _has_regions(multilabel: bool, sigmoid: bool, other_act: Callable[[Tensor], Tensor] | None) -> None:
    if multilabel and not sigmoid and other_act is None:
        raise ValueError(
            "multilabel=True takes the input as logits, and the Dice term needs their probabilities: pass "
            "sigmoid=True, or another activation as other_act"
        )


def _one_weight(weight: ClassWeight | None, ce_weight: ClassWeight | None) -> None:
    if weight is not None and ce_weight is not None:
        raise ValueError("weight goes to both terms and ce_weight to the cross entropy only: give one of them")


class DiceCELoss(CompoundDiceLoss):
    r"""Weighted sum of Dice loss and cross entropy, from one pass over the voxels.

    .. math::
        L = \lambda_\mathrm{dice}\, L_\mathrm{Dice}(\mathrm{act}(x)) + \lambda_\mathrm{ce}\, \mathrm{CE}(x), \quad
        \mathrm{CE}(x) = \frac{-\sum_i \sum_c w_c\, g_{ic} \log \mathrm{softmax}(x_i)_c}{\sum_i \sum_c w_c\, g_{ic}}

    The cross entropy is always computed from the logits of all classes. The activation and ``include_background`` apply
    to the Dice term only, which is :class:`~twinloss.fast.DiceLoss`.

    With ``multilabel=True``, the classes are regions that may overlap, such as the whole tumour and its core. Each
    channel is then a binary problem, and with N voxels

    .. math::
        \mathrm{CE}(x) = \frac{-1}{NC} \sum_i \sum_c
        \bigl( w_c\, g_{ic} \log \sigma(x_{ic}) + (1 - g_{ic}) \log (1 - \sigma(x_{ic})) \bigr)

    An input of one channel is always such a problem.

    Args:
        include_background: see DiceLoss.
        to_onehot_y: see DiceLoss.
        sigmoid: see DiceLoss.
        softmax: see DiceLoss.
        other_act: see DiceLoss.
        squared_pred: see DiceLoss.
        jaccard: see DiceLoss.
        reduction: ``"mean"`` or ``"sum"``, for both terms.
        smooth_nr: see DiceLoss.
        smooth_dr: see DiceLoss.
        batch: see DiceLoss.
        ce_weight: w, the class weights of the cross entropy: a number, or a list with one for each class. In a binary
            problem, it is the weight of the positives.
        lambda_dice: weight of the Dice term, at least 0.
        lambda_ce: weight of the cross entropy, at least 0.
        weight: class weights of both terms: a number, or a list with one for each class, including the background.
        soft_label: see DiceLoss.
        ignore_index: see DiceLoss.
        label_smoothing: ε in [0, 1]. The target of the cross entropy becomes (1 - ε) g + ε/C, as in
            ``torch.nn.CrossEntropyLoss``; in a binary problem it becomes (1 - ε) g + ε/2.
        multilabel: whether the classes may overlap. It needs ``sigmoid=True``, or another activation as ``other_act``.
        process_group: see DiceLoss.
        return_parts: return a tuple of the loss and :class:`~twinloss.fast.DiceCEParts`, its two terms, which are
            detached from the graph, for logging.

    Raises:
        TypeError: as in DiceLoss.
        ValueError: as in DiceLoss; if the reduction is ``"none"``, since the Dice loss has no value for a single voxel;
            if λ is negative; if ε lies outside [0, 1]; if both ``weight`` and ``ce_weight`` are given; if
            ``multilabel`` is given with ``softmax``, or without an activation; if input and target have different
            numbers of axes; if the target has neither 1 channel nor as many as the input.

    Warns:
        UserWarning: once, if several channels are given with ``sigmoid=True`` but without ``multilabel=True``, because
            the cross entropy is then that of a softmax. Also about the values of the target, as in DiceLoss.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> DiceCELoss(softmax=True, to_onehot_y=True)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0007)
    """

    option_checks: ClassVar = {
        **CompoundDiceLoss.option_checks,
        **dict.fromkeys(("lambda_dice", "lambda_ce"), checked_number),
        "reduction": _checked_reduction,
        "ce_weight": checked_weight,
        "label_smoothing": _checked_smoothing,
        "multilabel": checked_flag,
    }
    option_rules: ClassVar[tuple[Rule, ...]] = (
        *CompoundDiceLoss.option_rules,
        (("weight", "ce_weight"), _one_weight),
        (("multilabel", "softmax"), _no_softmax),
        (("multilabel", "sigmoid", "other_act"), _has_regions),
    )

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
        ce_weight: ClassWeight | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        *,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        multilabel: bool = False,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, weight=weight, soft_label=soft_label, ignore_index=ignore_index,
            process_group=process_group, return_parts=return_parts,
        )  # fmt: skip
        self.ce_weight: Any = ce_weight
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.label_smoothing = label_smoothing
        self.multilabel = multilabel

    def exclusive(self, background: bool) -> tuple[bool, bool]:
        """Return whether a softmax makes the classes exclude each other, and whether the background counts."""
        return not self.multilabel, True  # the cross entropy includes the background

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        voxels = self.compound_voxels(input, target, mask)
        binary = self._is_binary(voxels)
        if self.sigmoid and not binary:
            warn_once(
                self, "sigmoid",
                "sigmoid=True applies to the Dice term only, and the cross entropy is that of a softmax over "
                f"{input.shape[1]} classes: pass multilabel=True if the classes may overlap",
            )  # fmt: skip
        activation: Activation = "sigmoid" if binary else "softmax"
        surprisal: Surprisal = "all" if self.label_smoothing else "target"
        if binary and self.label_smoothing > 0:
            voxels = voxels.widened()
            dice_sums, _ = self.two_sums(voxels, activation, {})
            ce_sums = self._smoothed(voxels).sums(activation, surprisal="target")
        else:
            if self.activation(input) == activation and self._is_whole(voxels):
                asked = self._whole(voxels, activation, surprisal)
                return compound(voxels, asked, lambda sums: self.total(self._parts(sums, sums, voxels), input))
            dice_sums, ce_sums = self.two_sums(voxels, activation, {"surprisal": surprisal})
        return self.total(self._parts(dice_sums, ce_sums, voxels), input)

    def _is_binary(self, voxels: Voxels) -> bool:
        """Return whether each channel is a binary problem."""
        return self.multilabel or voxels.input.shape[1] == 1

    def is_per_voxel(self, voxels: Voxels) -> bool:
        """Return whether the mean of the cross entropy divides by a number of voxels, not by the volumes of classes."""
        return self._is_binary(voxels)

    def _parts(self, dice_sums: Statistics, ce_sums: Statistics, voxels: Voxels) -> DiceCEParts:
        """Return both terms, given the statistics of each."""
        dice = self.reduced(self.dice(dice_sums, voxels), voxels.input.ndim)
        return DiceCEParts(times(self.lambda_dice, dice), times(self.lambda_ce, self._cross_entropy(ce_sums, voxels)))

    def _is_whole(self, voxels: Voxels) -> bool:
        """Return whether kernels compute the whole loss; the number of voxels, if needed, must then be known."""
        known = not self.is_per_voxel(voxels) or (voxels.ignore_index is None and voxels.kept is None)
        methods = ("dice", "by_class", "total", "reduced", "class_weight", "_cross_entropy", "_parts")
        return known and not self.return_parts and is_served(voxels, self, methods)

    def _whole(self, voxels: Voxels, activation: Activation, surprisal: Surprisal) -> CompoundPlan:
        x, smoothing, mean = voxels.input, self.label_smoothing, self.reduction == "mean"
        classes, binary, per_voxel = x.shape[1], self._is_binary(voxels), self.is_per_voxel(voxels)
        name, weight = ("ce_weight", self.ce_weight) if self.weight is None else ("weight", self.weight)
        weights = numbers_by_class(weight, classes, name)
        factor = self.lambda_ce / ((x.numel() if binary else x[:, 0].numel()) if mean and per_voxel else 1)
        hits = tuple(factor * (1 - smoothing) * w for w in weights)
        misses: tuple[float | None, ...] = (factor if binary else None,) * classes
        if smoothing:
            misses = tuple(factor * smoothing / classes * w for w in weights)
        plan = voxels.plan(activation, overlap=self.overlap(), surprisal=surprisal)
        volumes, fractions = () if per_voxel or not mean else weights, self.fractions(voxels, self.lambda_dice)
        kind = dispatch.result_type(x)
        return CompoundPlan(plan, self.dice_terms(voxels), fractions, hits, misses, volumes, False, kind)

    def _smoothed(self, voxels: Voxels) -> Voxels:
        """Return the voxels with the smoothed target (1 - ε) g + ε/2 of a binary problem."""
        x, target = voxels.cleaned()
        if voxels.labels:
            target = torch.zeros_like(x).scatter(1, checked_labels(target, x.shape[1], None), 1.0)
        smoothed = (1 - self.label_smoothing) * target.double() + self.label_smoothing / 2
        return voxels.having(input=x, target=smoothed, mask=voxels.weights(), ignore_index=None, labels=False)

    def _cross_entropy(self, sums: Statistics, voxels: Voxels) -> Tensor:
        classes = sums.hits.shape[1]
        weight = self.ce_weight if self.weight is None else self.weight
        w: Tensor | float = 1.0
        if weight is not None:
            w = weight_by_class(weight, classes, sums.hits, "ce_weight" if self.weight is None else "weight")
        if self._is_binary(voxels):
            total, count = (w * sums.hits + sums.misses).sum(), classes * voxels.counts().sum()
        else:
            smoothing, hits = self.label_smoothing, sums.hits
            if smoothing:
                hits = (1 - smoothing) * hits + smoothing / classes * sums.misses
            volume = sums.volume
            if weight is not None:
                hits, volume = w * hits, w * volume
            total, count = hits.sum(), voxels.counts().sum() if self.is_per_voxel(voxels) else volume.sum()
        return total if self.reduction == "sum" else mean_of(total, count)
