"""The fast Dice + cross entropy loss: documented behaviour and corner cases. Its errors stand in test_contract.py."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, one_hot, soft, value_and_gradient
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


def truth(x, target, **options):
    return exact(reference.dice_ce_loss, reference.dice_ce_loss_gradient, x, target, **options)


# --- the sum of two terms --------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigmoid": True, "squared_pred": True},
        {"softmax": True, "jaccard": True, "batch": True},
        {"softmax": True, "ce_weight": [0.5, 0.0, 2.0], "smooth_nr": 0.0, "smooth_dr": 1e-3},
        {"softmax": True, "ce_weight": 3.0},
        {"softmax": True, "weight": [0.5, 0.0, 2.0], "label_smoothing": 0.3},
        {"softmax": True, "include_background": False, "weight": [0.5, 1.0, 2.0], "ignore_index": 1},
        {"sigmoid": True, "label_smoothing": 0.1, "ignore_index": 2, "ce_weight": [0.5, 1.0, 2.0]},
        {"softmax": True, "soft_label": True, "lambda_dice": 0.5, "lambda_ce": 2.0},
    ],
)
def test_value_and_gradient_are_those_of_the_reference(form, reduction, kind, options):
    x, y = 3 * logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    target = {"labels": y, "one-hot": one_hot(y), "soft": soft(2, 3, 7, dtype=torch.float64)}[kind]
    options = {"to_onehot_y": kind == "labels", "reduction": reduction, **options}
    expected = truth(x, target, **options)
    assert_all_close(value_and_gradient(DiceCELoss(**options), x, target, form=form), expected, 1e-12, 1e-15)
    single = value_and_gradient(DiceCELoss(**options), x.float(), target, form=form)
    assert_all_close(single, truth(x.float(), target, **options), 5e-6, 1e-7)


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


@pytest.mark.parametrize("option", [{"softmax": True}, {"to_onehot_y": True}, {"include_background": False}])
def test_single_channel_warns_and_ignores(option):
    x, g = logits(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match=f"single channel prediction, `{next(iter(option))}"):
        value = DiceCELoss(**option)(x, g)
    assert torch.equal(value, DiceCELoss()(x, g))
    torch.testing.assert_close(value, DiceLoss()(x, g) + binary_cross_entropy_with_logits(x, g.float()))


# --- targets ---------------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"ce_weight": WEIGHT}, {"weight": WEIGHT, "label_smoothing": 0.3}])
def test_one_hot_target_gives_what_its_labels_give(form, reduction, options):
    x, y = logits(2, 3, 4, 5), labels(2, 1, 4, 5)
    options = {"softmax": True, "reduction": reduction, **options}
    found = value_and_gradient(DiceCELoss(**options), x, one_hot(y), form=form)
    assert_all_close(found, value_and_gradient(DiceCELoss(to_onehot_y=True, **options), x, y, form=form), 1e-6, 1e-8)


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
@pytest.mark.parametrize("classes", [1, 2])
@ONEHOT
@pytest.mark.parametrize("target_type", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
                                         torch.float16, torch.bfloat16, torch.float32, torch.float64])  # fmt: skip
def test_target_of_any_type_gives_the_same(form, classes, to_onehot_y, target_type):
    x, y = logits(2, classes, 7), labels(2, 1, 7, classes=2)
    to_onehot_y = to_onehot_y and classes > 1
    target = y if to_onehot_y or classes == 1 else one_hot(y, 2)
    loss = DiceCELoss(to_onehot_y=to_onehot_y, sigmoid=True, label_smoothing=0.1, ce_weight=2.0)
    expected = value_and_gradient(loss, x, target, form=form)
    assert_all_close(value_and_gradient(loss, x, target.to(target_type), form=form), expected, 0)


@BACKENDS
@REDUCTIONS
def test_class_that_is_absent_and_item_of_background_alone_are_no_exception(form, reduction):
    x, y = logits(2, 4, 7, dtype=torch.float64), labels(2, 1, 7)  # class 3 is nowhere
    y[1] = 0
    options = {"to_onehot_y": True, "softmax": True, "include_background": False, "reduction": reduction}
    found = value_and_gradient(DiceCELoss(**options), x, y, form=form)
    assert_all_close(found, truth(x, y, **options), 1e-13, 1e-16)
    dice = DiceLoss(**options)(x, y)
    torch.testing.assert_close(found[0], dice + cross_entropy(x, y[:, 0], reduction=reduction), rtol=1e-13, atol=0)


@pytest.mark.parametrize("options", [{}, {"ce_weight": WEIGHT}, {"label_smoothing": 0.2, "weight": WEIGHT}])
def test_target_that_asks_for_a_gradient_gets_one(options):
    x, target = logits(2, 3, 4, dtype=torch.float64), soft(2, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: DiceCELoss(softmax=True, **options)(x, t), target)


@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "label_smoothing": 0.2}])
@pytest.mark.parametrize("classes", [1, 3])
def test_double_backward(options, classes):
    if classes == 1:
        options = {**options, "softmax": False}
    x = logits(2, classes, 4, dtype=torch.float64).requires_grad_()
    target = torch.rand(2, classes, 4, dtype=torch.float64)
    target = target if classes == 1 else target.softmax(1)
    assert torch.autograd.gradgradcheck(lambda x: DiceCELoss(**options)(x, target), x)


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
@ONEHOT
@ACTIVATIONS
@pytest.mark.parametrize("options", [{}, {"ce_weight": WEIGHT, "label_smoothing": 0.3}])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_ignored_voxels_may_hold_anything_and_the_rest_counts_as_if_cropped(
    form, reduction, to_onehot_y, activation, options, poison
):
    x, y = logits(2, 3, 9), labels(2, 1, 9, classes=2)
    x[:, :, 4:6] = poison
    y[:, :, 4:6] = 255 if to_onehot_y else 2
    target = y if to_onehot_y else one_hot(y)
    keep = [0, 1, 2, 3, 6, 7, 8]
    options = {"to_onehot_y": to_onehot_y, "reduction": reduction, **activation, **options}
    loss = DiceCELoss(ignore_index=255 if to_onehot_y else 2, **options)
    value, gradient = value_and_gradient(loss, x, target, form=form)
    cropped = value_and_gradient(DiceCELoss(**options), x[..., keep], target[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-5, 1e-7)
    assert (gradient[:, :, 4:6] == 0).all()


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


@BACKENDS
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_ignore_index_of_one_channel_is_a_value_of_the_target(form, smoothing):
    x, g = logits(2, 1, 9), labels(2, 1, 9, classes=2)
    x[..., 4:6], g[..., 4:6] = float("nan"), 7
    keep = [0, 1, 2, 3, 6, 7, 8]
    options = {"sigmoid": True, "label_smoothing": smoothing}
    value, gradient = value_and_gradient(DiceCELoss(ignore_index=7, **options), x, g, form=form)
    cropped = value_and_gradient(DiceCELoss(**options), x[..., keep], g[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-5, 1e-7)
    assert (gradient[..., 4:6] == 0).all()


@pytest.mark.parametrize("ignore_index", [3, -1])
def test_ignore_index_that_names_no_channel_of_a_one_hot_target_is_a_value_error(ignore_index):
    with pytest.raises(ValueError, match=f"ignore_index={ignore_index}"):
        DiceCELoss(ignore_index=ignore_index)(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits_have_a_finite_value_and_gradient(form, reduction, activation, smoothing, dtype):
    x, y = 1e4 * logits(2, 3, 40, dtype=dtype).sign(), labels(2, 1, 40)
    options = {"to_onehot_y": True, activation: True, "label_smoothing": smoothing, "reduction": reduction}
    value, gradient = value_and_gradient(DiceCELoss(**options), x, y, form=form)
    assert value.isfinite()
    assert gradient.isfinite().all()
    tolerance = (1e-6, 1e-9) if dtype == torch.float32 else (1e-13, 1e-17)
    assert_all_close((value, gradient), truth(x, y, **options), *tolerance)


@BACKENDS
@ONEHOT
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_logit_of_minus_infinity_on_a_wrong_class_contributes_nothing(form, to_onehot_y, activation):
    x, y = logits(2, 3, 7), 2 * labels(2, 1, 7, classes=2)
    x[:, 1] = -float("inf")
    target, other = (y, y // 2) if to_onehot_y else (one_hot(y), one_hot(y // 2, 2))
    # δ > ν = 0: Dice of the class that is neither predicted nor true is 1, and adds nothing to the gradient.
    options = {"to_onehot_y": to_onehot_y, activation: True, "reduction": "sum", "smooth_nr": 0}
    value, gradient = value_and_gradient(DiceCELoss(**options), x, target, form=form)
    fewer, fewer_gradient = value_and_gradient(DiceCELoss(**options), x[:, [0, 2]], other, form=form)
    assert_all_close((value, gradient[:, [0, 2]]), (fewer + 2, fewer_gradient), 1e-6, 1e-7)
    assert (gradient[:, 1] == 0).all()


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"sigmoid": True}, {"softmax": True}, {"label_smoothing": 0.1}])
def test_nan_reaches_value_and_gradient(form, reduction, options):
    x, y = logits(2, 3, 5), labels(2, 1, 5)
    x[1, 2, 3] = float("nan")
    loss = DiceCELoss(to_onehot_y=True, reduction=reduction, **options)
    value, gradient = value_and_gradient(loss, x, y, form=form)
    assert value.isnan()
    assert gradient[1, 2, 3].isnan()
    assert gradient[0].isfinite().all()


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"ce_weight": [0.1, 0.2, 0.7], "label_smoothing": 0.1}])
def test_float64_keeps_its_accuracy(form, reduction, options):
    x, y = logits(2, 3, 50, dtype=torch.float64), labels(2, 1, 50)
    options = {"to_onehot_y": True, "softmax": True, "squared_pred": True, "reduction": reduction, **options}
    value, gradient = value_and_gradient(DiceCELoss(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = truth(x, y, **options)
    assert_all_close((value,), expected[:1], 1e-14)
    assert_all_close((gradient,), expected[1:], 1e-12, 1e-16)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "label_smoothing": 0.1}])
def test_half_precision_is_computed_in_float32(half, options):
    # 2^17 voxels: beyond 65504, the largest float16, and far beyond 256, where bfloat16 stops counting.
    x, y = (4 * logits(1, 2, 2**17)).to(half), labels(1, 1, 2**17, classes=2)
    loss = DiceCELoss(to_onehot_y=True, **options)
    value, gradient = value_and_gradient(loss, x, y)
    wide = value_and_gradient(loss, x.float(), y)
    assert value.dtype == gradient.dtype == half
    assert value.isfinite()
    assert torch.equal(value, wide[0].to(half))
    assert torch.equal(gradient, wide[1].to(half))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_saturated_half_has_a_finite_value_and_gradient(half, activation):
    x, y = (1e4 * logits(2, 3, 40).sign()).to(half), labels(2, 1, 40)
    options = {"to_onehot_y": True, activation: True}
    value, gradient = value_and_gradient(DiceCELoss(**options), x, y)
    assert value.dtype == gradient.dtype == half
    assert value.isfinite()
    assert gradient.isfinite().all()
    wide = truth(x.float(), y, **options)
    assert_all_close((value, gradient), [t.to(half) for t in wide], torch.finfo(half).eps, 1e-7)


# --- layouts, state --------------------------------------------------------------------------------------------------


@BACKENDS
def test_labels_out_of_range_are_shown_and_counted(form):
    with dispatch.forced(form), pytest.raises(ValueError, match="2 voxels with -1, 3"):
        DiceCELoss(to_onehot_y=True, softmax=True)(torch.rand(1, 3, 4), torch.tensor([[[0, 3, -1, 2]]]))


@BACKENDS
def test_layout_of_the_input_does_not_matter(form):
    x, y = logits(2, 3, 6, 5, 4), labels(2, 1, 6, 5, 4)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    expected = value_and_gradient(loss, x, y, form=form)
    channels_last = x.to(memory_format=torch.channels_last_3d)
    assert not channels_last.is_contiguous()
    assert_all_close(value_and_gradient(loss, channels_last, y.mT.contiguous().mT, form=form), expected, 1e-6, 1e-8)


def test_input_target_and_module_stay_as_they_were():
    x, y = logits(2, 3, 40), labels(2, 1, 40)
    y[..., 3] = 255
    options = {"softmax": True, "ignore_index": 255, "label_smoothing": 0.1}
    loss = DiceCELoss(to_onehot_y=True, ce_weight=torch.tensor(WEIGHT), **options)
    before, tensors = copy.deepcopy(vars(loss)), (x.clone(), y.clone())
    value_and_gradient(loss, x, y)
    assert vars(loss) == before
    assert all(torch.equal(a, b) for a, b in zip(tensors, (x, y), strict=True))


@pytest.mark.parametrize("name", ["ce_weight", "weight"])
def test_weight_that_its_owner_changes_later_stays_as_it_was_given(name):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    weight = torch.ones(3)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, **{name: weight})
    before = loss(x, y)
    weight[0] = 5
    assert torch.equal(loss(x, y), before)


def test_one_module_serves_another_channel_count():
    loss = DiceCELoss(to_onehot_y=True, softmax=True, reduction="sum", weight=2.0)
    for classes in (3, 5, 2, 3):
        x, y = logits(2, classes, 6), labels(2, 1, 6, classes=classes)
        once = DiceCELoss(to_onehot_y=True, softmax=True, reduction="sum")(x, y)
        torch.testing.assert_close(loss(x, y), 2 * once)


def test_options_survive_half_copying_and_pickling():
    x, y = logits(1, 2, 6, dtype=torch.float64), labels(1, 1, 6, classes=2)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, ce_weight=np.array([0.1, 0.9]), label_smoothing=0.1)
    expected = loss(x, y)
    for twin in (copy.deepcopy(loss).half(), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(x, y), expected)


@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "ce_weight": WEIGHT, "label_smoothing": 0.1}])
def test_compiles_without_a_graph_break(options):
    x, y = logits(2, 3, 50), labels(2, 1, 50)
    loss = DiceCELoss(to_onehot_y=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it compiles
        found = value_and_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, y)
    assert_all_close(found, value_and_gradient(loss, x, y), 1e-6, 1e-8)


def test_nearly_perfect_prediction_keeps_a_relative_accuracy_of_float32():
    y = labels(1, 1, 1000)
    x = torch.where(one_hot(y) == 1, 20.0, 0.0)
    options = {"softmax": True, "to_onehot_y": True}
    found = value_and_gradient(DiceCELoss(**options), x, y)
    assert_all_close(found, truth(x, y, **options), 1e-5)
