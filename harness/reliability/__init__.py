"""What breaks real trainings, tried on our losses: `twinloss reliability`. Each line of the report is a function here.

A trial yields rows: what was tried, what came out, and whether that is as it should be. `quick` asks for sizes that fit
a test; the report is made without.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from twinloss.harness.reliability.registry import LINES, Experiment, Row


def lines() -> dict[str, list[Experiment]]:
    """All lines of the report with their trials."""
    from twinloss.harness.reliability import (  # noqa: F401, I001  they register their trials, in this order
        fuzz,
        numerics,
        labels,
        ranks,
        scale,
        int32_overflow,
        start,
        state,
        threads,
        training,
        transforms,
    )  # isort: skip

    return LINES


def run(names: Collection[str], quick: bool, tick: Callable[[str], None]) -> tuple[dict[str, list[Row]], list[Any]]:
    """The rows of the lines of these names, and the curves of trainings.

    Each trial has a process of its own, whose end ends no other, and whose memory none inherits. One that raises, or
    whose process dies, is a row that failed.
    """
    made: dict[str, list[Row]] = {}
    curves: list[Any] = []
    for name in names:
        rows = made.setdefault(name, [])
        for index, trial in enumerate(lines()[name]):
            what = (trial.__doc__ or trial.__name__).splitlines()[0]
            tick(f"{name}: {what}")
            try:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found, drawn = pool.submit(_done, name, index, quick).result()
                rows += found
                curves += drawn
            except Exception as error:
                rows.append(Row(what, f"the trial itself: {type(error).__name__}: {str(error)[:200]}", False))
    return made, curves


def _done(name: str, index: int, quick: bool) -> tuple[list[Row], list[Any]]:
    rows = list(lines()[name][index](quick))
    from twinloss.harness.reliability.training import CURVES

    return rows, CURVES
