"""The reference generalised Wasserstein Dice loss, by hand."""

import numpy as np
import pytest

from twinloss.reference import (
    generalized_wasserstein_dice_loss,
    generalized_wasserstein_dice_loss_gradient,
    wasserstein_distance_map,
)

MATRIX = [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]]
P = np.array([[[0.5, 0.25, 0.125], [0.25, 0.5, 0.125], [0.25, 0.25, 0.75]]])
Y = np.array([[0, 1, 2]])
W = [0.5, 0.375, 0.1875]
EXACT = {"dist_matrix": MATRIX, "smooth_nr": 0, "smooth_dr": 0}


def test_distance_map_by_hand_in_any_unit():
    assert np.array_equal(wasserstein_distance_map(P, Y, MATRIX), [W])
    assert np.array_equal(wasserstein_distance_map(P, Y, 4 * np.array(MATRIX)), [W])


def test_distance_is_from_the_label_when_the_matrix_is_not_symmetric():
    p = np.array([[[0.25], [0.75]]])
    assert wasserstein_distance_map(p, np.array([[0]]), [[0, 1], [0.5, 0]]) == 0.75
    assert wasserstein_distance_map(p, np.array([[1]]), [[0, 1], [0.5, 0]]) == 0.125


def test_default_weighting_by_hand():
    tp = (1 - W[1]) + (1 - W[2])  # the background does not count
    got = generalized_wasserstein_dice_loss(np.log(P), Y, **EXACT)
    assert np.isclose(got, 1 - 2 * tp / (2 * tp + sum(W)), rtol=1e-14)


def test_gdl_weighting_by_hand():
    y = np.array([[0, 2, 2]])  # α = 1/2 and 1/3
    w = wasserstein_distance_map(P, y, MATRIX)[0]
    tp = (1 - w[0]) / 2 + (1 - w[1]) / 3 + (1 - w[2]) / 3
    rest = (2 - w[0]) / 2 + (2 - w[1]) / 3 + (2 - w[2]) / 3
    got = generalized_wasserstein_dice_loss(np.log(P), y, weighting_mode="GDL", **EXACT)
    assert np.isclose(got, 1 - 2 * tp / rest, rtol=1e-14)


@pytest.mark.parametrize("mode", ["default", "GDL"])
def test_certain_and_correct_prediction_is_perfect(mode):
    x = 1000 * np.eye(3)  # three items of one voxel, as in the documentation
    y = np.arange(3)
    got = generalized_wasserstein_dice_loss(x, y, weighting_mode=mode, dist_matrix=MATRIX)
    assert got == 0


def test_target_may_have_a_channel_axis_or_not():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4, 5)), np.arange(40).reshape(2, 4, 5) % 3
    for f in (generalized_wasserstein_dice_loss, generalized_wasserstein_dice_loss_gradient):
        assert np.array_equal(f(x, y, dist_matrix=MATRIX), f(x, y[:, None], dist_matrix=MATRIX))


def test_confusing_near_classes_has_a_smaller_loss():
    y = np.array([[1, 1, 1]])
    near, far = np.zeros((1, 3, 3)), np.zeros((1, 3, 3))
    near[:, 2], far[:, 0] = 5, 5
    losses = [generalized_wasserstein_dice_loss(x, y, dist_matrix=MATRIX) for x in (near, far)]
    assert losses[0] < losses[1]


def test_items_do_not_mix():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 3, 5)), rng.integers(0, 3, (3, 5))
    each = generalized_wasserstein_dice_loss(x, y, dist_matrix=MATRIX, reduction="none")
    for b in range(3):
        alone = generalized_wasserstein_dice_loss(x[b : b + 1], y[b : b + 1], dist_matrix=MATRIX)
        assert each[b] == alone


@pytest.mark.parametrize("mode", ["default", "GDL"])
def test_ignored_voxels_do_not_count_in_the_volume_of_any_class(mode):
    x = np.random.default_rng(0).normal(size=(1, 3, 6))
    y, kept = np.array([[0, 1, 255, 2, 255, 0]]), [0, 1, 3, 5]
    options = {"weighting_mode": mode, "dist_matrix": MATRIX, "ignore_index": 255}
    got = generalized_wasserstein_dice_loss(x, y, **options)
    assert got == generalized_wasserstein_dice_loss(x[..., kept], y[:, kept], **options)
