"""`twinloss reliability`: tests of the losses against what breaks real training runs.

Each section of the report has one or more tests. A test is a function that yields rows:
what was tested, the result, and whether it passed. `quick=True` asks for sizes that are small enough for a test suite;
the report uses the full sizes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from twinloss.harness.reliability.registry import LINES, Experiment, Row


def lines() -> dict[str, list[Experiment]]:
    """Return all sections of the report with their tests."""
    from twinloss.harness.reliability import (  # noqa: F401, I001  importing registers the tests, in this order
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
    """Run the tests of the named sections; return the rows of each section, and the curves of the training runs.

    Each test runs in a process of its own, so that a crash ends no other test and no memory is inherited. A test that
    raises, or whose process dies, yields a failed row.
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
                rows.append(Row(what, f"the test raised {type(error).__name__}: {str(error)[:200]}", False))
    return made, curves


def _done(name: str, index: int, quick: bool) -> tuple[list[Row], list[Any]]:
    rows = list(lines()[name][index](quick))
    from twinloss.harness.reliability.training import CURVES

    return rows, CURVES
