"""Cases of a user's pair, as a Hypothesis strategy: sizes of its axes, numbers, dtypes and memory layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from twinloss.harness.drawing import input_kinds
from twinloss.harness.drawing.draft import needed, options
from twinloss.harness.model.operand import PAIR_LAYOUTS, Array, Operand, label
from twinloss.harness.model.pair import MOST_LEADING, ArraySpec, Pair
from twinloss.harness.model.twin import Case, Law, Twin

# Kinds of floating numbers that a function of any numbers must be able to handle.
KINDS = {**input_kinds.IMAGES, "ties": input_kinds.ties, "saturated": input_kinds.saturated}
SPECIAL = {"not_a_number": input_kinds.not_a_number, "infinite": input_kinds.infinite}
# The kinds that need an axis of channels.
OF_RANK = {"ties": 2, "steps": 1, "not_a_number": 2}

# Kinds of numbers within a range: a few of them, any of them, the ends, or the same everywhere.
WITHIN = ("eighths", "uniform", "ends", "equal")

INTEGERS = ("any", "equal")

# The largest number of numbers in an array, but for large cases.
MOST, MOST_LARGE = 60_000, 200_000


@dataclass
class _Draft:
    """A case that is being drawn."""

    draw: st.DrawFn
    rng: np.random.Generator
    dtype: str
    sizes: dict[str, int]
    traits: dict[str, str]

    def pick(self, trait: str, kinds: Sequence[str]) -> str:
        """Draw one of the names in `kinds`, and record it as a trait."""
        name: str = self.draw(st.sampled_from(list(kinds)))
        self.traits[trait] = name
        return name


@st.composite
def pair_cases(
    draw: st.DrawFn, twin: Twin, dtype: str, given: Mapping[str, Any], law: Law | None = None, large: bool = False
) -> Case:
    """Draw a case of a pair, with the options in `given` and those that a law needs."""
    pair = twin.pair
    assert pair is not None
    if law is None and not given:
        law = draw(st.sampled_from((None, *twin.laws_for(dtype))))
    chosen = draw(options(twin, {**given, **needed(twin, law)}))
    sizes = {axis: draw(st.sampled_from(pair.tried_sizes(axis))) for axis in pair.axes()}
    if large and sizes:
        for axis in draw(st.sets(st.sampled_from(sorted(sizes)), min_size=1, max_size=2)):
            sizes[axis] = draw(st.sampled_from(pair.tried_sizes(axis, large=True)))
    leading = draw(st.lists(st.integers(1, 3), max_size=MOST_LEADING)) if pair.has_leading_axes() else ()
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    draft = _Draft(draw, rng, dtype, sizes, {name: label(value) for name, value in chosen.items()})
    shapes = {name: spec.shape(sizes, leading) for name, spec in pair.inputs.items()}
    assume(all(math.prod(shape) <= (MOST_LARGE if large else MOST) for shape in shapes.values()))
    operands = {name: _operand(draft, name, spec, shapes[name]) for name, spec in pair.inputs.items()}
    weighted: bool = draw(st.booleans())
    upstream = tuple(rng.integers(-8, 9, 7) / 4) if weighted else None
    differing = {k: v for k, v in chosen.items() if v is not twin.options[k][0]}
    case = Case(operands, differing, upstream, draft.traits, law, tested=dtype)
    assume(in_domain(pair, case))
    return case


def _operand(draft: _Draft, name: str, spec: ArraySpec, shape: tuple[int, ...]) -> Operand:
    dtype = spec.dtype or draft.dtype
    values = _numbers(draft, name, spec, shape)
    layout = draft.pick(f"{name}_layout", _layouts(shape, finite=bool(np.isfinite(values).all())))
    if layout == "expanded":
        values = np.broadcast_to(values[:1], values.shape).copy()
    return Operand(values, dtype, layout)


def _layouts(shape: Sequence[int], finite: bool) -> list[str]:
    """Return the layouts that an array of this shape can have."""
    least = {"contiguous": 0, "sliced": 0, "transposed": 2}
    exact = {"channels_last": 4, "channels_last_3d": 5}
    made = [name for name in PAIR_LAYOUTS if least.get(name, 1) <= len(shape) == exact.get(name, len(shape))]
    return [name for name in made if name != "expanded" or (0 not in shape and finite)]


def _numbers(draft: _Draft, name: str, spec: ArraySpec, shape: tuple[int, ...]) -> Array:
    if spec.make is not None:
        made = np.asarray(spec.make(draft.rng, shape))
        return input_kinds.rounded(made, spec.dtype or draft.dtype) if spec.floating else made
    if spec.dtype == "bool":
        kind = draft.pick(name, ("random", "all", "none"))
        return draft.rng.random(shape) < {"random": 0.5, "all": 2.0, "none": -1.0}[kind]
    return _floats(draft, name, spec, shape) if spec.floating else _integers(draft, name, spec, shape)


def _integers(draft: _Draft, name: str, spec: ArraySpec, shape: tuple[int, ...]) -> Array:
    low = int(spec.low) if spec.low is not None else 0 if str(spec.dtype).startswith("u") else -8
    high = low + 16 if spec.high is None else int(spec.high)
    if spec.below is not None:
        high = draft.sizes[spec.below] - 1
    assume(high >= low or 0 in shape)
    kind = draft.pick(name, INTEGERS + (("also",) if spec.also else ()))
    if kind == "equal":
        return np.full(shape, draft.rng.integers(low, max(low, high) + 1))
    made = draft.rng.integers(low, max(low, high) + 1, shape)
    if kind == "also":
        made = np.where(draft.rng.random(shape) < 0.3, draft.rng.choice(spec.also, shape), made).astype(np.int64)
    return np.asarray(made)


def _floats(draft: _Draft, name: str, spec: ArraySpec, shape: tuple[int, ...]) -> Array:
    dtype = spec.dtype or draft.dtype
    kinds: Sequence[str] = WITHIN
    if spec.low is None and spec.high is None:
        kinds = [each for each in KINDS if each not in SPECIAL and OF_RANK.get(each, 0) <= len(shape)]
    if not spec.finite and 0 not in shape:
        kinds = [*kinds, *(each for each in SPECIAL if OF_RANK.get(each, 0) <= len(shape))]
    kind = draft.pick(name, kinds)
    if kind in WITHIN:
        made = _within(draft.rng, kind, shape, *_range(spec))
    else:
        made = (KINDS | SPECIAL)[kind](draft.rng, shape, dtype)
    some = bool(spec.also)
    if some and draft.draw(st.booleans()):
        made = np.where(draft.rng.random(shape) < 0.2, draft.rng.choice(spec.also, shape), made)
    return input_kinds.rounded(np.array(made, np.float64), dtype)


def _range(spec: ArraySpec) -> tuple[float, float]:
    if spec.low is None:
        assert spec.high is not None
        return spec.high - 8, spec.high
    return spec.low, spec.low + 8 if spec.high is None else spec.high


def _within(rng: np.random.Generator, kind: str, shape: tuple[int, ...], low: float, high: float) -> Array:
    if kind == "eighths":
        return low + (high - low) * rng.integers(0, 9, shape) / 8
    if kind == "uniform":
        return rng.uniform(low, high, shape)
    if kind == "ends":
        return rng.choice([low, high], shape)
    return np.full(shape, low + (high - low) * rng.integers(0, 9) / 8)


def in_domain(pair: Pair, case: Case) -> bool:
    """Return whether the numbers of a case are allowed, as those of drawn cases are."""
    values = {name: operand.values for name, operand in case.operands.items()}
    sizes = pair.sizes_of({name: array.shape for name, array in values.items()})
    allowed = all(spec.holds(values[name], sizes) for name, spec in pair.inputs.items())
    return allowed and bool(pair.domain({**sizes, **pair.defaults(), **case.options, **values}))
