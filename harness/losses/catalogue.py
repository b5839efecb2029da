"""The catalogue of losses: one record per loss."""

from __future__ import annotations

from difflib import get_close_matches

from twinloss.harness.losses import registration, segmentation, wrappers
from twinloss.harness.model.twin import Twin

# Every record in the modules of records.
TWINS = tuple(
    record
    for module in (segmentation, registration, wrappers)
    for record in vars(module).values()
    if isinstance(record, Twin)
)


class UnknownLossError(ValueError):
    """No loss has the given name."""


def catalogue() -> dict[str, Twin]:
    """Return all losses by name."""
    return {twin.name: twin for twin in TWINS}


def find(name: str) -> Twin:
    """Return the loss of a name.

    Raises:
        UnknownLossError: if there is no such loss; the message names the most similar one.
    """
    known = catalogue()
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known losses: {', '.join(known)}"
    raise UnknownLossError(f"no loss is called '{name}': {hint}")
