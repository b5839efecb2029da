"""Compare two reports of the same hunts, and list what got worse: for the CI of a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twinloss.harness.hunting.report_file import VERDICTS
from twinloss.harness.losses.catalogue import catalogue


@dataclass(frozen=True)
class Regression:
    """Something that got worse: where, what, and the old and new text."""

    loss: str
    dtype: str
    data: str
    what: str
    old: str
    new: str


def compare(old: Mapping[str, Any], new: Mapping[str, Any], bits: float) -> list[Regression]:
    """Return what got worse: results that lost more than `bits` bits, verdicts, laws or coverage."""
    known = {(_key(row), _seed_index(row, new)): row for row in new["rows"]}
    return [
        Regression(*_key(row), *found)
        for row in old["rows"]
        for found in _regressions(row, known.get((_key(row), _seed_index(row, old))), bits)
    ]


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["loss"], row["dtype"], row["data"]


def _seed_index(row: Mapping[str, Any], report: Mapping[str, Any]) -> int:
    """Return the position of a row's seed in a soak, from 0; two reports may have different seeds."""
    return int(row["seed"] - report["seed"]) if "seed" in row else 0


def _regressions(old: Mapping[str, Any], new: Mapping[str, Any] | None, bits: float) -> Iterator[tuple[str, str, str]]:
    if new is None or new["interrupted"]:
        yield "row", "there", "missing" if new is None else "interrupted"
        return
    if VERDICTS.index(new["verdict"]) > VERDICTS.index(old["verdict"]):
        yield "verdict", old["verdict"], new["verdict"]
    for part in old["worst"]:
        yield from _bits(f"bits of the {part}", old["worst"][part]["bits"], _found(new, part), bits)
    for option, before in old.get("bits_by_option", {}).items():
        after = new.get("bits_by_option", {}).get(option)
        if after is not None:
            yield from _bits(f"bits with {option}", before, after, bits)
    yield from _laws(old, new)
    if new["pairs"]["tried"] < old["pairs"]["tried"]:
        yield "pairs of options", str(old["pairs"]["tried"]), str(new["pairs"]["tried"])


def _laws(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Report laws that are no longer kept, except those that have been renamed.

    Laws that the catalogue no longer has were renamed if the new report has at least as many other names.
    """
    known = {law.name for law in catalogue()[old["loss"]].laws} if old["loss"] in catalogue() else set()
    missing, added = sorted(set(old["laws"]) - set(new["laws"])), set(new["laws"]) - set(old["laws"])
    gone = [law for law in missing if law not in known]
    for law in missing:
        if law in known:
            yield f"law '{law}'", "kept", "not tried" if new["verdict"] != "fail" else "broken or not tried"
        elif len(gone) > len(added):
            yield f"law '{law}'", "kept", "removed or renamed"


def _found(row: Mapping[str, Any], part: str) -> float | None:
    found = row["worst"].get(part)
    return None if found is None else found["bits"]


def _bits(what: str, before: float | None, after: float | None, most: float) -> Iterator[tuple[str, str, str]]:
    """Report a loss of more than `most` bits; None stands for infinitely many wrong bits, as for a NaN."""
    old, new = (float("inf") if each is None else each for each in (before, after))
    if new > old + most:
        yield what, f"{old:.1f}", f"{new:.1f}"
