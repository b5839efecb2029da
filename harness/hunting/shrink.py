"""The last step of shrinking: simplify what Hypothesis cannot, because it only knows how a case was drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from twinloss.harness.judging.trial import Trial, examine
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case, Twin

SECONDS = 10.0
# Single numbers are replaced by 0 only in arrays with at most this many numbers.
LARGEST = 64


def simplest(
    twin: Twin, failed: Trial, counts: Callable[[Trial], bool], seconds: float = SECONDS, steps: float = math.inf
) -> Trial:
    """Return the same failure with options, layouts and numbers as simple as possible; `counts` must accept it."""
    until = time.monotonic() + seconds
    best = failed
    progress = True
    while progress:
        progress = False
        for simpler in _simpler(twin, best.case):
            steps -= 1
            if time.monotonic() > until or steps < 0:
                return best
            trial = examine(twin, simpler) if twin.domain(simpler) else None
            same = trial is not None and trial.kind == failed.kind and 4 * _severity(trial) >= _severity(failed)
            if trial is not None and same and counts(trial):
                best, progress = trial, True
                break
    return best


def _severity(trial: Trial) -> float:
    """Return the worst ratio of an error to its bound; a case with a much smaller one may show another failure."""
    return max((finding.ratio for finding in trial.findings), default=1.0)


def _simpler(twin: Twin, case: Case) -> Iterator[Case]:
    """Yield cases that are a little simpler, the largest steps first."""
    if case.law is not None:
        yield replace(case, law=None)
    if case.cotangent is not None:
        yield replace(case, cotangent=None)
    for option in case.options:
        if option not in twin.required and (case.law is None or option not in case.law.needs):
            yield case.having(**{option: None})
    for name, operand in case.operands.items():
        for simpler in _simpler_operand(operand):
            yield case.with_operand(name, simpler)


def _simpler_operand(operand: Operand) -> Iterator[Operand]:
    if operand.layout != "contiguous":
        yield replace(operand, layout="contiguous")
    elif operand.values.size <= LARGEST:
        for i in np.flatnonzero(operand.values):
            values = operand.values.copy()
            values.flat[i] = 0
            yield replace(operand, values=values)
