"""Coverage of pairs of option values and shapes: which pairs were tried together, and rows that try the others.

Besides the options, a verdict may depend on the rank, one or several channels, one or several items, an axis of
size 1, a hard or soft target, and the kind of numbers in the input. Pairs of these *shapes* are covered like pairs of
options, and so are pairs of a shape and an option. Only the many kinds of numbers are not paired with options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from twinloss.harness.drawing import input_kinds, registration_cases, segmentation_cases
from twinloss.harness.drawing.segmentation_options import has_labels
from twinloss.harness.model.operand import label
from twinloss.harness.model.pair import LONG
from twinloss.harness.model.twin import Case, Twin

RANK, CHANNELS, ITEMS, UNIT_AXIS = "rank", "channels", "items", "an axis of size 1"
TARGET, NUMBERS, EQUAL = "numbers of the target", "numbers of the input", "many equal numbers"
ONE, SEVERAL = "one", "several"

Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs_of(options: Mapping[str, str]) -> set[Pair]:
    """Return all pairs of (option, value), with values as text, in the order of the options."""
    return set(combinations(options.items(), 2))


def possible_pairs(twin: Twin) -> set[Pair]:
    """Return the pairs of values that the loss allows together."""
    return {
        ((a, label(x)), (b, label(y)))
        for a, b in combinations(twin.options, 2)
        for x in twin.options[a]
        for y in twin.options[b]
        if twin.allowed(twin.defaults() | {a: x, b: y})
    }


def by_option(tried: set[Pair], possible: set[Pair]) -> list[tuple[str, str, int, int]]:
    """Return for each pair of options how many pairs of their values were tried, and how many are possible."""
    all_of, seen = (Counter((a, b) for (a, _), (b, _) in pairs) for pairs in (possible, tried & possible))
    return [(a, b, seen[a, b], count) for (a, b), count in sorted(all_of.items())]


def shapes(twin: Twin) -> dict[str, tuple[Any, ...]]:
    """Return the shapes that can be drawn, in the form of options: the values of each, the ordinary one first."""
    if twin.pair is not None:
        return {}  # its axes have any number and meaning
    segments, pair = twin.operands[0] == "input", len(twin.operands) > 1
    made: dict[str, tuple[Any, ...]] = {
        RANK: tuple(sorted((rank for rank in twin.ranks if rank or segments), reverse=True)),
        ITEMS: (SEVERAL, ONE),
    }
    if twin.ground.channels is None:
        made[CHANNELS] = (SEVERAL, ONE) if twin.channels == 1 else (SEVERAL,)
    if pair:  # a field needs several voxels along each axis
        made[UNIT_AXIS] = (False, True) if any(twin.ranks) else (False,)
    if segments and twin.ground.targets is None and not has_labels(twin, twin.defaults()):
        made[TARGET] = ("hard", "soft")
    # The ordinary kind of numbers suits all options.
    first, kinds = ("probabilities", input_kinds.NUMBERS) if segments else ("normal", input_kinds.IMAGES)
    perfect = (segmentation_cases.PERFECT,) if segments else ()
    return made | {NUMBERS: (first, *(kind for kind in kinds if kind != first), *perfect)}


def long_axes(twin: Twin) -> list[dict[str, tuple[int, ...]]]:
    """Return for each axis of a pair the sizes that exceed what kernels process at once, to be drawn by themselves."""
    if twin.pair is None:
        return []
    return [{axis: (size,)} for axis in twin.pair.axes() if axis not in twin.pair.sizes for size in LONG]


def shape_of(twin: Twin, case: Case) -> dict[str, str]:
    """Return the shapes of a case as text."""
    if twin.pair is not None:
        return {}
    batch, channels, *axes = case.input.values.shape
    made = {RANK: len(axes), ITEMS: SEVERAL if batch > 1 else ONE, CHANNELS: SEVERAL if channels > 1 else ONE}
    made[UNIT_AXIS] = 1 in axes
    made[TARGET] = "soft" if case.traits.get("target") in input_kinds.SOFT else "hard"
    made[NUMBERS] = case.traits.get("input", "")
    return {name: label(made[name]) for name in shapes(twin)}


def missing_pairs(twin: Twin, tried: set[Pair]) -> set[Pair]:
    """Return the pairs of option values and shapes that should be tried, can be drawn, and were not tried."""
    names = shapes(twin)
    return {
        pair
        for pair in possible_pairs(with_shapes(twin)) - tried
        if NUMBERS not in (one := {name for name, _ in pair}) or one <= set(names)
    }


def with_shapes(twin: Twin) -> Twin:
    """Return a twin whose options include the shapes of its cases, for coverage only; it cannot be called."""
    if twin.pair is not None:
        return twin

    def allowed(options: Mapping[str, Any]) -> bool:
        rank, one = options[RANK], options.get(CHANNELS) == ONE
        flat = rank == 0 and options.get(UNIT_AXIS)
        soft_labels = options.get(TARGET) == "soft" and has_labels(twin, options)
        # A field that is normalised by its extents has one component for each axis.
        of_axes = not options.get("normalize") or CHANNELS not in options or one == (rank == 1)
        if twin.operands[0] == "input":
            kinds = segmentation_cases.suitable(twin, options, 1 if one else 2)
        else:
            kinds = list(registration_cases.suitable(options))
        return twin.allowed(options) and not flat and not soft_labels and of_axes and options[NUMBERS] in kinds

    return replace(twin, options={**twin.options, **shapes(twin)}, allowed=allowed)


def narrowed(twin: Twin, wanted: Mapping[str, Any]) -> Twin:
    """Return a twin that draws only the wanted shapes, as far as its options allow."""
    if twin.pair is not None:
        return replace(twin, pair=replace(twin.pair, sizes={**twin.pair.sizes, **wanted}))
    ground, counts = twin.ground, {ONE: (1,), SEVERAL: (2, 3)}
    if CHANNELS in wanted:
        ground = replace(ground, channels=counts[wanted[CHANNELS]])
    if TARGET in wanted:
        ground = replace(ground, targets=input_kinds.HARD if wanted[TARGET] == "hard" else input_kinds.SOFT)
    numbers = (wanted[NUMBERS],) if NUMBERS in wanted else None
    if EQUAL in wanted:
        return replace(twin, ground=replace(ground, equal=True, items=ground.items or (1,)))
    ground = replace(ground, items=counts.get(wanted.get(ITEMS, "")), unit_axis=wanted.get(UNIT_AXIS), numbers=numbers)
    return replace(twin, ground=ground, ranks=(wanted[RANK],) if RANK in wanted else twin.ranks)


def covering_rows(twin: Twin, missing: Iterable[Pair]) -> list[dict[str, Any]]:
    """Return rows of options; each row greedily covers as many missing pairs as possible."""
    left = sorted(missing)
    rows = []
    while left:
        row: dict[str, Any] = {}
        for pair in left:
            wanted = {name: value_called(twin, name, text) for name, text in pair}
            fits = all(row.get(name, value) is value for name, value in wanted.items())
            if fits and twin.allowed(twin.defaults() | row | wanted):
                row |= wanted
        rows.append(twin.defaults() | row)
        tried = pairs_of({name: label(value) for name, value in rows[-1].items()})
        # Each row covers the first pair, so the loop ends.
        left = [pair for pair in left[1:] if pair not in tried]
    return rows


def value_called(twin: Twin, name: str, text: str) -> Any:
    """Return the option value that tables show as `text`."""
    return next(value for value in twin.options[name] if label(value) == text)
