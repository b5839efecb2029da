"""The records of the segmentation losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis.strategies import SearchStrategy

from twinloss import fast, reference
from twinloss.harness.drawing import segmentation_options as seg
from twinloss.harness.drawing.segmentation_cases import segmentation
from twinloss.harness.judging.nearby import reference_options
from twinloss.harness.losses import bounds, gradient_term_sizes, lost_digits, peers
from twinloss.harness.losses import segmentation_laws as laws
from twinloss.harness.losses.benchmark_inputs import counted, labelled
from twinloss.harness.losses.module_laws import PROTOCOL
from twinloss.harness.losses.real_cases import LABELS, LABELS_IN_MASK, SOFT_LABELS, SOFT_LABELS_IN_MASK
from twinloss.harness.model.twin import Case, Twin
from twinloss.reference import matthews_correlation
from twinloss.reference.steps.segmentation import probabilities

# Attributes that all segmentation losses share.
OF_SEGMENTATION: dict[str, Any] = {"cases": segmentation, "slopes": seg.slopes_of_arguments}
SMOOTHED = ("smooth_nr", "smooth_dr")
ON_LABELS = {"softmax": True, "to_onehot_y": True}
# Attributes that all losses of overlaps with a choice of activations share.
OF_OVERLAP: dict[str, Any] = OF_SEGMENTATION | {
    "domain": seg.probabilities_if_not_activated, "constants": SMOOTHED, "kinks": seg.ties_matter,
    "lost_digits": lost_digits.OVERLAP,
}  # fmt: skip

DICE = Twin(
    name="dice",
    fast=fast.DiceLoss,
    value=reference.dice_loss,
    gradient=reference.dice_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.ACTIVATION | {"squared_pred": (False, True), "jaccard": (False, True)}
    | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.WEIGHT | seg.SOFT_LABEL | seg.IGNORE,
    **OF_OVERLAP,
    allowed=seg.one_activation,
    logits=seg.logits_in,
    terms=gradient_term_sizes.dice_loss,
    bounds=bounds.overlap,
    laws=laws.SEGMENTATION + laws.JACCARD + laws.WEIGHT + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    shards=(ON_LABELS, {**ON_LABELS, "squared_pred": True, "weight": (1.0, 2.0, 3.0), "ignore_index": 2},
            {"sigmoid": True, "to_onehot_y": True, "jaccard": True, "include_background": False}),
    compiles_first=True,
    benches=(
        labelled("DiceLoss", others=peers.dice),
        counted("sigmoid", "DiceLoss", {"sigmoid": True, "to_onehot_y": True}),
        counted("sigmoid and soft target", "DiceLoss", {"sigmoid": True}, soft=True),
        counted("soft target", "DiceLoss", {"softmax": True}, soft=True),
    ),
)  # fmt: skip

MASKED_DICE = Twin(
    name="masked_dice",
    fast=fast.MaskedDiceLoss,
    value=reference.masked_dice_loss,
    gradient=reference.masked_dice_loss_gradient,
    operands=("input", "target", "mask"),
    options=DICE.options,
    **OF_OVERLAP,
    allowed=seg.one_activation,
    logits=seg.logits_in,
    terms=gradient_term_sizes.dice_loss,
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
    | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.WEIGHT | seg.SOFT_LABEL | seg.IGNORE,
    **OF_OVERLAP | {"constants": (*SMOOTHED, "alpha", "beta")},
    allowed=seg.one_activation,
    logits=seg.logits_in,
    terms=gradient_term_sizes.dice_loss,
    bounds=bounds.overlap,
    laws=laws.SEGMENTATION + laws.WEIGHT + laws.TVERSKY + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    shards=({**ON_LABELS, "alpha": 0.3, "beta": 0.7},),
    benches=(labelled("TverskyLoss", others=peers.tversky),),
)  # fmt: skip

FOCAL_TVERSKY = Twin(
    name="focal_tversky",
    fast=fast.FocalTverskyLoss,
    value=reference.focal_tversky_loss,
    gradient=reference.focal_tversky_loss_gradient,
    operands=("input", "target"),
    options={
        **TVERSKY.options, "alpha": (0.3, 0.5, 0.0), "beta": (0.7, 0.5, 2.0),
        "gamma": (0.75, 0.5, 1.0, 2.0, seg.EXPONENTS),
    },
    **OF_OVERLAP | {"constants": (*SMOOTHED, "alpha", "beta"), "kinks": seg.power_has_kinks},
    allowed=seg.one_activation,
    logits=seg.logits_in,
    terms=gradient_term_sizes.focal_tversky_loss,
    bounds=bounds.power_of_overlap,
    laws=laws.SEGMENTATION + laws.WEIGHT + laws.FOCAL_TVERSKY + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    shards=({**ON_LABELS, "gamma": (0.5, 1.0, 2.0)},),
    benches=(labelled(None),),
)  # fmt: skip


def _has_true_negatives(case: Case) -> bool:
    """Return whether δ > 0, or TN is not 0 up to rounding, where the Matthews correlation is not defined.

    TN is the difference of two sums. If these are rounded, the fast loss cannot tell 0 from a small number, and with
    δ = 0 such a number matters.
    """
    if case.options.get("smooth_dr", 1.0) > 0:
        return True
    o = matthews_correlation.MatthewsCorrelationOptions(**reference_options(case))
    x, target = (operand.lifted(np.longdouble) for operand in case.operands.values())
    with np.errstate(all="ignore"):
        c = matthews_correlation.counts(x, target, *probabilities(x, target, o), o)
    return not bool(((c.fp > 0) & (c.tn < 1e-3 * c.fp)).any())


def _matthews_cases(*arguments: Any) -> SearchStrategy[Case]:
    return segmentation(*arguments).filter(_has_true_negatives)


MATTHEWS_CORRELATION = Twin(
    name="matthews_correlation",
    fast=fast.MatthewsCorrelationLoss,
    value=reference.matthews_correlation_loss,
    gradient=reference.matthews_correlation_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.ACTIVATION | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.WEIGHT | seg.SOFT_LABEL
    | seg.IGNORE,
    **OF_OVERLAP | {
        "cases": _matthews_cases,
        "domain": lambda case: seg.probabilities_if_not_activated(case) and _has_true_negatives(case),
    },
    allowed=seg.one_activation,
    logits=seg.logits_in,
    terms=gradient_term_sizes.matthews_correlation_loss,
    value_terms=gradient_term_sizes.matthews_correlation_value,
    bounds=bounds.matthews_correlation,
    laws=laws.SEGMENTATION + laws.WEIGHT + laws.MATTHEWS_CORRELATION + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    shards=({**ON_LABELS, "ignore_index": 2},),
    unlike_monai=True,
    benches=(labelled("MCCLoss"),),
)  # fmt: skip

GENERALIZED_DICE = Twin(
    name="generalized_dice",
    fast=fast.GeneralizedDiceLoss,
    value=reference.generalized_dice_loss,
    gradient=reference.generalized_dice_loss_gradient,
    operands=("input", "target"),
    options=seg.TARGET | seg.ACTIVATION | {"w_type": ("square", "simple", "uniform")}
    | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.SOFT_LABEL | seg.IGNORE | {"normalize_weights": (False, True)},
    **OF_OVERLAP,
    allowed=seg.one_activation,
    logits=seg.logits_in,
    terms=gradient_term_sizes.generalized_dice_loss,
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
    | seg.REDUCTION | seg.SMOOTHING | seg.IGNORE_LABEL,
    **OF_SEGMENTATION,
    channels=2,
    required=("dist_matrix",),
    constants=SMOOTHED,
    logits=lambda options: True,
    terms=gradient_term_sizes.wasserstein_loss,
    bounds=bounds.overlap,
    laws=laws.WASSERSTEIN + PROTOCOL,
    real=(
        LABELS.having(dist_matrix=FOUR_CLASSES),
        LABELS.having("labels, GDL", dist_matrix=FOUR_CLASSES, weighting_mode="GDL"),
    ),
    unlike_monai=True,
    compiles_first=True,
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
    **OF_SEGMENTATION,
    logits=lambda options: True,
    bounds=bounds.not_negative,
    laws=laws.FOCAL + PROTOCOL,
    real=(LABELS.having(to_onehot_y=True), SOFT_LABELS.having(include_background=False)),
    unlike_monai=True,
    compiles_first=True,
    benches=(
        labelled(
            "FocalLoss",
            lambda n: {"to_onehot_y": n > 1},
            lambda n: {"to_onehot_y": n > 1, "use_softmax": n > 1},
            others=peers.focal,
            passes=1,
            note="segmentation_models_pytorch treats each class separately, with a sigmoid",
        ),
        counted("sigmoid", "FocalLoss", {"to_onehot_y": True, "use_softmax": False}),
        counted("soft target", "FocalLoss", {"use_softmax": True}, soft=True),
    ),
)

COMPOUND: dict[str, tuple[Any, ...]] = {
    **DICE.options,
    "weight": (None, 2.0, seg.PER_CHANNEL),
    "lambda_dice": seg.LAMBDAS,
}
# Attributes that both compound losses share.
OF_COMPOUND: dict[str, Any] = OF_OVERLAP | {
    "allowed": seg.one_activation_and_one_weight,
    "logits": lambda options: True,
    "terms": gradient_term_sizes.dice_loss,
    "bounds": bounds.overlap_and_entropy,
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
        "multilabel": (False, True),
    },
    **OF_COMPOUND,
    laws=laws.DICE_CE + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    shards=({**ON_LABELS, "label_smoothing": 0.1, "ce_weight": (1.0, 2.0, 3.0)},),
    compiles_first=True,
    benches=(
        labelled("DiceCELoss", others=peers.cross_entropy),
        counted("soft target", "DiceCELoss", {"softmax": True}, soft=True),
    ),
)  # fmt: skip

DICE_FOCAL = Twin(
    name="dice_focal",
    fast=fast.DiceFocalLoss,
    value=reference.dice_focal_loss,
    gradient=reference.dice_focal_loss_gradient,
    operands=("input", "target"),
    options=COMPOUND | seg.FOCAL | {"focal_weight": (None, 2.0, seg.PER_CLASS), "lambda_focal": seg.LAMBDAS},
    **OF_COMPOUND,
    laws=laws.DICE_FOCAL + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    shards=({**ON_LABELS, "gamma": 0.5},),
    unlike_monai=True,
    benches=(
        labelled(
            "DiceFocalLoss",
            others=peers.cross_entropy,
            note="MONAI's focal term uses a sigmoid, ours a softmax",
        ),
    ),
)

GENERALIZED_DICE_FOCAL = Twin(
    name="generalized_dice_focal",
    fast=fast.GeneralizedDiceFocalLoss,
    value=reference.generalized_dice_focal_loss,
    gradient=reference.generalized_dice_focal_loss_gradient,
    operands=("input", "target"),
    options={**GENERALIZED_DICE.options} | seg.FOCAL
    | {"weight": (None, 2.0, seg.PER_CHANNEL), "lambda_gdl": seg.LAMBDAS, "lambda_focal": seg.LAMBDAS},
    **OF_OVERLAP,
    allowed=seg.one_activation,
    logits=lambda options: True,
    terms=gradient_term_sizes.generalized_dice_focal_loss,
    bounds=bounds.generalized_overlap_and_entropy,
    laws=laws.GENERALIZED_DICE_FOCAL + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    shards=({**ON_LABELS, "gamma": 0.5},),
    unlike_monai=True,
    benches=(
        labelled(
            "GeneralizedDiceFocalLoss",
            others=peers.cross_entropy,
            note="MONAI's focal term uses a sigmoid, ours a softmax",
        ),
    ),
)  # fmt: skip
