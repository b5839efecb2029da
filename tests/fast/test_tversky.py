"""The fast Tversky loss: documented behaviour and corner cases. Its errors stand in test_contract.py."""

import copy
import pickle

import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, one_hot, soft, value_and_gradient

from twinloss import reference
from twinloss.fast import DiceLoss, TverskyLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
ONEHOT = pytest.mark.parametrize("to_onehot_y", [True, False])
ACTIVATIONS = pytest.mark.parametrize(
    "activation", [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.exp}]
)
ERRORS = {"alpha": 0.3, "beta": 0.7}
UNSMOOTHED = {"smooth_nr": 0, "smooth_dr": 0}
ON_LABELS = {"softmax": True, "to_onehot_y": True, **ERRORS}


def truth(x, target, **options):
    return exact(reference.tversky_loss, reference.tversky_loss_gradient, x, target, **options)


def by_definition(p, g, alpha, beta, smooth_nr=1e-5, smooth_dr=1e-5):
    """The loss of each item and class, (B, C)."""
    tp, fp, fn = ((a * b).reshape(*p.shape[:2], -1).sum(2) for a, b in ((p, g), (p, 1 - g), (1 - p, g)))
    return 1 - (tp + smooth_nr) / (tp + alpha * fp + beta * fn + smooth_dr)


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigmoid": True, "alpha": 1.0, "beta": 0.0},
        {"softmax": True, "alpha": 0.0, "beta": 1.0, "batch": True},
        {"softmax": True, "include_background": False, "ignore_index": 1, **ERRORS},
        {"sigmoid": True, "smooth_nr": 0.0, "smooth_dr": 1e-3, "ignore_index": 2, "batch": True, **ERRORS},
        {"softmax": True, "soft_label": True, **ERRORS},
        {"sigmoid": True, "soft_label": True, "batch": True, "include_background": False, "alpha": 3.0},
    ],
)
def test_value_and_gradient_are_those_of_the_reference(form, reduction, kind, options):
    x, y = 3 * logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    target = {"labels": y, "one-hot": one_hot(y), "soft": soft(2, 3, 7)}[kind]
    options = {"to_onehot_y": kind == "labels", "reduction": reduction, **options}
    found = value_and_gradient(TverskyLoss(**options), x, target, form=form)
    assert_all_close(found, truth(x, target, **options), 1e-12, 1e-15)
    single = value_and_gradient(TverskyLoss(**options), x.float(), target, form=form)
    assert_all_close(single, truth(x.float(), target, **options), 5e-6, 1e-6)


@BACKENDS
@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize(
    ("activation", "probabilities"),
    [({}, lambda x: x), ({"sigmoid": True}, torch.sigmoid), ({"softmax": True}, lambda x: x.softmax(1)),
     ({"other_act": torch.tanh}, torch.tanh)],
)  # fmt: skip
def test_loss_is_one_minus_the_tversky_index_of_the_activated_input(form, spatial, activation, probabilities):
    x, y = logits(2, 3, *spatial, dtype=torch.float64), labels(2, 1, *spatial)
    loss = TverskyLoss(to_onehot_y=True, **activation, **ERRORS)
    expected = value_and_gradient(lambda x, g: by_definition(probabilities(x), g, **ERRORS).mean(), x, one_hot(y))
    assert_all_close(value_and_gradient(loss, x, y, form=form), expected, 1e-12, 1e-15)


@BACKENDS
def test_alpha_weighs_false_positives(form):
    # TP = 2, FP = 3, FN = 0 by hand.
    p, g = torch.ones(1, 1, 5), torch.tensor([[[1, 1, 0, 0, 0]]])
    with dispatch.forced(form):
        for alpha in (0.0, 0.25, 1.0, 2.0):
            for beta in (0.0, 5.0):
                value = TverskyLoss(alpha=alpha, beta=beta, **UNSMOOTHED)(p, g)
                torch.testing.assert_close(value.item(), 1 - 2 / (2 + 3 * alpha), rtol=1e-6, atol=0)


@BACKENDS
def test_beta_weighs_false_negatives(form):
    # TP = 2, FP = 0, FN = 3 by hand.
    p, g = torch.tensor([[[1.0, 1, 0, 0, 0]]]), torch.ones(1, 1, 5)
    with dispatch.forced(form):
        for beta in (0.0, 0.25, 1.0, 2.0):
            for alpha in (0.0, 5.0):
                value = TverskyLoss(alpha=alpha, beta=beta, **UNSMOOTHED)(p, g)
                torch.testing.assert_close(value.item(), 1 - 2 / (2 + 3 * beta), rtol=1e-6, atol=0)


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"include_background": False}, {"soft_label": True}])
@pytest.mark.parametrize("soft_target", [True, False])
def test_halves_are_dice_with_halved_smoothing(form, reduction, options, soft_target):
    x = logits(2, 3, 7, dtype=torch.float64)
    target = soft(2, 3, 7, dtype=torch.float64) if soft_target else labels(2, 1, 7)
    options = {"softmax": True, "to_onehot_y": not soft_target, "reduction": reduction, **options}
    tversky = TverskyLoss(alpha=0.5, beta=0.5, smooth_nr=0.25, smooth_dr=0.5, **options)
    dice = DiceLoss(smooth_nr=0.5, smooth_dr=1.0, **options)
    expected = value_and_gradient(dice, x, target, form=form)
    assert_all_close(value_and_gradient(tversky, x, target, form=form), expected, 1e-13, 1e-16)


@BACKENDS
def test_ones_are_jaccard_with_halved_smoothing(form):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"softmax": True, "to_onehot_y": True}
    tversky = TverskyLoss(alpha=1, beta=1, smooth_nr=0.25, smooth_dr=0.5, **options)
    jaccard = DiceLoss(jaccard=True, smooth_nr=0.5, smooth_dr=1.0, **options)
    expected = value_and_gradient(jaccard, x, y, form=form)
    assert_all_close(value_and_gradient(tversky, x, y, form=form), expected, 1e-13, 1e-16)


def test_alpha_and_beta_are_a_half_and_the_smoothing_is_1e_5_unless_given():
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    expected = by_definition(x, one_hot(y), 0.5, 0.5, 1e-5, 1e-5).mean()
    torch.testing.assert_close(TverskyLoss(to_onehot_y=True)(x, y), expected, rtol=1e-13, atol=0)


@BACKENDS
def test_smoothing_is_added_to_numerator_and_denominator(form):
    # TP = 1, FP = 1, FN = 2 by hand.
    p, g = torch.tensor([[[1.0, 1, 0, 0]]]), torch.tensor([[[1, 0, 1, 1]]])
    with dispatch.forced(form):
        value = TverskyLoss(alpha=0.5, beta=0.25, smooth_nr=0.5, smooth_dr=2.0)(p, g)
    torch.testing.assert_close(value.item(), 1 - 1.5 / (1 + 0.5 + 0.5 + 2.0), rtol=1e-6, atol=0)


@BACKENDS
def test_class_absent_from_prediction_and_target_costs_one_minus_the_ratio_of_the_smoothings(form):
    p, g = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    p[:, 0] = g[:, 0] = 1
    with dispatch.forced(form):
        value = TverskyLoss(reduction="none", smooth_nr=1, smooth_dr=4)(p, g)
    torch.testing.assert_close(value, torch.tensor([[[1 - 5 / 8], [1 - 1 / 4]]]))


@BACKENDS
def test_absent_class_and_item_of_background_alone_are_no_exception(form):
    x, y = logits(3, 3, 4, 5, dtype=torch.float64), labels(3, 1, 4, 5, classes=2)
    y[1] = 0
    options = {"softmax": True, "to_onehot_y": True, "reduction": "none", **ERRORS}
    value, gradient = value_and_gradient(TverskyLoss(**options), x, y, form=form)
    expected = by_definition(x.softmax(1), one_hot(y), **ERRORS)[..., None, None]
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    assert (value[1, 1:] > 0.99).all()  # nothing of the class is there and some is predicted
    torch.testing.assert_close(gradient, truth(x, y, **options)[1], rtol=1e-12, atol=1e-16)


# --- options ---------------------------------------------------------------------------------------------------------


@BACKENDS
@ONEHOT
def test_background_is_dropped_from_the_loss_and_not_from_the_softmax(form, to_onehot_y):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    loss = TverskyLoss(include_background=False, to_onehot_y=to_onehot_y, softmax=True, **ERRORS)
    value, gradient = value_and_gradient(loss, x, y if to_onehot_y else one_hot(y), form=form)
    expected = value_and_gradient(lambda x, g: by_definition(x.softmax(1), g, **ERRORS)[:, 1:].mean(), x, one_hot(y))
    assert_all_close((value, gradient), expected, 1e-12, 1e-16)
    assert (gradient[:, 0] != 0).all()


@BACKENDS
@REDUCTIONS
@ACTIVATIONS
def test_one_hot_target_gives_what_its_labels_give(form, reduction, activation):
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    options = {"reduction": reduction, **activation, **ERRORS}
    expected = value_and_gradient(TverskyLoss(to_onehot_y=True, **options), x, y, form=form)
    assert_all_close(value_and_gradient(TverskyLoss(**options), x, one_hot(y), form=form), expected, 1e-13, 1e-16)


@BACKENDS
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_unreduced_loss_broadcasts_and_mean_and_sum_follow_from_it(form, batch, background, spatial):
    options = {"include_background": background, "batch": batch, **ON_LABELS}
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    with dispatch.forced(form):
        none, mean, total = (TverskyLoss(reduction=r, **options)(x, y) for r in ("none", "mean", "sum"))
    assert none.shape == (1 if batch else 2, 3 if background else 2, *[1] * len(spatial))
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum())


@BACKENDS
@ONEHOT
def test_batch_sums_over_the_items_before_it_divides(form, to_onehot_y):
    x, y = logits(3, 3, 7, dtype=torch.float64), labels(3, 1, 7)
    target = y if to_onehot_y else one_hot(y)
    options = {**ON_LABELS, "to_onehot_y": to_onehot_y}
    value, gradient = value_and_gradient(TverskyLoss(batch=True, **options), x, target, form=form)
    # The items side by side are one.
    joined = [t.movedim(0, 1).flatten(1)[None] for t in (x, target)]
    expected, slope = value_and_gradient(TverskyLoss(**options), *joined, form=form)
    assert_all_close((value, gradient), (expected, slope.reshape(3, 3, 7).movedim(1, 0)), 1e-13, 1e-16)


@BACKENDS
@REDUCTIONS
def test_loss_of_a_batch_is_the_reduction_of_those_of_its_items(form, reduction):
    x, y = logits(3, 3, 7, dtype=torch.float64), labels(3, 1, 7)
    loss = TverskyLoss(reduction=reduction, **ON_LABELS)
    with dispatch.forced(form):
        items = [loss(x[b : b + 1], y[b : b + 1]) for b in range(3)]
        found = loss(x, y)
    expected = {"mean": lambda: sum(items) / 3, "sum": lambda: sum(items), "none": lambda: torch.cat(items)}[
        reduction
    ]()
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@BACKENDS
@pytest.mark.parametrize("option", [{"softmax": True}, {"to_onehot_y": True}, {"include_background": False}])
def test_single_channel_warns_and_ignores(form, option):
    x, g = logits(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match=f"single channel prediction, `{next(iter(option))}"):
        found = value_and_gradient(TverskyLoss(**option, **ERRORS), x, g, form=form)
    assert_all_close(found, value_and_gradient(TverskyLoss(**ERRORS), x, g, form=form), 0)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_prediction_and_soft_target_are_the_minimum_with_soft_label(form, dtype):
    g = soft(2, 3, 9, dtype=dtype)
    loss = TverskyLoss(soft_label=True, reduction="none", **ERRORS)
    with dispatch.forced(form):
        assert (loss(g, g) == 0).all()
        for seed in range(20):
            p = (g + 0.05 * logits(2, 3, 9, dtype=dtype, seed=seed)).clamp(0, 1)
            assert (loss(p, g) > 0).all()


@BACKENDS
def test_equal_prediction_and_soft_target_are_no_minimum_without_soft_label(form):
    g = soft(1, 3, 9, dtype=torch.float64)
    sharp = one_hot(g.argmax(1, keepdim=True)).double()
    loss = TverskyLoss()
    with dispatch.forced(form):
        assert loss(g, g) > 0.1
        assert loss(sharp, g) < loss(g, g)


@BACKENDS
@ACTIVATIONS
def test_soft_label_changes_nothing_for_hard_labels(form, activation):
    x = logits(2, 3, 9, dtype=torch.float64)
    x = x if activation in ({"sigmoid": True}, {"softmax": True}) else x.sigmoid().log()  # p in [0, 1], or log p
    x = x.exp() if activation == {} else x
    y = labels(2, 1, 9)
    options = {"to_onehot_y": True, **activation, **ERRORS}
    expected = value_and_gradient(TverskyLoss(**options), x, y, form=form)
    assert_all_close(value_and_gradient(TverskyLoss(soft_label=True, **options), x, y, form=form), expected, 1e-13, 0)


@BACKENDS
@pytest.mark.parametrize(
    "target_type",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
     torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"ignore_index": 0}, {"batch": True}])
@ONEHOT
def test_target_of_any_type_gives_the_same(form, to_onehot_y, target_type, options):
    x, y = logits(2, 2, 7), labels(2, 1, 7, classes=2)
    target = y if to_onehot_y else one_hot(y, 2)
    loss = TverskyLoss(**{**ON_LABELS, "to_onehot_y": to_onehot_y}, **options)
    expected = value_and_gradient(loss, x, target, form=form)
    assert_all_close(value_and_gradient(loss, x, target.to(target_type), form=form), expected, 0)


# --- ignored voxels --------------------------------------------------------------------------------------------------


@BACKENDS
@ONEHOT
@ACTIVATIONS
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"batch": True, "include_background": False}])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_ignored_voxels_may_hold_anything_and_the_rest_counts_as_if_cropped(
    form, to_onehot_y, activation, options, poison
):
    x, y = logits(2, 3, 9, dtype=torch.float64), labels(2, 1, 9, classes=2)
    x[:, :, 4:6] = poison
    y[:, :, 4:6] = 255 if to_onehot_y else 2
    target = y if to_onehot_y else one_hot(y)
    keep = [0, 1, 2, 3, 6, 7, 8]
    options = {"to_onehot_y": to_onehot_y, "reduction": "none", **activation, **options, **ERRORS}
    loss = TverskyLoss(ignore_index=255 if to_onehot_y else 2, **options)
    value, gradient = value_and_gradient(loss, x, target, form=form)
    cropped = value_and_gradient(TverskyLoss(**options), x[..., keep], target[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-13, 1e-16)
    assert (gradient[:, :, 4:6] == 0).all()


@BACKENDS
def test_items_may_ignore_different_voxels(form):
    x, y = logits(2, 3, 9, dtype=torch.float64), labels(2, 1, 9)
    y[0, 0, :4], y[1, 0, 6:] = -1, -1
    value, gradient = value_and_gradient(TverskyLoss(ignore_index=-1, reduction="none", **ON_LABELS), x, y, form=form)
    for item, keep in ((0, slice(4, 9)), (1, slice(0, 6))):
        cropped = value_and_gradient(
            TverskyLoss(reduction="none", **ON_LABELS), x[item, None, :, keep], y[item, None, :, keep], form=form
        )
        assert_all_close((value[item, None], gradient[item, None, :, keep]), cropped, 1e-13, 1e-16)


@BACKENDS
def test_item_that_is_ignored_as_a_whole_has_no_gradient(form):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    x[0], y[0] = float("nan"), 255
    loss = TverskyLoss(ignore_index=255, reduction="none", smooth_nr=1.0, smooth_dr=4.0, **ON_LABELS)
    value, gradient = value_and_gradient(loss, x, y, form=form)
    assert (value[0] == 1 - 1 / 4).all()
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).all()


@BACKENDS
def test_ignore_index_of_one_channel_is_a_value_of_the_target(form):
    x, g = logits(2, 1, 9), labels(2, 1, 9, classes=2)
    x[..., 4:6], g[..., 4:6] = float("nan"), 7
    keep = [0, 1, 2, 3, 6, 7, 8]
    value, gradient = value_and_gradient(TverskyLoss(sigmoid=True, ignore_index=7), x, g, form=form)
    cropped = value_and_gradient(TverskyLoss(sigmoid=True), x[..., keep], g[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-6, 1e-8)
    assert (gradient[..., 4:6] == 0).all()


@pytest.mark.parametrize("ignore_index", [3, -1])
def test_ignore_index_that_names_no_channel_of_a_one_hot_target_is_a_value_error(ignore_index):
    with pytest.raises(ValueError, match=f"ignore_index={ignore_index}"):
        TverskyLoss(ignore_index=ignore_index)(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"batch": True, "include_background": False}])
def test_float64_keeps_its_accuracy(form, options):
    x, y = logits(2, 3, 50, dtype=torch.float64), labels(2, 1, 50)
    # None of these is a float32, and the data are of no size at which the smoothing would vanish.
    options = {"softmax": True, "to_onehot_y": True, "alpha": 0.1, "beta": 1.3, "smooth_nr": 0.7, **options}
    value, gradient = value_and_gradient(TverskyLoss(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = truth(x, y, **options)
    assert_all_close((value,), expected[:1], 1e-14)
    assert_all_close((gradient,), expected[1:], 1e-12, 1e-17)


@BACKENDS
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_nearly_perfect_prediction_keeps_a_relative_accuracy_of_float32(form, activation):
    # 1 - TP/(…) would be rounded to a multiple of 6e-8; the loss here is about 1e-8.
    y = labels(1, 1, 1000)
    x = torch.where(one_hot(y) == 1, 10.0, -10.0)
    options = {"to_onehot_y": True, activation: True, **ERRORS}
    value, gradient = value_and_gradient(TverskyLoss(**options), x, y, form=form)
    expected = truth(x, y, **options)
    assert_all_close((value,), expected[:1], 1e-6)
    assert_all_close((gradient,), expected[1:], 1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_half_precision_is_computed_in_float32(half, activation):
    # 2^17 voxels: beyond 65504, the largest float16, and far beyond 256, where bfloat16 stops counting.
    x, y = (4 * logits(1, 2, 2**17)).to(half), labels(1, 1, 2**17, classes=2)
    loss = TverskyLoss(to_onehot_y=True, **{activation: True}, **ERRORS)
    value, gradient = value_and_gradient(loss, x, y)
    wide = value_and_gradient(loss, x.float(), y)
    assert value.dtype == gradient.dtype == half
    assert torch.equal(value, wide[0].to(half))
    assert torch.equal(gradient, wide[1].to(half))
    assert value.isfinite()
    assert gradient.isfinite().all()


@BACKENDS
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_saturated_logits_have_a_finite_value_and_gradient(form, activation, dtype):
    x, y = (1e4 * logits(2, 3, 40).sign()).to(dtype), labels(2, 1, 40)
    options = {"to_onehot_y": True, activation: True, **ERRORS}
    value, gradient = value_and_gradient(TverskyLoss(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == dtype
    assert value.isfinite()
    assert gradient.isfinite().all()
    wide = truth(x.to(torch.promote_types(dtype, torch.float32)), y, **options)
    assert_all_close((value, gradient), [t.to(dtype) for t in wide], 2 * torch.finfo(dtype).eps, 1e-7)


@BACKENDS
@ACTIVATIONS
@pytest.mark.parametrize("options", [{}, {"soft_label": True}])
@ONEHOT
def test_nan_reaches_value_and_gradient(form, activation, options, to_onehot_y):
    x, y = logits(2, 3, 5), labels(2, 1, 5)
    x[1, 2, 3], y[1, 0, 3] = float("nan"), 2
    loss = TverskyLoss(to_onehot_y=to_onehot_y, reduction="none", **activation, **options, **ERRORS)
    value, gradient = value_and_gradient(loss, x, y if to_onehot_y else one_hot(y), form=form)
    assert value[1, 2].isnan()
    assert value[0].isfinite().all()
    assert gradient[1, 2].isnan().all()
    assert gradient[0].isfinite().all()


@BACKENDS
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [([0, 3, 1, -1], "2 voxels with -1, 3"), ([0.0, 0.5, 1.0, 2.0], "1 voxels with 0.5"),
     ([0, 255, 255, 3], "1 voxels with 3")],
)  # fmt: skip
def test_labels_that_name_no_class_are_shown_and_counted(form, wrong, shown):
    loss = TverskyLoss(ignore_index=255, **ON_LABELS)
    with dispatch.forced(form), pytest.raises(ValueError, match=shown):
        loss(torch.rand(1, 3, 4), torch.tensor(wrong)[None, None])


@BACKENDS
@pytest.mark.parametrize("target_type", [torch.uint8, torch.int8, torch.uint16, torch.uint64, torch.float16])
def test_labels_of_any_type_that_name_no_class_are_shown_and_counted(form, target_type):
    with dispatch.forced(form), pytest.raises(ValueError, match="2 voxels with 7, 9"):
        TverskyLoss(**ON_LABELS)(torch.rand(1, 3, 4), torch.tensor([[[0, 7, 9, 2]]]).to(target_type))


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_alpha_and_beta_are_finite_and_not_negative(name, wrong):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        TverskyLoss(**{name: wrong})


@pytest.mark.parametrize("options", [{}, {"batch": True}, {"sigmoid": True, "include_background": False}])
def test_target_that_asks_for_a_gradient_gets_one(options):
    x = torch.rand(2, 3, 5, dtype=torch.float64)
    target = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: TverskyLoss(**options, **ERRORS)(x, g), target)


@pytest.mark.parametrize("to_onehot_y", [True, False])
@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "batch": True}])
def test_double_backward(to_onehot_y, options):
    x = logits(2, 3, 4, dtype=torch.float64).requires_grad_()
    target = labels(2, 1, 4) if to_onehot_y else soft(2, 3, 4, dtype=torch.float64)
    loss = TverskyLoss(to_onehot_y=to_onehot_y, **options, **ERRORS)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), x)


# --- layouts, state --------------------------------------------------------------------------------------------------


@BACKENDS
def test_layout_of_the_input_does_not_matter(form):
    x, y = logits(2, 3, 6, 5, 4), labels(2, 1, 6, 5, 4)
    loss = TverskyLoss(**ON_LABELS)
    expected = value_and_gradient(loss, x, y, form=form)
    channels_last = x.to(memory_format=torch.channels_last_3d)
    assert not channels_last.is_contiguous()
    assert_all_close(value_and_gradient(loss, channels_last, y.mT.contiguous().mT, form=form), expected, 1e-6, 1e-8)


@BACKENDS
@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.exp}])
def test_input_target_and_module_stay_as_they_were(form, options):
    x, y = logits(2, 3, 40), labels(2, 1, 40)
    y[..., 3] = 255
    loss = TverskyLoss(to_onehot_y=True, ignore_index=255, **options)
    before, tensors = copy.deepcopy(vars(loss)), (x.clone(), y.clone())
    value_and_gradient(loss, x, y, form=form)
    assert vars(loss) == before
    assert all(torch.equal(a, b) for a, b in zip(tensors, (x, y), strict=True))


def test_one_module_serves_another_channel_count():
    loss = TverskyLoss(reduction="none", **ON_LABELS)
    for classes in (3, 5, 2, 3):
        x, y = logits(2, classes, 6, dtype=torch.float64), labels(2, 1, 6, classes=classes)
        expected = by_definition(x.softmax(1), one_hot(y, classes), **ERRORS)[..., None]
        torch.testing.assert_close(loss(x, y), expected, rtol=1e-13, atol=0)


def test_options_survive_half_copying_and_pickling():
    x, y = logits(1, 2, 6, dtype=torch.float64), labels(1, 1, 6, classes=2)
    loss = TverskyLoss(softmax=True, to_onehot_y=True, alpha=0.1, beta=1.3)
    expected = loss(x, y)
    for twin in (copy.deepcopy(loss).half(), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(x, y), expected)
