"""The reference Tversky loss, by hand."""

import numpy as np
import pytest

from twinloss.reference import dice_loss, dice_loss_gradient, tversky_loss, tversky_loss_gradient

P = np.array([[[0.5, 0.5, 0.0, 1.0], [0.25, 0.75, 0.0, 0.0]]])
G = np.array([[[1, 0, 0, 1], [0, 1, 1, 0]]])


@pytest.mark.parametrize(
    ("options", "losses"),
    [  # TP = 3/2 and 3/4, FP = 1/2 and 1/4, FN = 1/2 and 5/4
        ({}, [1 - 1.5 / 2, 1 - 0.75 / 1.5]),
        ({"alpha": 1, "beta": 0}, [1 - 1.5 / 2, 1 - 0.75 / 1]),  # precision
        ({"alpha": 0, "beta": 1}, [1 - 1.5 / 2, 1 - 0.75 / 2]),  # recall
        ({"alpha": 0, "beta": 1, "include_background": False}, [1 - 0.75 / 2]),
        ({"smooth_nr": 1, "smooth_dr": 2}, [1 - 2.5 / 4, 1 - 1.75 / 3.5]),
    ],
)
def test_tversky_by_hand(options, losses):
    options = {"smooth_nr": 0, "smooth_dr": 0} | options
    got = tversky_loss(P, G, reduction="none", **options)
    assert np.allclose(got, np.reshape(losses, (1, -1, 1)), rtol=1e-15)


@pytest.mark.parametrize("soft_label", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_halves_are_dice_with_twice_the_smoothing(soft_label, batch):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 3, 7)), rng.uniform(size=(2, 3, 7))
    same = {"sigmoid": True, "soft_label": soft_label, "batch": batch}
    half, whole = {"smooth_nr": 0.25, "smooth_dr": 0.5}, {"smooth_nr": 0.5, "smooth_dr": 1.0}
    assert np.isclose(tversky_loss(x, g, **same, **half), dice_loss(x, g, **same, **whole), rtol=1e-14)
    assert np.allclose(
        tversky_loss_gradient(x, g, **same, **half),
        dice_loss_gradient(x, g, **same, **whole),
        rtol=1e-12,
    )


def test_soft_labels_are_optimal_where_p_is_g():
    g = np.array([[[0.25, 0.5, 0.75]]])
    assert tversky_loss(g, g, soft_label=True, alpha=0.3, beta=0.9) == 0
    assert tversky_loss(g, g, alpha=0.3, beta=0.9) > 0.1
