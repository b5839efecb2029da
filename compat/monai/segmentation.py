"""Segmentation losses with the arguments of MONAI 1.6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twinloss import fast
from twinloss.fast.engine.segmentation.labels import checked_labels
from twinloss.fast.engine.segmentation.loss import ClassWeight, SegmentationLoss
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import FN, FP, TP, VOLUME
from twinloss.fast.runtime.warn import warn


class _NoAxisOfTheBatch(SegmentationLoss):
    """Loss whose result without reduction is (C', 1, …), and not (1, C', 1, …), if `batch` pools the items."""

    def reduced(self, loss: Tensor, ndim: int) -> Tensor:
        made = super().reduced(loss, ndim)
        return made.squeeze(0) if self.reduction == "none" and self.batch else made


class _NoAxes(_NoAxisOfTheBatch):
    """Loss whose result without reduction is (B, C'), or (C',) if `batch` pools the items."""

    def reduced(self, loss: Tensor, ndim: int) -> Tensor:
        return super().reduced(loss, 2)


class DiceLoss(_NoAxisOfTheBatch, fast.DiceLoss):
    """Dice loss, see `twinloss.fast.DiceLoss`."""

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
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, weight=weight, soft_label=soft_label, ignore_index=ignore_index, **options,
        )  # fmt: skip


class MaskedDiceLoss(DiceLoss, fast.MaskedDiceLoss):
    """Dice loss of the voxels within a mask, see `twinloss.fast.MaskedDiceLoss`."""


class TverskyLoss(_NoAxes, fast.TverskyLoss):
    """Tversky loss, see `twinloss.fast.TverskyLoss`; without reduction, its values are (B, C')."""

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
        soft_label: bool = False,
        ignore_index: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, alpha, beta, reduction, smooth_nr, smooth_dr,
            batch, soft_label=soft_label, ignore_index=ignore_index, **options,
        )  # fmt: skip


class MCCLoss(_NoAxes, fast.MatthewsCorrelationLoss):
    """Matthews correlation loss, see `twinloss.fast.MatthewsCorrelationLoss`, with another smoothing.

    It is 1 - (TP TN - FP FN + ν) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN) + δ), and 0 for a perfect prediction.
    Without reduction, its values are (B, C'). A class that is absent from the target has a loss without a gradient.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch,
            **options,
        )  # fmt: skip

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        voxels = self.voxels(input, target, mask)
        sums = voxels.sums(self.activation(input), overlap="minimum" if self.soft_label else "product").stack
        rows = sums if voxels.background else sums[:, :, 1:]
        if self.batch:
            rows = rows.sum(1, keepdim=True)
        tp, fp, fn, volume = (rows[row] for row in (TP, FP, FN, VOLUME))
        tn = self._counts(voxels) - volume - fp
        perfect = (fp == 0) & (fn == 0)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn) + self.smooth_dr
        # Where the product is 0, the slope of its root is NaN, also behind a `where`.
        correlation = (tp * tn - fp * fn + self.smooth_nr) / torch.where(perfect, 1, product).sqrt()
        losses = self.by_class(torch.where(perfect, 0, 1 - correlation), voxels)
        return self.answer(losses, losses, input)


class GeneralizedDiceLoss(_NoAxisOfTheBatch, fast.GeneralizedDiceLoss):
    """Generalised Dice loss, see `twinloss.fast.GeneralizedDiceLoss`."""

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
        soft_label: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, w_type, reduction, smooth_nr, smooth_dr,
            batch, soft_label=soft_label, **options,
        )  # fmt: skip


class FocalLoss(fast.FocalLoss):
    """Focal loss, by default of a sigmoid for each channel, see `twinloss.fast.FocalLoss`.

    With `use_softmax=True` and `include_background=False`, the background is removed before the softmax, and a number
    as `alpha` is ignored. With two channels, the softmax keeps the background, because one channel has none.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: ClassWeight | None = None,
        weight: ClassWeight | None = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, gamma, weight, reduction, use_softmax=use_softmax, alpha=alpha,
            ignore_index=ignore_index, **options,
        )  # fmt: skip

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        if self.include_background or not self.use_softmax:
            return super().within(input, target, mask)
        voxels = self.voxels(input, target, mask)
        if voxels.input.shape[1] < 3:
            return super().within(input, target, mask)
        focal = self.remembered("foreground", self._of_foreground)
        return focal.within(*_foreground(voxels), voxels.weights())

    def _of_foreground(self) -> fast.FocalLoss:
        alpha = self.alpha
        if isinstance(alpha, float):
            warn("with include_background=False and use_softmax=True, `alpha` is ignored: pass one value per class")
            alpha = None
        return _ForegroundFocalLoss(gamma=self.gamma, weight=self.weight, reduction=self.reduction, alpha=alpha)


class _ForegroundFocalLoss(fast.FocalLoss):
    def exclusive(self, background: bool) -> tuple[bool, bool]:
        """Return True, as the classes exclude each other, and False, as the background does not count."""
        return True, False


def _foreground(voxels: Voxels) -> tuple[Tensor, Tensor]:
    """Return input and dense target of the foreground, with 0 in excluded voxels."""
    x, target = voxels.cleaned()
    if voxels.labels:
        target = torch.zeros_like(x).scatter(1, checked_labels(target, x.shape[1], None), 1.0)
    return x[:, 1:], target[:, 1:]


class DiceCELoss(fast.DiceCELoss):
    """Dice loss plus cross entropy, see `twinloss.fast.DiceCELoss`.

    As in torch, the mean of the cross entropy divides by the number of voxels if the target has a channel for each
    class, and by their summed weights if it has labels.
    """

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
        weight: ClassWeight | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, lambda_dice=lambda_dice, lambda_ce=lambda_ce, weight=weight,
            label_smoothing=label_smoothing, **options,
        )  # fmt: skip

    def is_per_voxel(self, voxels: Voxels) -> bool:
        """Return whether the mean of the cross entropy divides by a number of voxels."""
        return not voxels.labels or super().is_per_voxel(voxels)


class _WeightOfIncludedClasses(fast.DiceFocalLoss):
    """A loss whose `weight` has a value for each class that is not excluded."""

    def seen(self, weight: float | tuple[float, ...], voxels: Voxels) -> float | tuple[float, ...]:
        return weight


class DiceFocalLoss(_WeightOfIncludedClasses):
    """Dice loss plus focal loss of a sigmoid for each channel, see `twinloss.fast.DiceFocalLoss`.

    `weight` has a value for each class that is not excluded.
    """

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
        gamma: float = 2.0,
        weight: ClassWeight | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: ClassWeight | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, gamma, lambda_dice=lambda_dice, lambda_focal=lambda_focal, weight=weight, alpha=alpha,
            **{"use_softmax": False, **options},
        )  # fmt: skip


class GeneralizedDiceFocalLoss(_WeightOfIncludedClasses, fast.GeneralizedDiceFocalLoss):
    """Generalised Dice loss plus focal loss of a sigmoid, see `twinloss.fast.GeneralizedDiceFocalLoss`.

    `weight` has a value for each class that is not excluded.
    """

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
        gamma: float = 2.0,
        weight: ClassWeight | None = None,
        lambda_gdl: float = 1.0,
        lambda_focal: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, w_type, reduction, smooth_nr, smooth_dr,
            batch, gamma, weight, lambda_gdl, lambda_focal, **{"use_softmax": False, **options},
        )  # fmt: skip
