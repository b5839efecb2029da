"""The lines of the reliability report, and the trials that are registered under them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was tried, what came out, and whether it is as it should be."""

    tried: str
    outcome: str
    passed: bool
    loss: str = ""  # if it is of one


Experiment = Callable[[bool], Iterator[Row]]

LINES: dict[str, list[Experiment]] = {}


def line(name: str) -> Callable[[Experiment], Experiment]:
    """Put a trial under a line of the report."""

    def put(trial: Experiment) -> Experiment:
        LINES.setdefault(name, []).append(trial)
        return trial

    return put
