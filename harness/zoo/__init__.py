"""Mutants: losses with a deliberate bug. Each bug was once released, or is a typical mistake.

The harness must detect all of them; a mutant that is detected is called killed. To add one, write a class with the
decorator `bug`. The first line of its docstring says what is wrong, and where the bug comes from.
"""

from __future__ import annotations

from importlib.util import find_spec

from twinloss.harness.zoo.mutants import ZOO, Mutant


def zoo() -> tuple[Mutant, ...]:
    """Return all mutants."""
    # Importing a module registers its mutants.
    from twinloss.harness.zoo import conduct, registration, segmentation, wrappers  # noqa: F401

    if find_spec("triton") is not None:  # it has no packages for some systems
        from twinloss.harness.zoo import device  # noqa: F401

    return tuple(sorted(ZOO, key=lambda mutant: mutant.of))
