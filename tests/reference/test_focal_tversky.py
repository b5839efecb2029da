"""The reference focal Tversky loss, by hand."""

import numpy as np
import pytest

from twinloss.reference import focal_tversky_loss, focal_tversky_loss_gradient

P = np.array([[[0.5, 0.5, 0.0, 1.0], [0.25, 0.75, 0.0, 0.0]]])
G = np.array([[[1, 0, 0, 1], [0, 1, 1, 0]]])


@pytest.mark.parametrize(
    ("options", "losses"),
    [  # TP = 3/2 and 3/4, FP = 1/2 and 1/4, FN = 1/2 and 5/4
        ({"alpha": 1, "beta": 0, "gamma": 2}, [(1 / 4) ** 2, (1 / 4) ** 2]),
        ({"alpha": 0, "beta": 1, "gamma": [0.5, 3]}, [(1 / 4) ** 0.5, (5 / 8) ** 3]),
        ({"alpha": 0, "beta": 1, "gamma": [3], "include_background": False}, [(5 / 8) ** 3]),
        ({"alpha": 0, "beta": 1, "gamma": 1, "weight": [2, 3]}, [2 / 4, 15 / 8]),
        ({"gamma": 0.5, "smooth_nr": 10}, [0, 0]),
    ],
)
def test_focal_tversky_by_hand(options, losses):
    options = {"smooth_nr": 0, "smooth_dr": 0} | options
    got = focal_tversky_loss(P, G, reduction="none", **options)
    assert np.allclose(got, np.reshape(losses, (1, -1, 1)), rtol=1e-15)


def test_nearly_perfect_prediction_keeps_its_digits_under_a_power():
    # 1 - TI is about 1e-20, which is lost if TI is subtracted from 1, and its power ¼ is 1e-5.
    x, y = np.full((1, 2, 4), -23.0), np.array([[[0, 0, 1, 1]]])
    np.put_along_axis(x, y, 23.0, axis=1)
    options = {"softmax": True, "to_onehot_y": True, "smooth_nr": 0, "smooth_dr": 0, "gamma": 0.25}
    q = np.exp(-46.0)
    assert np.isclose(focal_tversky_loss(x, y, **options), q**0.25, rtol=1e-12)
    assert np.abs(focal_tversky_loss_gradient(x, y, **options)).max() > 1e-7
