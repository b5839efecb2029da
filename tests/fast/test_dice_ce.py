"""The fast Dice + cross entropy loss: documented behaviour and corner cases."""

import warnings

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, one_hot, soft, value_and_gradient
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from twinloss import reference
from twinloss.fast import DiceCELoss, DiceLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum"])
ONEHOT = pytest.mark.parametrize("to_onehot_y", [True, False])
ACTIVATIONS = pytest.mark.parametrize(
    "activation", [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.exp}]
)
CE = {"lambda_dice": 0, "to_onehot_y": True}
WEIGHT = [0.5, 2.0, 3.0]


# --- the sum of two terms --------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@ACTIVATIONS
def test_it_is_the_weighted_sum_of_dice_and_of_the_cross_entropy_of_torch(form, reduction, activation):
    # Cross entropy sees the logits, whatever the activation of Dice.
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    options = {"to_onehot_y": True, "reduction": reduction, **activation}
    found = value_and_gradient(DiceCELoss(lambda_dice=0.5, lambda_ce=2.0, **options), x, y, form=form)
    dice = value_and_gradient(DiceLoss(**options), x, y, form=form)
    ce = value_and_gradient(lambda x, y: cross_entropy(x, y[:, 0], reduction=reduction), x, y)
    assert_all_close(found, [0.5 * a + 2.0 * b for a, b in zip(dice, ce, strict=True)], 1e-13, 1e-16)


@BACKENDS
@pytest.mark.parametrize(
    "options",
    [
        {"squared_pred": True},
        {"jaccard": True},
        {"batch": True},
        {"soft_label": True},
        {"smooth_nr": 0.5},
        {"smooth_dr": 0.5},
        {"include_background": False},
    ],
)
def test_other_options_reach_dice_and_leave_cross_entropy_alone(form, options):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"softmax": True, **options}
    with dispatch.forced(form):
        dice = DiceCELoss(to_onehot_y=True, lambda_ce=0, **options)(x, y)
        torch.testing.assert_close(dice, DiceLoss(to_onehot_y=True, **options)(x, y), rtol=1e-14, atol=0)
        ce = DiceCELoss(**CE, **options)(x, y)
    torch.testing.assert_close(ce, cross_entropy(x, y[:, 0]), rtol=1e-14, atol=0)


def test_factors_of_the_terms_are_1_unless_given():
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"to_onehot_y": True, "softmax": True}
    assert torch.equal(DiceCELoss(**options)(x, y), DiceCELoss(lambda_dice=1, lambda_ce=1, **options)(x, y))
    torch.testing.assert_close(DiceCELoss(**options)(x, y), DiceLoss(**options)(x, y) + cross_entropy(x, y[:, 0]))


# --- class weights ---------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("name", ["ce_weight", "weight"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("include_background", [True, False])
def test_weight_and_label_smoothing_are_those_of_torch(form, reduction, name, smoothing, include_background):
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    loss = DiceCELoss(
        include_background, reduction=reduction, label_smoothing=smoothing, **CE, **{name: torch.tensor(WEIGHT)}
    )

    def ce(x, y):
        weight = torch.tensor(WEIGHT, dtype=torch.float64)
        return cross_entropy(x, y[:, 0], weight, reduction=reduction, label_smoothing=smoothing)

    assert_all_close(value_and_gradient(loss, x, y, form=form), value_and_gradient(ce, x, y), 1e-13, 1e-17)


@BACKENDS
def test_ce_weight_leaves_dice_alone(form):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"to_onehot_y": True, "softmax": True}
    with dispatch.forced(form):
        found = DiceCELoss(lambda_ce=0, ce_weight=WEIGHT, **options)(x, y)
        torch.testing.assert_close(found, DiceLoss(**options)(x, y), rtol=1e-6, atol=0)


@BACKENDS
@pytest.mark.parametrize("include_background", [True, False])
def test_weight_goes_to_both_and_dice_takes_those_of_the_classes_that_it_sees(form, include_background):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"to_onehot_y": True, "softmax": True, "include_background": include_background}
    seen = WEIGHT if include_background else WEIGHT[1:]
    with dispatch.forced(form):
        found = DiceCELoss(weight=WEIGHT, **options)(x, y)
        dice = DiceLoss(weight=seen, **options)(x, y)
    ce = cross_entropy(x, y[:, 0], torch.tensor(WEIGHT, dtype=torch.float64))
    torch.testing.assert_close(found, dice + ce, rtol=1e-13, atol=0)


def test_scalar_weight_scales_dice_and_the_sum_of_cross_entropy_but_not_its_mean():
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    for reduction, factor in (("mean", 1), ("sum", 4)):
        found = DiceCELoss(reduction=reduction, weight=4, **CE)(x, y)
        torch.testing.assert_close(found, factor * cross_entropy(x, y[:, 0], reduction=reduction))
    dice = {"softmax": True, "to_onehot_y": True}
    torch.testing.assert_close(DiceCELoss(lambda_ce=0, weight=4, **dice)(x, y), 4 * DiceLoss(**dice)(x, y))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_weight_of_any_kind_gives_the_same(kind):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    found = DiceCELoss(ce_weight=kind(WEIGHT), **CE)(x, y)
    torch.testing.assert_close(found, cross_entropy(x, y[:, 0], torch.tensor(WEIGHT)))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_label_smoothing_outside_zero_to_one_is_a_value_error(smoothing):
    with pytest.raises(ValueError, match="label_smoothing must"):
        DiceCELoss(label_smoothing=smoothing)


# --- one channel -----------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("name", ["ce_weight", "weight"])
def test_one_channel_is_the_binary_cross_entropy_of_torch_and_the_weight_that_of_positives(form, reduction, name):
    x, g = logits(2, 1, 7, dtype=torch.float64), labels(2, 1, 7, classes=2).double()
    loss = DiceCELoss(lambda_dice=0, reduction=reduction, **{name: [3.0]})

    def bce(x, g):
        return binary_cross_entropy_with_logits(x, g, reduction=reduction, pos_weight=torch.tensor(3.0).double())

    assert_all_close(value_and_gradient(loss, x, g, form=form), value_and_gradient(bce, x, g), 1e-13, 1e-17)


@BACKENDS
@pytest.mark.parametrize("ignore_index", [None, 7])
def test_one_channel_is_two_classes_the_first_of_logit_0(form, ignore_index):
    x, g = logits(2, 1, 9, dtype=torch.float64), labels(2, 1, 9, classes=2)
    if ignore_index:
        g[..., 3:5] = ignore_index
    options = {"lambda_dice": 0, "label_smoothing": 0.3, "ignore_index": ignore_index}
    found = value_and_gradient(DiceCELoss(**options), x, g, form=form)

    def two(x, g):
        return DiceCELoss(to_onehot_y=True, **options)(torch.cat([0 * x, x], 1), g)

    assert_all_close(found, value_and_gradient(two, x, g, form=form), 1e-13, 1e-17)


@BACKENDS
@REDUCTIONS
def test_one_channel_takes_a_soft_target(form, reduction):
    x, g = logits(2, 1, 7, dtype=torch.float64), logits(2, 1, 7, dtype=torch.float64, seed=3).sigmoid()
    loss = DiceCELoss(lambda_dice=0, reduction=reduction)
    expected = value_and_gradient(lambda x, g: binary_cross_entropy_with_logits(x, g, reduction=reduction), x, g)
    assert_all_close(value_and_gradient(loss, x, g, form=form), expected, 1e-13, 1e-17)


def test_one_channel_adds_dice_and_the_binary_cross_entropy():
    x, g = logits(2, 1, 5), labels(2, 1, 5, classes=2)
    torch.testing.assert_close(DiceCELoss()(x, g), DiceLoss()(x, g) + binary_cross_entropy_with_logits(x, g.float()))


# --- targets ---------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.filterwarnings("ignore:target sums to")
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_of_a_soft_target_is_divided_by_the_weight_that_it_carries(form, weight):
    x, g = logits(2, 3, 7, dtype=torch.float64), soft(2, 3, 7, dtype=torch.float64)
    g[:, :, 2] *= 0.5  # sums to less than 1
    w = torch.tensor(weight or [1.0] * 3, dtype=torch.float64)[:, None]
    expected = -(w * g * x.log_softmax(1)).sum() / (w * g).sum()
    with dispatch.forced(form):
        found = DiceCELoss(lambda_dice=0, ce_weight=weight)(x, g)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@BACKENDS
@REDUCTIONS
def test_item_of_background_alone_counts_in_the_cross_entropy_even_without_the_background(form, reduction):
    x, y = logits(2, 4, 7, dtype=torch.float64), labels(2, 1, 7)  # class 3 is nowhere
    y[1] = 0
    options = {"to_onehot_y": True, "softmax": True, "include_background": False, "reduction": reduction}
    with dispatch.forced(form):
        found, dice = DiceCELoss(**options)(x, y), DiceLoss(**options)(x, y)
    torch.testing.assert_close(found, dice + cross_entropy(x, y[:, 0], reduction=reduction), rtol=1e-13, atol=0)


# --- spatial rank, reduction -----------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_any_spatial_rank_gives_one_number(form, reduction, spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    options = {"to_onehot_y": True, "softmax": True, "reduction": reduction}
    with dispatch.forced(form):
        value = DiceCELoss(**options)(x, y)
        dice = DiceLoss(**options)(x, y)
    assert value.shape == ()
    torch.testing.assert_close(value, dice + cross_entropy(x, y[:, 0], reduction=reduction))


# --- ignored voxels --------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_ignore_index_is_that_of_torch(form, reduction, smoothing):
    x, y = logits(2, 3, 9, dtype=torch.float64), labels(2, 1, 9)
    y[0, 0, :3] = -100
    loss = DiceCELoss(reduction=reduction, ignore_index=-100, label_smoothing=smoothing, ce_weight=WEIGHT, **CE)

    def ce(x, y):
        weight = torch.tensor(WEIGHT, dtype=torch.float64)
        return cross_entropy(x, y[:, 0], weight, ignore_index=-100, reduction=reduction, label_smoothing=smoothing)

    assert_all_close(value_and_gradient(loss, x, y, form=form), value_and_gradient(ce, x, y), 1e-13, 1e-17)


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@ONEHOT
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_logit_of_minus_infinity_on_a_wrong_class_costs_dice_of_an_absent_class_and_no_cross_entropy(
    form, to_onehot_y, activation
):
    x, y = logits(2, 3, 7), 2 * labels(2, 1, 7, classes=2)
    x[:, 1] = -float("inf")
    target, other = (y, y // 2) if to_onehot_y else (one_hot(y), one_hot(y // 2, 2))
    # δ > ν = 0: Dice of the class that is neither predicted nor true is 1, and adds nothing to the gradient.
    options = {"to_onehot_y": to_onehot_y, activation: True, "reduction": "sum", "smooth_nr": 0}
    value, gradient = value_and_gradient(DiceCELoss(**options), x, target, form=form)
    fewer, fewer_gradient = value_and_gradient(DiceCELoss(**options), x[:, [0, 2]], other, form=form)
    assert_all_close((value, gradient[:, [0, 2]]), (fewer + 2, fewer_gradient), 1e-6, 1e-7)
    assert (gradient[:, 1] == 0).all()


# --- regions that overlap ---------------------------------------------------------------------------------------------

REGIONS = {"sigmoid": True, "multilabel": True}


def regions(*shape):
    """Return a target with a channel for each region, which may overlap."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(5)) < 0.4).double()


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("name", ["weight", "ce_weight"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_regions_have_the_binary_cross_entropy_of_torch_with_a_weight_for_the_positives_of_each(
    form, reduction, name, smoothing
):
    x, g = logits(2, 3, 4, 5, dtype=torch.float64), regions(2, 3, 4, 5)
    options = REGIONS | {"lambda_dice": 0.0, "reduction": reduction, "label_smoothing": smoothing, name: WEIGHT}
    smooth = (1 - smoothing) * g + smoothing / 2
    weight = torch.tensor(WEIGHT, dtype=torch.float64).reshape(3, 1, 1)
    found = value_and_gradient(DiceCELoss(**options), x, g, form=form)
    expected = value_and_gradient(
        lambda x, g: binary_cross_entropy_with_logits(x, smooth, pos_weight=weight, reduction=reduction), x, g
    )
    assert_all_close(found, expected, 1e-13, 1e-15)


@BACKENDS
def test_labels_of_regions_are_one_against_the_rest(form):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    for smoothing in (0.0, 0.3):
        loss = DiceCELoss(to_onehot_y=True, label_smoothing=smoothing, **REGIONS)
        one_against_rest = DiceCELoss(label_smoothing=smoothing, **REGIONS)
        found = value_and_gradient(loss, x, y, form=form)
        assert_all_close(found, value_and_gradient(one_against_rest, x, one_hot(y), form=form), 1e-13, 1e-15)


@BACKENDS
def test_both_terms_of_regions_come_from_one_pass(form, monkeypatch):
    from twinloss.fast.engine.segmentation.voxels import Voxels

    passes = []
    sums = Voxels.sums
    monkeypatch.setattr(Voxels, "sums", lambda *args, **kwargs: passes.append(1) or sums(*args, **kwargs))
    value_and_gradient(DiceCELoss(**REGIONS), logits(1, 3, 6), regions(1, 3, 6), form=form)
    assert len(passes) == 1


def test_sigmoid_without_multilabel_warns_once_what_the_cross_entropy_is():
    loss, x, g = DiceCELoss(sigmoid=True), logits(1, 3, 6), one_hot(labels(1, 1, 6))
    with pytest.warns(UserWarning, match="softmax over 3 classes: pass multilabel=True"):
        loss(x, g)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(x, g)
        DiceCELoss(**REGIONS)(x, g)
        DiceCELoss(sigmoid=True)(x[:, :1], g[:, :1])


def test_regions_do_not_go_with_a_softmax():
    with pytest.raises(ValueError, match="softmax=True makes the classes exclude each other"):
        DiceCELoss(softmax=True, multilabel=True)


def test_regions_need_an_activation_as_the_input_of_the_cross_entropy_is_logits():
    for twin in (
        DiceCELoss,
        lambda **options: reference.dice_ce_loss(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), **options),
    ):
        with pytest.raises(ValueError, match="sigmoid=True, or another activation as other_act"):
            twin(multilabel=True)
    loss = DiceCELoss(multilabel=True, other_act=torch.sigmoid)
    assert loss(logits(1, 3, 6), regions(1, 3, 6)) == DiceCELoss(**REGIONS)(logits(1, 3, 6), regions(1, 3, 6))
    with pytest.raises(ValueError, match="other_act"):
        loss.other_act = None
