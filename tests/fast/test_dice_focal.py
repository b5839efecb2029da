"""The fast Dice + focal loss: documented behaviour and corner cases."""

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient

from twinloss.fast import DiceFocalLoss, DiceLoss, FocalLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
FORMS = pytest.mark.parametrize("use_softmax", [True, False])
ACTIVATIONS = pytest.mark.parametrize(
    "activation", [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.exp}]
)
WEIGHT = [0.5, 2.0, 3.0]


# --- the sum of two terms --------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@ACTIVATIONS
@FORMS
def test_it_is_the_weighted_sum_of_dice_and_of_focal_loss_of_the_logits(form, reduction, activation, use_softmax):
    # Focal loss sees the logits, whatever the activation of Dice.
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    shared = {"to_onehot_y": True, "reduction": reduction}
    own = {"gamma": 1.5, "use_softmax": use_softmax, "alpha": 0.3}
    loss = DiceFocalLoss(lambda_dice=0.5, lambda_focal=2.0, **shared, **activation, **own)
    dice, focal = DiceLoss(**shared, **activation), FocalLoss(**shared, **own)
    expected = value_and_gradient(lambda x, y: 0.5 * dice(x, y) + 2.0 * focal(x, y), x, y, form=form)
    assert_all_close(value_and_gradient(loss, x, y, form=form), expected, 1e-13, 1e-15)


@BACKENDS
@pytest.mark.parametrize(
    "options",
    [
        {"squared_pred": True},
        {"jaccard": True},
        {"batch": True},
        {"soft_label": True},
        {"smooth_nr": 0.5},
        {"smooth_dr": 0.5},
        {"softmax": True},
    ],
)
def test_other_options_reach_dice_and_leave_focal_loss_alone(form, options):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    with dispatch.forced(form):
        dice = DiceFocalLoss(to_onehot_y=True, lambda_focal=0, **options)(x, y)
        torch.testing.assert_close(dice, DiceLoss(to_onehot_y=True, **options)(x, y), rtol=1e-14, atol=0)
        focal = DiceFocalLoss(to_onehot_y=True, lambda_dice=0, **options)(x, y)
        torch.testing.assert_close(focal, FocalLoss(to_onehot_y=True)(x, y), rtol=1e-14, atol=0)


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("gamma", [0, 0.5, 3])
def test_gamma_reaches_focal_loss(form, reduction, gamma):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"to_onehot_y": True, "gamma": gamma, "reduction": reduction}
    with dispatch.forced(form):
        found = DiceFocalLoss(lambda_dice=0, **options)(x, y)
        torch.testing.assert_close(found, FocalLoss(**options)(x, y), rtol=1e-13, atol=0)


@REDUCTIONS
def test_background_is_dropped_from_both_terms(reduction):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"include_background": False, "to_onehot_y": True, "reduction": reduction}
    expected = DiceLoss(softmax=True, **options)(x, y) + FocalLoss(**options)(x, y)
    torch.testing.assert_close(DiceFocalLoss(softmax=True, **options)(x, y), expected)


def test_factors_of_the_terms_are_1_and_gamma_is_2_unless_given():
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"to_onehot_y": True, "softmax": True}
    found = DiceFocalLoss(**options)(x, y)
    assert torch.equal(found, DiceFocalLoss(lambda_dice=1, lambda_focal=1, gamma=2, **options)(x, y))
    torch.testing.assert_close(found, DiceLoss(**options)(x, y) + FocalLoss(to_onehot_y=True, gamma=2)(x, y))


# --- class weights ---------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize(("background", "weight"), [(True, WEIGHT), (False, WEIGHT[1:]), (True, 3), (False, 3)])
def test_focal_weight_goes_to_focal_loss_alone(form, reduction, background, weight):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"include_background": background, "to_onehot_y": True, "reduction": reduction}
    with dispatch.forced(form):
        found = DiceFocalLoss(softmax=True, focal_weight=weight, **options)(x, y)
        expected = DiceLoss(softmax=True, **options)(x, y) + FocalLoss(weight=weight, **options)(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("background", [True, False])
@FORMS
def test_weight_goes_to_both_and_each_takes_those_of_the_classes_that_it_sees(form, reduction, background, use_softmax):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"include_background": background, "to_onehot_y": True, "reduction": reduction}
    seen = WEIGHT if background else WEIGHT[1:]
    with dispatch.forced(form):
        found = DiceFocalLoss(softmax=True, weight=WEIGHT, use_softmax=use_softmax, **options)(x, y)
        dice = DiceLoss(softmax=True, weight=seen, **options)(x, y)
        focal = FocalLoss(weight=seen, use_softmax=use_softmax, **options)(x, y)
    torch.testing.assert_close(found, dice + focal, rtol=1e-13, atol=0)


@REDUCTIONS
def test_scalar_weight_scales_both_terms(reduction):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"to_onehot_y": True, "softmax": True, "reduction": reduction}
    torch.testing.assert_close(DiceFocalLoss(weight=4, **options)(x, y), 4 * DiceFocalLoss(**options)(x, y))


@pytest.mark.parametrize("name", ["weight", "focal_weight", "alpha"])
@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor])
def test_weight_of_any_kind_gives_the_same(name, kind):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    found, expected = (DiceFocalLoss(to_onehot_y=True, **{name: k([0.5, 0.2, 0.3])})(x, y) for k in (kind, list))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


# --- one channel, spatial rank, reduction ----------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
def test_one_channel_is_binary_focal_loss(form, reduction):
    x, g = logits(2, 1, 7), labels(2, 1, 7, classes=2)
    options = {"reduction": reduction}
    with dispatch.forced(form):
        found = DiceFocalLoss(sigmoid=True, alpha=0.3, use_softmax=False, **options)(x, g)
        focal = FocalLoss(use_softmax=False, alpha=0.3, **options)(x, g)
        torch.testing.assert_close(found, DiceLoss(sigmoid=True, **options)(x, g) + focal)


def test_single_channel_with_the_softmax_form_warns_and_is_binary():
    x, g = logits(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match="single channel prediction, `use_softmax=True` ignored"):
        value = DiceFocalLoss(sigmoid=True)(x, g)
    torch.testing.assert_close(value, DiceFocalLoss(sigmoid=True, use_softmax=False)(x, g))


@BACKENDS
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_unreduced_loss_adds_dice_to_each_voxel_and_the_mean_follows_from_it(form, background, batch, spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    shared = {"include_background": background, "to_onehot_y": True}
    own = {"softmax": True, "batch": batch}
    with dispatch.forced(form):
        none = DiceFocalLoss(reduction="none", **shared, **own)(x, y)
        dice = DiceLoss(reduction="none", **shared, **own)(x, y)
        focal = FocalLoss(reduction="none", **shared)(x, y)
        mean = DiceFocalLoss(**shared, **own)(x, y)
    assert none.shape == (2, 3 if background else 2, *spatial)
    torch.testing.assert_close(none, dice + focal)
    torch.testing.assert_close(mean, none.mean())


@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_sum_is_that_of_both_terms(spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    options = {"to_onehot_y": True, "reduction": "sum"}
    expected = DiceLoss(softmax=True, **options)(x, y) + FocalLoss(**options)(x, y)
    torch.testing.assert_close(DiceFocalLoss(softmax=True, **options)(x, y), expected)
