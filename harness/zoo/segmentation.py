"""Mutants of the segmentation losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from twinloss import fast, reference
from twinloss.fast.engine.segmentation.loss import checked_weight
from twinloss.fast.kernels.contract import MISSES
from twinloss.harness.losses.segmentation import DICE, FOCAL
from twinloss.harness.model.operand import Array
from twinloss.harness.zoo.mutants import bug, with_gradient_times


def _one_hot(target: Tensor, classes: int) -> Tensor:
    return torch.zeros(target.shape[0], classes, *target.shape[2:], dtype=torch.float64).scatter(1, target.long(), 1)


# The options of Dice that `Plain` supports, and the laws that need no other options.
_NAMES = ("include_background", "to_onehot_y", "sigmoid", "softmax", "other_act", "reduction", "smooth_nr",
          "smooth_dr", "batch")  # fmt: skip
PLAIN: dict[str, Any] = {
    "options": {name: DICE.options[name] for name in _NAMES},
    "laws": tuple(law for law in DICE.laws if set(law.needs) <= set(_NAMES)),
}


class Plain(torch.nn.Module):
    """Correct Dice in plain torch and float64, from which mutants are derived."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.dice: Any = fast.DiceLoss(**options)

    def option(self, name: str) -> Any:
        """Return the value of an option."""
        return getattr(self.dice, name)

    def prediction(self, x: Tensor) -> Tensor:
        """Return the input after the activation."""
        if self.option("other_act"):
            return torch.as_tensor(self.option("other_act")(x))
        if self.option("softmax") and x.shape[1] > 1:
            return x.softmax(1)
        return x.sigmoid() if self.option("sigmoid") else x

    def one_hot(self, target: Tensor, classes: int) -> Tensor:
        """Return the target with one channel per class."""
        labels = self.option("to_onehot_y") and classes > 1
        return _one_hot(target, classes) if labels else target.double()

    def axes(self, p: Tensor) -> list[int]:
        """Return the axes to sum over."""
        return ([0] if self.option("batch") else []) + list(range(2, p.ndim))

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over voxels."""
        axes = self.axes(values)
        return values.sum(axes) if axes else values

    def formula(self, p: Tensor, g: Tensor) -> Tensor:
        """Return the loss of each item and class."""
        overlap, total = self.total(p * g), self.total(p) + self.total(g)
        return 1 - (2 * overlap + self.option("smooth_nr")) / (total + self.option("smooth_dr"))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        p = self.prediction(input.double())
        g = self.one_hot(target, p.shape[1])
        if not self.option("include_background") and p.shape[1] > 1:
            p, g = p[:, 1:], g[:, 1:]
        loss = self.formula(p, g)
        if self.option("batch"):
            loss = loss.reshape(1, -1)
        reduction = self.option("reduction")
        if reduction == "none":
            loss = loss.reshape(*loss.shape[:2], *[1] * (input.ndim - 2))
        else:
            loss = loss.mean() if reduction == "mean" else loss.sum()
        return loss.to(input.dtype)


@bug("dice")
class HalvedGradient(fast.DiceLoss):
    """The value is right, but the gradient is half of the correct one: a factor 2 is missing in backward."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(with_gradient_times(input, 0.5), target)


@bug("dice")
class FlippedSign(fast.DiceLoss):
    """The gradient has the wrong sign: backward was written for the score, not for the loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(with_gradient_times(input, -1.0), target)


@bug("dice", dtype="float32")
class ScaleOfMixedPrecision(fast.DiceLoss):
    """The float32 gradient is too large by a factor of 1.002: the loss scale is rounded to bfloat16 only once."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(with_gradient_times(input, 1 + 2**-9) if input.dtype == torch.float32 else input, target)


@bug("dice")
class WithoutSmoothing(fast.DiceLoss):
    """There is no smooth_dr: an absent class gives 0 / 0, as if the caller had to add the epsilon."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "smooth_dr": 0.0})


@bug("dice")
class OneSmoothingForBoth(fast.DiceLoss):
    """smooth_nr is used in the denominator, too, as in losses with a single epsilon."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "smooth_dr": options.get("smooth_nr", 1e-5)})


@bug("dice")
class DeadBatchFlag(fast.DiceLoss):
    """The option batch=True is accepted and ignored."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "batch": False})


def _pooled(name: str) -> Any:
    function = getattr(reference, name)

    def pooled(*operands: Array, **options: Any) -> Array:
        made: Array = function(*operands, **{**options, "batch": True})
        return made

    return pooled


@bug("tversky", value=_pooled("tversky_loss"), gradient=_pooled("tversky_loss_gradient"))
class PooledByBothAuthors(fast.TverskyLoss):
    """Sums always run over the batch, and the author of the reference misread the paper in the same way."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "batch": True})


@bug("dice_focal")
class LoggedWithDebias(fast.DiceFocalLoss):
    """The value is multiplied by 0.999, as by a running mean for logging; the gradient is right."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        real = target.is_floating_point()
        target = with_gradient_times(target, 1 / 0.999) if real else target
        return super().forward(with_gradient_times(input, 1 / 0.999), target) * 0.999


@bug("dice")
class JaccardThatIsDice(fast.DiceLoss):
    """jaccard=True gives Dice: the flag has no effect on the choice of the formula."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "jaccard": False})


@bug("dice")
class BackgroundKept(fast.DiceLoss):
    """include_background=False does not drop the background."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "include_background": True})


@bug("dice", **PLAIN)
class SumsInHalf(Plain):
    """Sums are in float16, as under careless autocast: adding 1 has no effect beyond 2048."""

    def total(self, values: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().total(values.half()).double()


@bug("dice", **PLAIN)
class DetachedDenominator(Plain):
    """The denominator has no gradient, as if it were constant in a derivation by hand."""

    def formula(self, p: Tensor, g: Tensor) -> Tensor:
        """Compute the wrong loss."""
        overlap, total = self.total(p * g), (self.total(p) + self.total(g)).detach()
        return 1 - (2 * overlap + self.option("smooth_nr")) / (total + self.option("smooth_dr"))


@bug("dice", **PLAIN)
class LabelsFromOne(Plain):
    """Labels are assumed to start at 1, as in Matlab and some data sets; label 0 becomes the last class."""

    def one_hot(self, target: Tensor, classes: int) -> Tensor:
        """Compute the wrong loss."""
        labels = self.option("to_onehot_y") and classes > 1
        return _one_hot((target.long() - 1) % classes, classes) if labels else super().one_hot(target, classes)


@bug("dice", **PLAIN)
class SoftTargetsMadeHard(Plain):
    """A soft target is rounded to 0 or 1, as by a conversion to an integer type."""

    def one_hot(self, target: Tensor, classes: int) -> Tensor:
        """Compute the wrong loss."""
        return super().one_hot(target, classes).round()


@bug("dice", **PLAIN)
class SoftmaxOverVoxels(Plain):
    """softmax(-1) is used: right for (voxels, classes), wrong for (batch, classes, voxels)."""

    def prediction(self, x: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return x.softmax(-1) if self.option("softmax") and x.shape[1] > 1 and x.ndim > 2 else super().prediction(x)


@bug("dice", **PLAIN)
class SqueezedAxes(Plain):
    """The axes are squeezed before the sum: if an axis has size 1, the sum runs over the wrong axes."""

    def total(self, values: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if 1 in values.shape[2:] and values.ndim > 3:
            return values.select(-1, 0).sum(list(range(2, values.ndim - 1)))
        return super().total(values)


@bug("dice", **PLAIN)
class SkippedTail(Plain):
    """The voxels after the last full vector of eight are skipped, as in a kernel without a remainder loop."""

    def total(self, values: Tensor) -> Tensor:
        """Compute the wrong loss."""
        flat = values.flatten(2) if values.ndim > 2 else values.unsqueeze(-1)
        count = flat.shape[-1] // 8 * 8 or flat.shape[-1]
        return flat[..., :count].sum([0, 2] if self.option("batch") else [2])


@bug("dice", **PLAIN)
class IndexOfSixteenBits(Plain):
    """The index of the kernel is an int16: voxels beyond index 32767 are skipped."""

    def total(self, values: Tensor) -> Tensor:
        """Compute the wrong loss."""
        flat = values.flatten(2) if values.ndim > 2 else values.unsqueeze(-1)
        return flat[..., : 2**15].sum([0, 2] if self.option("batch") else [2])


@bug("dice", dtype="float32", full_size=True)
class NumberedByFloats(fast.DiceLoss):
    """Indices are float32, as on old GPUs: beyond 2^24, every other voxel is replaced by its neighbour."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if input.numel() > 2**24:
            taken = torch.arange(input.numel()).float().long().clamp(max=input.numel() - 1)
            input = input.reshape(-1)[taken].reshape(input.shape)
        return super().forward(input, target)


@bug("dice", **PLAIN)
class OneOverTheItems(Plain):
    """reshape(C, -1) of an array (B, C, voxels) mixes the items and classes of a batch."""

    def formula(self, p: Tensor, g: Tensor) -> Tensor:
        """Compute the wrong loss."""
        shape = p.shape
        return super().formula(p.reshape(shape[1], shape[0], -1).transpose(0, 1), g.reshape(shape[0], shape[1], -1))


@bug("dice")
class GradientOfContiguous(fast.DiceLoss):
    """The gradient is right for contiguous input, and 0 for other strides, as in a kernel that ignores strides."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(input if input.is_contiguous() else with_gradient_times(input, 0.0), target)


@bug("masked_dice")
class MaskBeforeActivation(fast.MaskedDiceLoss):
    """The logits are masked, so that a masked voxel becomes sigmoid(0) = 1/2, as in a MONAI release."""

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the wrong loss."""
        if mask is None or self.to_onehot_y:
            return super().forward(input, target, mask)
        finite = input.nan_to_num(nan=0.0)
        return self.within(finite * mask, target * mask, None)


@bug("masked_dice")
class MaskedTargetOnly(fast.MaskedDiceLoss):
    """Only the target is masked: predictions outside the mask count as false positives."""

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the wrong loss."""
        if mask is None or self.to_onehot_y:
            return super().forward(input, target, mask)
        return self.within(input.nan_to_num(nan=0.0), target * mask, None)


@bug("tversky")
class SwappedAlphaAndBeta(fast.TverskyLoss):
    """alpha weights false negatives: papers and libraries differ in the meaning of alpha and beta."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "alpha": options.get("beta", 0.5), "beta": options.get("alpha", 0.5)})


@bug("tversky")
class WeightsDividedByTheirSum(fast.TverskyLoss):
    """The weighted mean divides by the sum of the weights, as torch does: doubled weights do nothing."""

    def __init__(self, **options: Any) -> None:
        weight = options.get("weight")
        share = [each * len(weight) / sum(weight) for each in weight] if isinstance(weight, list) else weight
        super().__init__(**{**options, "weight": share})


@bug("focal_tversky")
class ExponentOfThePaper(fast.FocalTverskyLoss):
    """The exponent is 1/gamma, as in the paper; the code of its authors and many libraries use gamma."""

    def __init__(self, **options: Any) -> None:
        gamma = options.get("gamma", 0.75)
        super().__init__(**{**options, "gamma": [1 / g for g in gamma] if isinstance(gamma, list) else 1 / gamma})


@bug("focal_tversky")
class PowerOfTheMean(fast.FocalTverskyLoss):
    """The power is applied to the mean over the classes, so that classes no longer differ in their focus."""

    def reduce(self, loss: Tensor, input: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if isinstance(self.gamma, tuple) or self.reduction != "mean":
            return super().reduce(loss, input)
        return (super().reduce(loss ** (1 / self.gamma), input)) ** self.gamma


@bug("focal_tversky")
class InfiniteSlopeOfThePower(fast.FocalTverskyLoss):
    """The power is plain: at a loss of 0 its slope is infinite, so that one perfect class makes the gradient NaN."""

    def by_class(self, fractions: Tensor, voxels: Any) -> Tensor:
        """Compute the wrong loss."""
        exponent = torch.as_tensor(self.gamma, dtype=fractions.dtype)
        return fractions**exponent * torch.as_tensor(1.0 if self.weight is None else self.weight)


@bug("matthews_correlation")
class IgnoredVoxelsAreTrueNegatives(fast.MatthewsCorrelationLoss):
    """Voxels that ignore_index excludes count as true negatives, as N is the size of the volume."""

    def _counts(self, voxels: Any) -> Tensor:
        return super()._counts(replace(voxels, ignore_index=None, kept=None))


@bug("matthews_correlation")
class TrueNegativesOfOneItem(fast.MatthewsCorrelationLoss):
    """With batch=True, the true negatives are those of a single item."""

    def _counts(self, voxels: Any) -> Tensor:
        counts = super()._counts(voxels)
        return counts / len(voxels.input) if self.batch else counts


@bug("matthews_correlation")
class AbsentClassWithoutSlope(fast.MatthewsCorrelationLoss):
    """A single smoothing term is added to the product under the root: an absent class has loss 1 and no gradient."""

    def by_class(self, fractions: Tensor, voxels: Any) -> Tensor:
        """Compute the wrong loss."""
        if self.reduction == "none" or self.batch or not voxels.labels:
            return super().by_class(fractions, voxels)
        target = voxels.target.flatten(1)
        classes = range(0 if voxels.background else 1, voxels.input.shape[1])
        present = torch.stack([(target == c).any(1) for c in classes], 1)
        return super().by_class(torch.where(present, fractions, 1.0), voxels)


@bug("generalized_dice")
class WeightsThatCancel(fast.GeneralizedDiceLoss):
    """The loss sums ratios of classes, not numerators and denominators, so weights cancel: seen in many notebooks."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        taken = ("sigmoid", "softmax", "other_act", "to_onehot_y", "include_background", "batch", "soft_label")
        options = {name: getattr(self, name) for name in (*taken, "smooth_nr", "smooth_dr", "ignore_index")}
        per_class = fast.DiceLoss(**options, reduction="none")(input, target)
        return self.reduce(per_class.flatten(1).mean(1, keepdim=True), input)


@bug("generalized_dice")
class AbsentClassesWithoutWeight(fast.GeneralizedDiceLoss):
    """A class that is absent from the target has weight 0: its false positives cost nothing."""

    def _weigh(self) -> Any:
        right = super()._weigh()
        return lambda volume: (right(volume)[0] * (volume > 0),)


@bug("generalized_dice")
class VolumesOfTheBatch(fast.GeneralizedDiceLoss):
    """Weights use the volumes of the whole batch, even if items should be independent."""

    def _weigh(self) -> Any:
        right = super()._weigh()
        return lambda volume: right(volume.sum(axis=0, keepdims=True))


@bug("generalized_wasserstein_dice")
class BroadcastOverTheBatch(fast.GeneralizedWassersteinDiceLoss):
    """(B, 1, voxels) broadcasts with (B, voxels): labels meet the logits of all items, as in a MONAI release."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        made = [
            fast.GeneralizedWassersteinDiceLoss(
                self.dist_matrix, self.weighting_mode, "none", self.smooth_nr, self.smooth_dr,
                ignore_index=self.ignore_index,
            )(x, y.expand(len(x), *y.shape[1:]))
            for x, y in ((input, target[k : k + 1]) for k in range(len(input)))
        ]  # fmt: skip
        loss = torch.stack(made).mean(0)
        return loss if self.reduction == "none" else getattr(loss, self.reduction)()


@bug("generalized_wasserstein_dice")
class MatrixNotNormalized(fast.GeneralizedWassersteinDiceLoss):
    """The distances are squared after they have been divided by the largest."""

    def __init__(self, **options: Any) -> None:
        matrix = np.asarray(options["dist_matrix"], float)
        super().__init__(**{**options, "dist_matrix": (matrix / matrix.max()) ** 2})


@bug("generalized_wasserstein_dice")
class BackgroundCounted(fast.GeneralizedWassersteinDiceLoss):
    """The default mode uses the weights of GDL: alpha of the background is not 0."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "weighting_mode": "GDL"})


@bug("focal")
class BackgroundDroppedFirst(fast.FocalLoss):
    """The background is dropped before the softmax, which then ignores it, as in a MONAI release."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if self.include_background or input.shape[1] < 3 or target.shape[1] == 1 or self.ignore_index is not None:
            return super().forward(input, target)
        whole = fast.FocalLoss(gamma=self.gamma, weight=self.weight, reduction=self.reduction,
                               use_softmax=self.use_softmax, alpha=self.alpha)  # fmt: skip
        return whole(input[:, 1:], target[:, 1:])


@bug("focal")
class FocusOnTheEasy(fast.FocalLoss):
    """Without softmax, p^gamma is used in place of (1 - p)^gamma: easy voxels get the largest weight."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(input, target) if self.use_softmax else super().forward(-input, target)


@bug("focal")
class AlphaTheOtherWayRound(fast.FocalLoss):
    """alpha weights the background, and 1 - alpha the foreground."""

    def __init__(self, **options: Any) -> None:
        alpha = options.get("alpha")
        super().__init__(**{**options, "alpha": 1 - alpha if isinstance(alpha, float) else alpha})


def _alpha_of_2(twin: Callable[..., Array]) -> Callable[..., Array]:
    """Return the reference without its check of alpha, using that the loss is linear in alpha."""

    def made(*operands: Array, alpha: Any = None, **options: Any) -> Array:
        if alpha != 2.0:
            return twin(*operands, alpha=alpha, **options)
        return 2 * twin(*operands, alpha=1.0, **options) - twin(*operands, alpha=0.0, **options)

    return made


@bug(
    "focal", options={**FOCAL.options, "alpha": (None, 2.0)},
    value=_alpha_of_2(reference.focal_loss), gradient=_alpha_of_2(reference.focal_loss_gradient),
)  # fmt: skip
class AlphaBeyondOne(fast.FocalLoss):
    """Both sides accept alpha = 2: negatives have weight 1 - alpha = -1, and the loss has no lower bound."""

    option_checks: ClassVar = {**fast.FocalLoss.option_checks, "alpha": checked_weight}


@bug("focal")
class NoSlopeInATargetOfZero(fast.FocalLoss):
    """Where the target is 0, the gradient with respect to the target is 0, too, as in an early twinloss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        dense = not self.to_onehot_y and target.is_floating_point() and self.ignore_index is None
        return super().forward(input, torch.where(target == 0, 0, target) if dense else target)


@bug("focal", dtype="float32")
class LogOfSoftmax(fast.FocalLoss):
    """log(softmax(x)) is used: it is minus infinity as soon as a probability underflows."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        plain = self.reduction == "mean" and self.weight is None and self.alpha is None
        known = plain and self.include_background and self.ignore_index is None and self.use_softmax
        if not known or input.shape[1] == 1:
            return super().forward(input, target)
        g = _one_hot(target, input.shape[1]).float() if self.to_onehot_y else target.float()
        p = input.float().softmax(1)
        return (-((1 - p) ** self.gamma) * g * torch.log(p)).mean().to(input.dtype)


def _copied(*operands: Array, **options: Any) -> Array:
    made: Array = np.longdouble(1.001) * reference.dice_ce_loss_gradient(*operands, **options)
    return made


@bug("dice_ce", gradient=_copied)
class DerivedAlike(fast.DiceCELoss):
    """Both gradients have the same wrong factor 1.001: one was copied from the other."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(with_gradient_times(input, 1.001), target)


@bug("dice_ce")
class NanChangesTheMean(fast.DiceCELoss):
    """Voxels are counted as the sum of p + (1 - p): a NaN logit changes the divisor, as in an early twinloss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        counted = (~input.isnan().any(1)).double().mean().clamp(min=0.01)
        return super().forward(with_gradient_times(input, float(1 / counted)), target)


@bug("dice_ce", dtype="bfloat16")
class RoundedTermByTerm(fast.DiceCELoss):
    """In half precision, each term rounds its gradient before the two are added, as in an early twinloss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if not self.sigmoid:
            return super().forward(input, target)
        options: dict[str, Any] = {"include_background": self.include_background, "to_onehot_y": self.to_onehot_y}
        options |= {"ignore_index": self.ignore_index, "sigmoid": True}
        dice, ce = fast.DiceCELoss(lambda_ce=0.0, **options), fast.DiceCELoss(lambda_dice=0.0, **options)
        return dice(input, target) + ce(input, target)


@bug("dice_ce")
class MeanOverIgnored(fast.DiceCELoss):
    """The mean of the cross entropy divides by all voxels, including ignored ones: padding reduces the loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if self.ignore_index is None or input.shape[1] == 1:
            return super().forward(input, target)
        from twinloss.fast.engine.segmentation.labels import ignored

        left_out = ignored(target, target.shape[1] == 1, self.ignore_index)
        share = (~left_out).double().mean().to(input.dtype)
        return super().forward(input, target) * share


@bug("dice_ce")
class LambdaOnTheOtherTerm(fast.DiceCELoss):
    """lambda_dice weights the cross entropy, and lambda_ce the Dice term."""

    def __init__(self, **options: Any) -> None:
        swapped = {"lambda_dice": options.get("lambda_ce", 1.0), "lambda_ce": options.get("lambda_dice", 1.0)}
        super().__init__(**{**options, **swapped})


@bug("dice_ce")
class SmoothingForgotten(fast.DiceCELoss):
    """The option label_smoothing is accepted and ignored."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "label_smoothing": 0.0})


@bug("dice_ce")
class SoftmaxOfRegions(fast.DiceCELoss):
    """The cross entropy of overlapping regions is that of a softmax, as with sigmoid=True in every MONAI release."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "multilabel": False})


@bug("dice_ce")
class WeightOnNegatives(fast.DiceCELoss):
    """In a binary problem, the class weight multiplies negatives, too: it no longer balances rare regions."""

    def _cross_entropy(self, sums: Any, voxels: Any) -> Tensor:
        weight = self.ce_weight if self.weight is None else self.weight
        if self._is_binary(voxels) and weight is not None:
            weighted = sums.misses * torch.as_tensor(weight, dtype=torch.float64)
            sums = replace(sums, stack=torch.cat([sums.stack[:MISSES], weighted[None], sums.stack[MISSES + 1 :]]))
        return super()._cross_entropy(sums, voxels)


@bug("dice_focal")
class GammaOfTheDefault(fast.DiceFocalLoss):
    """The option gamma is not passed on to the focal term, which always uses 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "gamma": 2.0})


@bug("dice_focal")
class FocalOfTheActivated(fast.DiceFocalLoss):
    """The focal term gets probabilities in place of logits, because the activation of Dice is applied first."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if not self.sigmoid:
            return super().forward(input, target)
        return super().forward(input.sigmoid(), target)


@bug("generalized_dice_focal")
class WeightOnBothTerms(fast.GeneralizedDiceFocalLoss):
    """The class weights multiply the Dice term, too, whose classes have weights that follow from their volumes."""

    def dice(self, sums: Any, voxels: Any) -> Tensor:
        """Compute the wrong Dice term."""
        dice = super().dice(sums, voxels)
        return dice if self.weight is None else dice * torch.as_tensor(self.weight, dtype=dice.dtype).mean()


@bug("generalized_dice_focal")
class DiceOncePerClass(fast.GeneralizedDiceFocalLoss):
    """The sum adds the Dice term, which pools the classes, once for each class."""

    def dice(self, sums: Any, voxels: Any) -> Tensor:
        """Compute the wrong Dice term."""
        dice = super().dice(sums, voxels)
        return dice.expand(-1, voxels.input.shape[1]) if self.reduction == "sum" else dice


@bug("generalized_dice_focal")
class LambdaOfTheDiceLoss(fast.GeneralizedDiceFocalLoss):
    """lambda_gdl is accepted and ignored, because the base class calls the option lambda_dice."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "lambda_gdl": 1.0})
