"""The reference Dice loss with cross entropy, by hand."""

import numpy as np
import pytest
from scipy.special import expit

from twinloss.reference import dice_ce_loss, dice_ce_loss_gradient, dice_loss, dice_loss_gradient

P = np.array([[[0.5, 0.25, 0.125], [0.25, 0.5, 0.125], [0.25, 0.25, 0.75]]])
X = np.log(P)
Y = np.array([[[0, 1, 2]]])
L2, L43 = np.log(2), np.log(4 / 3)
CE = {"lambda_dice": 0, "to_onehot_y": True}


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({}, (2 * L2 + L43) / 3),
        ({"reduction": "sum"}, 2 * L2 + L43),
        ({"ce_weight": [1, 2, 5]}, (L2 + 2 * L2 + 5 * L43) / 8),
        ({"weight": [1, 2, 5]}, (L2 + 2 * L2 + 5 * L43) / 8),
        ({"ce_weight": [1, 2, 5], "reduction": "sum"}, L2 + 2 * L2 + 5 * L43),
        ({"include_background": False}, (2 * L2 + L43) / 3),
        ({"include_background": False, "weight": [1, 2, 5]}, (L2 + 2 * L2 + 5 * L43) / 8),
        ({"lambda_ce": 2}, 2 * (2 * L2 + L43) / 3),
        ({"ignore_index": 2}, L2),
        ({"ce_weight": [1, 2, 5], "ignore_index": 1}, (L2 + 5 * L43) / 6),
        ({"ce_weight": [0, 0, 0]}, 0),
        ({"softmax": True}, (2 * L2 + L43) / 3),
        ({"sigmoid": True}, (2 * L2 + L43) / 3),
    ],
)
def test_cross_entropy_by_hand(options, loss):
    assert np.isclose(dice_ce_loss(X, Y, **CE, **options), loss, rtol=1e-14)


def test_label_smoothing_spreads_a_share_over_the_classes_and_not_over_the_divisor():
    w, e = np.array([1, 2, 5]), 0.3
    got = dice_ce_loss(X, Y, **CE, ce_weight=w, label_smoothing=e)
    sharp = (w * [L2, L2, L43]).sum()
    flat = -(w[:, np.newaxis] * X[0]).sum() / 3
    assert np.isclose(got, ((1 - e) * sharp + e * flat) / w.sum(), rtol=1e-14)


def test_divisor_for_soft_targets_is_the_weight_that_they_carry():
    w, g = np.array([1, 2, 5]), np.array([[[0.5, 0.25, 0.0], [0.5, 0.5, 0.0], [0.0, 0.25, 0.5]]])
    got = dice_ce_loss(X, g, lambda_dice=0, ce_weight=w)
    assert np.isclose(got, -(w[:, np.newaxis] * g * X).sum() / (w[:, np.newaxis] * g).sum())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["weight", "ce_weight"])
def test_one_channel_is_binary_and_the_weight_is_of_the_positives(reduction, name):
    x, g = np.array([[[0.5, -1.0, 2.0]]]), np.array([[[1, 0, 0]]])
    got = dice_ce_loss(x, g, lambda_dice=0, reduction=reduction, **{name: [3]})
    each = -np.array([3 * np.log(expit(0.5)), np.log(expit(1.0)), np.log(expit(-2.0))])
    assert np.isclose(got, getattr(each, reduction)(), rtol=1e-14)


def test_one_channel_has_two_outcomes_to_smooth_over():
    x, g = np.array([[[0.5, -1.0, 2.0]]]), np.array([[[1, 0, 0]]])
    got = dice_ce_loss(x, g, lambda_dice=0, label_smoothing=0.2)
    two = np.concatenate([0 * x, x], axis=1)
    same = dice_ce_loss(two, g, lambda_dice=0, label_smoothing=0.2, to_onehot_y=True)
    assert np.isclose(got, same, rtol=1e-14)


def test_dice_takes_the_weights_of_the_classes_that_it_sees():
    options = {"to_onehot_y": True, "softmax": True, "include_background": False}
    got = dice_ce_loss(X, Y, lambda_ce=0, weight=[1, 2, 5], **options)
    assert got == dice_loss(X, Y, weight=[2, 5], **options)
    assert dice_ce_loss(X, Y, lambda_ce=0, ce_weight=[1, 2, 5], **options) == dice_loss(X, Y, **options)


def test_sum_of_the_two_terms():
    dice = {"to_onehot_y": True, "softmax": True, "jaccard": True}
    got = dice_ce_loss(X, Y, lambda_dice=0.5, lambda_ce=2, **dice)
    expected = 0.5 * dice_loss(X, Y, **dice) + 2 * dice_ce_loss(X, Y, **CE)
    assert np.isclose(got, expected, rtol=1e-14)
    got = dice_ce_loss_gradient(X, Y, lambda_dice=0.5, lambda_ce=2, cotangent=3, **dice)
    dice_part = dice_loss_gradient(X, Y, **dice)
    expected = 3 * (0.5 * dice_part + 2 * dice_ce_loss_gradient(X, Y, **CE))
    assert np.allclose(got, expected, rtol=1e-13)


def test_impossible_wrong_class_adds_nothing():
    x = np.array([[[0.0, 1.0], [-np.inf, -np.inf], [1.0, 1.0]]])
    y = np.array([[[0, 2]]])
    options = CE | {"softmax": True}
    for form in (dice_ce_loss, dice_ce_loss_gradient):
        got, expected = form(x, y, **options), form(x[:, [0, 2]], y // 2, **options)
        assert np.allclose(got if got.ndim == 0 else got[:, [0, 2]], expected, rtol=1e-15)
    assert np.all(got[:, 1] == 0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_regions_that_overlap_are_binary_problems_each_with_a_weight_of_its_positives(reduction):
    x, g = np.array([[[0.5, -1.0], [2.0, 0.0]]]), np.array([[[1, 0], [1, 1]]])
    got = dice_ce_loss(x, g, lambda_dice=0, sigmoid=True, multilabel=True, ce_weight=[3, 2], reduction=reduction)
    each = -np.array([3 * np.log(expit(0.5)), np.log(expit(1.0)), 2 * np.log(expit(2.0)), 2 * np.log(0.5)])
    assert np.isclose(got, getattr(each, reduction)(), rtol=1e-14)


def test_regions_have_two_outcomes_to_smooth_over():
    x, g = np.array([[[0.5], [2.0]]]), np.array([[[1], [0]]])
    got = dice_ce_loss(x, g, lambda_dice=0, sigmoid=True, multilabel=True, label_smoothing=0.2)
    first = 0.9 * np.log(expit(0.5)) + 0.1 * np.log(expit(-0.5))
    second = 0.1 * np.log(expit(2.0)) + 0.9 * np.log(expit(-2.0))
    assert np.isclose(got, -(first + second) / 2, rtol=1e-14)


def test_voxels_that_a_further_channel_marks_do_not_count_in_the_mean():
    x, g = np.array([[[0.5, np.nan], [2.0, np.nan]]]), np.array([[[1, 0], [0, 1]]])
    marked = np.concatenate([g, [[[0, 1]]]], axis=1)
    options = {"multilabel": True, "sigmoid": True}
    got = dice_ce_loss(x, marked, ignore_index=2, **options)
    assert got == dice_ce_loss(x[..., :1], g[..., :1], **options)
    gradient = dice_ce_loss_gradient(x, marked, ignore_index=2, **options)
    assert np.array_equal(gradient[..., :1], dice_ce_loss_gradient(x[..., :1], g[..., :1], **options))
    assert np.all(gradient[..., 1] == 0)
