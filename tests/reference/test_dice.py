"""The reference Dice losses, by hand."""

import numpy as np
import pytest

from twinloss.reference import (
    dice_loss,
    dice_loss_gradient,
    masked_dice_loss,
    masked_dice_loss_gradient,
)

EXACT = {"smooth_nr": 0, "smooth_dr": 0}
P = np.array([[[0.5, 0.5, 0.0, 1.0], [0.25, 0.75, 0.0, 0.0]]])
G = np.array([[[1, 0, 0, 1], [0, 1, 1, 0]]])


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        ({}, [1 - 3 / 4, 1 - 1.5 / 3]),  # I = 3/2 and 3/4, Σp = 2 and 1, Σg = 2
        ({"squared_pred": True}, [1 - 3 / 3.5, 1 - 1.5 / 2.625]),  # Σp² = 3/2 and 5/8
        ({"jaccard": True}, [1 - 3 / 5, 1 - 1.5 / 4.5]),  # 2(D − I)
        ({"weight": [2, 4]}, [2 / 4, 4 / 2]),
        ({"weight": 3}, [3 / 4, 3 / 2]),
        ({"include_background": False}, [1 / 2]),
        ({"include_background": False, "weight": [4]}, [2]),
        ({"smooth_nr": 1, "smooth_dr": 2}, [1 - 4 / 6, 1 - 2.5 / 5]),
        ({"ignore_index": 0}, [1 - 0 / 0.5, 1 - 1.5 / 2.75]),  # the second and third voxel are kept
    ],
)
def test_dice_by_hand(options, losses):
    got = dice_loss(P, G, reduction="none", **(EXACT | options))
    assert np.allclose(got, np.reshape(losses, (1, -1, 1)), rtol=1e-15)


def test_sums_over_the_batch_come_before_the_fraction():
    got = dice_loss(P.transpose(1, 0, 2), G.transpose(1, 0, 2), batch=True, **EXACT)
    assert np.isclose(got, 1 - 2 * (1.5 + 0.75) / (2 + 1 + 2 + 2))


def test_jaccard_is_a_function_of_dice():
    dice = 1 - dice_loss(P, G, reduction="none", **EXACT)
    jaccard = 1 - dice_loss(P, G, reduction="none", jaccard=True, **EXACT)
    assert np.allclose(jaccard, dice / (2 - dice), rtol=1e-15)


def test_with_smoothing_an_empty_class_without_prediction_is_perfect():
    assert dice_loss(np.zeros((1, 1, 3)), np.zeros((1, 1, 3))) == 0


def test_background_is_in_the_softmax_even_if_it_is_not_in_the_loss():
    x, y = np.array([[[2.0, 0.0], [0.0, 0.0]]]), np.array([[[1, 1]]])
    p = 1 / (1 + np.exp([2.0, 0.0]))
    got = dice_loss(x, y, softmax=True, to_onehot_y=True, include_background=False, **EXACT)
    assert np.isclose(got, 1 - 2 * p.sum() / (p.sum() + 2))


@pytest.mark.parametrize("options", [{}, {"squared_pred": True}, {"jaccard": True}])
def test_soft_labels_are_optimal_where_p_is_g(options):
    g = np.array([[[0.25, 0.5, 0.75]]])
    assert np.isclose(dice_loss(g, g, soft_label=True, **EXACT, **options), 0, atol=1e-15)


def test_soft_label_changes_nothing_for_hard_targets():
    for options in ({}, {"squared_pred": True, "jaccard": True}):
        assert np.isclose(dice_loss(P, G, soft_label=True, **options), dice_loss(P, G, **options), rtol=1e-15)


def test_gradient_at_a_tie_of_p_and_g_lies_between_the_slopes_beside_it():
    g = np.array([[[0.25, 0.5, 0.75]]])
    h = 1e-6 * np.eye(3)[1]
    value = dice_loss(g, g, soft_label=True)
    left = (value - dice_loss(g - h, g, soft_label=True)) / 1e-6
    right = (dice_loss(g + h, g, soft_label=True) - value) / 1e-6
    assert left < dice_loss_gradient(g, g, soft_label=True)[0, 0, 1] < right


def test_cotangent_picks_the_gradient_of_one_loss():
    u = np.zeros((1, 2, 1))
    u[0, 1] = 2
    gradient = dice_loss_gradient(P, G, reduction="none", cotangent=u, **EXACT)
    # (2I/D² − 2g/D) · 2 with I = 3/4 and D = 3
    assert np.allclose(gradient[0, 1], np.array([1.5 / 9, 1.5 / 9 - 2 / 3, 1.5 / 9 - 2 / 3, 1.5 / 9]) * 2)
    assert np.all(gradient[0, 0] == 0)


def test_other_activation_is_applied_with_its_derivative():
    gradient = dice_loss_gradient(P, G, other_act=np.square, other_act_derivative=lambda x: 2 * x)
    assert np.allclose(gradient, 2 * P * dice_loss_gradient(P**2, G), rtol=1e-15)


def test_voxel_that_is_one_hot_in_the_ignored_class_is_ignored_and_a_soft_one_is_not():
    g = np.array([[[1, 0.9, 0.0], [0, 0.1, 1.0]]])
    p = np.full_like(g, 0.5)
    expected = dice_loss(p[:, :, 1:], g[:, :, 1:])
    assert dice_loss(p, g, ignore_index=0) == expected


@pytest.mark.parametrize("label", [0, 1, 255])
def test_single_channel_ignores_the_voxels_of_that_label(label):
    p, g = np.array([[[0.5, np.nan, 0.75, 0.25]]]), np.array([[[1 - label % 2] * 4]])
    g[0, 0, 1] = label
    kept = [0, 2, 3]
    assert dice_loss(p, g, ignore_index=label) == dice_loss(p[..., kept], g[..., kept])


def test_mask_of_ones_has_no_effect():
    one = np.ones((1, 1, 4), bool)
    assert masked_dice_loss(P, G, one) == dice_loss(P, G)
    assert np.array_equal(masked_dice_loss_gradient(P, G, one), dice_loss_gradient(P, G))


def test_mask_is_applied_after_the_activation():
    """The probability of a masked voxel is not sigmoid(0) = 1/2."""
    x, g, mask = np.array([[[1e4, 3.0]]]), np.array([[[1, 0]]]), np.array([[[1, 0]]])
    assert masked_dice_loss(x, g, mask, sigmoid=True) == 0


def test_masking_equals_cropping():
    mask = np.array([[[1, 0, 1, 1]]])
    kept = [0, 2, 3]
    assert masked_dice_loss(P, G, mask) == dice_loss(P[..., kept], G[..., kept])


def test_soft_mask_multiplies_p_and_g():
    mask = np.array([[[0.5, 1.0, 0.25, 0.75]]])
    assert masked_dice_loss(P, G, mask) == dice_loss(P * mask, G * mask)
    expected = mask * dice_loss_gradient(P * mask, G * mask)
    assert np.array_equal(masked_dice_loss_gradient(P, G, mask), expected)


def test_one_mask_applies_to_all_items():
    p, g, mask = np.repeat(P, 2, 0), np.repeat(G, 2, 0), np.array([[[1, 0, 1, 1]]])
    assert masked_dice_loss(p, g, mask) == masked_dice_loss(p, g, np.repeat(mask, 2, 0))


@pytest.mark.parametrize("activation", [{}, {"sigmoid": True}, {"softmax": True}])
@pytest.mark.parametrize("soft_label", [False, True])
def test_nothing_leaks_from_outside_the_mask(activation, soft_label):
    p, mask = P.copy(), np.array([[[1, 0, 0, 1]]])
    p[0, :, 1:3] = [[np.nan, np.inf], [-np.inf, np.inf]]
    options = {"soft_label": soft_label} | activation
    value = masked_dice_loss(p, G, mask, **options)
    gradient = masked_dice_loss_gradient(p, G, mask, **options)
    kept = [0, 3]
    assert value == dice_loss(P[..., kept], G[..., kept], **options)
    assert np.array_equal(gradient[..., kept], dice_loss_gradient(P[..., kept], G[..., kept], **options))
    assert np.all(gradient[..., 1:3] == 0)
