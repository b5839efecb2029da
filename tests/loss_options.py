"""The options with which the contract tests call the losses, and the results of the reference."""

import itertools
from functools import reduce
from operator import or_

import pytest
import torch
from support import exact, logits

from twinloss.fast import LocalNormalizedCrossCorrelationLoss, MultiScaleLoss
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.model.operand import PerCase, Sizes

TWIN = {twin.public: twin for twin in TWINS}
# The segmentation losses of logits and a target, and the losses of fields or images.
SEGMENTATION = tuple(loss for loss, twin in TWIN.items() if twin.operands == ("input", "target") and not twin.wraps)
REGISTRATION = tuple(loss for loss, twin in TWIN.items() if twin.of_registration)
# Rows and columns differ: MATRIX[y][l] is the distance from the label y to the prediction l.
MATRIX = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.25, 0.0]]
SPACING = (0.5, 3.0, 1.25)


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


def with_options(table, others=(), of=SEGMENTATION):
    """Parametrize a test by each loss of a table, and by each of the dictionaries of options that it lists.

    The losses `of` a family that the table does not name have the options `others`, or those that `others` returns for
    the class.
    """
    rest = {each: others(each) if callable(others) else others for each in of if each not in table}
    cases = [
        pytest.param(loss_class, options, id="-".join([loss_class.__name__, *map(_shown, options.values())]))
        for loss_class, all_options in (table | rest).items()
        for options in all_options
    ]
    return pytest.mark.parametrize(*OF_TABLES, cases)


def usual(loss_class):
    """Return the options for logits: a softmax, if it is not always applied."""
    return [SOFTMAX if "softmax" in TWIN[loss_class].options else {}]


def activations(loss_class):
    """Return the usual options, and another activation if the loss takes one."""
    return [*usual(loss_class), *([{"other_act": torch.sigmoid}] if "other_act" in TWIN[loss_class].options else [])]


def one_by_one(loss_class):
    """Return the usual options, each with one further option of the loss at one of its values."""
    twin, (base,) = TWIN[loss_class], usual(loss_class)
    sizes = Sizes(batch=2, classes=3, taking_part=3, labels=True, rank=3 if twin.of_registration else 1)
    made = [base]
    for name, (_, *others) in twin.options.items():
        for value in others:
            if isinstance(value, PerCase):
                value = value.make(sizes)
            options = ({} if name in ("sigmoid", "softmax") else base) | {name: value}
            if name not in ("to_onehot_y", "other_act", "ndim") and twin.allowed(twin.defaults() | options):
                made.append(options)
    return made


def taking(*names, of=SEGMENTATION):
    """Return the losses that have all of these options."""
    return [loss_class for loss_class in of if set(names) <= set(TWIN[loss_class].options)]


def for_labels(loss_class, options):
    """Return options with which a segmentation loss takes labels; Wasserstein Dice always does."""
    given = {"to_onehot_y": True, "dist_matrix": MATRIX}
    return {name: value for name, value in given.items() if name in TWIN[loss_class].options} | options


def truth(loss_class, x, target, options):
    """Return the value and the gradient of the reference of a segmentation loss."""
    return exact(TWIN[loss_class].value, TWIN[loss_class].gradient, x, target, **options)


def registration_loss(loss_class, options, ndim=3):
    """Return a registration loss for images of a number of axes."""
    if loss_class is MultiScaleLoss:
        wrapped = LocalNormalizedCrossCorrelationLoss(ndim=ndim, smooth_dr=0.5)
        return loss_class(**{"loss": wrapped, "scales": [0, 1, 2]} | options)
    return loss_class(**options, **{name: ndim for name in TWIN[loss_class].options if name == "ndim"})


def registration_arguments(loss_class, *shape, dtype=torch.float32):
    """Return a field, or two images in [0, 1] that have something in common."""
    if TWIN[loss_class].of_fields:
        return (logits(*shape, dtype=dtype),)
    first, second = (logits(*shape, dtype=torch.float64, seed=seed).sigmoid() for seed in (0, 3))
    images = first.to(dtype), ((first + second) / 2).to(dtype)
    return images[::-1] if loss_class is MultiScaleLoss else images
