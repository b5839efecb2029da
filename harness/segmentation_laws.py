"""Laws of segmentation losses, whose arguments are (B, C or 1, *S)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from twinloss.harness.answers import ask_fast
from twinloss.harness.laws import Claim, Law, both
from twinloss.harness.segmentation import LAST_CLASS
from twinloss.harness.twin import Array, Case, Twin


def _spatial(case: Case) -> tuple[int, ...]:
    return case.input.values.shape[2:]


def _item(case: Case, b: int) -> Case:
    return case.each(lambda v: v[b : b + 1] if len(v) > 1 else v)


def _batch_is_mean(twin: Twin, case: Case) -> Iterator[Claim]:
    whole = ask_fast(twin, case)
    items = [ask_fast(twin, _item(case, b)) for b in range(len(case.input.values))]
    if any(np.isinf(item.value).any() for item in items):
        return  # half precision holds the mean, but not each
    yield Claim("value", np.mean([item.value for item in items], 0), whole.value, case)
    yield Claim("gradient", np.concatenate([item.gradient for item in items]) / len(items), whole.gradient, case)


def _permuting_voxels(twin: Twin, case: Case) -> Iterator[Claim]:
    order = np.random.default_rng(0).permutation(int(np.prod(_spatial(case))))

    def moved(values: Array) -> Array:
        return np.asarray(values.reshape(*values.shape[:2], -1)[:, :, order].reshape(values.shape))

    def back(gradient: Array) -> Array:
        made = np.empty_like(gradient).reshape(*gradient.shape[:2], -1)
        made[:, :, order] = gradient.reshape(made.shape)
        return made.reshape(gradient.shape)

    yield from both(twin, case, case.each(moved), back)


def _flipping_axes(twin: Twin, case: Case) -> Iterator[Claim]:
    def flipped(values: Array) -> Array:
        return np.flip(values, tuple(range(2, values.ndim)))

    yield from both(twin, case, case.each(flipped), flipped)


def _permuting_classes(twin: Twin, case: Case) -> Iterator[Claim]:
    classes = case.input.values.shape[1]
    order = np.random.default_rng(0).permutation(classes)
    labels = bool(case.options.get("to_onehot_y"))
    x, target = case.operands["input"].values, case.operands["target"].values
    moved = case.contiguous().with_values(
        input=x[:, order], target=np.argsort(order)[target] if labels else target[:, order]
    )
    if labels:
        moved = moved.with_operand("target", replace(moved.operands["target"], dtype="int64"))
    weight = case.options.get("weight")
    if isinstance(weight, list):
        moved = moved.having(weight=[weight[k] for k in order])
    yield from both(twin, case, moved, lambda g: g[:, np.argsort(order)])


def _adding_a_constant(twin: Twin, case: Case) -> Iterator[Claim]:
    yield from both(twin, case, case.with_values(input=case.input.values + 1))


def _constant_is_exact(case: Case) -> bool:
    x = case.input.values
    quarters = 4 * x[np.isfinite(x)]
    return x.shape[1] > 1 and bool((np.abs(quarters) <= 64).all() and (quarters == np.round(quarters)).all())


def _one_hot_is_labels(twin: Twin, case: Case) -> Iterator[Claim]:
    labels, classes = case.operands["target"], case.input.values.shape[1]
    channels = np.arange(classes).reshape(-1, *[1] * len(_spatial(case)))
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
    """That the voxels `left_out`, (B, 1, *S), take no part: item by item, as they keep different numbers of voxels."""
    for b in range(len(left_out)):
        keep = ~left_out[b, 0].ravel()
        if not keep.any():
            continue
        whole = ask_fast(twin, _item(case, b))
        cut = _item(without, b).each(lambda v, keep=keep: v.reshape(*v.shape[:2], -1)[:, :, keep])  # type: ignore[misc]
        part = ask_fast(twin, cut)
        gradient = whole.gradient.reshape(*whole.gradient.shape[:2], -1)
        yield Claim("value", whole.value.ravel(), part.value.ravel(), cut)
        yield Claim("gradient", gradient[:, :, keep], part.gradient, cut)
        outside = gradient[:, :, ~keep]
        yield Claim("gradient", outside, np.zeros_like(outside), cut, exact=True)


def _ignoring_is_cropping(twin: Twin, case: Case) -> Iterator[Claim]:
    index, target = case.options["ignore_index"], case.operands["target"].values
    ignored = target == index if target.shape[1] == 1 else target[:, index : index + 1] == 1
    yield from _cropped(twin, case, ignored, case.having(ignore_index=None))


def _unmasked(case: Case) -> Case:
    return replace(case, operands={k: o for k, o in case.operands.items() if k != "mask"})


def _masking_is_cropping(twin: Twin, case: Case) -> Iterator[Claim]:
    shape = (len(case.input.values), 1, *_spatial(case))
    masked = np.broadcast_to(case.operands["mask"].values == 0, shape)
    yield from _cropped(twin, case, masked, _unmasked(case))


def _ones_are_no_mask(twin: Twin, case: Case) -> Iterator[Claim]:
    ones = np.ones_like(case.operands["mask"].values)
    masked, plain = ask_fast(twin, case.with_values(mask=ones)), ask_fast(twin, _unmasked(case))
    yield Claim("value", masked.value, plain.value, case.with_values(mask=ones))
    yield Claim("gradient", masked.gradient, plain.gradient, case.with_values(mask=ones))


def _reduces(name: str) -> Callable[[Twin, Case], Iterator[Claim]]:
    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        each = ask_fast(twin, case).value.astype(np.float64)
        reduced = case.having(reduction=name)
        scale = float(np.abs(each).mean() if name == "mean" else np.abs(each).sum())
        want = np.asarray(each.mean() if name == "mean" else each.sum())
        yield Claim("value", ask_fast(twin, reduced).value, want, reduced, scale)

    return claims


def _several_items(case: Case) -> bool:
    return len(case.input.values) > 1


def _several_classes(case: Case) -> bool:
    return bool(case.input.values.shape[1] > 1)


def _hard_mask(case: Case) -> bool:
    mask = case.operands["mask"].values
    return bool(((mask == 0) | (mask == 1)).all())


SEGMENTATION = (
    Law("a batch is the mean of its items", _batch_is_mean, {"batch": False, "reduction": "mean"}, _several_items),
    Law("voxels have no order", _permuting_voxels),
    Law("axes have no direction", _flipping_axes),
    Law("none.mean() is mean", _reduces("mean"), {"reduction": "none"}),
    Law("none.sum() is sum", _reduces("sum"), {"reduction": "none"}),
    Law("labels are their one-hot form", _one_hot_is_labels, {"to_onehot_y": True, "ignore_index": None},
        _several_classes),
    Law("ignored voxels might be cut out", _ignoring_is_cropping, {"ignore_index": LAST_CLASS}),
    Law("classes have no order", _permuting_classes,
        {"include_background": True, "ignore_index": None, "reduction": "mean"}, _several_classes),
    Law("softmax is blind to a constant", _adding_a_constant, {"softmax": True}, _constant_is_exact),
    Law("softmax gradients sum to zero", _softmax_sums_to_zero, {"softmax": True}, _several_classes),
)  # fmt: skip
JACCARD = (
    Law("Jaccard is 2D / (1 + D)", _jaccard_of_dice,
        {"jaccard": False, "smooth_nr": 0.0, "smooth_dr": 0.0, "weight": None, "reduction": "none"}),
)  # fmt: skip
MASKED = (
    Law("a mask of ones is no mask", _ones_are_no_mask),
    Law("masked voxels might be cut out", _masking_is_cropping, {}, _hard_mask),
)
