"""The reference Matthews correlation loss, by hand."""

import numpy as np
import pytest

from twinloss.reference import matthews_correlation_loss

P = np.array([[[1, 1, 0, 0, 0.0], [0, 0, 0, 0, 0]]])
G = np.array([[[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]])  # TP = FP = FN = 1 and TN = 2; TN = 5


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        ({}, [1 - (1 / 5 + 1) / (6 / 5 + 1), 0]),
        ({"smooth_nr": 0}, [1 - 1 / 11, 1]),
        ({"weight": [1, 2], "smooth_nr": 0.5}, [1 - (1 / 5 + 0.5) / (6 / 5 + 1), 1]),
        ({"include_background": False}, [0]),
        # Without the voxels of class 1, N is 5 in both classes.
        ({"ignore_index": 1}, [1 - (1 / 5 + 1) / (6 / 5 + 1), 0]),
        # Without those of class 0: FP = 1, TN = 2.
        ({"ignore_index": 0}, [1 - 1 / np.sqrt(2 / 3 + 1), 0]),
    ],
)
def test_matthews_correlation_by_hand(options, losses):
    got = matthews_correlation_loss(P, G, reduction="none", **{"smooth_nr": 1, "smooth_dr": 1} | options)
    assert np.allclose(got, np.reshape(losses, (1, -1, 1)), rtol=1e-15)


@pytest.mark.parametrize("soft_label", [False, True])
def test_soft_labels_are_optimal_where_p_is_g(soft_label):
    g = np.array([[[0.25, 0.5, 0.75]]])
    loss = matthews_correlation_loss(g, g, soft_label=soft_label)
    assert (loss < 1e-15) == soft_label
