"""The values and gradients of the fast losses are those of the reference."""

import numpy as np
import pytest
import torch
from loss_options import (
    ERRORS,
    EXPONENTS,
    FOCAL_FORMS,
    MODES,
    PROBABILITIES,
    REDUCED,
    REDUCTIONS,
    REGISTRATION,
    SOFTMAX,
    SPACING,
    STENCILS,
    TWIN,
    W_TYPES,
    for_labels,
    grid,
    one_by_one,
    truth,
    usual,
    values,
    with_options,
)
from support import BACKENDS, assert_all_close, labels, logits, one_hot, soft, value_and_gradient

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
    MatthewsCorrelationLoss,
    TverskyLoss,
)

OVERLAPS = (
    DiceLoss,
    TverskyLoss,
    FocalTverskyLoss,
    MatthewsCorrelationLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
)
GAMMAS = values("gamma", 0.0, 0.5, 1.0, 2.0)
WEIGHT = [0.5, 2.0, 3.0]
LABELS = {"target": "labels"}
ANY_TARGET = values("target", "labels", "one-hot", "soft")

# Relative and absolute tolerances in float64, and in float32.
TOLERANCES = {FocalLoss: ((1e-13, 1e-16), (2e-6, 1e-8)), DiceCELoss: ((1e-12, 1e-15), (5e-6, 1e-7))}
USUAL_TOLERANCES = (1e-12, 1e-15), (5e-6, 1e-6)


@BACKENDS
@with_options(
    {
        FocalTverskyLoss: grid(
            [
                {"ignore_index": 1},
                {"softmax": True, "weight": WEIGHT, "smooth_nr": 0.0, "smooth_dr": 1e-3},
                {"sigmoid": True, "soft_label": True, "batch": True, "alpha": 0.9, "beta": 0.2},
            ],
            EXPONENTS,
            REDUCTIONS,
            ANY_TARGET,
        ),
        MatthewsCorrelationLoss: grid(
            [
                {"sigmoid": True, "ignore_index": 1},
                {"softmax": True, "weight": WEIGHT, "smooth_nr": 0.0, "smooth_dr": 1e-3},
                {"sigmoid": True, "soft_label": True, "batch": True, "ignore_index": 2},
                {"softmax": True, "include_background": False},
            ],
            REDUCTIONS,
            ANY_TARGET,
        ),
        TverskyLoss: grid(
            [
                {},
                {"sigmoid": True, "alpha": 1.0, "beta": 0.0},
                {"softmax": True, "alpha": 0.0, "beta": 1.0, "batch": True},
                {"softmax": True, "include_background": False, "ignore_index": 1, **ERRORS},
                {"sigmoid": True, "smooth_nr": 0.0, "smooth_dr": 1e-3, "ignore_index": 2, "batch": True, **ERRORS},
                {"softmax": True, "soft_label": True, "weight": WEIGHT, **ERRORS},
                {"sigmoid": True, "soft_label": True, "batch": True, "include_background": False, "alpha": 3.0},
            ],
            REDUCTIONS,
            ANY_TARGET,
        ),
        GeneralizedDiceLoss: grid(
            [
                {},
                {"sigmoid": True, "batch": True},
                {"softmax": True, "include_background": False, "ignore_index": 1},
                {"sigmoid": True, "smooth_nr": 0.0, "smooth_dr": 1e-3, "ignore_index": 2, "normalize_weights": True},
                {"softmax": True, "soft_label": True},
            ],
            W_TYPES,
            REDUCTIONS,
            ANY_TARGET,
        ),
        GeneralizedWassersteinDiceLoss: grid(
            [{}, {"smooth_nr": 0.0, "smooth_dr": 1e-3}, {"smooth_nr": 0.5, "ignore_index": 1}],
            MODES,
            REDUCTIONS,
            [LABELS],
        ),
        FocalLoss: grid(
            [
                {},
                {"gamma": 0},
                {"gamma": 0.5},
                {"gamma": 3.7},
                {"weight": 3},
                {"weight": [0.5, 0.0, 2.0], "gamma": 1},
                {"alpha": 0.25},
                {"alpha": [0.5, 0.25, 0.125], "weight": [1, 2, 4]},
                {"include_background": False},
                {"include_background": False, "alpha": 0.25, "weight": [2, 4]},
                {"include_background": False, "alpha": [0.5, 0.125]},
                {"ignore_index": 1},
                {"use_softmax": False},
                {"use_softmax": False, "gamma": 0.5, "alpha": 0.25, "ignore_index": 2},
                {"use_softmax": False, "include_background": False, "alpha": [0.5, 0.125], "weight": [2, 4]},
            ],
            REDUCTIONS,
            ANY_TARGET,
        ),
        DiceCELoss: grid(
            [
                {},
                {"sigmoid": True, "squared_pred": True},
                {"sigmoid": True, "multilabel": True},
                {"softmax": True, "jaccard": True, "batch": True},
                {"softmax": True, "ce_weight": [0.5, 0.0, 2.0], "smooth_nr": 0.0, "smooth_dr": 1e-3},
                {"softmax": True, "ce_weight": 3.0},
                {"softmax": True, "weight": [0.5, 0.0, 2.0], "label_smoothing": 0.3},
                {"softmax": True, "include_background": False, "weight": [0.5, 1.0, 2.0], "ignore_index": 1},
                {"sigmoid": True, "label_smoothing": 0.1, "ignore_index": 2, "ce_weight": [0.5, 1.0, 2.0]},
                {"softmax": True, "soft_label": True, "lambda_dice": 0.5, "lambda_ce": 2.0},
            ],
            REDUCED,
            ANY_TARGET,
        ),
        DiceFocalLoss: grid(
            [
                {},
                {"sigmoid": True, "squared_pred": True},
                {"softmax": True, "jaccard": True, "batch": True, "gamma": 0.5},
                {"softmax": True, "focal_weight": [0.5, 0.0, 2.0], "smooth_nr": 0.0, "smooth_dr": 1e-3},
                {"softmax": True, "weight": [0.5, 0.0, 2.0], "alpha": 0.3},
                {"softmax": True, "include_background": False, "weight": [0.5, 1.0, 2.0], "ignore_index": 1},
                {"sigmoid": True, "use_softmax": False, "alpha": [0.2, 0.5, 0.9], "ignore_index": 2, "gamma": 0},
                {"softmax": True, "soft_label": True, "lambda_dice": 0.5, "lambda_focal": 2.0},
            ],
            REDUCTIONS,
            ANY_TARGET,
        ),
        GeneralizedDiceFocalLoss: grid(
            [
                {"softmax": True, "weight": [0.5, 0.0, 2.0], "alpha": 0.3},
                {"softmax": True, "include_background": False, "weight": [0.5, 1.0, 2.0], "ignore_index": 1},
                {"sigmoid": True, "use_softmax": False, "batch": True, "gamma": 0.5, "lambda_gdl": 0.5},
                {"sigmoid": True, "smooth_nr": 0.0, "smooth_dr": 1e-3, "normalize_weights": True, "ignore_index": 2},
                {"softmax": True, "soft_label": True, "lambda_gdl": 0.5, "lambda_focal": 2.0},
            ],
            W_TYPES,
            REDUCTIONS,
            ANY_TARGET,
        ),
        DiceLoss: [],  # which has tests of its own
    },
    others=lambda loss_class: grid(one_by_one(loss_class), [LABELS]),
)
def test_value_and_gradient_of_a_segmentation_loss_are_those_of_the_reference(form, loss_class, options):
    x, y = 3 * logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = dict(options)
    kind = options.pop("target")
    target = {"labels": y, "one-hot": one_hot(y), "soft": soft(2, 3, 7, dtype=torch.float64)}[kind]
    options = for_labels(loss_class, options) if kind == "labels" else options
    loss, (double, single) = loss_class(**options), TOLERANCES.get(loss_class, USUAL_TOLERANCES)
    assert_all_close(value_and_gradient(loss, x, target, form=form), truth(loss_class, x, target, options), *double)
    if loss_class is GeneralizedDiceLoss and not (options.get("sigmoid") or options.get("softmax")):
        return  # raw numbers of either sign can cancel in the denominator
    x = x.float()
    assert_all_close(value_and_gradient(loss, x, target, form=form), truth(loss_class, x, target, options), *single)


def field_truth(loss_class, u, options):
    """Return the value of the reference and the gradient of its sum, in long double."""
    wide, twin = u.numpy().astype(np.longdouble), TWIN[loss_class]
    value = np.asarray(twin.value(wide, **options))
    gradient = twin.gradient(wide, cotangent=np.ones_like(value), **options)
    return tuple(torch.from_numpy(np.asarray(a, np.float64)) for a in (value, gradient))


FIELD_OPTIONS = grid(REDUCTIONS, STENCILS, values("normalize", False, True), values("spaced", False, True))


@BACKENDS
@with_options(
    {
        BendingEnergyLoss: grid(FIELD_OPTIONS, values("spatial", (9,), (5, 7), (5, 6, 7))),
        DiffusionLoss: grid(FIELD_OPTIONS, values("spatial", (9,), (3, 7), (5, 3, 6))),
    }
)
def test_value_and_gradient_of_a_loss_of_fields_are_those_of_the_reference(form, loss_class, options):
    options = dict(options)
    spatial, spaced = options.pop("spatial"), options.pop("spaced")
    u = logits(2, len(spatial), *spatial, dtype=torch.float64)
    options = options | {"spacing": SPACING[: len(spatial)] if spaced else None}
    loss = loss_class(**options)
    assert_all_close(value_and_gradient(loss, u, form=form), field_truth(loss_class, u, options), 1e-13, 1e-12)
    u = u.float()
    value, slope = field_truth(loss_class, u, options)
    found = value_and_gradient(loss, u, form=form)
    assert_all_close(found[:1], (value,), 3e-6, 3e-7 * value.abs().max().item())
    assert_all_close(found[1:], (slope,), 0, 2e-6 * slope.abs().max().item())


@BACKENDS
@pytest.mark.parametrize("loss_class", [each for each in REGISTRATION if TWIN[each].of_fields])
def test_loss_of_a_float64_field_is_not_rounded_to_float32_on_the_way(form, loss_class):
    u = logits(2, 3, 6, 7, 8, dtype=torch.float64)
    options = {"spacing": (0.1, 0.3, 0.7), "normalize": True}
    value, gradient = value_and_gradient(loss_class(**options), u, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = field_truth(loss_class, u, options)
    assert_all_close((value, gradient), expected, 1e-13, 1e-14 * expected[1].abs().max().item())


GRADIENT_IN_FLOAT64 = {FocalLoss: (1e-14, 1e-17), DiceCELoss: (1e-12, 1e-16), DiceFocalLoss: (1e-12, 1e-15)}


@BACKENDS
@with_options(
    {
        DiceLoss: [{"softmax": True, "squared_pred": True, "weight": [0.1, 0.2, 0.7]}],
        # None of these numbers is a float32.
        TverskyLoss: grid(
            [{"softmax": True, "alpha": 0.1, "beta": 1.3, "smooth_nr": 0.7}],
            [{}, {"soft_label": True}, {"batch": True, "include_background": False}],
        ),
        GeneralizedDiceLoss: grid(
            [{"softmax": True, "smooth_nr": 0.1, "smooth_dr": 0.7}],
            W_TYPES,
            [{}, {"soft_label": True}, {"batch": True, "normalize_weights": True}],
        ),
        # The quotient of 0.3 and 0.9 is not a float32 either.
        GeneralizedWassersteinDiceLoss: grid(
            [{"dist_matrix": [[0, 0.9, 0.9], [0.9, 0, 0.3], [0.9, 0.7, 0]], "smooth_nr": 0.1, "smooth_dr": 0.7}], MODES
        ),
        FocalLoss: grid([{"weight": [0.1, 0.2, 0.7], "alpha": 0.3, "gamma": 1.7}], FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: grid(
            [{"softmax": True, "squared_pred": True}],
            REDUCED,
            [{}, {"ce_weight": [0.1, 0.2, 0.7], "label_smoothing": 0.1}],
        ),
        DiceFocalLoss: grid(
            [{"softmax": True, "weight": [0.1, 0.2, 0.7], "gamma": 1.7, "alpha": 0.3}], FOCAL_FORMS, REDUCTIONS
        ),
    },
    others=usual,
)
def test_segmentation_loss_keeps_the_accuracy_of_float64(form, loss_class, options):
    x, y = logits(2, 3, 50, dtype=torch.float64), labels(2, 1, 50)
    options = for_labels(loss_class, options)
    value, gradient = value_and_gradient(loss_class(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = truth(loss_class, x, y, options)
    assert_all_close((value,), expected[:1], 1e-14, 1e-17 if loss_class is FocalLoss else 0)
    assert_all_close((gradient,), expected[1:], *GRADIENT_IN_FLOAT64.get(loss_class, (1e-12, 1e-17)))


@BACKENDS
@with_options(
    {
        DiceLoss: [SOFTMAX],
        TverskyLoss: grid([ERRORS], PROBABILITIES),
        FocalTverskyLoss: grid(EXPONENTS, PROBABILITIES),
        MatthewsCorrelationLoss: PROBABILITIES,
        GeneralizedDiceLoss: PROBABILITIES,
        GeneralizedWassersteinDiceLoss: MODES,
        DiceCELoss: [SOFTMAX],
    }
)
def test_nearly_perfect_prediction_keeps_the_relative_accuracy_of_float32(form, loss_class, options):
    # 1 - 2I/D would be rounded to a multiple of 6e-8; the losses here are about 1e-8.
    y = labels(1, 1, 1000)
    right, wrong = (10.0, -10.0) if loss_class is not DiceCELoss and loss_class is not DiceLoss else (20.0, 0.0)
    x = torch.where(one_hot(y) == 1, right, wrong)
    options = for_labels(loss_class, options)
    value, gradient = value_and_gradient(loss_class(**options), x, y, form=form)
    expected = truth(loss_class, x, y, options)
    assert_all_close((value,), expected[:1], 1e-5 if loss_class is DiceCELoss else 1e-6)
    assert_all_close((gradient,), expected[1:], 1e-5)


# Absolute tolerances of saturated logits in float32, and in float64.
SATURATED = {FocalLoss: (1e-37, 1e-37), DiceCELoss: (1e-9, 1e-17), DiceFocalLoss: (1e-7, 1e-16)}


def assert_finite_and_those_of_the_reference(form, dtype, loss_class, options, tolerance):
    """Check a loss of saturated logits."""
    x, y = (1e4 * logits(2, 3, 40).sign()).to(dtype), labels(2, 1, 40)
    options = for_labels(loss_class, options)
    value, gradient = value_and_gradient(loss_class(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == dtype
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    if loss_class in OVERLAPS:
        tolerance = 2 * torch.finfo(dtype).eps, 1e-7
    expected = truth(loss_class, x.to(torch.promote_types(dtype, torch.float32)), y, options)
    assert_all_close((value, gradient), [t.to(dtype) for t in expected], *tolerance)


OF_SATURATED_OVERLAPS = {
    DiceLoss: PROBABILITIES,
    TverskyLoss: grid([ERRORS], PROBABILITIES),
    FocalTverskyLoss: grid(EXPONENTS, PROBABILITIES),
    MatthewsCorrelationLoss: PROBABILITIES,
    GeneralizedDiceLoss: grid(PROBABILITIES, W_TYPES),
    GeneralizedWassersteinDiceLoss: MODES,
}


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@with_options(
    OF_SATURATED_OVERLAPS
    | {
        FocalLoss: grid(GAMMAS, FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: grid(PROBABILITIES, values("label_smoothing", 0.0, 0.3), REDUCED),
        DiceFocalLoss: grid(PROBABILITIES, values("gamma", 0.5, 2.0), FOCAL_FORMS, REDUCTIONS),
    }
)
def test_saturated_logits_have_a_finite_value_and_gradient(form, dtype, loss_class, options):
    single, double = SATURATED.get(loss_class, (None, None))
    tolerance = (1e-6, single) if dtype == torch.float32 else (1e-13, double)
    assert_finite_and_those_of_the_reference(form, dtype, loss_class, options, tolerance)


@BACKENDS
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@with_options(
    OF_SATURATED_OVERLAPS
    | {
        FocalLoss: grid(GAMMAS, FOCAL_FORMS),
        DiceCELoss: PROBABILITIES,
        DiceFocalLoss: grid(PROBABILITIES, FOCAL_FORMS),
    }
)
def test_saturated_logits_in_half_precision_have_a_finite_value_and_gradient(form, half, loss_class, options):
    assert_finite_and_those_of_the_reference(form, half, loss_class, options, (torch.finfo(half).eps, 1e-7))


@BACKENDS
@with_options(
    {
        FocalLoss: FOCAL_FORMS,
        DiceCELoss: grid([SOFTMAX], REDUCED),
        DiceFocalLoss: grid([SOFTMAX], REDUCTIONS),
    }
)
def test_absent_class_and_item_of_background_alone_are_no_exception(form, loss_class, options):
    x, y = logits(2, 4, 7, dtype=torch.float64), labels(2, 1, 7)  # class 3 is nowhere
    y[1] = 0
    options = for_labels(loss_class, options | {"include_background": False})
    found = value_and_gradient(loss_class(**options), x, y, form=form)
    assert found[1].isfinite().all()
    tolerance = {FocalLoss: (1e-13, 1e-17), DiceCELoss: (1e-13, 1e-16), DiceFocalLoss: (1e-12, 1e-15)}[loss_class]
    assert_all_close(found, truth(loss_class, x, y, options), *tolerance)


@with_options(
    {
        DiceLoss: [SOFTMAX | {"weight": 2.0}],
        TverskyLoss: [SOFTMAX | ERRORS | {"reduction": "none"}],
        GeneralizedDiceLoss: [SOFTMAX | {"w_type": "uniform", "reduction": "none"}],
        FocalLoss: [{"weight": 2.0, "alpha": 0.25}],
        DiceCELoss: [SOFTMAX | {"weight": 2.0, "reduction": "sum"}],
        DiceFocalLoss: [SOFTMAX | {"weight": 2.0}],
        GeneralizedWassersteinDiceLoss: [],  # its matrix fixes the number of classes
    },
    others=usual,
)
def test_one_module_serves_any_channel_count(loss_class, options):
    options = for_labels(loss_class, options)
    loss = loss_class(**options)
    for classes in (3, 5, 2, 3):
        x, y = logits(2, classes, 6, dtype=torch.float64), labels(2, 1, 6, classes=classes)
        assert_all_close([loss(x, y)], truth(loss_class, x, y, options)[:1], 1e-13)
