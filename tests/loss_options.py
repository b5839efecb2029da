"""The options with which the contract tests call the losses, and the results of the reference."""

import itertools
from functools import reduce
from operator import or_

import pytest
import torch
from support import exact, logits

from twinloss import reference
from twinloss.fast import (
    BendingEnergyLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    DiffusionLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceFocalLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
    MatthewsCorrelationLoss,
    MultiScaleLoss,
    TverskyLoss,
)

# Rows and columns differ: MATRIX[y][l] is the distance from the label y to the prediction l.
MATRIX = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.25, 0.0]]
SPACING = (0.5, 3.0, 1.25)
REFERENCE = {
    DiceLoss: (reference.dice_loss, reference.dice_loss_gradient),
    FocalTverskyLoss: (reference.focal_tversky_loss, reference.focal_tversky_loss_gradient),
    MatthewsCorrelationLoss: (reference.matthews_correlation_loss, reference.matthews_correlation_loss_gradient),
    TverskyLoss: (reference.tversky_loss, reference.tversky_loss_gradient),
    GeneralizedDiceLoss: (reference.generalized_dice_loss, reference.generalized_dice_loss_gradient),
    GeneralizedWassersteinDiceLoss: (
        reference.generalized_wasserstein_dice_loss,
        reference.generalized_wasserstein_dice_loss_gradient,
    ),
    FocalLoss: (reference.focal_loss, reference.focal_loss_gradient),
    DiceCELoss: (reference.dice_ce_loss, reference.dice_ce_loss_gradient),
    DiceFocalLoss: (reference.dice_focal_loss, reference.dice_focal_loss_gradient),
    GeneralizedDiceFocalLoss: (reference.generalized_dice_focal_loss, reference.generalized_dice_focal_loss_gradient),
}


def values(name, *choices):
    """Return the options that give one option each of its values."""
    return [{name: choice} for choice in choices]


def grid(*sets):
    """Return all ways to merge one dictionary of options from each set."""
    return [reduce(or_, chosen) for chosen in itertools.product(*sets)]


ERRORS = {"alpha": 0.3, "beta": 0.7}
EXPONENTS = values("gamma", 0.75, [0.5, 1.0, 2.5])
SIGMOID, SOFTMAX = {"sigmoid": True}, {"softmax": True}
PROBABILITIES = [SIGMOID, SOFTMAX]
ACTIVATIONS = [{}, SIGMOID, SOFTMAX, {"other_act": torch.exp}]
ONEHOT = values("to_onehot_y", True, False)
REDUCED = values("reduction", "mean", "sum")
REDUCTIONS = values("reduction", "mean", "sum", "none")
FOCAL_FORMS = values("use_softmax", True, False)
W_TYPES = values("w_type", "square", "simple", "uniform")
MODES = values("weighting_mode", "default", "GDL")
STENCILS = values("stencil", "compact", "wide")
WINDOWS = values("kernel_type", "rectangular", "triangular", "gaussian")
HISTOGRAMS = values("kernel_type", "gaussian", "b-spline")


def _shown(option):
    return getattr(option, "__name__", str(option))


# The parameters of tests that `with_options` parametrizes.
OF_TABLES = (("loss_class", "options"),)


def with_options(table):
    """Parametrize a test by each loss of a table, and by each of the dictionaries of options that it lists."""
    cases = [
        pytest.param(loss_class, options, id="-".join([loss_class.__name__, *map(_shown, options.values())]))
        for loss_class, all_options in table.items()
        for options in all_options
    ]
    return pytest.mark.parametrize(*OF_TABLES, cases)


def for_labels(loss_class, options):
    """Return options with which a segmentation loss takes labels; Wasserstein Dice always does."""
    if loss_class is GeneralizedWassersteinDiceLoss:
        return {"dist_matrix": MATRIX} | options
    return {"to_onehot_y": True} | options


def truth(loss_class, x, target, options):
    """Return the value and the gradient of the reference of a segmentation loss."""
    return exact(*REFERENCE[loss_class], x, target, **options)


def registration_loss(loss_class, options, ndim=3):
    """Return a registration loss for images of a number of axes."""
    if loss_class is LocalNormalizedCrossCorrelationLoss:
        return loss_class(ndim=ndim, **options)
    if loss_class is MultiScaleLoss:
        wrapped = LocalNormalizedCrossCorrelationLoss(ndim=ndim, smooth_dr=0.5)
        return loss_class(**{"loss": wrapped, "scales": [0, 1, 2]} | options)
    return loss_class(**options)


def registration_arguments(loss_class, *shape, dtype=torch.float32):
    """Return a field, or two images in [0, 1] that have something in common."""
    if loss_class in (BendingEnergyLoss, DiffusionLoss):
        return (logits(*shape, dtype=dtype),)
    first, second = (logits(*shape, dtype=torch.float64, seed=seed).sigmoid() for seed in (0, 3))
    images = first.to(dtype), ((first + second) / 2).to(dtype)
    return images[::-1] if loss_class is MultiScaleLoss else images


REGISTRATION = (
    BendingEnergyLoss,
    DiffusionLoss,
    LocalNormalizedCrossCorrelationLoss,
    GlobalMutualInformationLoss,
    MultiScaleLoss,
)
