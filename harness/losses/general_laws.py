"""Laws that hold for many kinds of losses, about items, voxels, axes and reductions. Arguments are (B, C, *S)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.judging.law_check import both
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Case, Claim, Law, Twin


def needing(law: Law, **needs: object) -> Law:
    """Return a law with further options that it needs; options that a loss does not have are skipped."""
    return replace(law, needs={**law.needs, **needs})


def spatial(case: Case) -> tuple[int, ...]:
    """Return the sizes of the spatial axes."""
    return case.input.values.shape[2:]


def item(case: Case, b: int) -> Case:
    """Return the case of item b alone; an argument that all items share stays as it is."""
    return case.each(lambda v: v[b : b + 1] if len(v) > 1 else v)


def _batch_is_mean(twin: Twin, case: Case) -> Iterator[Claim]:
    whole = ask_fast(twin, case)
    items = [ask_fast(twin, item(case, b)) for b in range(len(case.input.values))]
    if any(np.isinf(item.value).any() for item in items):
        return  # half precision can represent the mean, but not the value of each item
    values = np.array([item.value for item in items])
    # Each item is rounded by itself, and the items may cancel in the mean.
    scale = float(np.abs(values).mean(0).max())
    yield Claim("value", values.mean(0), whole.value, case, scale)
    yield Claim("gradient", np.concatenate([item.gradient for item in items]) / len(items), whole.gradient, case)


def _permuting_voxels(twin: Twin, case: Case) -> Iterator[Claim]:
    order = np.random.default_rng(0).permutation(int(np.prod(spatial(case))))

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


def _reduces(name: str) -> Callable[[Twin, Case], Iterator[Claim]]:
    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        each = ask_fast(twin, case).value.astype(np.longdouble)  # NumPy sums along an outer axis naively
        reduced = case.having(reduction=name)
        scale = float(np.abs(each).mean() if name == "mean" else np.abs(each).sum())
        want = np.asarray(each.mean() if name == "mean" else each.sum())
        yield Claim("value", ask_fast(twin, reduced).value, want, reduced, scale)

    return claims


def _stays_in_bounds(twin: Twin, case: Case) -> Iterator[Claim]:
    low, high = twin.bounds(twin.defaults() | dict(case.options), case.input.values.shape)
    value = ask_fast(twin, case).value
    yield Claim("value", value, np.clip(value, low, high), case)


def _several_items(case: Case) -> bool:
    return len(case.input.values) > 1


# Even if both twins and their finite differences agree, the formula may be wrong: for example, it may have no lower
# bound.
BOUNDED = Law("the loss stays within its bounds", _stays_in_bounds)
NO_ORDER = Law("the order of voxels does not matter", _permuting_voxels)
FLIPS = Law("flipping the axes changes nothing", _flipping_axes)
MEAN = Law("a batch is the mean of its items", _batch_is_mean, {"batch": False, "reduction": "mean"}, _several_items)
NONE_MEAN = Law("mean is the mean of reduction none", _reduces("mean"), {"reduction": "none"})
NONE_SUM = Law("sum is the sum of reduction none", _reduces("sum"), {"reduction": "none"})
