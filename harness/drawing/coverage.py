"""Pairs of option values and shapes: which have been tried together, and rows that try the rest.

What a verdict may hang on beside the options are the rank, one channel or several, one item or several, an axis of
size 1, a hard or a soft target, and the kind of numbers of the input. These *shapes* are covered in pairs like options,
with each other and with them; but for the many kinds of numbers, which are covered with the other shapes alone.
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
from twinloss.harness.model.twin import Case, Twin

RANK, CHANNELS, ITEMS, UNIT_AXIS = "rank", "channels", "items", "an axis of size 1"
TARGET, NUMBERS = "numbers of the target", "numbers of the input"
ONE, SEVERAL = "one", "several"

Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs_of(options: Mapping[str, str]) -> set[Pair]:
    """All pairs of (option, value), values as text, in the order of the options."""
    return set(combinations(options.items(), 2))


def possible_pairs(twin: Twin) -> set[Pair]:
    """The pairs of values that the loss allows together."""
    return {
        ((a, label(x)), (b, label(y)))
        for a, b in combinations(twin.options, 2)
        for x in twin.options[a]
        for y in twin.options[b]
        if twin.allowed(twin.defaults() | {a: x, b: y})
    }


def by_option(tried: set[Pair], possible: set[Pair]) -> list[tuple[str, str, int, int]]:
    """For each two options, how many pairs of their values were tried, of how many."""
    all_of, seen = (Counter((a, b) for (a, _), (b, _) in pairs) for pairs in (possible, tried & possible))
    return [(a, b, seen[a, b], count) for (a, b), count in sorted(all_of.items())]


def shapes(twin: Twin) -> dict[str, tuple[Any, ...]]:
    """The shapes that can be drawn, like options: the values of each, the ordinary one first."""
    segments, pair = twin.operands[0] == "input", len(twin.operands) > 1
    made: dict[str, tuple[Any, ...]] = {
        RANK: tuple(sorted((rank for rank in twin.ranks if rank or segments), reverse=True)),
        ITEMS: (SEVERAL, ONE),
    }
    if twin.ground.channels is None:
        made[CHANNELS] = (SEVERAL, ONE) if twin.channels == 1 else (SEVERAL,)
    if pair:  # a field needs some voxels along each axis
        made[UNIT_AXIS] = (False, True) if any(twin.ranks) else (False,)
    if segments and twin.ground.targets is None and not has_labels(twin, twin.defaults()):
        made[TARGET] = ("hard", "soft")
    # The ordinary kind is one that suits all options.
    first, kinds = ("probabilities", input_kinds.NUMBERS) if segments else ("normal", input_kinds.IMAGES)
    perfect = (segmentation_cases.PERFECT,) if segments else ()
    return made | {NUMBERS: (first, *(kind for kind in kinds if kind != first), *perfect)}


def shape_of(twin: Twin, case: Case) -> dict[str, str]:
    """The shapes of a case, as texts."""
    batch, channels, *axes = case.input.values.shape
    made = {RANK: len(axes), ITEMS: SEVERAL if batch > 1 else ONE, CHANNELS: SEVERAL if channels > 1 else ONE}
    made[UNIT_AXIS] = 1 in axes
    made[TARGET] = "soft" if case.traits.get("target") in input_kinds.SOFT else "hard"
    made[NUMBERS] = case.traits.get("input", "")
    return {name: label(made[name]) for name in shapes(twin)}


def missing_pairs(twin: Twin, tried: set[Pair]) -> set[Pair]:
    """The pairs of option values and shapes that can be drawn, are to be tried, and were not."""
    names = shapes(twin)
    return {
        pair
        for pair in possible_pairs(with_shapes(twin)) - tried
        if NUMBERS not in (one := {name for name, _ in pair}) or one <= set(names)
    }


def with_shapes(twin: Twin) -> Twin:
    """A twin whose options are joined by the shapes of its cases, to be covered alike; it cannot be called."""

    def allowed(options: Mapping[str, Any]) -> bool:
        rank, one = options[RANK], options.get(CHANNELS) == ONE
        flat = rank == 0 and options.get(UNIT_AXIS)
        soft_labels = options.get(TARGET) == "soft" and has_labels(twin, options)
        # A field that is measured in its own extents has a component for each axis.
        of_axes = not options.get("normalize") or CHANNELS not in options or one == (rank == 1)
        if twin.operands[0] == "input":
            kinds = segmentation_cases.suitable(twin, options, 1 if one else 2)
        else:
            kinds = list(registration_cases.suitable(options))
        return twin.allowed(options) and not flat and not soft_labels and of_axes and options[NUMBERS] in kinds

    return replace(twin, options={**twin.options, **shapes(twin)}, allowed=allowed)


def narrowed(twin: Twin, wanted: Mapping[str, Any]) -> Twin:
    """A twin that draws the shapes that are wanted, as far as its options allow."""
    ground, counts = twin.ground, {ONE: (1,), SEVERAL: (2, 3)}
    if CHANNELS in wanted:
        ground = replace(ground, channels=counts[wanted[CHANNELS]])
    if TARGET in wanted:
        ground = replace(ground, targets=input_kinds.HARD if wanted[TARGET] == "hard" else input_kinds.SOFT)
    numbers = (wanted[NUMBERS],) if NUMBERS in wanted else None
    ground = replace(ground, items=counts.get(wanted.get(ITEMS, "")), unit_axis=wanted.get(UNIT_AXIS), numbers=numbers)
    return replace(twin, ground=ground, ranks=(wanted[RANK],) if RANK in wanted else twin.ranks)


def covering_rows(twin: Twin, missing: Iterable[Pair]) -> list[dict[str, Any]]:
    """Rows of options, each greedily taking in as many of the missing pairs as it can."""
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
        # The first pair is in every row, so this ends.
        left = [pair for pair in left[1:] if pair not in tried]
    return rows


def value_called(twin: Twin, name: str, text: str) -> Any:
    """The value of an option that tables show as a text."""
    return next(value for value in twin.options[name] if label(value) == text)
