"""Laws of losses of whatever kind: of items, voxels, axes and reductions. Arguments are (B, C, *S)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from twinloss.harness.answers import ask_fast
from twinloss.harness.laws import Claim, Law, both
from twinloss.harness.twin import Array, Case, Twin


def needing(law: Law, **needs: object) -> Law:
    """A law of losses that it holds for only with further options; those that a loss does not have do not count."""
    return replace(law, needs={**law.needs, **needs})


def spatial(case: Case) -> tuple[int, ...]:
    """The sizes of the spatial axes."""
    return case.input.values.shape[2:]


def item(case: Case, b: int) -> Case:
    """Item b alone; an argument that all items share stays."""
    return case.each(lambda v: v[b : b + 1] if len(v) > 1 else v)


def _batch_is_mean(twin: Twin, case: Case) -> Iterator[Claim]:
    whole = ask_fast(twin, case)
    items = [ask_fast(twin, item(case, b)) for b in range(len(case.input.values))]
    if any(np.isinf(item.value).any() for item in items):
        return  # half precision holds the mean, but not each
    values = np.array([item.value for item in items])
    # Each is rounded by itself, and they may cancel.
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
        each = ask_fast(twin, case).value.astype(np.longdouble)  # NumPy adds up along an outer axis one by one
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


# What both twins and their finite differences agree on may still be no loss: one without a lower bound, for example.
BOUNDED = Law("a loss stays in its bounds", _stays_in_bounds)
NO_ORDER = Law("voxels have no order", _permuting_voxels)
FLIPS = Law("axes have no direction", _flipping_axes)
MEAN = Law("a batch is the mean of its items", _batch_is_mean, {"batch": False, "reduction": "mean"}, _several_items)
NONE_MEAN = Law("none.mean() is mean", _reduces("mean"), {"reduction": "none"})
NONE_SUM = Law("none.sum() is sum", _reduces("sum"), {"reduction": "none"})
