"""The reference generalised Dice loss with focal loss: how the two terms are combined."""

import numpy as np
import pytest

from twinloss.reference import (
    focal_loss,
    focal_loss_gradient,
    generalized_dice_focal_loss,
    generalized_dice_focal_loss_gradient,
    generalized_dice_loss,
    generalized_dice_loss_gradient,
)

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
Y = np.random.default_rng(1).integers(0, 3, (2, 1, 4, 5))
DICE = {"to_onehot_y": True, "softmax": True, "w_type": "simple", "normalize_weights": True}
FOCAL = {"to_onehot_y": True}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shared", [{}, {"include_background": False}, {"ignore_index": 1}])
def test_sum_of_the_two_terms(reduction, shared):
    shared = shared | {"reduction": reduction}
    got = generalized_dice_focal_loss(X, Y, lambda_gdl=0.5, lambda_focal=2, gamma=1.5, **DICE, **shared)
    expected = 0.5 * generalized_dice_loss(X, Y, **DICE, **shared)
    assert np.array_equal(got, expected + 2 * focal_loss(X, Y, gamma=1.5, **FOCAL, **shared))


def test_gradient_of_the_sum_of_the_two_terms():
    got = generalized_dice_focal_loss_gradient(X, Y, lambda_gdl=0.5, lambda_focal=2, cotangent=3, **DICE)
    expected = 1.5 * generalized_dice_loss_gradient(X, Y, **DICE) + 6 * focal_loss_gradient(X, Y, **FOCAL)
    assert np.allclose(got, expected, rtol=1e-13)


@pytest.mark.parametrize("batch", [True, False])
def test_one_dice_loss_of_an_item_is_added_at_all_its_voxels(batch):
    u = np.random.default_rng(2).normal(size=X.shape)
    options = {**DICE, "reduction": "none", "batch": batch}
    got = generalized_dice_focal_loss_gradient(X, Y, lambda_focal=0, cotangent=u, **options)
    of_item = u.sum(axis=(1, 2, 3), keepdims=True)
    of_item = of_item.sum(keepdims=True) if batch else of_item
    assert np.allclose(got, generalized_dice_loss_gradient(X, Y, cotangent=of_item, **options), rtol=1e-12)


def test_weight_goes_to_the_focal_term_and_has_a_value_for_the_background():
    w, some = [1, 2, 5], {"include_background": False}
    got = generalized_dice_focal_loss(X, Y, weight=w, **DICE, **some)
    dice = generalized_dice_loss(X, Y, **DICE, **some)
    assert got == dice + focal_loss(X, Y, weight=w[1:], **FOCAL, **some)
