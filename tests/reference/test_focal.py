"""The reference focal loss, by hand."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax

from twinloss.reference import focal_loss, focal_loss_gradient

P = np.array([[[0.5, 0.25, 0.125], [0.25, 0.5, 0.125], [0.25, 0.25, 0.75]]])
X = np.log(P)
Y = np.array([[[0, 1, 2]]])
PER_VOXEL = [0.25 * np.log(2), 0.25 * np.log(2), np.log(4 / 3) / 16]  # γ = 2


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [1, 1, 1]),
        ({"weight": 3}, [3, 3, 3]),
        ({"weight": [1, 2, 4]}, [1, 2, 4]),
        ({"alpha": 0.25}, [0.75, 0.25, 0.25]),
        ({"alpha": [0.5, 0.25, 0.125]}, [0.5, 0.25, 0.125]),
        ({"alpha": 0.25, "weight": [1, 2, 4]}, [0.75, 0.5, 1]),
        ({"include_background": False}, [0, 1, 1]),
        ({"include_background": False, "weight": [2, 4]}, [0, 2, 4]),
        ({"include_background": False, "alpha": 0.25}, [0, 0.25, 0.25]),
        ({"include_background": False, "alpha": [0.5, 0.25]}, [0, 0.5, 0.25]),
        ({"ignore_index": 1}, [1, 0, 1]),
    ],
)
def test_softmax_form_by_hand(options, factors):
    expected = np.multiply(PER_VOXEL, factors)
    options = {"to_onehot_y": True} | options
    none = focal_loss(X, Y, reduction="none", **options)
    assert np.allclose(none.sum(axis=1), [expected], rtol=1e-14)
    classes, kept = none.shape[1], 3 - ("ignore_index" in options)
    got = focal_loss(X, Y, **options)
    assert np.isclose(got, expected.sum() / (classes * kept), rtol=1e-14)
    got = focal_loss(X, Y, reduction="sum", **options)
    assert np.isclose(got, expected.sum() / kept, rtol=1e-14)


@pytest.mark.parametrize(("alpha", "one", "zero"), [(None, 1, 1), (0.25, 0.25, 0.75)])
@pytest.mark.parametrize("channels", [1, 2])
def test_binary_form_by_hand(alpha, one, zero, channels):
    x = np.zeros((1, channels, 2))
    x[..., 0] = np.log(3)  # p = 3/4 and 1/2
    g = np.zeros_like(x)
    g[..., 0] = 1
    none = focal_loss(x, g, use_softmax=False, alpha=alpha, reduction="none")
    expected = [one * np.log(4 / 3) / 16, zero * np.log(2) / 4]
    assert np.allclose(none, np.broadcast_to(expected, x.shape), rtol=1e-14)
    if channels == 1:
        assert np.array_equal(focal_loss(x, g, alpha=alpha, reduction="none"), none)


def test_alpha_of_each_class_in_the_binary_form_weighs_negatives_by_1_minus_alpha():
    g = np.array([[[1, 0], [1, 0]]])
    none = focal_loss(np.zeros((1, 2, 2)), g, use_softmax=False, gamma=0, alpha=[0.25, 0.625], reduction="none")
    assert np.allclose(none / np.log(2), [[[0.25, 0.75], [0.625, 0.375]]], rtol=1e-15)


def test_without_gamma_it_is_cross_entropy():
    x = np.random.default_rng(0).normal(size=(2, 3, 5))
    y = np.random.default_rng(1).integers(0, 3, (2, 1, 5))
    expected = -np.take_along_axis(log_softmax(x, axis=1), y, axis=1)
    got = focal_loss(x, y, gamma=0, to_onehot_y=True, reduction="none").sum(axis=1, keepdims=True)
    assert np.allclose(got, expected, rtol=1e-14)


def test_sum_keeps_the_mean_over_the_voxels_of_each_item():
    x = np.random.default_rng(0).normal(size=(2, 3, 6))
    y = np.arange(12).reshape(2, 1, 6) % 3
    y[0, 0, :2] = 255
    none = focal_loss(x, y, to_onehot_y=True, ignore_index=255, reduction="none")
    got = focal_loss(x, y, to_onehot_y=True, ignore_index=255, reduction="sum")
    assert np.isclose(got, none[0].sum() / 4 + none[1].sum() / 6, rtol=1e-14)
    got = focal_loss(x, y, to_onehot_y=True, ignore_index=255)
    assert np.isclose(got, none.sum() / (3 * 10), rtol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("use_softmax", [True, False])
def test_gradient_is_finite_where_p_is_1(gamma, use_softmax):
    """The slope of -(1 - p)^γ log p tends to 0, although the power alone has no finite slope."""
    x = np.array([[[1e4, 1e4, 50.0], [-1e4, -1e4, -50.0]]])
    options = {"gamma": gamma, "use_softmax": use_softmax, "to_onehot_y": True}
    gradient = focal_loss_gradient(x, np.zeros((1, 1, 3)), **options)
    assert np.all(gradient[..., :2] == 0)
    # q = 1 − p is e^-100 or e^-50, and the slope is -(1 + γ) q^(1 + γ).
    q = np.exp(-100.0) if use_softmax else np.exp(-50.0)
    assert np.isclose(gradient[0, 0, 2], -(1 + gamma) * q ** (1 + gamma) / 6, rtol=1e-13, atol=0)


def test_power_of_a_small_1_minus_p_does_not_cancel():
    x = np.array([[[40.0], [0.0]]])
    got = focal_loss(x, np.array([[[0]]]), to_onehot_y=True, gamma=1, reduction="none")[0, 0, 0]
    assert np.isclose(got, np.exp(-80.0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_impossible_wrong_class_adds_nothing(gamma):
    x = np.array([[[0.0, 1.0], [-np.inf, -np.inf], [1.0, 1.0]]])
    y = np.array([[[0, 2]]])
    for form in (focal_loss, focal_loss_gradient):
        got = form(x, y, to_onehot_y=True, gamma=gamma, reduction="none")
        expected = form(x[:, [0, 2]], y // 2, to_onehot_y=True, gamma=gamma, reduction="none")
        assert np.allclose(got[:, [0, 2]], expected, rtol=1e-15)
        assert np.all(got[:, 1] == 0)


def test_correct_infinite_logits_add_nothing_in_the_binary_form():
    x, g = np.array([[[np.inf, -np.inf, 1.0]]]), np.array([[[1, 0, 1]]])
    assert np.array_equal(focal_loss(x, g, reduction="none")[0, 0, :2], [0, 0])
    assert np.array_equal(focal_loss_gradient(x, g)[0, 0, :2], [0, 0])


def test_impossible_true_class_has_an_infinite_loss_and_a_full_gradient():
    x = np.array([[[-np.inf], [0.0]]])
    assert focal_loss(x, np.array([[[0]]]), to_onehot_y=True) == np.inf
    gradient = focal_loss_gradient(x, np.array([[[0]]]), to_onehot_y=True, reduction="sum")
    assert np.array_equal(gradient, [[[-1], [1]]])


def test_channels_are_independent_in_the_binary_form():
    x, g = np.random.default_rng(0).normal(size=(2, 3, 5)), np.zeros((2, 3, 5))
    got = focal_loss(x, g, use_softmax=False, gamma=1, reduction="none")
    assert np.allclose(got, -expit(x) * np.log(expit(-x)), rtol=1e-13)


@pytest.mark.parametrize("form", [focal_loss, focal_loss_gradient])
@pytest.mark.parametrize(
    ("alpha", "options"),
    [(2.0, {}), (-0.5, {}), ([0.5, -1.0], {}), (2.0, {"use_softmax": False}), ([0.5, 1.5], {"use_softmax": False})],
)
def test_alpha_that_makes_a_term_negative_is_a_value_error(form, alpha, options):
    with pytest.raises(ValueError, match="alpha"):
        form(np.zeros((1, 2, 3)), np.ones((1, 2, 3)), alpha=alpha, **options)


def test_alpha_of_each_class_under_a_softmax_is_a_weight():
    x, y = np.zeros((1, 2, 3)), np.array([[[0, 1, 1]]])
    weighed = focal_loss(x, y, to_onehot_y=True, weight=[0.5, 3.0])
    assert focal_loss(x, y, to_onehot_y=True, alpha=[0.5, 3.0]) == weighed
