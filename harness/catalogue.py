"""The catalogue of losses: one record per loss."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import numpy as np

from twinloss import fast, reference
from twinloss.harness import bounds, peers, terms
from twinloss.harness import segmentation as seg
from twinloss.harness import segmentation_laws as laws
from twinloss.harness.generate import segmentation
from twinloss.harness.protocol import PROTOCOL
from twinloss.harness.real import LABELS, LABELS_IN_MASK, SOFT_LABELS, SOFT_LABELS_IN_MASK
from twinloss.harness.registration import BENDING_ENERGY, DIFFUSION, GLOBAL_MUTUAL_INFORMATION, LNCC, MULTI_SCALE
from twinloss.harness.twin import Twin
from twinloss.harness.workload import labelled

DICE = Twin(
    name="dice",
    fast=fast.DiceLoss,
    value=reference.dice_loss,
    gradient=reference.dice_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.ACTIVATION | {"squared_pred": (False, True), "jaccard": (False, True)}
    | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.WEIGHT | seg.SOFT_LABEL | seg.IGNORE,
    cases=segmentation,
    slopes=seg.slopes_of_arguments,
    allowed=seg.one_activation,
    domain=seg.probabilities_if_not_activated,
    constants=("smooth_nr", "smooth_dr"),
    logits=seg.logits_in,
    slope=seg.dice_slope,
    kinks=seg.ties_matter,
    bounds=bounds.overlap,
    laws=laws.SEGMENTATION + laws.JACCARD + laws.WEIGHT + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    benches=(labelled("DiceLoss", others=peers.dice),),
)  # fmt: skip

MASKED_DICE = Twin(
    name="masked_dice",
    fast=fast.MaskedDiceLoss,
    value=reference.masked_dice_loss,
    gradient=reference.masked_dice_loss_gradient,
    operands=("input", "target", "mask"),
    options=DICE.options,
    cases=segmentation,
    slopes=seg.slopes_of_arguments,
    allowed=seg.one_activation,
    domain=seg.probabilities_if_not_activated,
    constants=DICE.constants,
    logits=seg.logits_in,
    slope=seg.dice_slope,
    kinks=seg.ties_matter,
    bounds=bounds.overlap,
    laws=laws.SEGMENTATION + laws.JACCARD + laws.WEIGHT + laws.MASKED + PROTOCOL,
    real=(LABELS_IN_MASK, SOFT_LABELS_IN_MASK),
    benches=(labelled("MaskedDiceLoss", masked=True, note="MONAI masks the logits before the softmax"),),
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
    slopes=seg.slopes_of_arguments,
    allowed=seg.one_activation,
    domain=DICE.domain,
    constants=(*DICE.constants, "alpha", "beta"),
    logits=seg.logits_in,
    slope=seg.dice_slope,
    kinks=seg.ties_matter,
    bounds=bounds.overlap,
    laws=laws.SEGMENTATION + laws.TVERSKY + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    benches=(labelled("TverskyLoss", others=peers.tversky),),
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
    slopes=seg.slopes_of_arguments,
    allowed=seg.one_activation,
    domain=DICE.domain,
    constants=DICE.constants,
    logits=seg.logits_in,
    terms=terms.generalized_dice_loss,
    kinks=seg.ties_matter,
    bounds=bounds.overlap,
    laws=laws.SEGMENTATION + laws.GENERALIZED + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    benches=(labelled("GeneralizedDiceLoss"),),
)  # fmt: skip

FOUR_CLASSES = [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.5, 0.5], [1.0, 0.5, 0.0, 0.25], [1.0, 0.5, 0.25, 0.0]]


def distances(classes: int) -> list[list[float]]:
    """Return distances between classes; the background is class 0, at distance 1 from all others."""
    if classes == 4:
        return FOUR_CLASSES
    return [[0.0 if i == j else 0.5 if i and j else 1.0 for j in range(classes)] for i in range(classes)]


GENERALIZED_WASSERSTEIN_DICE = Twin(
    name="generalized_wasserstein_dice",
    fast=fast.GeneralizedWassersteinDiceLoss,
    value=reference.generalized_wasserstein_dice_loss,
    gradient=reference.generalized_wasserstein_dice_loss_gradient,
    operands=("input", "target"),
    options={"dist_matrix": (seg.TREE, seg.EQUAL_DISTANCES, seg.ORDERED), "weighting_mode": ("default", "GDL")}
    | seg.REDUCTION | seg.SMOOTHING | seg.IGNORE,
    cases=segmentation,
    slopes=seg.slopes_of_arguments,
    channels=2,
    required=("dist_matrix",),
    constants=DICE.constants,
    logits=lambda options: True,
    slope=seg.wasserstein_slope,
    bounds=bounds.overlap,
    laws=laws.WASSERSTEIN + PROTOCOL,
    real=(
        LABELS.having(dist_matrix=FOUR_CLASSES),
        LABELS.having("labels, GDL", dist_matrix=FOUR_CLASSES, weighting_mode="GDL"),
    ),
    benches=(
        labelled(
            "GeneralizedWassersteinDiceLoss",
            lambda n: {"dist_matrix": distances(n)},
            lambda n: {"dist_matrix": np.array(distances(n), np.float32)},
        ),
    ),
)  # fmt: skip

FOCAL = Twin(
    name="focal",
    fast=fast.FocalLoss,
    value=reference.focal_loss,
    gradient=reference.focal_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.FOCAL | seg.WEIGHT | seg.REDUCTION | seg.IGNORE,
    cases=segmentation,
    slopes=seg.slopes_of_arguments,
    logits=lambda options: True,
    bounds=bounds.not_negative,
    laws=laws.FOCAL + PROTOCOL,
    real=(LABELS.having(to_onehot_y=True), SOFT_LABELS.having(include_background=False)),
    benches=(
        labelled(
            "FocalLoss",
            lambda n: {"to_onehot_y": n > 1},
            lambda n: {"to_onehot_y": n > 1, "use_softmax": n > 1},
            others=peers.focal,
            passes=1,
            note="segmentation_models_pytorch treats each class separately, with a sigmoid",
        ),
    ),
)

COMPOUND: dict[str, tuple[Any, ...]] = {
    **DICE.options,
    "weight": (None, 2.0, seg.PER_CHANNEL),
    "lambda_dice": seg.LAMBDAS,
}

DICE_CE = Twin(
    name="dice_ce",
    fast=fast.DiceCELoss,
    value=reference.dice_ce_loss,
    gradient=reference.dice_ce_loss_gradient,
    operands=("input", "target"),
    options=COMPOUND | {
        "reduction": ("mean", "sum"),
        "ce_weight": (None, 2.0, seg.PER_CHANNEL),
        "lambda_ce": seg.LAMBDAS,
        "label_smoothing": (0.0, 0.25),
    },
    cases=segmentation,
    slopes=seg.slopes_of_arguments,
    allowed=seg.one_activation_and_one_weight,
    domain=DICE.domain,
    constants=DICE.constants,
    logits=lambda options: True,
    slope=seg.dice_slope,
    kinks=seg.ties_matter,
    bounds=bounds.overlap_and_entropy,
    laws=laws.DICE_CE + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    benches=(labelled("DiceCELoss", others=peers.cross_entropy),),
)  # fmt: skip

DICE_FOCAL = Twin(
    name="dice_focal",
    fast=fast.DiceFocalLoss,
    value=reference.dice_focal_loss,
    gradient=reference.dice_focal_loss_gradient,
    operands=("input", "target"),
    options=COMPOUND | seg.FOCAL | {"focal_weight": (None, 2.0, seg.PER_CLASS), "lambda_focal": seg.LAMBDAS},
    cases=segmentation,
    slopes=seg.slopes_of_arguments,
    allowed=seg.one_activation_and_one_weight,
    domain=DICE.domain,
    constants=DICE.constants,
    logits=lambda options: True,
    slope=seg.dice_slope,
    kinks=seg.ties_matter,
    bounds=bounds.overlap_and_entropy,
    laws=laws.DICE_FOCAL + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    benches=(
        labelled(
            "DiceFocalLoss",
            others=peers.cross_entropy,
            note="MONAI's focal term uses a sigmoid, ours a softmax",
        ),
    ),
)

TWINS = (
    DICE, MASKED_DICE, TVERSKY, GENERALIZED_DICE, GENERALIZED_WASSERSTEIN_DICE, FOCAL, DICE_CE, DICE_FOCAL,
    BENDING_ENERGY, DIFFUSION, LNCC, GLOBAL_MUTUAL_INFORMATION, MULTI_SCALE,
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
