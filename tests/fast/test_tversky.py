"""The fast Tversky loss: documented behaviour and corner cases."""

import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, one_hot, soft, value_and_gradient

from twinloss import reference
from twinloss.fast import DiceLoss, TverskyLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
ONEHOT = pytest.mark.parametrize("to_onehot_y", [True, False])
ERRORS = {"alpha": 0.3, "beta": 0.7}
UNSMOOTHED = {"smooth_nr": 0, "smooth_dr": 0}
ON_LABELS = {"softmax": True, "to_onehot_y": True, **ERRORS}


def truth(x, target, **options):
    return exact(reference.tversky_loss, reference.tversky_loss_gradient, x, target, **options)


def by_definition(p, g, alpha, beta, smooth_nr=1e-5, smooth_dr=1e-5):
    """Return the loss of each item and class, (B, C)."""
    tp, fp, fn = ((a * b).reshape(*p.shape[:2], -1).sum(2) for a, b in ((p, g), (p, 1 - g), (1 - p, g)))
    return 1 - (tp + smooth_nr) / (tp + alpha * fp + beta * fn + smooth_dr)


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize(
    ("activation", "probabilities"),
    [({}, lambda x: x), ({"sigmoid": True}, torch.sigmoid), ({"softmax": True}, lambda x: x.softmax(1)),
     ({"other_act": torch.tanh}, torch.tanh)],
)  # fmt: skip
def test_loss_is_one_minus_the_tversky_index_of_the_activated_input(form, spatial, activation, probabilities):
    x, y = logits(2, 3, *spatial, dtype=torch.float64), labels(2, 1, *spatial)
    loss = TverskyLoss(to_onehot_y=True, **activation, **ERRORS)
    expected = value_and_gradient(lambda x, g: by_definition(probabilities(x), g, **ERRORS).mean(), x, one_hot(y))
    assert_all_close(value_and_gradient(loss, x, y, form=form), expected, 1e-12, 1e-15)


@BACKENDS
def test_alpha_weighs_false_positives(form):
    # TP = 2, FP = 3, FN = 0 by hand.
    p, g = torch.ones(1, 1, 5), torch.tensor([[[1, 1, 0, 0, 0]]])
    with dispatch.forced(form):
        for alpha in (0.0, 0.25, 1.0, 2.0):
            for beta in (0.0, 5.0):
                value = TverskyLoss(alpha=alpha, beta=beta, **UNSMOOTHED)(p, g)
                torch.testing.assert_close(value.item(), 1 - 2 / (2 + 3 * alpha), rtol=1e-6, atol=0)


@BACKENDS
def test_beta_weighs_false_negatives(form):
    # TP = 2, FP = 0, FN = 3 by hand.
    p, g = torch.tensor([[[1.0, 1, 0, 0, 0]]]), torch.ones(1, 1, 5)
    with dispatch.forced(form):
        for beta in (0.0, 0.25, 1.0, 2.0):
            for alpha in (0.0, 5.0):
                value = TverskyLoss(alpha=alpha, beta=beta, **UNSMOOTHED)(p, g)
                torch.testing.assert_close(value.item(), 1 - 2 / (2 + 3 * beta), rtol=1e-6, atol=0)


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"include_background": False}, {"soft_label": True}])
@pytest.mark.parametrize("soft_target", [True, False])
def test_halves_are_dice_with_halved_smoothing(form, reduction, options, soft_target):
    x = logits(2, 3, 7, dtype=torch.float64)
    target = soft(2, 3, 7, dtype=torch.float64) if soft_target else labels(2, 1, 7)
    options = {"softmax": True, "to_onehot_y": not soft_target, "reduction": reduction, **options}
    tversky = TverskyLoss(alpha=0.5, beta=0.5, smooth_nr=0.25, smooth_dr=0.5, **options)
    dice = DiceLoss(smooth_nr=0.5, smooth_dr=1.0, **options)
    expected = value_and_gradient(dice, x, target, form=form)
    assert_all_close(value_and_gradient(tversky, x, target, form=form), expected, 1e-13, 1e-16)


@BACKENDS
def test_ones_are_jaccard_with_halved_smoothing(form):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"softmax": True, "to_onehot_y": True}
    tversky = TverskyLoss(alpha=1, beta=1, smooth_nr=0.25, smooth_dr=0.5, **options)
    jaccard = DiceLoss(jaccard=True, smooth_nr=0.5, smooth_dr=1.0, **options)
    expected = value_and_gradient(jaccard, x, y, form=form)
    assert_all_close(value_and_gradient(tversky, x, y, form=form), expected, 1e-13, 1e-16)


def test_alpha_and_beta_are_a_half_and_the_smoothing_is_1e_5_unless_given():
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    expected = by_definition(x, one_hot(y), 0.5, 0.5, 1e-5, 1e-5).mean()
    torch.testing.assert_close(TverskyLoss(to_onehot_y=True)(x, y), expected, rtol=1e-13, atol=0)


@BACKENDS
def test_smoothing_is_added_to_numerator_and_denominator(form):
    # TP = 1, FP = 1, FN = 2 by hand.
    p, g = torch.tensor([[[1.0, 1, 0, 0]]]), torch.tensor([[[1, 0, 1, 1]]])
    with dispatch.forced(form):
        value = TverskyLoss(alpha=0.5, beta=0.25, smooth_nr=0.5, smooth_dr=2.0)(p, g)
    torch.testing.assert_close(value.item(), 1 - 1.5 / (1 + 0.5 + 0.5 + 2.0), rtol=1e-6, atol=0)


@BACKENDS
def test_class_absent_from_prediction_and_target_costs_one_minus_the_ratio_of_the_smoothings(form):
    p, g = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    p[:, 0] = g[:, 0] = 1
    with dispatch.forced(form):
        value = TverskyLoss(reduction="none", smooth_nr=1, smooth_dr=4)(p, g)
    torch.testing.assert_close(value, torch.tensor([[[1 - 5 / 8], [1 - 1 / 4]]]))


@BACKENDS
def test_absent_class_and_item_of_background_alone_are_no_exception(form):
    x, y = logits(3, 3, 4, 5, dtype=torch.float64), labels(3, 1, 4, 5, classes=2)
    y[1] = 0
    options = {"softmax": True, "to_onehot_y": True, "reduction": "none", **ERRORS}
    value, gradient = value_and_gradient(TverskyLoss(**options), x, y, form=form)
    expected = by_definition(x.softmax(1), one_hot(y), **ERRORS)[..., None, None]
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    assert (value[1, 1:] > 0.99).all()  # the class is absent, but predicted
    torch.testing.assert_close(gradient, truth(x, y, **options)[1], rtol=1e-12, atol=1e-16)


# --- options ---------------------------------------------------------------------------------------------------------


@BACKENDS
@ONEHOT
def test_background_is_dropped_from_the_loss_and_not_from_the_softmax(form, to_onehot_y):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    loss = TverskyLoss(include_background=False, to_onehot_y=to_onehot_y, softmax=True, **ERRORS)
    value, gradient = value_and_gradient(loss, x, y if to_onehot_y else one_hot(y), form=form)
    expected = value_and_gradient(lambda x, g: by_definition(x.softmax(1), g, **ERRORS)[:, 1:].mean(), x, one_hot(y))
    assert_all_close((value, gradient), expected, 1e-12, 1e-16)
    assert (gradient[:, 0] != 0).all()


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("target_type", [torch.uint8, torch.int8, torch.uint16, torch.uint64, torch.float16])
def test_labels_of_any_type_that_name_no_class_are_shown_and_counted(form, target_type):
    with dispatch.forced(form), pytest.raises(ValueError, match="2 voxels with 7, 9"):
        TverskyLoss(**ON_LABELS)(torch.rand(1, 3, 4), torch.tensor([[[0, 7, 9, 2]]]).to(target_type))


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_alpha_and_beta_are_finite_and_not_negative(name, wrong):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        TverskyLoss(**{name: wrong})
