"""The reference Dice loss with focal loss: how the two terms are combined."""

import numpy as np
import pytest

from twinloss.reference import (
    dice_focal_loss,
    dice_focal_loss_gradient,
    dice_loss,
    dice_loss_gradient,
    focal_loss,
    focal_loss_gradient,
)

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
Y = np.random.default_rng(1).integers(0, 3, (2, 1, 4, 5))
DICE = {"to_onehot_y": True, "softmax": True}
FOCAL = {"to_onehot_y": True}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shared", [{}, {"include_background": False}, {"ignore_index": 1}])
def test_sum_of_the_two_terms(reduction, shared):
    shared = shared | {"reduction": reduction}
    got = dice_focal_loss(X, Y, lambda_dice=0.5, lambda_focal=2, gamma=1.5, **DICE, **shared)
    expected = 0.5 * dice_loss(X, Y, **DICE, **shared)
    expected = expected + 2 * focal_loss(X, Y, gamma=1.5, **FOCAL, **shared)
    assert np.array_equal(got, expected)


def test_gradient_of_the_sum_of_the_two_terms():
    got = dice_focal_loss_gradient(X, Y, lambda_dice=0.5, lambda_focal=2, cotangent=3, **DICE)
    expected = 1.5 * dice_loss_gradient(X, Y, **DICE) + 6 * focal_loss_gradient(X, Y, **FOCAL)
    assert np.allclose(got, expected, rtol=1e-13)


@pytest.mark.parametrize("options", [{"sigmoid": True}, {"softmax": True}, {"other_act": np.tanh}])
def test_focal_loss_sees_the_logits_whatever_the_activation(options):
    got = dice_focal_loss(X, Y, lambda_dice=0, to_onehot_y=True, **options)
    assert got == focal_loss(X, Y, **FOCAL)


def test_weight_goes_to_both_terms_and_focal_weight_to_focal_alone():
    w, some = [1, 2, 5], {"include_background": False}
    got = dice_focal_loss(X, Y, weight=w, **DICE, **some)
    dice = dice_loss(X, Y, weight=w[1:], **DICE, **some)
    focal = focal_loss(X, Y, weight=w[1:], **FOCAL, **some)
    assert got == dice + focal
    for own in (w, w[1:]):  # with the background or without it
        got = dice_focal_loss(X, Y, focal_weight=own, **DICE, **some)
        assert got == dice_loss(X, Y, **DICE, **some) + focal


def test_options_of_focal_loss_are_passed_on():
    own = {"alpha": 0.3, "use_softmax": False, "gamma": 0.5}
    got = dice_focal_loss(X, Y, lambda_dice=0, **DICE, **own)
    assert got == focal_loss(X, Y, **FOCAL, **own)
