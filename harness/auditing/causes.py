"""The cause of a failure: the traits of the case that cannot be taken away without making it pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from twinloss.harness.auditing.peer import Clause, Peer
from twinloss.harness.auditing.traits import ordinary, probed, reduced
from twinloss.harness.drawing.input_kinds import rounded
from twinloss.harness.judging.judgement import Precision
from twinloss.harness.judging.trial import MOST, Trial, examine, only_rounding, relative_error, wrong_parts
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.operand import DTYPES, Array
from twinloss.harness.model.twin import Case, Twin

# The number of steps to simplify the numbers of a case.
STEPS = 50

# The arguments of losses of two images, which are not cut to a single voxel: that would convince nobody.
IMAGES = ("pred", "target")


@dataclass(frozen=True)
class Cause:
    """A failing case of which no trait in `traits` can be taken away, and how it fails (see `how`)."""

    trial: Trial
    traits: frozenset[str]
    how: str


def how(trial: Trial) -> str:
    """Return how a case fails: the part and the kind of difference, or the type of the error."""
    if trial.kind == "error":
        return trial.message.removeprefix("the fast twin raised ").partition(":")[0]
    if trial.kind not in ("value", "gradient") or trial.answer is None or trial.truth is None:
        return trial.kind or ""
    got, want = wrong_parts(trial)
    if got.shape != want.shape:
        return f"shape of the {trial.kind}"
    if (np.isfinite(want) & ~np.isfinite(got)).any():
        return f"{trial.kind} not finite"
    return f"{trial.kind}"


class QuickTruth(Truth):
    """The reference, with fewer points of the plain computation: whether an error is degraded matters little here."""

    def number_of_plain_points(self) -> int:
        """Return at how many points the plain computation is tried."""
        return 2


def quick(twin: Twin, case: Case) -> Trial:
    """Judge a case by the reference alone; a gradient that has lost digits also contradicts finite differences."""
    trial = examine(twin, case, QuickTruth(twin, case))
    unjudged = trial.kind == "error" and not _has_reference(twin, case)
    return replace(trial, kind=None, message="") if unjudged or trial.kind == "differences" else trial


def _has_reference(twin: Twin, case: Case) -> bool:
    """Return whether the reference has an answer."""
    try:
        return bool(np.isfinite(Truth(twin, case).value).any())
    except Exception:
        return False


def only_digits(twin: Twin, trial: Trial) -> bool:
    """Return whether only digits are lost, and the relative error is small."""
    return relative_error(twin, trial) <= MOST and only_rounding(twin, trial, quick_in_double)


def quick_in_double(twin: Twin, case: Case) -> Trial:
    """Judge a case with all real numbers in float64."""
    operands = {n: replace(o, dtype="float64") if o.dtype in DTYPES else o for n, o in case.operands.items()}
    return quick(twin, replace(case, operands=operands))


Grade = tuple[str, bool]


def ruling(twin: Twin, case: Case) -> Clause | None:
    """Return what the documentation of the peer says about the input of a case, or None if it is ordinary input."""
    made: Any = twin.fast  # a class that `Peer` made
    peer: Peer = made.peer
    return next((clause for clause in peer.clauses if clause.covers(twin, case)), None)


def _stays(twin: Twin, case: Case, before: Case) -> bool:
    """Return whether a case is ordinary input of the peer if the one before it is."""
    return ruling(twin, case) is None or ruling(twin, before) is not None


def _fails(twin: Twin, case: Case, wanted: Grade, before: Case) -> Trial | None:
    """Return the trial of a case if it fails as the one before it, and is no less ordinary."""
    trial = _tried(twin, case)
    fails = trial is not None and _is_alike(twin, trial, wanted) and _stays(twin, case, before)
    return trial if fails else None


def _is_right(twin: Twin, case: Case, wanted: Grade) -> bool:
    """Return whether a case can be judged, and does not fail in a given way."""
    trial = _tried(twin, case)
    return trial is not None and not _is_alike(twin, trial, wanted)


def _is_alike(twin: Twin, trial: Trial, wanted: Grade) -> bool:
    """Return whether a trial fails in a given way; where the gradient is wrong, a wrong value is no other failure."""
    found = _grade(twin, trial)
    return trial.kind is not None and wanted in (found, (found[0].replace("value", "gradient"), found[1]))


def _tried(twin: Twin, case: Case) -> Trial | None:
    """Examine a case, unless it is outside the domain of the reference."""
    if not twin.domain(case) or not twin.allowed(twin.defaults() | dict(case.options)):
        return None
    trial = quick(twin, replace(case, law=None))
    return None if trial.kind == "reference" else trial


def _grade(twin: Twin, trial: Trial) -> Grade:
    """Return how a case fails, and whether by rounding only; a simpler case must fail alike."""
    return how(trial), trial.kind in ("value", "gradient") and only_digits(twin, trial)


def cause(twin: Twin, failed: Trial) -> Cause:
    """Take away one trait after the other for as long as the case fails in the same way."""
    wanted = _grade(twin, failed)
    if tuple(failed.case.operands) == IMAGES and failed.case.input.values.size == 1:
        wider = failed.case.each(lambda v: np.repeat(v, 3, axis=-1))
        failed = _fails(twin, wider, wanted, failed.case) or failed
        wanted = _grade(twin, failed)
    # Particular numbers may make an option seem necessary that is not.
    for simpler in ordinary(twin, failed.case):
        failed = _fails(twin, simpler, wanted, failed.case) or failed
        wanted = _grade(twin, failed)
    needed: set[str] = set()
    progress = True
    while progress:
        progress, needed = False, set()
        for name, simpler in reduced(twin, failed.case):
            trial = _tried(twin, simpler)
            if trial is None:
                continue
            if not _is_alike(twin, trial, wanted):
                needed.add(name)
            elif _stays(twin, simpler, failed.case):
                failed, wanted, progress = trial, _grade(twin, trial), True
                break
    needed |= {name for name, other in probed(twin, failed.case) if _is_right(twin, other, wanted)}
    return Cause(failed, frozenset(needed), wanted[0])


def same_cause(twin: Twin, trial: Trial, known: Cause) -> bool:
    """Return whether a case needs the traits of a known cause to fail, and no others.

    A failure on ordinary input is none of a cause that was only shown on input of which the documentation speaks.
    """
    if how(trial) != known.how or not known.traits or not _stays(twin, known.trial.case, trial.case):
        return False
    wanted = _grade(twin, trial)
    simpler: dict[str, list[Case]] = {}
    for name, case in (*reduced(twin, trial.case), *probed(twin, trial.case)):
        simpler.setdefault(name, []).append(case)
    if not known.traits <= set(simpler):
        return False
    return all(
        any(_is_right(twin, case, wanted) for case in cases) == (name in known.traits)
        for name, cases in sorted(simpler.items(), key=lambda each: each[0] not in known.traits)
    )


def smallest(twin: Twin, found: Cause) -> Cause:
    """Return the cause with a case whose sizes and numbers are as simple as possible, and the traits that it needs."""
    made = _smaller(twin, found)
    again = cause(twin, made.trial)
    return replace(again, traits=again.traits & found.traits) if again.traits < found.traits else made


def _smaller(twin: Twin, found: Cause) -> Cause:
    best, wanted, steps = found, _grade(twin, found.trial), STEPS
    progress = True
    while progress and steps > 0:
        progress = False
        for case in _simpler(best.trial.case):
            steps -= 1
            if steps < 0:
                break
            if (trial := _fails(twin, case, wanted, best.trial.case)) is None:
                continue
            # A smaller case must not fail for a more special reason.
            special = (other for name, other in probed(twin, case) if name not in found.traits)
            if not any(_is_right(twin, other, wanted) for other in special):
                best, progress = replace(best, trial=trial), True
                break
    return best


def _simpler(case: Case) -> Iterator[Case]:
    """Yield cases with fewer voxels, items or classes, then with simpler numbers."""
    x = case.input.values
    least = 3 if tuple(case.operands) == IMAGES else 1
    for axis in range(x.ndim - 1, 1, -1):
        if x.shape[axis] > least:
            half = x.shape[axis] // 2
            first, last = (
                (slice(0, 1), slice(0, -half), slice(0, -1)),
                (slice(-1, None), slice(half, None), slice(1, None)),
            )
            for keep in (each for both in zip(first, last, strict=True) for each in both):
                yield case.each(lambda v, a=axis, k=keep: _cut(v, a, k))  # type: ignore[misc]
    if x.ndim > 3 and 1 in x.shape[2:] and len(case.operands) > 1 and "ndim" not in case.options:
        axis = 2 + x.shape[2:].index(1)
        yield case.each(lambda v: v.squeeze(axis) if v.ndim == x.ndim else v)
    yield from _less_extreme(case)
    for name, operand in case.operands.items():
        v = operand.values
        if v.dtype.kind == "f":
            for digits in (0, 1, 2):
                rough = rounded(np.round(v, digits), operand.dtype)
                if not np.array_equal(rough, v, equal_nan=True):
                    yield case.with_values(**{name: rough})
        if v.size <= 24:
            for i in np.flatnonzero(v):
                values = v.copy()
                values.flat[i] = 0
                yield case.with_values(**{name: values})


def _less_extreme(case: Case) -> Iterator[Case]:
    """Yield cases with smaller numbers: large ones clipped, or images with a contrast of 1 on an offset."""
    real = {name: o for name, o in case.operands.items() if o.dtype in DTYPES}
    size = max((float(np.abs(o.values).max(initial=0, where=np.isfinite(o.values))) for o in real.values()), default=0)
    for most in (8, 20, 128):
        if size > 2 * most:
            yield case.with_values(**{name: np.clip(o.values, -most, most) for name, o in real.items()})
    grey = {name: np.unique(o.values, return_inverse=True)[1].reshape(o.values.shape) for name, o in real.items()}
    for offset in (100, 1000, 4000):
        if 2 * offset < size and all(np.isfinite(o.values).all() for o in real.values()):
            yield case.with_values(**{name: rounded(offset + grey[name], o.dtype) for name, o in real.items()})


def _cut(values: Array, axis: int, keep: slice) -> Array:
    return values[(slice(None),) * axis + (keep,)] if values.ndim > axis else values


@cache
def _digits(dtype: str) -> float:
    return -math.log10(Precision.of(dtype).u_out)


def digits(twin: Twin, trial: Trial) -> tuple[float, float]:
    """Return the number of correct digits, and of those that the dtype has."""
    error = relative_error(twin, trial)
    return (-math.log10(error) if error else math.inf), _digits(trial.case.dtype)
