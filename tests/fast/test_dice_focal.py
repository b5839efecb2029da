"""The fast Dice + focal loss: documented behaviour and corner cases. Its errors stand in test_contract.py."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, one_hot, soft, value_and_gradient

from twinloss import reference
from twinloss.fast import DiceFocalLoss, DiceLoss, FocalLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
ONEHOT = pytest.mark.parametrize("to_onehot_y", [True, False])
FORMS = pytest.mark.parametrize("use_softmax", [True, False])
ACTIVATIONS = pytest.mark.parametrize(
    "activation", [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.exp}]
)
WEIGHT = [0.5, 2.0, 3.0]


def truth(x, target, **options):
    return exact(reference.dice_focal_loss, reference.dice_focal_loss_gradient, x, target, **options)


# --- the sum of two terms --------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigmoid": True, "squared_pred": True},
        {"softmax": True, "jaccard": True, "batch": True, "gamma": 0.5},
        {"softmax": True, "focal_weight": [0.5, 0.0, 2.0], "smooth_nr": 0.0, "smooth_dr": 1e-3},
        {"softmax": True, "weight": [0.5, 0.0, 2.0], "alpha": 0.3},
        {"softmax": True, "include_background": False, "weight": [0.5, 1.0, 2.0], "ignore_index": 1},
        {"sigmoid": True, "use_softmax": False, "alpha": [0.2, 0.5, 0.9], "ignore_index": 2, "gamma": 0},
        {"softmax": True, "soft_label": True, "lambda_dice": 0.5, "lambda_focal": 2.0},
    ],
)
def test_value_and_gradient_are_those_of_the_reference(form, reduction, kind, options):
    x, y = 3 * logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    target = {"labels": y, "one-hot": one_hot(y), "soft": soft(2, 3, 7, dtype=torch.float64)}[kind]
    options = {"to_onehot_y": kind == "labels", "reduction": reduction, **options}
    expected = truth(x, target, **options)
    assert_all_close(value_and_gradient(DiceFocalLoss(**options), x, target, form=form), expected, 1e-12, 1e-15)
    single = value_and_gradient(DiceFocalLoss(**options), x.float(), target, form=form)
    assert_all_close(single, truth(x.float(), target, **options), 5e-6, 1e-6)


@BACKENDS
@REDUCTIONS
@ACTIVATIONS
@FORMS
def test_it_is_the_weighted_sum_of_dice_and_of_focal_loss_of_the_logits(form, reduction, activation, use_softmax):
    # Focal loss sees the logits, whatever the activation of Dice.
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    shared = {"to_onehot_y": True, "reduction": reduction}
    own = {"gamma": 1.5, "use_softmax": use_softmax, "alpha": 0.3}
    loss = DiceFocalLoss(lambda_dice=0.5, lambda_focal=2.0, **shared, **activation, **own)
    dice, focal = DiceLoss(**shared, **activation), FocalLoss(**shared, **own)
    expected = value_and_gradient(lambda x, y: 0.5 * dice(x, y) + 2.0 * focal(x, y), x, y, form=form)
    assert_all_close(value_and_gradient(loss, x, y, form=form), expected, 1e-13, 1e-15)


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
        {"softmax": True},
    ],
)
def test_other_options_reach_dice_and_leave_focal_loss_alone(form, options):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    with dispatch.forced(form):
        dice = DiceFocalLoss(to_onehot_y=True, lambda_focal=0, **options)(x, y)
        torch.testing.assert_close(dice, DiceLoss(to_onehot_y=True, **options)(x, y), rtol=1e-14, atol=0)
        focal = DiceFocalLoss(to_onehot_y=True, lambda_dice=0, **options)(x, y)
        torch.testing.assert_close(focal, FocalLoss(to_onehot_y=True)(x, y), rtol=1e-14, atol=0)


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("gamma", [0, 0.5, 3])
def test_gamma_reaches_focal_loss(form, reduction, gamma):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"to_onehot_y": True, "gamma": gamma, "reduction": reduction}
    with dispatch.forced(form):
        found = DiceFocalLoss(lambda_dice=0, **options)(x, y)
        torch.testing.assert_close(found, FocalLoss(**options)(x, y), rtol=1e-13, atol=0)


@REDUCTIONS
def test_background_is_dropped_from_both_terms(reduction):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"include_background": False, "to_onehot_y": True, "reduction": reduction}
    expected = DiceLoss(softmax=True, **options)(x, y) + FocalLoss(**options)(x, y)
    torch.testing.assert_close(DiceFocalLoss(softmax=True, **options)(x, y), expected)


def test_factors_of_the_terms_are_1_and_gamma_is_2_unless_given():
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"to_onehot_y": True, "softmax": True}
    found = DiceFocalLoss(**options)(x, y)
    assert torch.equal(found, DiceFocalLoss(lambda_dice=1, lambda_focal=1, gamma=2, **options)(x, y))
    torch.testing.assert_close(found, DiceLoss(**options)(x, y) + FocalLoss(to_onehot_y=True, gamma=2)(x, y))


# --- class weights ---------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize(("background", "weight"), [(True, WEIGHT), (False, WEIGHT[1:]), (True, 3), (False, 3)])
def test_focal_weight_goes_to_focal_loss_alone(form, reduction, background, weight):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"include_background": background, "to_onehot_y": True, "reduction": reduction}
    with dispatch.forced(form):
        found = DiceFocalLoss(softmax=True, focal_weight=weight, **options)(x, y)
        expected = DiceLoss(softmax=True, **options)(x, y) + FocalLoss(weight=weight, **options)(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("background", [True, False])
@FORMS
def test_weight_goes_to_both_and_each_takes_those_of_the_classes_that_it_sees(form, reduction, background, use_softmax):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"include_background": background, "to_onehot_y": True, "reduction": reduction}
    seen = WEIGHT if background else WEIGHT[1:]
    with dispatch.forced(form):
        found = DiceFocalLoss(softmax=True, weight=WEIGHT, use_softmax=use_softmax, **options)(x, y)
        dice = DiceLoss(softmax=True, weight=seen, **options)(x, y)
        focal = FocalLoss(weight=seen, use_softmax=use_softmax, **options)(x, y)
    torch.testing.assert_close(found, dice + focal, rtol=1e-13, atol=0)


@REDUCTIONS
def test_scalar_weight_scales_both_terms(reduction):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"to_onehot_y": True, "softmax": True, "reduction": reduction}
    torch.testing.assert_close(DiceFocalLoss(weight=4, **options)(x, y), 4 * DiceFocalLoss(**options)(x, y))


@pytest.mark.parametrize("name", ["weight", "focal_weight", "alpha"])
@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor])
def test_weight_of_any_kind_gives_the_same(name, kind):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    found, expected = (DiceFocalLoss(to_onehot_y=True, **{name: k([0.5, 0.2, 0.3])})(x, y) for k in (kind, list))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("background", "length", "count"), [(True, 2, 3), (False, 1, 2)])
def test_focal_weight_of_another_length_names_both_counts(background, length, count):
    loss = DiceFocalLoss(background, to_onehot_y=True, focal_weight=[1.0] * length)
    with pytest.raises(ValueError, match=f"has {length} values but {count} classes"):
        loss(logits(2, 3, 7), labels(2, 1, 7))


# --- one channel, spatial rank, reduction ----------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
def test_one_channel_is_binary_focal_loss(form, reduction):
    x, g = logits(2, 1, 7), labels(2, 1, 7, classes=2)
    options = {"reduction": reduction}
    with dispatch.forced(form):
        found = DiceFocalLoss(sigmoid=True, alpha=0.3, use_softmax=False, **options)(x, g)
        focal = FocalLoss(use_softmax=False, alpha=0.3, **options)(x, g)
        torch.testing.assert_close(found, DiceLoss(sigmoid=True, **options)(x, g) + focal)


@pytest.mark.parametrize("option", [{"softmax": True}, {"to_onehot_y": True}, {"include_background": False}])
def test_single_channel_warns_and_ignores(option):
    x, g = logits(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match=f"single channel prediction, `{next(iter(option))}"):
        value = DiceFocalLoss(use_softmax=False, **option)(x, g)
    assert torch.equal(value, DiceFocalLoss(use_softmax=False)(x, g))


def test_single_channel_with_the_softmax_form_warns_and_is_binary():
    x, g = logits(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match="single channel prediction, `use_softmax=True` ignored"):
        value = DiceFocalLoss(sigmoid=True)(x, g)
    torch.testing.assert_close(value, DiceFocalLoss(sigmoid=True, use_softmax=False)(x, g))


@BACKENDS
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_unreduced_loss_adds_dice_to_each_voxel_and_the_mean_follows_from_it(form, background, batch, spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    shared = {"include_background": background, "to_onehot_y": True}
    own = {"softmax": True, "batch": batch}
    with dispatch.forced(form):
        none = DiceFocalLoss(reduction="none", **shared, **own)(x, y)
        dice = DiceLoss(reduction="none", **shared, **own)(x, y)
        focal = FocalLoss(reduction="none", **shared)(x, y)
        mean = DiceFocalLoss(**shared, **own)(x, y)
    assert none.shape == (2, 3 if background else 2, *spatial)
    torch.testing.assert_close(none, dice + focal)
    torch.testing.assert_close(mean, none.mean())


@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_sum_is_that_of_both_terms(spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    options = {"to_onehot_y": True, "reduction": "sum"}
    expected = DiceLoss(softmax=True, **options)(x, y) + FocalLoss(**options)(x, y)
    torch.testing.assert_close(DiceFocalLoss(softmax=True, **options)(x, y), expected)


# --- targets ---------------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@FORMS
@pytest.mark.parametrize("options", [{}, {"focal_weight": WEIGHT}, {"weight": WEIGHT, "alpha": 0.3}])
def test_one_hot_target_gives_what_its_labels_give(form, reduction, use_softmax, options):
    x, y = logits(2, 3, 4, 5), labels(2, 1, 4, 5)
    options = {"softmax": True, "reduction": reduction, "use_softmax": use_softmax, **options}
    found = value_and_gradient(DiceFocalLoss(**options), x, one_hot(y), form=form)
    expected = value_and_gradient(DiceFocalLoss(to_onehot_y=True, **options), x, y, form=form)
    assert_all_close(found, expected, 1e-6, 1e-6)


@BACKENDS
@ONEHOT
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("target_type", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
                                         torch.float16, torch.bfloat16, torch.float32, torch.float64])  # fmt: skip
def test_target_of_any_type_gives_the_same(form, to_onehot_y, reduction, target_type):
    x, y = logits(2, 2, 7), labels(2, 1, 7, classes=2)
    target = y if to_onehot_y else one_hot(y, 2)
    loss = DiceFocalLoss(to_onehot_y=to_onehot_y, sigmoid=True, reduction=reduction, focal_weight=2.0)
    expected = value_and_gradient(loss, x, target, form=form)
    assert_all_close(value_and_gradient(loss, x, target.to(target_type), form=form), expected, 0)


@BACKENDS
@REDUCTIONS
def test_class_that_is_absent_and_item_of_background_alone_are_no_exception(form, reduction):
    x, y = logits(2, 4, 7, dtype=torch.float64), labels(2, 1, 7)  # class 3 is nowhere
    y[1] = 0
    options = {"to_onehot_y": True, "softmax": True, "include_background": False, "reduction": reduction}
    found = value_and_gradient(DiceFocalLoss(**options), x, y, form=form)
    assert found[1].isfinite().all()
    assert_all_close(found, truth(x, y, **options), 1e-12, 1e-15)


@REDUCTIONS
@FORMS
def test_target_that_asks_for_a_gradient_gets_one(reduction, use_softmax):
    x, target = logits(2, 3, 4, dtype=torch.float64), soft(2, 3, 4, dtype=torch.float64).requires_grad_()
    loss = DiceFocalLoss(softmax=True, reduction=reduction, use_softmax=use_softmax)
    assert torch.autograd.gradcheck(lambda t: loss(x, t), target)


@REDUCTIONS
@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "use_softmax": False, "gamma": 0.5}])
def test_double_backward(reduction, options):
    x, y = logits(1, 2, 3, dtype=torch.float64).requires_grad_(), labels(1, 1, 3, classes=2)
    loss = DiceFocalLoss(to_onehot_y=True, reduction=reduction, **options)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y), x)


# --- ignored voxels --------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@ONEHOT
@ACTIVATIONS
@FORMS
@pytest.mark.parametrize("poison", [float("nan"), -float("inf")])
def test_ignored_voxels_may_hold_anything_and_the_rest_counts_as_if_cropped(
    form, reduction, to_onehot_y, activation, use_softmax, poison
):
    x, y = logits(2, 3, 9), labels(2, 1, 9, classes=2)
    x[:, :, 4:6] = poison
    y[:, :, 4:6] = 255 if to_onehot_y else 2
    target = y if to_onehot_y else one_hot(y)
    keep = [0, 1, 2, 3, 6, 7, 8]
    options = {"to_onehot_y": to_onehot_y, "reduction": reduction, "use_softmax": use_softmax, **activation}
    loss = DiceFocalLoss(ignore_index=255 if to_onehot_y else 2, **options)

    def kept(x, target):
        value = loss(x, target)
        return value[..., keep] if reduction == "none" else value

    value, gradient = value_and_gradient(kept, x, target, form=form)
    cropped = value_and_gradient(DiceFocalLoss(**options), x[..., keep], target[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-5, 1e-6)
    assert (gradient[:, :, 4:6] == 0).all()


@BACKENDS
def test_ignore_index_of_one_channel_is_a_value_of_the_target(form):
    x, g = logits(2, 1, 9), labels(2, 1, 9, classes=2)
    x[..., 4:6], g[..., 4:6] = float("nan"), 7
    keep = [0, 1, 2, 3, 6, 7, 8]
    options = {"sigmoid": True, "use_softmax": False}
    value, gradient = value_and_gradient(DiceFocalLoss(ignore_index=7, **options), x, g, form=form)
    cropped = value_and_gradient(DiceFocalLoss(**options), x[..., keep], g[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-5, 1e-7)
    assert (gradient[..., 4:6] == 0).all()


@pytest.mark.parametrize("ignore_index", [3, -1])
def test_ignore_index_that_names_no_channel_of_a_one_hot_target_is_a_value_error(ignore_index):
    with pytest.raises(ValueError, match=f"ignore_index={ignore_index}"):
        DiceFocalLoss(ignore_index=ignore_index)(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@FORMS
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits_have_a_finite_value_and_gradient(form, reduction, use_softmax, activation, gamma, dtype):
    x, y = 1e4 * logits(2, 3, 40, dtype=dtype).sign(), labels(2, 1, 40)
    options = {"to_onehot_y": True, activation: True, "gamma": gamma, "use_softmax": use_softmax}
    options |= {"reduction": reduction}
    value, gradient = value_and_gradient(DiceFocalLoss(**options), x, y, form=form)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    tolerance = (1e-6, 1e-7) if dtype == torch.float32 else (1e-13, 1e-16)
    assert_all_close((value, gradient), truth(x, y, **options), *tolerance)


@BACKENDS
@REDUCTIONS
@FORMS
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_logit_of_minus_infinity_on_a_wrong_class_contributes_nothing(form, reduction, use_softmax, activation, gamma):
    x, y = logits(2, 3, 7), 2 * labels(2, 1, 7, classes=2)
    x[:, 1] = -float("inf")
    # With ν = δ = 1 Dice of the class that is neither predicted nor true is 0.
    options = {"to_onehot_y": True, activation: True, "reduction": reduction, "smooth_nr": 1, "smooth_dr": 1}
    options |= {"gamma": gamma, "use_softmax": use_softmax}
    value, gradient = value_and_gradient(DiceFocalLoss(**options), x, y, form=form)
    without = value_and_gradient(DiceFocalLoss(**options), x[:, [0, 2]], y // 2, form=form)
    fewer = 2 / 3 if reduction == "mean" else 1  # the mean is over classes, too
    if reduction == "none":
        assert (value[:, 1] == 0).all()
        value = value[:, [0, 2]]
    assert_all_close((value, gradient[:, [0, 2]]), [fewer * t for t in without], 1e-6, 1e-6)
    assert (gradient[:, 1] == 0).all()


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"sigmoid": True, "use_softmax": False}, {"softmax": True}])
def test_nan_reaches_value_and_gradient(form, reduction, options):
    x, y = logits(2, 3, 5), labels(2, 1, 5)
    x[1, 2, 3], y[1, 0, 3] = float("nan"), 2
    loss = DiceFocalLoss(to_onehot_y=True, reduction=reduction, **options)
    value, gradient = value_and_gradient(loss, x, y, form=form)
    if reduction == "none":
        assert value[1, 2].isnan().all()  # Dice, at each voxel
        assert value[0].isfinite().all()
    else:
        assert value.isnan()
    assert gradient[1, 2, 3].isnan()
    assert gradient[0].isfinite().all()


@BACKENDS
@REDUCTIONS
@FORMS
def test_float64_keeps_its_accuracy(form, reduction, use_softmax):
    x, y = logits(2, 3, 50, dtype=torch.float64), labels(2, 1, 50)
    options = {"to_onehot_y": True, "softmax": True, "weight": [0.1, 0.2, 0.7], "gamma": 1.7, "alpha": 0.3}
    options |= {"use_softmax": use_softmax, "reduction": reduction}
    value, gradient = value_and_gradient(DiceFocalLoss(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = truth(x, y, **options)
    assert_all_close((value,), expected[:1], 1e-14)
    assert_all_close((gradient,), expected[1:], 1e-12, 1e-15)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@REDUCTIONS
@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "use_softmax": False}])
def test_half_precision_is_computed_in_float32(half, reduction, options):
    # 2^17 voxels: beyond 65504, the largest float16, and far beyond 256, where bfloat16 stops counting.
    x, y = (4 * logits(1, 2, 2**17)).to(half), labels(1, 1, 2**17, classes=2)
    loss = DiceFocalLoss(to_onehot_y=True, reduction=reduction, **options)
    value, gradient = value_and_gradient(loss, x, y)
    wide = value_and_gradient(loss, x.float(), y)
    assert value.dtype == gradient.dtype == half
    assert value.isfinite().all()
    assert torch.equal(value, wide[0].to(half))
    if reduction != "none":  # there the upstream gradient of a voxel was rounded, too
        assert torch.equal(gradient, wide[1].to(half))
    assert gradient.isfinite().all()


@FORMS
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_saturated_half_has_a_finite_value_and_gradient(half, use_softmax, activation):
    x, y = (1e4 * logits(2, 3, 40).sign()).to(half), labels(2, 1, 40)
    options = {"to_onehot_y": True, activation: True, "use_softmax": use_softmax}
    value, gradient = value_and_gradient(DiceFocalLoss(**options), x, y)
    assert value.dtype == gradient.dtype == half
    assert value.isfinite()
    assert gradient.isfinite().all()
    wide = truth(x.float(), y, **options)
    assert_all_close((value, gradient), [t.to(half) for t in wide], torch.finfo(half).eps, 1e-7)


# --- options, layouts, state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [-1, -1e-9, float("nan"), float("inf")])
def test_negative_gamma_is_a_value_error(gamma):
    with pytest.raises(ValueError, match="gamma must be finite and not negative"):
        DiceFocalLoss(gamma=gamma)


@BACKENDS
@REDUCTIONS
def test_labels_out_of_range_are_shown_and_counted(form, reduction):
    with dispatch.forced(form), pytest.raises(ValueError, match="2 voxels with -1, 3"):
        DiceFocalLoss(to_onehot_y=True, reduction=reduction)(torch.rand(1, 3, 4), torch.tensor([[[0, 3, -1, 2]]]))


@BACKENDS
@REDUCTIONS
def test_layout_of_the_input_does_not_matter(form, reduction):
    x, y = logits(2, 3, 6, 5, 4), labels(2, 1, 6, 5, 4)
    loss = DiceFocalLoss(to_onehot_y=True, softmax=True, reduction=reduction)
    expected = value_and_gradient(loss, x, y, form=form)
    channels_last = x.to(memory_format=torch.channels_last_3d)
    assert not channels_last.is_contiguous()
    assert_all_close(value_and_gradient(loss, channels_last, y.mT.contiguous().mT, form=form), expected, 1e-6, 1e-6)


@REDUCTIONS
def test_input_target_and_module_stay_as_they_were(reduction):
    x, y = logits(2, 3, 40), labels(2, 1, 40)
    y[..., 3] = 255
    loss = DiceFocalLoss(
        to_onehot_y=True, softmax=True, ignore_index=255, focal_weight=torch.tensor(WEIGHT), reduction=reduction
    )
    before, tensors = copy.deepcopy(vars(loss)), (x.clone(), y.clone())
    value_and_gradient(loss, x, y)
    assert vars(loss) == before
    assert all(torch.equal(a, b) for a, b in zip(tensors, (x, y), strict=True))


@pytest.mark.parametrize("name", ["focal_weight", "weight", "alpha"])
def test_weight_that_its_owner_changes_later_stays_as_it_was_given(name):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    weight = torch.ones(3)
    loss = DiceFocalLoss(to_onehot_y=True, softmax=True, **{name: weight})
    before = loss(x, y)
    weight[0] = 5
    assert torch.equal(loss(x, y), before)


def test_one_module_serves_another_channel_count():
    loss = DiceFocalLoss(to_onehot_y=True, softmax=True, weight=2.0)
    for classes in (3, 5, 2, 3):
        x, y = logits(2, classes, 6), labels(2, 1, 6, classes=classes)
        torch.testing.assert_close(loss(x, y), 2 * DiceFocalLoss(to_onehot_y=True, softmax=True)(x, y))


def test_options_survive_half_copying_and_pickling():
    x, y = logits(1, 2, 6, dtype=torch.float64), labels(1, 1, 6, classes=2)
    loss = DiceFocalLoss(to_onehot_y=True, softmax=True, focal_weight=np.array([0.1, 0.9]), gamma=0.1, alpha=0.3)
    expected = loss(x, y)
    for twin in (copy.deepcopy(loss).half(), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(x, y), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_graph_break(reduction):
    x, y = logits(2, 3, 50), labels(2, 1, 50)
    loss = DiceFocalLoss(to_onehot_y=reduction == "mean", softmax=True, reduction=reduction)
    target = y if reduction == "mean" else one_hot(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it compiles
        found = value_and_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, target)
    assert_all_close(found, value_and_gradient(loss, x, target), 1e-6, 1e-6)
