"""The reference of the loss within a mask: what the mask multiplies, and its gradient."""

from functools import partial

import numpy as np
import pytest

from twinloss import reference
from twinloss.reference import masked_loss, masked_loss_gradient

DISTANCES = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]
ON_LABELS = {"softmax": True, "to_onehot_y": True}
WRAPPED = {
    "dice": ON_LABELS,
    "tversky": {**ON_LABELS, "alpha": 0.3},
    "generalized_dice": ON_LABELS,
    "generalized_wasserstein_dice": {"dist_matrix": DISTANCES},
    "generalized_wasserstein_dice, GDL": {"dist_matrix": DISTANCES, "weighting_mode": "GDL"},
    "focal": {"to_onehot_y": True, "alpha": 0.3},
    "focal, sigmoid": {"to_onehot_y": True, "use_softmax": False, "reduction": "sum"},
    "dice_ce": {**ON_LABELS, "ce_weight": [0.5, 1, 2], "label_smoothing": 0.1},
    "dice_ce, regions": {"sigmoid": True, "to_onehot_y": True, "multilabel": True},
    "dice_focal": ON_LABELS,
}
EVERY = pytest.mark.parametrize("name", WRAPPED)


def twins(name, **more):
    """Return the value and the gradient of a loss with its options."""
    function, options = name.partition(",")[0], WRAPPED[name] | more
    return (partial(getattr(reference, f"{function}_loss{of}"), **options) for of in ("", "_gradient"))


def case(items=1):
    rng = np.random.default_rng(0)
    return rng.normal(size=(items, 3, 4, 5)), rng.integers(0, 3, (items, 1, 4, 5)), rng.uniform(size=(1, 1, 4, 5))


@EVERY
def test_hard_mask_gives_the_loss_of_the_voxels_within_it(name):
    (x, y, m), (loss, slope) = case(), twins(name)
    within = m[0, 0] > 0.4
    x[..., ~within] = np.nan
    inside = x[..., within], y[..., within]
    assert np.isclose(masked_loss(x, y, m > 0.4, loss), loss(*inside), rtol=1e-13)
    gradient = masked_loss_gradient(x, y, m > 0.4, slope, cotangent=2)
    assert np.allclose(gradient[..., within], slope(*inside, cotangent=2), rtol=1e-12, atol=1e-16)
    assert np.array_equal(gradient[..., ~within], np.zeros((1, 3, (~within).sum())))


@EVERY
def test_mask_of_ones_has_no_effect(name):
    (x, y, m), (loss, slope) = case(2), twins(name)
    assert masked_loss(x, y, np.ones_like(m), loss) == loss(x, y)
    assert np.array_equal(masked_loss_gradient(x, y, np.ones_like(m), slope), slope(x, y))


@EVERY
def test_gradient_within_a_soft_mask_is_that_of_finite_differences(name):
    (x, y, m), (loss, slope) = case(2), twins(name)
    direction, step = np.random.default_rng(1).normal(size=x.shape), 1e-5
    values = (masked_loss(x + t * direction, y, m, loss) for t in (step, -step))
    gradient = masked_loss_gradient(x, y, m, slope)
    assert np.isclose((gradient * direction).sum(), np.subtract(*values) / (2 * step), rtol=0, atol=1e-9)


def test_soft_mask_weights_the_mean_of_the_voxels():
    x, y, m = case(2)
    values = reference.focal_loss(x, y, to_onehot_y=True, reduction="none")
    loss = partial(reference.focal_loss, to_onehot_y=True)
    assert np.isclose(masked_loss(x, y, m, loss), (m * values).sum() / (3 * 2 * m.sum()), rtol=1e-14)
    none = partial(loss, reduction="none")
    assert np.allclose(masked_loss(x, y, m, none), m * values, rtol=1e-15)


def test_voxels_that_are_masked_or_ignored_do_not_count():
    x, y, m = case()
    y[..., 0] = 255
    m[..., 1] = 0
    x[..., :2] = np.nan
    loss = partial(reference.dice_ce_loss, **ON_LABELS)
    ignoring = partial(loss, ignore_index=255)
    assert np.isclose(masked_loss(x, y, m, ignoring), masked_loss(x[..., 2:], y[..., 2:], m[..., 2:], loss), rtol=1e-13)


def test_loss_without_a_mask_gets_the_masked_arguments():
    p, t, m = np.array([[[2.0, 3, np.nan]]]), np.array([[[1.0, 1, 1]]]), np.array([[[1, 0.5, 0]]])
    assert masked_loss(p, t, m, lambda p, t: (p * t).sum()) == 2 + 1.5 / 2
    labels = np.array([[[1, 2, 3]]])
    assert np.array_equal(masked_loss(p, labels, m, lambda p, t: t), [[[1, 2, 0]]])
    gradient = masked_loss_gradient(p, t, m, lambda p, t, cotangent: cotangent * t, cotangent=3)
    assert np.array_equal(gradient, [[[3, 3 * 0.5 * 0.5, 0]]])


def test_loss_of_a_mask_of_zeros_is_that_of_no_voxels():
    x, y, m = case()
    loss = partial(reference.dice_focal_loss, **ON_LABELS)
    assert masked_loss(x, y, 0 * m, loss) == 0
    slope = partial(reference.dice_focal_loss_gradient, **ON_LABELS)
    assert not masked_loss_gradient(x, y, 0 * m, slope).any()
