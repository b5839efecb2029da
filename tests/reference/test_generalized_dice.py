"""The reference generalised Dice loss, by hand."""

import numpy as np
import pytest

from twinloss.reference import generalized_dice_loss, generalized_dice_loss_gradient

EXACT = {"smooth_nr": 0, "smooth_dr": 0}
P = np.array([[[0.5, 0.5, 0.0, 1.0], [0.25, 0.75, 0.0, 0.0]]])
G = np.array([[[1, 1, 0, 1], [0, 0, 1, 0]]])
ABSENT = np.array([[[1, 1, 0, 1], [0, 0, 0, 0]]])


@pytest.mark.parametrize(
    ("target", "options", "loss"),
    [  # I = 2 and 0, D = 2 + 3 and 1 + 1, V = 3 and 1
        (G, {}, 1 - 2 * (2 / 9) / (5 / 9 + 2)),
        (G, {"w_type": "simple"}, 1 - 2 * (2 / 3) / (5 / 3 + 2)),
        (G, {"w_type": "uniform"}, 1 - 2 * 2 / 7),
        (G, {"include_background": False}, 1),
        (G, {"smooth_nr": 1, "smooth_dr": 2}, 1 - (4 / 9 + 1) / (5 / 9 + 2 + 2)),
        (G, {"smooth_nr": 1, "smooth_dr": 2, "normalize_weights": True}, 1 - 1.4 / 4.3),
        # The absent class gets the weight of the other class, 1/9, and has D = 1.
        (ABSENT, {}, 1 - 2 * (2 / 9) / (5 / 9 + 1 / 9)),
        (ABSENT, {"w_type": "simple"}, 1 - 2 * (2 / 3) / (5 / 3 + 1 / 3)),
    ],
)
def test_generalized_dice_by_hand(target, options, loss):
    assert np.isclose(generalized_dice_loss(P, target, **(EXACT | options)), loss, rtol=1e-15)


def test_absent_class_gets_the_largest_weight_of_its_item_or_with_batch_of_all_items():
    p, g = np.repeat(P, 2, 0), np.concatenate([G, ABSENT])
    each = generalized_dice_loss(p, g, reduction="none")
    assert np.isclose(each[0, 0, 0], generalized_dice_loss(P, G), rtol=1e-15)
    assert np.isclose(each[1, 0, 0], generalized_dice_loss(P, ABSENT), rtol=1e-15)
    together = generalized_dice_loss(p, g, batch=True, **EXACT)  # V = 6 and 1
    assert np.isclose(together, 1 - 2 * (4 / 36) / (10 / 36 + 3), rtol=1e-15)


def test_gradient_is_0_for_a_target_without_any_class():
    options = {"smooth_nr": 1, "smooth_dr": 4}
    for more in ({}, {"normalize_weights": True}, {"w_type": "simple"}):
        assert generalized_dice_loss(P, 0 * G, **options, **more) == 1 - 1 / 4
        assert np.all(generalized_dice_loss_gradient(P, 0 * G, **options, **more) == 0)


def test_normalized_weights_change_the_meaning_of_the_smoothing_alone():
    same = generalized_dice_loss(P, G, normalize_weights=True, **EXACT)
    assert np.isclose(same, generalized_dice_loss(P, G, **EXACT), rtol=1e-15)
    large = np.tile(G, (1, 1, 300_000))
    missed = np.zeros(large.shape)
    assert generalized_dice_loss(missed, large) < 0.5  # w is about 1e-12, ν = 1e-5
    assert generalized_dice_loss(missed, large, normalize_weights=True) > 0.99


def test_soft_labels_are_optimal_where_p_is_g():
    g = np.array([[[0.25, 0.5, 0.75], [0.75, 0.5, 0.25]]])
    assert abs(generalized_dice_loss(g, g, soft_label=True)) < 1e-15
    assert generalized_dice_loss(g, g) > 0.1
