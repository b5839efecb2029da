"""What breaks real trainings, tried on our losses: `twinloss reliability`. Each line of the report is a function here.

A trial yields rows: what was tried, what came out, and whether that is as it should be. `quick` asks for sizes that fit
a test; the report is made without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was tried, what came out, and whether it is as it should be."""

    tried: str
    outcome: str
    passed: bool


Trial = Callable[[bool], Iterator[Row]]

LINES: dict[str, list[Trial]] = {}


def line(name: str) -> Callable[[Trial], Trial]:
    """Put a trial under a line of the report."""

    def put(trial: Trial) -> Trial:
        LINES.setdefault(name, []).append(trial)
        return trial

    return put
