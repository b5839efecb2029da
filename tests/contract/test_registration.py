"""Tests of the documented reductions, errors and dtypes of the registration losses."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from loss_options import REGISTRATION

from twinloss.fast import (
    BendingEnergyLoss,
    DiffusionLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
    MultiScaleLoss,
)

FORWARD = {loss_class: list(inspect.signature(loss_class.forward).parameters)[1:] for loss_class in REGISTRATION}
MultiScale = partial(MultiScaleLoss, torch.nn.MSELoss())
MAKE = {loss_class: loss_class for loss_class in FORWARD} | {MultiScaleLoss: MultiScale}
EVERY = pytest.mark.parametrize("loss_class", list(FORWARD))


def images(loss_class, *shape):
    return [torch.rand(shape, generator=torch.Generator().manual_seed(k)) for k in range(len(FORWARD[loss_class]))]


@EVERY
def test_reductions_are_those_of_the_unreduced_loss(loss_class):
    arguments = images(loss_class, 2, 1, 6, 5, 7)
    none, mean, total = (MAKE[loss_class](reduction=r)(*arguments) for r in ("none", "mean", "sum"))
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum())


@pytest.mark.parametrize("loss_class", [LocalNormalizedCrossCorrelationLoss, GlobalMutualInformationLoss])
@pytest.mark.parametrize("error", [AssertionError, ValueError])
def test_images_of_different_shapes_are_an_error_that_names_both(loss_class, error):
    with pytest.raises(error, match=r"\(1, 1, 4, 4, 4\).*\(1, 1, 4, 4, 5\)"):
        loss_class()(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 5))


def test_images_of_another_rank_than_ndim_are_a_value_error():
    with pytest.raises(ValueError, match="2 spatial axes"):
        LocalNormalizedCrossCorrelationLoss(ndim=2)(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 4))


NAN, INF = float("nan"), float("inf")
_OF_FIELDS = [
    ({"reduction": "median"}, "reduction must be .* got 'median'"),
    ({"stencil": "narrow"}, "stencil must be .* got 'narrow'"),
    ({"spacing": (1.0, -2.0)}, r"spacing must be positive .*-2\.0"),
    ({"spacing": (1.0, 0.0)}, "spacing must be positive"),
    ({"spacing": (1.0, INF)}, "spacing must be positive"),
    ({"spacing": (1.0, NAN)}, "spacing must be positive"),
]
NONSENSE = {
    BendingEnergyLoss: _OF_FIELDS,
    DiffusionLoss: _OF_FIELDS,
    LocalNormalizedCrossCorrelationLoss: [
        ({"ndim": 2, "spatial_dims": 1}, "name the same option, got 2 and 1"),
        ({"ndim": 1, "spatial_dims": 3}, "name the same option, got 1 and 3"),
        ({"ndim": 0}, "ndim must be 1, 2 or 3, got 0"),
        ({"ndim": 4}, "ndim must be 1, 2 or 3, got 4"),
        ({"spatial_dims": 4}, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"kernel_size": 2}, "kernel_size must be .*odd.* got 2"),
        ({"kernel_size": 4}, "kernel_size must be .*odd.* got 4"),
        ({"kernel_size": 0}, "kernel_size must be .*odd.* got 0"),
        ({"kernel_size": -3}, "kernel_size must be .*odd.* got -3"),
        ({"kernel_size": 3.0}, r"kernel_size must be .* got 3\.0"),
        ({"kernel_size": True}, "kernel_size must be .* got True"),
        ({"kernel_type": "box"}, 'kernel_type must be "rectangular", "triangular" or "gaussian", got \'box\''),
        ({"denominator": "sum"}, "denominator must be .* got 'sum'"),
        ({"reduction": "median"}, "reduction must be .* got 'median'"),
        ({"smooth_nr": -1e-5}, "smooth_nr must be finite and not negative"),
        ({"smooth_dr": NAN}, "smooth_dr must be finite and not negative"),
        ({"smooth_dr": INF}, "smooth_dr must be finite and not negative"),
    ],
    GlobalMutualInformationLoss: [
        ({"num_bins": 1}, "num_bins must be .* 2 or more, got 1"),
        ({"num_bins": 0}, "num_bins"),
        ({"num_bins": 7.5}, "num_bins"),
        ({"num_bins": INF}, "num_bins"),
        ({"num_bins": True}, "num_bins"),
        ({"num_bins": 4, "kernel_type": "b-spline"}, "num_bins must be 5 or more with .*b-spline.* got 4"),
        ({"kernel_type": "box"}, "kernel_type must be .* got 'box'"),
        ({"reduction": "median"}, "reduction must be .* got 'median'"),
        ({"sigma_ratio": 0.0}, "sigma_ratio must be positive"),
        ({"sigma_ratio": -0.5}, "sigma_ratio must be .* got -0.5"),
        ({"sigma_ratio": NAN}, "sigma_ratio"),
        ({"smooth_nr": -1e-7}, "smooth_nr"),
        ({"smooth_dr": INF}, "smooth_dr"),
    ],
    MultiScaleLoss: [
        ({"scales": []}, "scales must hold at least one number"),
        ({"scales": ()}, "scales must hold at least one number"),
        ({"scales": np.array([])}, "scales must hold at least one number"),
        ({"scales": [-1]}, "scales must be finite and not negative, got -1"),
        ({"scales": [1, -1]}, "scales must be finite and not negative, got -1"),
        ({"scales": [1, -0.5]}, r"scales must be finite and not negative, got -0\.5"),
        ({"scales": [-0.5]}, r"scales must be finite and not negative, got -0\.5"),
        ({"scales": [NAN]}, "scales must be finite and not negative, got nan"),
        ({"scales": [INF]}, "scales must be finite and not negative, got inf"),
        ({"scales": [0, INF]}, "scales must be finite and not negative, got inf"),
        ({"kernel": "box"}, "kernel must be .* got 'box'"),
        ({"reduction": "median"}, "reduction must be .* got 'median'"),
    ],
}


@pytest.mark.parametrize(
    ("loss_class", "options", "message"),
    [(loss_class, *each) for loss_class, cases in NONSENSE.items() for each in cases],
)
def test_option_that_makes_no_sense_is_a_value_error(loss_class, options, message):
    with pytest.raises(ValueError, match=message):
        MAKE[loss_class](**options)


@pytest.mark.parametrize(
    ("of_pred", "of_target", "expected"),
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float16, torch.float64, torch.float64),
        (torch.float16, torch.float32, torch.float16),
        (torch.float32, torch.uint8, torch.float32),
        (torch.uint8, torch.float64, torch.float64),
        (torch.int64, torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("loss_class", [loss for loss in FORWARD if len(FORWARD[loss]) == 2])
def test_float64_in_either_image_gives_float64_and_otherwise_the_type_of_the_prediction(
    loss_class, of_pred, of_target, expected
):
    if loss_class is GlobalMutualInformationLoss and not of_pred.is_floating_point:
        pytest.skip("pred must hold floating-point numbers")
    made = dict(zip(("pred", "target"), images(loss_class, 2, 1, 5, 6, 7), strict=True))
    pred, target = made["pred"].to(of_pred), made["target"].to(of_target)
    rest = {"y_true": target, "y_pred": pred, "pred": pred, "target": target}
    loss = MAKE[loss_class]()
    value = loss(*(rest[name] for name in FORWARD[loss_class]))
    assert value.dtype == expected
    if expected == torch.float64:
        double = loss(*(rest[name].double() for name in FORWARD[loss_class]))
        torch.testing.assert_close(value, double, rtol=0, atol=0)
