"""The catalogue of twins: one record per loss."""

from __future__ import annotations

from difflib import get_close_matches

from twinloss import fast, reference
from twinloss.harness import segmentation as seg
from twinloss.harness.generate import segmentation
from twinloss.harness.protocol import PROTOCOL
from twinloss.harness.real import LABELS, LABELS_IN_MASK, SOFT_LABELS, SOFT_LABELS_IN_MASK
from twinloss.harness.segmentation_laws import JACCARD, MASKED, SEGMENTATION
from twinloss.harness.twin import Twin

BENCH = {"softmax": True, "to_onehot_y": True}

DICE = Twin(
    name="dice",
    fast=fast.DiceLoss,
    value=reference.dice_loss,
    gradient=reference.dice_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.ACTIVATION | {"squared_pred": (False, True), "jaccard": (False, True)}
    | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.WEIGHT | seg.SOFT_LABEL | seg.IGNORE,
    cases=segmentation,
    allowed=seg.one_activation,
    domain=seg.probabilities_if_not_activated,
    constants=("smooth_nr", "smooth_dr"),
    logits=seg.logits_in,
    kinks=seg.ties_matter,
    laws=SEGMENTATION + JACCARD + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    peer="DiceLoss",
    bench=BENCH,
)  # fmt: skip

MASKED_DICE = Twin(
    name="masked_dice",
    fast=fast.MaskedDiceLoss,
    value=reference.masked_dice_loss,
    gradient=reference.masked_dice_loss_gradient,
    operands=("input", "target", "mask"),
    options=DICE.options,
    cases=segmentation,
    allowed=seg.one_activation,
    domain=seg.probabilities_if_not_activated,
    constants=DICE.constants,
    logits=seg.logits_in,
    kinks=seg.ties_matter,
    laws=SEGMENTATION + JACCARD + MASKED + PROTOCOL,
    real=(LABELS_IN_MASK, SOFT_LABELS_IN_MASK),
    peer="MaskedDiceLoss",
    bench=BENCH,
)

TVERSKY = Twin(
    name="tversky",
    fast=fast.TverskyLoss,
    value=reference.tversky_loss,
    gradient=reference.tversky_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.ACTIVATION | {"alpha": (0.5, 0.25, 0.0), "beta": (0.5, 0.75, 2.0)}
    | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.SOFT_LABEL | seg.IGNORE,
    cases=segmentation,
    allowed=seg.one_activation,
    domain=DICE.domain,
    constants=(*DICE.constants, "alpha", "beta"),
    logits=seg.logits_in,
    kinks=seg.ties_matter,
    laws=SEGMENTATION + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    peer="TverskyLoss",
    bench=BENCH,
)  # fmt: skip

GENERALIZED_DICE = Twin(
    name="generalized_dice",
    fast=fast.GeneralizedDiceLoss,
    value=reference.generalized_dice_loss,
    gradient=reference.generalized_dice_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.ACTIVATION | {"w_type": ("square", "simple", "uniform")}
    | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.SOFT_LABEL | seg.IGNORE | {"normalize_weights": (False, True)},
    cases=segmentation,
    allowed=seg.one_activation,
    domain=DICE.domain,
    constants=DICE.constants,
    logits=seg.logits_in,
    kinks=seg.ties_matter,
    laws=SEGMENTATION + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    peer="GeneralizedDiceLoss",
    bench=BENCH,
)  # fmt: skip

TWINS = (DICE, MASKED_DICE, TVERSKY, GENERALIZED_DICE)


class UnknownLossError(ValueError):
    """A name that no twin has."""


def catalogue() -> dict[str, Twin]:
    """All twins by name."""
    return {twin.name: twin for twin in TWINS}


def find(name: str) -> Twin:
    """The twin of a name.

    Raises:
        UnknownLossError: if there is none; it names the nearest.
    """
    known = catalogue()
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known losses: {', '.join(known)}"
    raise UnknownLossError(f"no loss is called '{name}': {hint}")
