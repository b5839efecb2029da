"""Draws of cases that depend only on the seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from twinloss.harness.model.twin import Case, Law, Twin


@contextmanager
def of_the_seed_alone() -> Iterator[None]:
    """Keep Hypothesis from drawing constants that it finds in the source code of loaded modules.

    The loaded modules differ between processes, and so would the cases of one seed. Hypothesis has no public switch for
    this. If the private function is missing, everything else still works.
    """
    found = getattr(providers, "_get_local_constants", None)
    cache = getattr(providers, "CONSTANTS_CACHE", None)
    if found is None or cache is None:
        yield
        return
    nothing = Constants()
    try:
        cache.cache.clear()
        providers._get_local_constants = lambda: nothing
        yield
    finally:
        providers._get_local_constants = found
        cache.cache.clear()


def drawn(twin: Twin, dtype: str, options: Mapping[str, Any], law: Law | None, count: int, start: int) -> list[Case]:
    """Draw some cases from a seed, the simplest one first."""
    cases: list[Case] = []

    @seed(start)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck),
              phases=(Phase.generate,))  # fmt: skip
    @given(twin.cases(twin, dtype, options, law, False))
    def run(case: Case) -> None:
        cases.append(case)

    with of_the_seed_alone():
        run()
    return cases
