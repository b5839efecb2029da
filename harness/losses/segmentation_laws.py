"""Laws of segmentation losses, whose arguments are (B, C or 1, *S)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from twinloss import fast
from twinloss.harness.drawing.segmentation_options import (
    EQUAL_DISTANCES,
    FURTHER,
    LAST_CLASS,
    PER_CHANNEL,
    PER_CLASS,
    has_labels,
)
from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.judging.law_check import both
from twinloss.harness.losses.general_laws import (
    BOUNDED,
    FLIPS,
    MEAN,
    NO_ORDER,
    NONE_MEAN,
    NONE_SUM,
    item,
    needing,
    spatial,
)
from twinloss.harness.model.operand import Array, widened
from twinloss.harness.model.twin import Case, Claim, Law, Twin
from twinloss.reference.steps.segmentation import SegmentationOptions, class_target, kept_voxels


def _permuting_classes(twin: Twin, case: Case) -> Iterator[Claim]:
    classes = case.input.values.shape[1]
    order = np.random.default_rng(0).permutation(classes)
    labels = has_labels(twin, case.options)
    x, target = case.operands["input"].values, case.operands["target"].values
    moved = case.contiguous().with_values(
        input=x[:, order], target=np.argsort(order)[target] if labels else target[:, order]
    )
    if labels:
        moved = moved.with_operand("target", replace(moved.operands["target"], dtype="int64"))
    for name in ("weight", "ce_weight", "focal_weight", "alpha", "gamma"):
        if isinstance(case.options.get(name), list):
            moved = moved.having(**{name: [case.options[name][k] for k in order]})
    if "dist_matrix" in case.options:
        moved = moved.having(dist_matrix=np.array(case.options["dist_matrix"])[np.ix_(order, order)].tolist())
    yield from both(twin, case, moved, lambda g: g[:, np.argsort(order)])


def _adding_a_constant(twin: Twin, case: Case) -> Iterator[Claim]:
    yield from both(twin, case, case.with_values(input=case.input.values + 1))


def _constant_is_exact(case: Case) -> bool:
    x = case.input.values
    quarters = 4 * x[np.isfinite(x)]
    return x.shape[1] > 1 and bool((np.abs(quarters) <= 64).all() and (quarters == np.round(quarters)).all())


def _one_hot_is_labels(twin: Twin, case: Case) -> Iterator[Claim]:
    labels, classes = case.operands["target"], case.input.values.shape[1]
    channels = np.arange(classes).reshape(-1, *[1] * len(spatial(case)))
    one_hot = replace(labels, values=(labels.values == channels).astype(np.int64), layout="contiguous")
    yield from both(twin, case, case.with_operand("target", one_hot).having(to_onehot_y=None))


def _jaccard_of_dice(twin: Twin, case: Case) -> Iterator[Claim]:
    jaccard = case.having(jaccard=True)
    dice = ask_fast(twin, case).value
    sensible = (dice >= 0) & (dice <= 1)
    got = ask_fast(twin, jaccard).value
    yield Claim("value", np.where(sensible, got, 0), np.where(sensible, 2 * dice / (1 + dice), 0), jaccard)


def _softmax_sums_to_zero(twin: Twin, case: Case) -> Iterator[Claim]:
    gradient = ask_fast(twin, case).gradient
    if np.isfinite(gradient).all():
        total = gradient.astype(np.float64).sum(1)
        scale = float(np.abs(gradient).max() * gradient.shape[1])
        yield Claim("gradient", total, np.zeros_like(total), case, scale)


def _cropped(twin: Twin, case: Case, left_out: Array, without: Case) -> Iterator[Claim]:
    """Claim, item by item, that the voxels `left_out`, (B, 1, *S), do not count."""
    for b in range(len(left_out)):
        keep = ~left_out[b, 0].ravel()
        if not keep.any():
            continue
        whole = ask_fast(twin, item(case, b))
        cut = item(without, b).each(lambda v, keep=keep: v.reshape(*v.shape[:2], -1)[:, :, keep])  # type: ignore[misc]
        part = ask_fast(twin, cut)
        gradient = whole.gradient.reshape(*whole.gradient.shape[:2], -1)
        yield Claim("value", whole.value.ravel(), part.value.ravel(), cut)
        yield Claim("gradient", gradient[:, :, keep], part.gradient, cut)
        outside = gradient[:, :, ~keep]
        yield Claim("gradient", outside, np.zeros_like(outside), cut, exact=True)


def _ignoring_is_cropping(twin: Twin, case: Case) -> Iterator[Claim]:
    index, target = case.options["ignore_index"], case.operands["target"].values
    ignored = target == index if target.shape[1] == 1 else target[:, index : index + 1] == 1
    whole = case.having(ignore_index=None).with_values(target=target[:, : case.input.values.shape[1]])
    yield from _cropped(twin, case, ignored, whole)


def _unmasked(case: Case) -> Case:
    return replace(case, operands={k: o for k, o in case.operands.items() if k != "mask"})


def _masking_is_cropping(twin: Twin, case: Case) -> Iterator[Claim]:
    shape = (len(case.input.values), 1, *spatial(case))
    masked = np.broadcast_to(case.operands["mask"].values == 0, shape)
    yield from _cropped(twin, case, masked, _unmasked(case))


def _ones_are_no_mask(twin: Twin, case: Case) -> Iterator[Claim]:
    ones = np.ones_like(case.operands["mask"].values)
    masked, plain = ask_fast(twin, case.with_values(mask=ones)), ask_fast(twin, _unmasked(case))
    yield Claim("value", masked.value, plain.value, case.with_values(mask=ones))
    yield Claim("gradient", masked.gradient, plain.gradient, case.with_values(mask=ones))


def _several_classes(case: Case) -> bool:
    return bool(case.input.values.shape[1] > 1)


def _classes_are_counted(case: Case) -> bool:
    """Return whether a weighted mean has a nonzero sum of weights; a soft target may hold no class at all."""
    options = SegmentationOptions(**{k: v for k, v in case.options.items() if k in ("to_onehot_y", "ignore_index")})
    x, target = case.input.values, case.operands["target"].values
    counted = np.where(kept_voxels(x, target, options), class_target(x, target, options), 0)
    return _several_classes(case) and bool(counted.any())


def _leaves_errors(case: Case) -> bool:
    """Return whether an activation keeps the prediction from being perfect, where a power has no slope."""
    return bool(case.options.get("sigmoid")) or (bool(case.options.get("softmax")) and _several_classes(case))


def _hard_mask(case: Case) -> bool:
    mask = case.operands["mask"].values
    return bool(((mask == 0) | (mask == 1)).all())


def _tversky_is_dice(twin: Twin, case: Case) -> Iterator[Claim]:
    doubled = {name: 2 * case.options.get(name, twin.options[name][0]) for name in ("smooth_nr", "smooth_dr")}
    dice = replace(case, options={k: v for k, v in case.options.items() if k not in ("alpha", "beta")} | doubled)
    yield from _same(twin, case, replace(twin, fast=fast.DiceLoss), dice)


def _power_of_one_is_tversky(twin: Twin, case: Case) -> Iterator[Claim]:
    given = {"alpha": 0.3, "beta": 0.7} | {k: v for k, v in case.options.items() if k != "gamma"}
    yield from _same(twin, case, replace(twin, fast=fast.TverskyLoss), replace(case, options=given))


def _power_of_two_is_the_square(twin: Twin, case: Case) -> Iterator[Claim]:
    squared = case.having(gamma=2.0)
    loss = ask_fast(twin, case).value.astype(np.float64)
    yield Claim("value", ask_fast(twin, squared).value, loss**2, squared, float(np.max(np.abs(loss), initial=0)))


def _negated(twin: Twin, case: Case) -> Iterator[Claim]:
    target = case.operands["target"].values
    other = case.with_values(input=-case.input.values, target=1 - target)
    yield from both(twin, case, other, lambda gradient: -gradient)


def _zeros_and_ones(case: Case) -> bool:
    target = case.operands["target"].values
    return bool(((target == 0) | (target == 1)).all()) and case.operands["target"].dtype != "bool"


def _twice_the_voxels(twin: Twin, case: Case) -> Iterator[Claim]:
    here = ask_fast(twin, case)
    both_halves = case.each(lambda v: np.concatenate([v, v], axis=2))
    there = ask_fast(twin, both_halves)
    yield Claim("value", there.value, here.value, both_halves)
    n = case.input.values.shape[2]
    yield Claim("gradient", there.gradient[:, :, :n].astype(np.float64) * 2, here.gradient, both_halves)


def _has_axes(case: Case) -> bool:
    return bool(spatial(case))


def _hard_is_correlation(twin: Twin, case: Case) -> Iterator[Claim]:
    hard = case.with_values(input=np.round(case.input.values))
    p, g = (hard.operands[name].values.astype(np.longdouble) for name in ("input", "target"))
    p, g = (v.reshape(*v.shape[:2], -1) - v.reshape(*v.shape[:2], -1).mean(2, keepdims=True) for v in (p, g))
    with np.errstate(all="ignore"):
        want = 1 - (p * g).sum(2) / np.sqrt((p**2).sum(2) * (g**2).sum(2))
    want, got = want.ravel(), ask_fast(twin, hard).value.ravel()
    defined = np.isfinite(want) & np.isfinite(got)
    yield Claim("value", np.where(defined, got, 0), np.where(defined, want, 0), hard, 1.0)


def _in_the_unit_interval(case: Case) -> bool:
    x = case.input.values
    return _zeros_and_ones(case) and bool(((x >= 0) & (x <= 1)).all())


def _uniform_is_pooled_dice(twin: Twin, case: Case) -> Iterator[Claim]:
    pooled = case.each(lambda v: v.reshape(len(v), 1, -1)).having(w_type=None)
    yield from _same(twin, case, replace(twin, fast=fast.DiceLoss), pooled)


def _same(twin: Twin, case: Case, other: Twin, question: Case) -> Iterator[Claim]:
    """Claim that another loss gives the same answer, up to the shape of its arguments."""
    here, there = ask_fast(twin, case), ask_fast(other, question)
    yield Claim("value", here.value.ravel(), there.value.ravel(), case)
    yield Claim("gradient", here.gradient.ravel(), there.gradient.ravel(), case)


def _generalized_dice_alone(twin: Twin, case: Case) -> Iterator[Claim]:
    names = inspect.signature(fast.GeneralizedDiceLoss).parameters
    dice = replace(case, options={name: value for name, value in case.options.items() if name in names})
    yield from _same(twin, case, replace(twin, fast=fast.GeneralizedDiceLoss), dice)


def _focal_is_cross_entropy(twin: Twin, case: Case) -> Iterator[Claim]:
    x, labels = (operand.tensor() for operand in case.operands.values())
    x = x.double().requires_grad_()
    want = torch.nn.functional.cross_entropy(x, labels[:, 0].long()) / x.shape[1]
    weights = torch.tensor(case.weights(()), dtype=torch.float64, device=x.device)
    (gradient,) = torch.autograd.grad(want, x, weights)
    got = ask_fast(twin, case)
    # torch subtracts terms of size 1: x - log(sum of exp), and p - g divided by the number of voxels.
    yield Claim("value", got.value, widened(want), case, scale=1.0 + want.item())
    scale = float(weights.abs().max()) / labels.numel()
    yield Claim("gradient", got.gradient, widened(gradient), case, scale=scale)


def _finite_in_channels(case: Case) -> bool:
    x, target = (case.operands[name].values for name in ("input", "target"))
    return x.shape == target.shape and bool(np.isfinite(x).all())


def _regions_are_binary_cross_entropy(twin: Twin, case: Case) -> Iterator[Claim]:
    x, target = (operand.tensor().double() for operand in case.operands.values())
    want = torch.nn.functional.binary_cross_entropy_with_logits(x.requires_grad_(), target)
    weights = torch.tensor(case.weights(()), dtype=torch.float64, device=x.device)
    (gradient,) = torch.autograd.grad(want, x, weights)
    got = ask_fast(twin, case)
    # torch subtracts terms of size |x|, and p - g divided by the number of logits.
    size = float(np.abs(case.input.values).mean())
    yield Claim("value", got.value, widened(want), case, scale=1.0 + size)
    yield Claim("gradient", got.gradient, widened(gradient), case, scale=float(weights.abs().max()) / x.numel())


def _regions_are_focal_without_focus(twin: Twin, case: Case) -> Iterator[Claim]:
    focal = replace(case, options={"use_softmax": False, "gamma": 0.0})
    yield from _same(twin, case, replace(twin, fast=fast.FocalLoss), focal)


def _regions_are_independent(twin: Twin, case: Case) -> Iterator[Claim]:
    x, target = (case.operands[name].values for name in ("input", "target"))
    classes = range(x.shape[1])
    answers = [ask_fast(twin, case.with_values(input=x[:, [c]], target=target[:, [c]])) for c in classes]
    here, values = ask_fast(twin, case), [answer.value.astype(np.float64) for answer in answers]
    yield Claim("value", here.value, np.mean(values, axis=0), case, scale=float(np.mean(np.abs(values))))
    gradient = np.concatenate([answer.gradient.astype(np.float64) for answer in answers], axis=1)
    yield Claim("gradient", here.gradient, gradient / len(classes), case)


def _one_region_is_binary(twin: Twin, case: Case) -> Iterator[Claim]:
    yield from both(twin, case, case.having(multilabel=None))


def _one_channel(case: Case) -> bool:
    return bool(case.input.values.shape[1] == 1)


def _wasserstein_of_equal_distances(twin: Twin, case: Case) -> Iterator[Claim]:
    """With equal distances, W = 1 - p of the true class, so that the loss is a simple fraction of sums over voxels."""
    x, labels = case.operands["input"].values.astype(np.longdouble), case.operands["target"].values
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    true = labels == np.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
    overlap = 2 * (p * true)[:, 1:].reshape(len(x), -1).sum(1)
    errors = (p * ~true).reshape(len(x), -1).sum(1)
    given = twin.defaults() | dict(case.options)
    with np.errstate(all="ignore"):
        want = (errors + given["smooth_dr"] - given["smooth_nr"]) / (overlap + errors + given["smooth_dr"])
    yield Claim("value", ask_fast(twin, case).value, want, case)


def _scales_with(option: str) -> Callable[[Twin, Case], Iterator[Claim]]:
    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        here, there = ask_fast(twin, case), ask_fast(twin, _doubled(case, option))
        yield Claim("value", there.value, 2 * here.value.astype(np.float64), case)
        yield Claim("gradient", there.gradient, 2 * here.gradient.astype(np.float64), case)

    return claims


def _ignores_the_scale_of(option: str) -> Callable[[Twin, Case], Iterator[Claim]]:
    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        yield from both(twin, case, _doubled(case, option))

    return claims


def _doubled(case: Case, option: str) -> Case:
    return case.having(**{option: [2 * w for w in case.options[option]]})


def _sum_of_means_over_voxels(twin: Twin, case: Case) -> Iterator[Claim]:
    each = ask_fast(twin, case).value.astype(np.longdouble)  # NumPy sums along an outer axis naively
    summed = case.having(reduction="sum")
    means = each.reshape(*each.shape[:2], -1).mean(2)
    yield Claim("value", ask_fast(twin, summed).value, np.asarray(means.sum()), summed, float(np.abs(means).sum()))


def _integer_labels(case: Case) -> bool:
    return _several_classes(case) and case.operands["target"].values.dtype.kind in "iu"


ONE_HOT = Law(
    "labels equal their one-hot form", _one_hot_is_labels, {"to_onehot_y": True, "ignore_index": None}, _several_classes
)
CROPPING = Law("ignored voxels can be cropped", _ignoring_is_cropping, {"ignore_index": LAST_CLASS})

CROPPING_BY_CHANNEL = Law(
    "voxels that a further channel marks can be cropped", _ignoring_is_cropping,
    {"ignore_index": FURTHER, "to_onehot_y": False},
)  # fmt: skip
CLASSES = Law(
    "the order of classes does not matter", _permuting_classes,
    {"include_background": True, "ignore_index": None, "reduction": "mean", "weighting_mode": "GDL"},
    _several_classes,
)  # fmt: skip
SOFTMAX = (
    Law("a constant added to all logits changes nothing", _adding_a_constant, {"softmax": True, "use_softmax": True},
        _constant_is_exact),
    Law("gradients under a softmax sum to zero", _softmax_sums_to_zero, {"softmax": True, "use_softmax": True},
        _several_classes),
)  # fmt: skip
SEGMENTATION = (
    BOUNDED, MEAN, NO_ORDER, FLIPS, NONE_MEAN, NONE_SUM, ONE_HOT, CROPPING, CROPPING_BY_CHANNEL, CLASSES, *SOFTMAX,
)  # fmt: skip
WEIGHT = (Law("a doubled weight doubles the loss", _scales_with("weight"), {"weight": PER_CLASS}),)
JACCARD = (
    Law("Jaccard is 2D / (1 + D)", _jaccard_of_dice,
        {"jaccard": False, "smooth_nr": 0.0, "smooth_dr": 0.0, "weight": None, "reduction": "none"}),
)  # fmt: skip
MASKED = (
    Law("a mask of ones has no effect", _ones_are_no_mask),
    Law("masked voxels can be cropped", _masking_is_cropping, {}, _hard_mask),
)
TVERSKY = (Law("alpha = beta = 1/2 is Dice", _tversky_is_dice, {"alpha": 0.5, "beta": 0.5}),)
FOCAL_TVERSKY = (
    Law("gamma = 1 is Tversky", _power_of_one_is_tversky, {"gamma": 1.0, "smooth_nr": 0.0}, _leaves_errors),
    Law("gamma = 2 gives the square of gamma = 1", _power_of_two_is_the_square,
        {"gamma": 1.0, "weight": None, "reduction": "none"}),
)  # fmt: skip
_UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}
MATTHEWS_CORRELATION = (
    Law("foreground and background may be swapped", _negated,
        {"sigmoid": True, "to_onehot_y": False, "ignore_index": None}, _zeros_and_ones),
    Law("twice the voxels give the same loss", _twice_the_voxels, _UNSMOOTHED, _has_axes),
    Law("of hard predictions it is one minus Pearson's correlation", _hard_is_correlation,
        {**_UNSMOOTHED, "sigmoid": False, "softmax": False, "other_act": None, "to_onehot_y": False, "batch": False,
         "include_background": True, "ignore_index": None, "weight": None, "reduction": "none"}, _in_the_unit_interval),
)  # fmt: skip
GENERALIZED = (
    Law("uniform weights give the Dice loss pooled over classes", _uniform_is_pooled_dice,
        {"w_type": "uniform", "normalize_weights": False, "softmax": False, "to_onehot_y": False,
         "include_background": True, "ignore_index": None}),
)  # fmt: skip
WASSERSTEIN = (
    BOUNDED, MEAN, NO_ORDER, FLIPS, NONE_MEAN, NONE_SUM, CROPPING, CLASSES, *SOFTMAX,
    Law("with equal distances the loss has a closed form", _wasserstein_of_equal_distances,
        {"dist_matrix": EQUAL_DISTANCES, "weighting_mode": "default", "ignore_index": None, "reduction": "none"}),
)  # fmt: skip
# The focal loss has one value per voxel. Its "sum" adds up the means of the items. If voxels are ignored or weighted,
# its mean is one weighted mean over the batch.
FOCAL = (
    BOUNDED, needing(MEAN, ignore_index=None), *(needing(law, reduction="mean") for law in (NO_ORDER, FLIPS)),
    needing(NONE_MEAN, ignore_index=None), ONE_HOT,
    *(needing(law, reduction="mean") for law in (CROPPING, CROPPING_BY_CHANNEL)), needing(CLASSES, alpha=None),
    *SOFTMAX, *WEIGHT,
    Law("gamma = 0 is cross entropy", _focal_is_cross_entropy,
        {"gamma": 0.0, "use_softmax": True, "alpha": None, "weight": None, "reduction": "mean", "to_onehot_y": True,
         "include_background": True, "ignore_index": None}, _integer_labels),
    Law("sum adds up the means over voxels", _sum_of_means_over_voxels, {"reduction": "none", "ignore_index": None}),
)  # fmt: skip
_SUM_OF_MEANS = Law(
    "sum adds up the means over voxels", _sum_of_means_over_voxels,
    {"reduction": "none", "ignore_index": None, "batch": False},
)  # fmt: skip
DICE_FOCAL = (
    BOUNDED, needing(MEAN, ignore_index=None), *(needing(law, reduction="mean") for law in (NO_ORDER, FLIPS)),
    needing(NONE_MEAN, ignore_index=None), ONE_HOT,
    *(needing(law, reduction="mean") for law in (CROPPING, CROPPING_BY_CHANNEL)), needing(CLASSES, alpha=None),
    *SOFTMAX,
    Law("a doubled weight doubles the loss", _scales_with("weight"), {"weight": PER_CHANNEL}),
    _SUM_OF_MEANS,
)  # fmt: skip
GENERALIZED_DICE_FOCAL = (
    *(needing(law, lambda_gdl=0.0) if law is _SUM_OF_MEANS else law for law in DICE_FOCAL if "weight" not in law.needs),
    Law("without the focal term it is generalised Dice", _generalized_dice_alone,
        {"lambda_focal": 0.0, "lambda_gdl": 1.0, "reduction": "mean"}),
)  # fmt: skip
_REGIONS = {"multilabel": True, "sigmoid": True, "to_onehot_y": False, "weight": None, "ce_weight": None,
            "ignore_index": None, "reduction": "mean"}  # fmt: skip
_ENTROPY = {**_REGIONS, "lambda_dice": 0.0, "lambda_ce": 1.0, "label_smoothing": 0.0}
DICE_CE = (
    BOUNDED, needing(MEAN, ignore_index=None, weight=None, ce_weight=None, to_onehot_y=True), NO_ORDER, FLIPS, ONE_HOT,
    CROPPING, CROPPING_BY_CHANNEL, CLASSES, *SOFTMAX,
    Law("regions have torch's binary cross entropy", _regions_are_binary_cross_entropy, _ENTROPY, _finite_in_channels),
    Law("regions have the sigmoid focal loss with gamma = 0", _regions_are_focal_without_focus, _ENTROPY,
        _finite_in_channels),
    Law("regions are independent", _regions_are_independent, {**_REGIONS, "include_background": True}),
    Law("one region is a binary problem", _one_region_is_binary, {"multilabel": True, "sigmoid": True}, _one_channel),
    Law("the scale of ce_weight does not change the mean", _ignores_the_scale_of("ce_weight"),
        {"ce_weight": PER_CHANNEL, "weight": None, "reduction": "mean", "multilabel": False}, _classes_are_counted),
)  # fmt: skip
