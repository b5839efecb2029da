"""Rounding errors do not grow with the count of equal numbers, whose plain sum always rounds in the same direction."""

import math

import pytest
import torch
from loss_options import MATRIX, truth
from support import BACKENDS, exact, value_and_gradient

from twinloss import reference
from twinloss.fast import (
    BendingEnergyLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    DiffusionLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedWassersteinDiceLoss,
    LocalNormalizedCrossCorrelationLoss,
    MaskedDiceLoss,
    MatthewsCorrelationLoss,
    TverskyLoss,
)

# More than a chunk of 64512 voxels, and hundreds of blocks. If these are added one after the other, the results are off
# by up to 35 roundoffs.
VOXELS = 100_003
MOST = 12 * 2.0**-53

SIGMOID, SOFTMAX = {"sigmoid": True}, {"softmax": True, "to_onehot_y": True}


def alone(classes):
    """Return labels of which one voxel has the last class, and all others are background."""
    y = torch.zeros(1, 1, VOXELS, dtype=torch.int64)
    y[0, 0, 17] = max(classes - 1, 1)
    return y


def equal(classes, value):
    """Return logits that are equal in all voxels, and differ between classes by 1/4."""
    return (value + torch.arange(classes).double()[:, None] / 4).repeat(1, 1, VOXELS).contiguous()


def assert_accurate(found, expected, most=MOST):
    (value, gradient), (of_value, of_gradient) = found, expected
    assert abs(value - of_value) <= most * abs(of_value)
    errors, sizes = ((each.flatten(2)).abs().amax(2) for each in (gradient - of_gradient, of_gradient))
    assert (errors <= most * sizes).all()


@BACKENDS
@pytest.mark.parametrize("value", [-0.5, 0.5])
@pytest.mark.parametrize(
    ("kind", "classes", "options"),
    [
        (DiceLoss, 1, SIGMOID),
        (DiceLoss, 3, SOFTMAX),
        (DiceLoss, 5, SOFTMAX),
        (DiceLoss, 3, SOFTMAX | {"squared_pred": True}),
        (TverskyLoss, 1, SIGMOID),
        (FocalTverskyLoss, 1, SIGMOID),
        (MatthewsCorrelationLoss, 1, SIGMOID),
        (GeneralizedWassersteinDiceLoss, 3, {"dist_matrix": MATRIX}),
        (FocalLoss, 1, {"use_softmax": False}),
        (FocalLoss, 3, {"use_softmax": True, "to_onehot_y": True}),
        (DiceCELoss, 1, SIGMOID),
        (DiceCELoss, 3, SOFTMAX),
        (DiceFocalLoss, 3, SOFTMAX),
    ],
)
def test_error_of_a_segmentation_loss_does_not_grow_with_the_count_of_voxels(form, kind, classes, options, value):
    x, y = equal(classes, value), alone(classes)
    found = value_and_gradient(kind(**options), x, y, form=form)
    assert_accurate(found, truth(kind, x, y, options))


def test_error_under_a_soft_mask_does_not_grow_with_the_count_of_voxels():
    x, y, mask = equal(1, -0.5), alone(1), torch.full((1, 1, VOXELS), 0.7, dtype=torch.float64)
    found = value_and_gradient(MaskedDiceLoss(**SIGMOID), x, y, mask)
    expected = exact(reference.masked_dice_loss, reference.masked_dice_loss_gradient, x, y, mask, **SIGMOID)
    assert_accurate(found, expected)


def test_error_of_a_mean_over_items_does_not_grow_with_their_count():
    x, y = torch.full((1000, 2, 3), 0.3, dtype=torch.float64), torch.zeros(1000, 1, 3, dtype=torch.int64)
    x[:, 1] = 0.8
    found = value_and_gradient(DiceLoss(**SOFTMAX), x, y)
    assert_accurate(found, truth(DiceLoss, x, y, SOFTMAX))


@BACKENDS
@pytest.mark.parametrize(
    ("kind", "functions"),
    [
        (DiffusionLoss, (reference.diffusion_loss, reference.diffusion_loss_gradient)),
        (BendingEnergyLoss, (reference.bending_energy_loss, reference.bending_energy_loss_gradient)),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1, VOXELS), (1, 1, 316, 317)])
def test_error_of_a_loss_of_fields_does_not_grow_with_the_count_of_voxels(form, kind, functions, shape):
    u = 0.3 * (torch.arange(shape[-1]) % 2).double().expand(shape).contiguous()
    assert_accurate(value_and_gradient(kind(), u, form=form), exact(*functions, u))


@BACKENDS
def test_error_of_a_correlation_does_not_grow_with_the_count_of_voxels(form):
    x, options = torch.full((1, 1, 316, 317), 0.25, dtype=torch.float64), {"ndim": 2, "smooth_nr": 0.3, "smooth_dr": 1}
    found, _ = value_and_gradient(LocalNormalizedCrossCorrelationLoss(**options), x, x / 2, form=form)
    expected = reference.local_normalized_cross_correlation_loss(x.numpy(), x.numpy() / 2, **options)
    assert abs(found.item() / expected - 1) <= MOST


def test_infinite_sums_stay_infinite_and_nan_stays_nan():
    y = alone(1)
    x = equal(1, 0.5)
    for number, expected in ((-math.inf, math.inf), (math.nan, math.nan)):
        x[0, 0, 17] = number  # in the first of many blocks
        assert FocalLoss(use_softmax=False)(x, y).item() == pytest.approx(expected, nan_ok=True)
    for number, expected in ((1e200, math.inf), (math.inf, math.inf), (math.nan, math.nan)):
        u = torch.zeros(1, 1, VOXELS, dtype=torch.float64)
        u[0, 0, 17] = number
        for kind in (DiffusionLoss, BendingEnergyLoss):
            assert kind()(u).item() == pytest.approx(expected, nan_ok=True)
