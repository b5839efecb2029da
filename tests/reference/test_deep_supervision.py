"""The reference of deep supervision: weights, grids and gradient, with known answers."""

from functools import partial

import numpy as np
import pytest

from twinloss.reference import (
    deep_supervision_loss,
    deep_supervision_loss_gradient,
    dice_loss,
    dice_loss_gradient,
    masked_dice_loss,
)

INTERP_MODES = pytest.mark.parametrize("interp_mode", ["nearest-exact", "nearest"])


def outputs(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def total(x, g):
    return (g - x).sum()


def of_target(x, g):
    """Return the target of a level as its loss."""
    return g


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1 + 10 / 2 + 100 / 4),
        ({"weight_mode": "same"}, 111),
        ({"weight_mode": "two"}, 1 + 10 / 2 + 100 / 2),
        ({"weight_mode": "two", "weights": [2, 0, 0.5]}, 52),
    ],
)
def test_weights_of_the_levels(options, expected):
    x, g = [np.zeros((1, 1, 2))] * 3, [np.full((1, 1, 1), value) for value in (1, 10, 100)]
    assert deep_supervision_loss(x, g, total, **options) == 2 * expected


@pytest.mark.parametrize(
    ("interp_mode", "n", "m", "expected"),
    [
        ("nearest-exact", 4, 2, [1, 3]),
        ("nearest", 4, 2, [0, 2]),
        ("nearest-exact", 6, 2, [1, 4]),
        ("nearest-exact", 5, 3, [0, 2, 4]),  # the middles lie at 5/6, 15/6 and 25/6
        ("nearest", 5, 3, [0, 1, 3]),
        ("nearest-exact", 3, 3, [0, 1, 2]),
        ("nearest-exact", 26, 11, [1, 3, 5, 8, 10, 13, 15, 17, 20, 22, 24]),  # the middle of 5 lies at 13
    ],
)
def test_coarse_grid_has_the_nearest_voxels(interp_mode, n, m, expected):
    target = np.arange(n)[np.newaxis, np.newaxis]
    found = deep_supervision_loss([np.zeros((1, 2, m))], target, of_target, interp_mode=interp_mode)
    assert found.ravel().tolist() == expected


@INTERP_MODES
def test_axes_are_sampled_independently_and_labels_without_channels_are_sampled_too(interp_mode):
    target = np.arange(4 * 6).reshape(1, 4, 6)
    first = 0 if interp_mode == "nearest" else 1
    expected = target[:, first::2, 3 // 2 * first :: 3]
    for y in (target, target[:, np.newaxis]):
        found = deep_supervision_loss([np.zeros((1, 3, 2, 2))], y, of_target, interp_mode=interp_mode)
        assert np.array_equal(found.reshape(expected.shape), expected)


@INTERP_MODES
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 0.5]])
def test_gradient_of_a_level_is_that_of_its_loss_times_its_weight(interp_mode, weights):
    x, y = outputs((2, 3, 6, 5), (2, 3, 3, 5), (2, 3, 2, 2)), np.random.default_rng(1).integers(0, 3, (2, 1, 6, 5))
    options = {"softmax": True, "to_onehot_y": True, "reduction": "none"}
    cotangent = np.random.default_rng(2).normal(size=(2, 3, 1, 1))
    given = {"weights": weights, "interp_mode": interp_mode}
    loss, slope = partial(dice_loss, **options), partial(dice_loss_gradient, **options)
    gradients = deep_supervision_loss_gradient(x, y, slope, cotangent=cotangent, **given)
    assert [gradient.shape for gradient in gradients] == [level.shape for level in x]
    rng, step = np.random.default_rng(3), 1e-5
    for level, gradient in enumerate(gradients):
        direction = rng.normal(size=x[level].shape)

        def along(t, level=level, direction=direction):
            moved = [each + t * direction if k == level else each for k, each in enumerate(x)]
            return (cotangent * deep_supervision_loss(moved, y, loss, **given)).sum()

        expected = (along(step) - along(-step)) / (2 * step)
        assert np.isclose((gradient * direction).sum(), expected, rtol=0, atol=1e-9)


def test_level_of_weight_0_may_hold_nan_and_need_not_fit_the_target():
    x, y = [np.full((2, 3, 7), np.nan), *outputs((1, 2, 4))], np.array([[[0, 1, 1, 0]]])
    loss, slope = partial(dice_loss, softmax=True, to_onehot_y=True), partial(dice_loss_gradient, to_onehot_y=True)
    assert deep_supervision_loss(x, y, loss, weights=[0, 2]) == 2 * loss(x[1], y)
    gradients = deep_supervision_loss_gradient(x, y, slope, weights=[0, 2])
    assert np.array_equal(gradients[0], np.zeros((2, 3, 7)))
    assert np.array_equal(gradients[1], 2 * slope(x[1], y))


def test_stacked_levels_are_those_of_a_list():
    x, y = outputs((1, 2, 4), (1, 2, 4)), np.array([[[0, 1, 1, 0]]])
    loss, slope = partial(dice_loss, softmax=True, to_onehot_y=True), partial(dice_loss_gradient, to_onehot_y=True)
    stack = np.stack(x, axis=1)
    assert deep_supervision_loss(stack, y, loss, stacked=True) == deep_supervision_loss(x, y, loss)
    found = deep_supervision_loss_gradient(stack, y, slope, stacked=True)
    assert np.array_equal(found, np.stack(deep_supervision_loss_gradient(x, y, slope), axis=1))


def test_mask_is_sampled_like_the_target():
    x, y, m = outputs((1, 2, 4), (1, 2, 2)), np.array([[[0, 1, 1, 0]]]), np.array([[[1, 1, 0, 0]]])
    loss = partial(masked_dice_loss, softmax=True, to_onehot_y=True)
    expected = loss(x[0], y, m) + loss(x[1], y[..., 1::2], m[..., 1::2]) / 2
    assert deep_supervision_loss(x, y, loss, mask=m) == expected


def test_number_of_weights_must_be_that_of_the_levels():
    with pytest.raises(ValueError, match="zip"):
        deep_supervision_loss(outputs((1, 1, 2)), np.zeros((1, 1, 2)), total, weights=[1, 2])
