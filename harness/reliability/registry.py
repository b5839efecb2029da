"""The sections of the reliability report, and the tests that are registered for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of the report: what was tested, the result, and whether it passed."""

    tried: str
    outcome: str
    passed: bool
    loss: str = ""  # empty if the row does not concern a single loss


Experiment = Callable[[bool], Iterator[Row]]

LINES: dict[str, list[Experiment]] = {}


def line(name: str) -> Callable[[Experiment], Experiment]:
    """Register a test in a section of the report."""

    def put(trial: Experiment) -> Experiment:
        LINES.setdefault(name, []).append(trial)
        return trial

    return put
