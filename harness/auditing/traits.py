"""Traits of a failing case, each of which can be taken away; those that cannot are the cause of the failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twinloss.harness.drawing.input_kinds import rounded
from twinloss.harness.drawing.segmentation_options import has_labels, is_activated
from twinloss.harness.hunting.conventions import CONVENTIONS, of_one_type
from twinloss.harness.model.operand import DTYPES, Array, Operand
from twinloss.harness.model.twin import Case, Twin

_NEUTRAL = {each.name: each.neutral for each in CONVENTIONS}


@dataclass(frozen=True)
class Trait:
    """A trait of a case: its name, and a function that returns the case without it, or None if it has it not."""

    name: str
    without: Callable[[Twin, Case], Case | None]


def reduced(twin: Twin, case: Case) -> Iterator[tuple[str, Case]]:
    """Yield the traits and options of a case that can be taken away, each with the case that lacks it."""
    yield from _present(REDUCED, twin, case)
    for name in case.options:
        simpler = without_option(twin, case, name)
        # Of two classes without the background, one is left: that is a trait of its own.
        two = case.input.values.shape[1] == 2
        if simpler is not None and not (name == "include_background" and two and _one_class_left(twin, case)):
            yield f"`{name}`", simpler


def probed(twin: Twin, case: Case) -> Iterator[tuple[str, Case]]:
    """Yield the traits that small cases have anyway, each with a larger case that lacks it."""
    yield from _present(PROBED, twin, case)


def _present(traits: tuple[Trait, ...], twin: Twin, case: Case) -> Iterator[tuple[str, Case]]:
    for trait in traits:
        simpler = trait.without(twin, case)
        if simpler is not None:
            yield trait.name, simpler


def without_option(twin: Twin, case: Case, name: str) -> Case | None:
    """Return the case with an option at the peer's default, or None if it has this default or needs a value."""
    default = twin.options[name][0]
    if callable(getattr(default, "make", None)) or _alike(case.options[name], default):
        return None
    made = case.having(**{name: default if name in twin.required else None})
    if name in ("sigmoid", "softmax", "other_act") and not is_activated(made.options, case.input.values.shape[1]):
        made = _as_probabilities(made)
    if name == "to_onehot_y" and has_labels(twin, case.options):
        made = _one_hot(made)
    return made if twin.allowed(twin.defaults() | dict(made.options)) else None


def _alike(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(np.all(np.asarray(a == b)))


def _as_probabilities(case: Case) -> Case:
    """Return the case with its logits as probabilities, in eighths."""
    x = case.input.values
    with np.errstate(over="ignore"):
        return case.with_values(input=np.round(8 / (1 + np.exp(-x.astype(np.float64)))) / 8)


def _one_hot(case: Case) -> Case:
    labels, classes = case.operands["target"], case.input.values.shape[1]
    if classes == 1 or labels.values.shape[1] != 1:
        return case
    channels = np.arange(classes).reshape(-1, *[1] * (labels.values.ndim - 2))
    return case.with_operand("target", replace(labels, values=(labels.values == channels).astype(np.int64)))


def _contiguous(twin: Twin, case: Case) -> Case | None:
    return case.contiguous() if any(o.layout != "contiguous" for o in case.operands.values()) else None


def _unweighted(twin: Twin, case: Case) -> Case | None:
    return replace(case, cotangent=None) if case.cotangent is not None else None


def _lawless(twin: Twin, case: Case) -> Case | None:
    return replace(case, law=None) if case.law is not None else None


def _of_one_type(twin: Twin, case: Case) -> Case | None:
    plain = of_one_type(twin, case)
    return plain if any(o.dtype != case.operands[n].dtype for n, o in plain.operands.items()) else None


def excluded_voxels(case: Case) -> Array | None:
    """Return where a mask or ignore_index excludes voxels, broadcast to the input, or None."""
    x, index = case.input.values, case.options.get("ignore_index")
    made = np.zeros(x.shape, bool)
    if "mask" in case.operands:
        made |= np.broadcast_to(case.operands["mask"].values == 0, x.shape)
    if index is not None and "target" in case.operands:
        target = case.operands["target"].values
        ignored = target == index if target.shape[1] == 1 else target[:, index : index + 1] == 1
        made |= np.broadcast_to(ignored, x.shape)
    return made if made.any() else None


def _excluded_nan(twin: Twin, case: Case) -> Case | None:
    excluded = excluded_voxels(case)
    return None if excluded is None else _replaced(case, lambda v: np.isnan(v) & excluded, 0.5)


def _nan(twin: Twin, case: Case) -> Case | None:
    return _replaced(case, np.isnan, 0.5)


def _infinite(twin: Twin, case: Case) -> Case | None:
    return _replaced(case, np.isinf, 2.0)


def _replaced(case: Case, where: Callable[[Array], Array], number: float) -> Case | None:
    changed = {}
    for name, operand in case.operands.items():
        values = operand.values
        if values.dtype.kind != "f" or values.shape != case.input.values.shape or not (found := where(values)).any():
            continue
        changed[name] = np.where(found, np.sign(np.nan_to_num(values, nan=1.0)) * number, values)
    return case.with_values(**changed) if changed else None


def _first_item(twin: Twin, case: Case) -> Case | None:
    if len(case.input.values) == 1:
        return None
    return case.each(lambda v: v[:1])


def _last_item(twin: Twin, case: Case) -> Case | None:
    if len(case.input.values) == 1:
        return None
    return case.each(lambda v: v[-1:])


def _two_items(twin: Twin, case: Case) -> Case | None:
    if len(case.input.values) != 1 or ("batch" not in twin.options and case.input.values.size > 64):
        return None
    return case.each(lambda v: np.concatenate([v, v]))


def _one_voxel(twin: Twin, case: Case) -> Case | None:
    """Return the case with its values repeated, if it has a single voxel."""
    x = case.input.values
    if x.ndim < 3 or np.prod(x.shape[2:]) != 1:
        return None
    return case.each(lambda v: np.repeat(v, 3, axis=-1))


def _with_hard_target(twin: Twin, case: Case) -> Case | None:
    if (
        "target" not in twin.operands
        or twin.operands[0] != "input"
        or case.operands["target"].values.shape[1] == 1 != (case.input.values.shape[1])
    ):
        return None
    hard = _NEUTRAL["a target other than 0 and 1 with one class per voxel"](twin, case)
    same = (hard.operands["target"].values == case.operands["target"].values).all()
    return None if same else hard


def _with_binary_target(twin: Twin, case: Case) -> Case | None:
    """Return the case with each number of the target as 0 or 1, if it holds others and no labels."""
    if twin.operands[0] != "input" or has_labels(twin, case.options) or "target" not in case.operands:
        return None
    target, index = case.operands["target"], case.options.get("ignore_index")
    kept = (target.values == 0) | (target.values == 1) | (target.values == index)
    if kept.all():
        return None
    return case.with_operand("target", replace(target, values=np.where(kept, target.values, target.values >= 0.5)))


def _with_soft_probabilities(twin: Twin, case: Case) -> Case | None:
    x = case.input.values
    if twin.operands[0] != "input" or is_activated(case.options, x.shape[1]) or "softmax" not in twin.options:
        return None
    inner = np.clip(x, 0.125, 0.875)
    return None if _equal(inner, x) else case.with_values(input=inner)


def _with_small_numbers(twin: Twin, case: Case) -> Case | None:
    x = case.input.values
    if twin.operands[0] != "input" or not (np.abs(np.nan_to_num(x, nan=0, posinf=0, neginf=0)) > 4).any():
        return None
    return case.with_values(input=rounded(np.where(np.isfinite(x), np.clip(x, -4, 4), x), case.dtype))


def _without_tiny_numbers(twin: Twin, case: Case) -> Case | None:
    changed = {}
    for name, operand in case.operands.items():
        v = operand.values
        if v.dtype.kind == "f" and ((v != 0) & (np.abs(v) < 2.0**-12)).any():
            changed[name] = np.where(np.abs(v) < 2.0**-12, 0.0, v)
    return case.with_values(**changed) if changed else None


def _without_offset(twin: Twin, case: Case) -> Case | None:
    """Return a pair of images or a field with its intensities mapped to [0, 1], if they are far from it."""
    if twin.operands[0] == "input":
        return None
    changed = {}
    for name, operand in case.operands.items():
        v = operand.values.astype(np.float64)
        finite = v[np.isfinite(v)]
        if finite.size and np.abs(finite).max() > 64:
            low, high = finite.min(), finite.max()
            changed[name] = rounded((v - low) / (high - low or 1), operand.dtype)
    return case.with_values(**changed) if changed else None


def _without_flat_image(twin: Twin, case: Case) -> Case | None:
    """Return a pair of images with a contrast in each, if one of them has none."""
    if twin.operands[0] == "input" or len(twin.operands) != 2:
        return None
    changed = {}
    for name, operand in case.operands.items():
        v = operand.values.astype(np.float64)
        flat = [bool(np.ptp(item[np.isfinite(item)]) == 0) for item in v if np.isfinite(item).any()]
        if any(flat) and v[0].size > 1:
            ramp = (np.arange(v.size) * 7 % 5 / 4).reshape(v.shape)
            contrast = 1 - ramp**2 if name == next(iter(case.operands)) else ramp
            changed[name] = rounded(np.where(np.isnan(v), v, contrast), operand.dtype)
    if not changed:
        return None
    return replace(case, operands={
        n: Operand(changed.get(n, o.values), o.dtype if o.dtype.startswith(("float", "bfloat")) else case.dtype)
        for n, o in case.operands.items()
    })  # fmt: skip


def _without_tie(twin: Twin, case: Case) -> Case | None:
    """Return the case with the prediction moved away from the target and from 0, where |p - g| and |p| have kinks."""
    if not twin.kinks(case.options) or "target" not in case.operands:
        return None
    x, y = case.input.values, case.operands["target"].values
    if x.shape != y.shape or not (tie := (x == y) | (x == 0)).any():
        return None
    steps = np.where(np.arange(x.size) % 2, 0.0625, 0.125).reshape(x.shape)  # two moved numbers must not be equal
    return case.with_values(**{next(iter(case.operands)): np.where(tie, np.where(x > 0.5, x - steps, x + steps), x)})


def _with_every_class(twin: Twin, case: Case) -> Case | None:
    """Return a segmentation whose target has every class in every item, if there is room for that."""
    if twin.operands[0] != "input":
        return None
    x, y = case.input.values, case.operands["target"].values
    classes, voxels = x.shape[1], int(np.prod(x.shape[2:]))
    if voxels < max(classes, 2) or x.ndim < 3:
        return None
    cycle = (np.arange(voxels) % max(classes, 2)).reshape(1, 1, *x.shape[2:])
    cycle = np.broadcast_to(cycle, (len(x), 1, *x.shape[2:]))
    if y.shape[1] == 1:
        present = all(len(np.unique(item)) >= max(classes, 2) for item in y)
        made = cycle.copy()
    else:
        present = bool(y.reshape(*y.shape[:2], -1).any(-1).all())
        made = (cycle == np.arange(classes).reshape(-1, *[1] * (x.ndim - 2))).astype(np.int64)
    if present:
        return None
    return case.with_operand("target", Operand(made, case.operands["target"].dtype))


def _with_whole_mask(twin: Twin, case: Case) -> Case | None:
    if "mask" not in case.operands or (case.operands["mask"].values == 1).all():
        return None
    mask = case.operands["mask"]
    return case.with_operand("mask", Operand(np.ones(mask.values.shape), mask.dtype))


def _with_hard_mask(twin: Twin, case: Case) -> Case | None:
    if "mask" not in case.operands:
        return None
    mask = case.operands["mask"]
    hard = (mask.values > 0.25).astype(np.int64)
    return None if _equal(hard, mask.values) else case.with_operand("mask", replace(mask, values=hard))


def ordinary(twin: Twin, case: Case) -> Iterator[Case]:
    """Yield cases of the same shape and options with ordinary numbers, without any special one."""
    rng = np.random.default_rng(0)
    x = case.input.values
    if len(twin.operands) == 1 or x.ndim < 3:
        return
    if twin.operands[0] != "input":
        operands = {n: Operand(rng.integers(1, 16, x.shape) / 16, case.dtype) for n in twin.operands}
        yield replace(case, operands=operands, cotangent=None)
        return
    logits = "softmax" not in twin.options or is_activated(case.options, x.shape[1])
    numbers = rng.integers(-8, 9, x.shape) / 4 if logits else rng.integers(2, 15, x.shape) / 16
    plain = replace(case, cotangent=None).with_operand("input", Operand(numbers, case.dtype))
    yield plain
    target = case.operands["target"].values
    classes, voxels = max(x.shape[1], 2), int(np.prod(x.shape[2:]))
    if case.options.get("ignore_index") is None and voxels > 1:
        labels = (np.arange(len(x) * voxels) % classes).reshape(len(x), 1, *x.shape[2:])
        if target.shape[1] > 1:
            labels = (labels == np.arange(classes).reshape(-1, *[1] * (x.ndim - 2))).astype(np.int64)
        yield plain.with_operand("target", Operand(labels, case.operands["target"].dtype))


def _one_class_left(twin: Twin, case: Case) -> bool:
    """Return whether only one channel takes part."""
    count = case.input.values.shape[1]
    return count == 1 or (count == 2 and case.options.get("include_background") is False)


def _without_background(twin: Twin, case: Case) -> Case | None:
    """Return the case with the foreground channel alone, if the background is left out and there are two channels."""
    if twin.operands[0] != "input" or case.input.values.shape[1] != 2 or not _one_class_left(twin, case):
        return None
    target = case.operands["target"]
    made = case.with_operand("input", replace(case.input, values=case.input.values[:, 1:]))
    if target.values.shape[1] == 2:
        made = made.with_operand("target", replace(target, values=target.values[:, 1:]))
    return made.having(include_background=None, to_onehot_y=None, softmax=None)


def _with_one_more_class(twin: Twin, case: Case) -> Case | None:
    """Return the case with another foreground class, if two channels of which the first is left out are all it has."""
    options = {n: v for n, v in case.options.items() if isinstance(v, list) and v}
    if "dist_matrix" in options:
        return None
    more = {n: [*v, 2 * v[-1]] for n, v in options.items()}
    x, y = case.operands["input"], case.operands["target"]
    made = case.with_operand("input", Operand(np.concatenate([x.values, x.values[:, 1:]], 1), x.dtype))
    if y.values.shape[1] > 1:
        made = made.with_operand("target", Operand(np.concatenate([y.values, 0 * y.values[:, 1:]], 1), y.dtype))
    return made.having(**more)


def _with_two_channels(twin: Twin, case: Case) -> Case | None:
    if twin.operands[0] != "input" or not _one_class_left(twin, case):
        return None
    if case.input.values.shape[1] == 2:
        return _with_one_more_class(twin, case)
    return _NEUTRAL["one channel where classes are expected"](twin, case)


def _with_an_axis(twin: Twin, case: Case) -> Case | None:
    return _NEUTRAL["no spatial axes"](twin, case) if case.input.values.ndim == 2 else None


def _with_one_component_per_axis(twin: Twin, case: Case) -> Case | None:
    x = case.input.values
    if len(twin.operands) != 1 or x.shape[1] == x.ndim - 2:
        return None
    return _NEUTRAL["a field without exactly one component per axis"](twin, case)


def _with_one_channel(twin: Twin, case: Case) -> Case | None:
    if twin.operands[0] == "input" or len(twin.operands) != 2 or case.input.values.shape[1] == 1:
        return None
    return _NEUTRAL["images of several channels"](twin, case)


def _in(dtype: str, wider: str) -> Callable[[Twin, Case], Case | None]:
    """Return a function that makes all arguments of narrower real numbers as wide as `wider`."""

    def without(twin: Twin, case: Case) -> Case | None:
        if case.dtype != dtype:
            return None
        wide = {"float64", wider}
        operands = {
            name: Operand(o.values.copy(), wider if o.dtype in DTYPES and o.dtype not in wide else o.dtype)
            for name, o in case.operands.items()
        }
        return replace(case, operands=operands)

    return without


def _equal(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True)) if a.dtype.kind == b.dtype.kind == "f" else bool((a == b).all())


# Traits that are taken away for good if the case still fails without them.
REDUCED = (
    Trait("a law", _lawless),
    Trait("a memory layout", _contiguous),
    Trait("an upstream gradient", _unweighted),
    Trait("arguments of different types", _of_one_type),
    Trait("float16", _in("float16", "float32")),
    Trait("several items", _first_item),
    Trait("several items", _last_item),
    Trait("NaN in excluded voxels", _excluded_nan),
    Trait("NaN", _nan),
    Trait("infinity", _infinite),
    Trait("a soft mask", _with_hard_mask),
    Trait("masked voxels", _with_whole_mask),
    Trait("a field without exactly one component per axis", _with_one_component_per_axis),
    Trait("several channels", _with_one_channel),
    Trait("a soft target", _with_binary_target),
    Trait("a target that is not one class per voxel", _with_hard_target),
    Trait("a background", _without_background),
    Trait("very small numbers", _without_tiny_numbers),
    Trait("large logits", _with_small_numbers),
    Trait("large intensities", _without_offset),
)
# Traits that a small case has anyway. They are only taken away to see whether the failure needs them.
PROBED = (
    Trait("a tie of prediction and target", _without_tie),
    Trait("probabilities near 0 or 1", _with_soft_probabilities),
    Trait("an image without contrast", _without_flat_image),
    Trait("an absent class", _with_every_class),
    Trait("one class left", _with_two_channels),
    Trait("no spatial axes", _with_an_axis),
    Trait("a single voxel", _one_voxel),
    Trait("a batch of one", _two_items),
    Trait("less than float64", _in("float32", "float64")),
)
