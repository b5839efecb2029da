"""Pairs of option values: which have been tried together, and rows that try the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from twinloss.harness.twin import Twin, label

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
