"""Tests of the documented reductions, errors and warnings of the segmentation losses."""

import warnings
from enum import Enum
from functools import partial

import numpy as np
import pytest
import torch
from loss_options import taking
from support import labels, logits, soft

from twinloss import fast
from twinloss.fast import (
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    MaskedDiceLoss,
    MatthewsCorrelationLoss,
    TverskyLoss,
)

Wasserstein = partial(GeneralizedWassersteinDiceLoss, 1 - np.eye(3))
# The losses that take `to_onehot_y` and no mask.
ONEHOT = taking("to_onehot_y")
COMPOUND = pytest.mark.parametrize("loss_class", [DiceCELoss, DiceFocalLoss])
ACTIVATED = pytest.mark.parametrize("loss_class", [*taking("other_act"), MaskedDiceLoss])
ON_LABELS = pytest.mark.parametrize(
    "loss",
    [
        pytest.param(Wasserstein(), id="GeneralizedWassersteinDiceLoss"),
        *(pytest.param(loss_class(to_onehot_y=True), id=loss_class.__name__) for loss_class in ONEHOT),
    ],
)


@pytest.mark.parametrize("loss_class", [*ONEHOT, GeneralizedWassersteinDiceLoss])
def test_enumerated_reduction_is_understood(loss_class):
    # MONAI's own default is such an enumeration, LossReduction.MEAN.
    wasserstein = loss_class is GeneralizedWassersteinDiceLoss
    make = Wasserstein if wasserstein else partial(loss_class, to_onehot_y=True)
    x, y = logits(2, 3, 4).sigmoid(), labels(2, 1, 4)
    reduction = Enum("LossReduction", {"SUM": "sum"}).SUM
    assert torch.equal(make(reduction=reduction)(x, y), make(reduction="sum")(x, y))


# --- errors ----------------------------------------------------------------------------------------------------------


@ACTIVATED
@pytest.mark.parametrize("other_act", ["tanh", 3, torch.ones(1)])
def test_other_act_that_cannot_be_called_is_a_type_error(loss_class, other_act):
    with pytest.raises(TypeError, match=f"other_act must be None or callable, got {type(other_act).__name__}"):
        loss_class(other_act=other_act)


@ACTIVATED
@pytest.mark.parametrize(
    "activations",
    [
        {"sigmoid": True, "softmax": True},
        {"sigmoid": True, "other_act": torch.tanh},
        {"softmax": True, "other_act": torch.tanh},
        {"sigmoid": True, "softmax": True, "other_act": torch.tanh},
    ],
)
def test_two_activations_are_a_value_error(loss_class, activations):
    with pytest.raises(ValueError, match="give at most one"):
        loss_class(**activations)


@pytest.mark.parametrize("error", [AssertionError, ValueError])
@pytest.mark.parametrize("to_onehot_y", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 4), (2, 1, 5), (1, 1, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("loss_class", [GeneralizedDiceLoss, DiceCELoss, DiceFocalLoss, FocalLoss, TverskyLoss])
def test_shapes_that_differ_are_named(loss_class, error, to_onehot_y, shape):
    with pytest.raises(error) as caught:
        loss_class(to_onehot_y=to_onehot_y)(torch.rand(2, 3, 4), torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert "(2, 3, 4)" in str(caught.value)


@pytest.mark.parametrize("loss_class", [GeneralizedDiceLoss, DiceCELoss, DiceFocalLoss, FocalLoss, TverskyLoss])
def test_labels_without_to_onehot_y_are_shapes_that_differ(loss_class):
    with pytest.raises(AssertionError, match="to_onehot_y=True"):
        loss_class()(torch.rand(2, 3, 4), torch.zeros(2, 1, 4))


@COMPOUND
@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 2, 2), (2, 1, 2, 2)])
def test_numbers_of_dimensions_that_differ_are_a_value_error(loss_class, shape):
    with pytest.raises(ValueError, match="as many dimensions") as caught:
        loss_class(to_onehot_y=True)(torch.rand(2, 3, 4), torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert "(2, 3, 4)" in str(caught.value)


@COMPOUND
@pytest.mark.parametrize("to_onehot_y", [False, True])
@pytest.mark.parametrize("channels", [2, 4])
def test_target_channels_that_are_neither_1_nor_those_of_the_input_are_a_value_error(loss_class, to_onehot_y, channels):
    with pytest.raises(ValueError, match="1 channel or the 3 of the input"):
        loss_class(to_onehot_y=to_onehot_y)(torch.rand(2, 3, 4), torch.zeros(2, channels, 4))


@pytest.mark.parametrize(
    ("loss_class", "name"),
    [
        (DiceCELoss, "lambda_dice"),
        (DiceCELoss, "lambda_ce"),
        (DiceFocalLoss, "lambda_dice"),
        (DiceFocalLoss, "lambda_focal"),
    ],
)
def test_negative_factor_of_a_term_is_a_value_error(loss_class, name):
    with pytest.raises(ValueError, match=rf"{name} must be finite and not negative, got -0\.5"):
        loss_class(**{name: -0.5})
    assert getattr(loss_class(**{name: 0}), name) == 0


@pytest.mark.parametrize("loss_class", [FocalLoss, DiceFocalLoss])
@pytest.mark.parametrize("gamma", [-1, -1e-9, float("nan"), float("inf")])
def test_negative_gamma_is_a_value_error(loss_class, gamma):
    with pytest.raises(ValueError, match="gamma must be finite and not negative"):
        loss_class(gamma=gamma)


def test_dice_ce_has_no_reduction_none():
    with pytest.raises(ValueError, match='reduction must be "mean" or "sum", got \'none\''):
        DiceCELoss(reduction="none")


@pytest.mark.parametrize(("loss_class", "name"), [(DiceCELoss, "ce_weight"), (DiceFocalLoss, "focal_weight")])
def test_weight_of_both_terms_and_of_one_exclude_each_other(loss_class, name):
    with pytest.raises(ValueError, match=f"weight goes to both terms and {name}"):
        loss_class(weight=1.0, **{name: 1.0})


@pytest.mark.parametrize(
    ("include_background", "count", "length"), [(True, 3, 2), (True, 3, 4), (False, 2, 3), (False, 2, 1)]
)
@pytest.mark.parametrize(
    ("loss_class", "name"),
    [
        (FocalLoss, "weight"),
        (FocalLoss, "alpha"),
        (DiceFocalLoss, "focal_weight"),
        (TverskyLoss, "weight"),
        (MatthewsCorrelationLoss, "weight"),
        (FocalTverskyLoss, "gamma"),
    ],
)
def test_weight_of_another_length_names_both_counts(loss_class, name, include_background, count, length):
    loss, shown = loss_class(include_background, **{name: [1.0] * length}), name.removeprefix("focal_")
    with pytest.raises(ValueError, match=f"{shown} has {length} values but {count} classes"):
        loss(torch.rand(2, 3, 4), soft(2, 3, 4))


@pytest.mark.parametrize(
    ("loss_class", "name"), [(DiceCELoss, "weight"), (DiceCELoss, "ce_weight"), (DiceFocalLoss, "weight")]
)
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("length", [2, 4])
def test_compound_weight_is_for_all_classes_or_a_value_error(loss_class, name, include_background, length):
    loss = loss_class(include_background, **{name: [1.0] * length})
    with pytest.raises(ValueError, match=f"{name} has {length} values .*3 classes"):
        loss(torch.rand(2, 3, 4), soft(2, 3, 4))


@pytest.mark.parametrize(
    ("loss_class", "name"),
    [
        (FocalLoss, "weight"),
        (FocalLoss, "alpha"),
        (DiceCELoss, "weight"),
        (DiceCELoss, "ce_weight"),
        (DiceFocalLoss, "weight"),
        (DiceFocalLoss, "focal_weight"),
        (DiceFocalLoss, "alpha"),
        (TverskyLoss, "weight"),
        (MatthewsCorrelationLoss, "weight"),
        (FocalTverskyLoss, "gamma"),
    ],
)
@pytest.mark.parametrize("weight", [-0.5, [1.0, -0.5, 1.0], torch.tensor([1.0, -0.5]), float("nan")])
def test_weight_that_is_less_than_0_is_a_value_error(loss_class, name, weight):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative, got .*(-0.5|nan)"):
        loss_class(**{name: weight})


@pytest.mark.parametrize("name", ["smooth_nr", "smooth_dr"])
@pytest.mark.parametrize("loss_class", [GeneralizedDiceLoss, Wasserstein, DiceCELoss, DiceFocalLoss, TverskyLoss])
def test_negative_smoothing_is_a_value_error(loss_class, name):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        loss_class(**{name: -1e-5})


@ON_LABELS
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_empty_input_is_a_value_error(loss, shape):
    with pytest.raises(ValueError, match="at least one voxel"):
        loss(torch.rand(shape), torch.zeros(shape[0], 1, shape[2], dtype=torch.int64))


@ON_LABELS
def test_integer_input_is_a_type_error(loss):
    with pytest.raises(TypeError, match="floating-point"):
        loss(torch.ones(2, 3, 4, dtype=torch.int64), labels(2, 1, 4))


@pytest.mark.parametrize("loss", [DiceLoss(softmax=True, to_onehot_y=True), FocalLoss(to_onehot_y=True)])
def test_on_the_meta_device_there_are_no_labels_to_be_wrong(loss):
    value = loss(torch.randn(2, 3, 5, device="meta"), torch.randint(3, (2, 1, 5), device="meta"))
    assert (value.shape, value.device.type) == ((), "meta")


def test_on_the_meta_device_there_are_no_intensities_to_warn_of():
    image = torch.rand(2, 1, 5, device="meta")
    assert fast.GlobalMutualInformationLoss()(image, image).device.type == "meta"
    assert MaskedDiceLoss()(image, image, image).device.type == "meta"


@pytest.mark.parametrize("loss_class", [*ONEHOT, MaskedDiceLoss])
def test_warning_of_a_single_channel_points_at_the_line_that_calls_the_loss(loss_class):
    loss, mask = loss_class(to_onehot_y=True), [torch.ones(1, 1, 4)] if loss_class is MaskedDiceLoss else []
    with pytest.warns(UserWarning, match="single channel prediction") as caught:
        loss(torch.rand(1, 1, 4), torch.zeros(1, 1, 4), *mask)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("loss", [DiceLoss(softmax=True), FocalLoss(), MaskedDiceLoss(sigmoid=True)])
def test_warnings_do_not_stop_torch_compile_from_making_one_graph(loss):
    x, y = torch.rand(1, 1, 4), torch.ones(1, 1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it compiles
        found = torch.compile(loss, fullgraph=True, backend="eager")(x, y)
    with pytest.warns(UserWarning, match="single channel|no mask"):
        torch.testing.assert_close(found, loss(x, y))
