"""Draws that come of the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants


@contextmanager
def of_the_seed_alone() -> Iterator[None]:
    """Keep Hypothesis from drawing numbers that stand in the sources of whatever modules happen to be loaded.

    These differ between processes, and so would the cases of one seed. There is no public switch; where the private
    function is not there, all else works.
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
