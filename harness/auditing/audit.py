"""The audit of one loss of another library: draw cases, find the cause of each failure, and class it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from twinloss.harness.auditing.causes import Cause, cause, quick, ruling, same_cause, smallest
from twinloss.harness.auditing.erratum import DEFECT, PRECISION, SORTS, Audited, Erratum, rounded_in
from twinloss.harness.auditing.peer import Peer
from twinloss.harness.auditing.probe import findings
from twinloss.harness.auditing.probes import probes
from twinloss.harness.auditing.snippets import run, snippet
from twinloss.harness.auditing.sorts import NOTHING, sentence, sort_of
from twinloss.harness.drawing import coverage
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.judging.trial import Trial
from twinloss.harness.model.operand import label
from twinloss.harness.model.twin import Case, Twin

# The number of cases of each option value by dtype.
COUNTS = {"float32": 12, "float64": 6, "float16": 4}
# The number of cases of each row that combines options: of any shape, and of two items with as many classes as options
# need that leave out or weight some.
COMBINED, OF_SEVERAL = 2, 2
# The number of cases of each option value whose numbers are moved to the ends of [0, 1].
AT_ENDS = 2
# Failing cases of a row beyond this number are not examined further.
MOST = 4


def audited(peer: Peer, seed: int = 0) -> Audited:
    """Audit one loss."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the library's own warnings about unusual input
        return _audited(peer, peer.twin(), seed)


def _audited(peer: Peer, twin: Twin, seed: int) -> Audited:
    causes: list[Cause] = []
    agrees, count = [], 0
    for text, row, combined in rows(twin) if peer.hunted else ():
        right = True
        for trials in _trials(twin, row, combined, seed):
            count += len(trials)
            failed = [trial for trial in trials if trial.kind not in (None, "reference")]
            for trial in failed[:MOST]:
                found = next((known for known in causes if same_cause(twin, trial, known)), None)
                if found is None:
                    found = cause(twin, trial)
                    if not any(_alike(twin, found, known) for known in causes):
                        causes.append(found)
                right &= combined or not any(f"`{name}`" in found.traits for name in row if name in text)
        if right and not combined:
            agrees.append(text)
    errata = _grouped(_errata_of(peer, twin, causes))
    known = [set(each.traits[1:]) for each in errata if each.sort == DEFECT]
    # A value that rounding takes out of its range is off for the same reason.
    known += [{"range"} for each in errata if each.sort == DEFECT and rounded_in(each)]
    errata += [each for each in findings(peer, probes(peer, twin)) if set(each.traits) not in known]
    missing = [f"{name}: {values}" for name, values in peer.missing().items()]
    shown = ", ".join(f"{name}={value!r}" for name, value in peer.defaults().items())
    kept = sorted(errata, key=lambda each: SORTS.index(each.sort))
    return Audited(peer.like, f"{peer.name}({shown})", tuple(kept), tuple(agrees), tuple(missing), count)


def rows(twin: Twin) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield rows of options: the defaults, each value by itself, and rows that cover all pairs of values."""
    defaults = twin.defaults()
    yield "defaults", defaults, False
    for name, values in twin.options.items():
        for value in values[1:]:
            if twin.allowed(defaults | {name: value}):
                yield f"{name}={label(value)}", defaults | {name: value}, False
    for row in coverage.covering_rows(twin, coverage.possible_pairs(twin)):
        yield "", row, True


def _alike(twin: Twin, a: Cause, b: Cause) -> bool:
    """Return whether two causes are the same, on input of which the documentation says the same."""
    same = a.how == b.how and a.traits == b.traits
    return same and ruling(twin, a.trial.case) == ruling(twin, b.trial.case)


def _trials(twin: Twin, row: Mapping[str, Any], combined: bool, seed: int) -> Iterator[list[Trial]]:
    for dtype, count in COUNTS.items():
        # The caller's own activation may overflow in float16.
        if (combined and dtype != "float32") or (dtype == "float16" and row.get("other_act") is not None):
            continue
        cases = drawn(twin, dtype, row, None, COMBINED if combined else count, seed)
        if combined:
            cases += drawn(_of_several(twin), dtype, row, None, OF_SEVERAL, seed)
        elif dtype == "float32":
            cases += [at_the_ends(case) for case in cases[-AT_ENDS:]]
        yield [quick(twin, case) for case in cases]


def at_the_ends(case: Case) -> Case:
    """Return a case with numbers at the ends of [0, 1], and in the first argument also next to them."""
    made = {}
    for name, operand in case.operands.items():
        v = operand.values
        if v.dtype.kind == "f" and np.isfinite(v).all():
            share = (v - v.min()) / (np.ptp(v) or 1)
            near = 1 / 32 if name == next(iter(case.operands)) else 0
            made[name] = np.select([share < 0.25, share < 0.5, share < 0.75], [0, near, 1 - near], default=1.0)
    return case.with_values(**made)


def _of_several(twin: Twin) -> Twin:
    """Return a twin that draws batches of two items; for segmentations with three classes and one class per voxel."""
    ground = replace(twin.ground, items=(2,))
    if twin.operands[0] == "input":
        ground = replace(ground, channels=(3,), targets=("one_hot",), numbers=("normal",))
    return replace(twin, ground=ground, ranks=tuple(rank for rank in twin.ranks if rank))


def _errata_of(peer: Peer, twin: Twin, causes: list[Cause]) -> Iterator[Erratum]:
    """Yield an erratum for each cause, but none for a wrong gradient where the value is wrong for the same reason."""
    values = [each for each in causes if each.how.startswith("value")]
    for found in causes:
        if found.how.startswith("gradient") and any(_alike(twin, replace(found, how=v.how), v) for v in values):
            continue
        sort, source = sort_of(peer, twin, found)
        if sort == NOTHING:
            continue
        shown = smallest(twin, found)
        sort, source = sort_of(peer, twin, shown)
        if sort != NOTHING:
            code = snippet(peer, shown.trial)
            traits = (shown.how, *sorted(shown.traits))
            yield Erratum(peer.like, peer.name, sort, sentence(peer, twin, shown), source, code, run(code), traits)


def _grouped(errata: Iterator[Erratum]) -> list[Erratum]:
    """Keep one erratum of each cause.

    Defects have one cause if they need the same traits. What is not a defect has one cause if it has the same reason.
    What is lost by rounding in one dtype has one cause, whatever input shows it.
    """
    made: dict[tuple[str, ...], Erratum] = {}
    for each in sorted(errata, key=lambda each: len(each.traits)):
        if each.sort == DEFECT and any(_includes(each, known) for known in made.values()):
            continue
        key = each.traits if each.sort == DEFECT else (each.sort, each.source)
        if dtype := rounded_in(each):
            key = ("rounding", dtype)
        known = made.get(key)
        if known is None or _rank(each) < _rank(known):
            made[key] = each
    return list(made.values())


def _rank(each: Erratum) -> tuple[bool, bool, int, int]:
    """Return the key by which the erratum that shows a cause is chosen: the gravest, of a value, the simplest."""
    return each.sort == PRECISION, each.traits[0].startswith("gradient"), len(each.traits), len(each.code)


def _includes(each: Erratum, known: Erratum) -> bool:
    """Return whether a defect needs all traits of a known one, and more."""
    alike = each.traits[0] == known.traits[0] or each.traits[0].startswith("gradient")
    return known.sort == DEFECT and len(known.traits) > 1 and alike and set(known.traits[1:]) <= set(each.traits[1:])
