"""Losses that are wrong on purpose, each by a bug that was shipped somewhere or a slip that people make.

The harness must kill all of them, or it is not worth its time. To add one: a class with the decorator `bug`, whose
docstring says in its first line what is wrong and where that comes from.
"""

from __future__ import annotations

from twinloss.harness.zoo.mutants import ZOO, Mutant


def zoo() -> tuple[Mutant, ...]:
    """All of them."""
    from twinloss.harness.zoo import conduct, registration, segmentation  # noqa: F401  they put themselves in

    return tuple(sorted(ZOO, key=lambda mutant: mutant.of))
