"""The catalogue of losses: one record per loss."""

from __future__ import annotations

from difflib import get_close_matches

from twinloss.harness.losses.registration import BENDING_ENERGY, DIFFUSION, GLOBAL_MUTUAL_INFORMATION, LNCC, MULTI_SCALE
from twinloss.harness.losses.segmentation import (
    DICE,
    DICE_CE,
    DICE_FOCAL,
    FOCAL,
    FOCAL_TVERSKY,
    GENERALIZED_DICE,
    GENERALIZED_DICE_FOCAL,
    GENERALIZED_WASSERSTEIN_DICE,
    MASKED_DICE,
    MATTHEWS_CORRELATION,
    TVERSKY,
)
from twinloss.harness.losses.wrappers import DEEP_SUPERVISION, MASKED
from twinloss.harness.model.twin import Twin

TWINS = (
    DICE, MASKED_DICE, TVERSKY, FOCAL_TVERSKY, MATTHEWS_CORRELATION,
    GENERALIZED_DICE, GENERALIZED_WASSERSTEIN_DICE, FOCAL, DICE_CE, DICE_FOCAL,
    BENDING_ENERGY, DIFFUSION, LNCC, GLOBAL_MUTUAL_INFORMATION, MULTI_SCALE,
    DEEP_SUPERVISION, MASKED, GENERALIZED_DICE_FOCAL,
)  # fmt: skip


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
