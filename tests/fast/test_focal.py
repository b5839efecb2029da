"""The fast focal loss: documented behaviour and corner cases."""

import math

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, one_hot, soft, value_and_gradient
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax, logsigmoid

from twinloss import reference
from twinloss.fast import FocalLoss
from twinloss.fast.runtime import dispatch

FORMS = pytest.mark.parametrize("use_softmax", [True, False])
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
SATURATION_GAMMAS = pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])


def truth(x, target, **options):
    return exact(reference.focal_loss, reference.focal_loss_gradient, x, target, **options)


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
def test_logits_go_through_log_softmax_and_easy_voxels_count_less(form):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    log_p = log_softmax(x, 1)
    expected = -((1 - log_p.exp()) ** 2) * one_hot(y) * log_p
    with dispatch.forced(form):
        none = FocalLoss(to_onehot_y=True, reduction="none")(x, y)
        mean = FocalLoss(to_onehot_y=True)(x, y)
    assert_all_close([none, mean], [expected, expected.mean()], 1e-13)


@BACKENDS
@pytest.mark.parametrize("alpha", [None, 0.25, [0.25, 0.5, 0.75]])
def test_binary_form_has_terms_of_positives_and_negatives(form, alpha):
    x, g = logits(2, 3, 7, dtype=torch.float64), soft(2, 3, 7, dtype=torch.float64)
    p = x.sigmoid()
    a, b = 1.0, 1.0
    if alpha is not None:
        a = torch.tensor(alpha, dtype=torch.float64).reshape(-1, 1)
        b = 1 - a
    expected = -a * (1 - p) ** 2 * g * logsigmoid(x) - b * p**2 * (1 - g) * logsigmoid(-x)
    with dispatch.forced(form):
        none = FocalLoss(use_softmax=False, alpha=alpha, reduction="none")(x, g)
        mean = FocalLoss(use_softmax=False, alpha=alpha)(x, g)
    assert_all_close([none, mean], [expected, expected.mean()], 1e-13)


@BACKENDS
def test_without_gamma_it_is_the_cross_entropy_of_torch(form):
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    expected = value_and_gradient(cross_entropy, x, y[:, 0])
    value, gradient = value_and_gradient(FocalLoss(to_onehot_y=True, gamma=0), x, y, form=form)
    assert_all_close((3 * value, 3 * gradient), expected, 1e-13, 1e-17)  # the mean is over classes, too
    with dispatch.forced(form):
        none = FocalLoss(to_onehot_y=True, gamma=0, reduction="none")(x, y)
    torch.testing.assert_close(none.sum(1), cross_entropy(x, y[:, 0], reduction="none"), rtol=1e-13, atol=0)


@BACKENDS
def test_binary_form_without_gamma_is_the_binary_cross_entropy_of_torch(form):
    x, g = logits(2, 3, 7, dtype=torch.float64), soft(2, 3, 7, dtype=torch.float64)
    found = value_and_gradient(FocalLoss(gamma=0, use_softmax=False), x, g, form=form)
    assert_all_close(found, value_and_gradient(binary_cross_entropy_with_logits, x, g), 1e-13, 1e-17)


def test_documented_example_gives_the_loss_of_its_formula():
    pred = torch.tensor([[1, 0], [0, 1], [1, 0]], dtype=torch.float32)
    grnd = torch.tensor([[0], [1], [0]], dtype=torch.int64)
    fl = FocalLoss(to_onehot_y=True)
    surprisal = math.log1p(math.exp(-1))  # of each voxel's true class, 1 above the other
    assert fl(pred, grnd).item() == pytest.approx((1 - math.exp(-surprisal)) ** 2 * surprisal / 2, rel=1e-6)


def test_one_minus_p_does_not_cancel():
    x, y = torch.tensor([[[40.0], [0.0]]], dtype=torch.float64), torch.tensor([[[0]]])
    for use_softmax in (True, False):
        none = FocalLoss(to_onehot_y=True, gamma=1, use_softmax=use_softmax, reduction="none")(x, y)
        assert none[0, 0, 0].item() == pytest.approx(math.exp(-80), rel=1e-14)


# --- classes: background, weight, alpha ------------------------------------------------------------------------------


@BACKENDS
def test_background_is_dropped_from_the_loss_and_not_from_the_softmax(form):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    options = {"to_onehot_y": True, "include_background": False}
    log_p = log_softmax(x, 1)
    expected = (-((1 - log_p.exp()) ** 2) * one_hot(y) * log_p)[:, 1:]
    with dispatch.forced(form):
        none = FocalLoss(reduction="none", **options)(x, y)
    value, gradient = value_and_gradient(FocalLoss(**options), x, y, form=form)
    assert_all_close([none, value], [expected, expected.mean()], 1e-13)
    foreground = y[:, 0] > 0
    assert (gradient[:, 0][foreground] > 0).all()  # it competes for their probability
    assert (gradient.movedim(1, -1)[~foreground] == 0).all()


@BACKENDS
@FORMS
@REDUCTIONS
def test_scalar_weight_scales_the_loss(form, use_softmax, reduction):
    x, g = logits(2, 3, 7), soft(2, 3, 7)
    options = {"use_softmax": use_softmax, "reduction": reduction}
    plain = value_and_gradient(FocalLoss(**options), x, g, form=form)
    found = value_and_gradient(FocalLoss(weight=4, **options), x, g, form=form)
    assert_all_close(found, [4 * t for t in plain], 1e-6, 1e-9)


@FORMS
@pytest.mark.parametrize(("background", "weight"), [(True, [0.5, 2.0, 3.0]), (False, [2.0, 3.0])])
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_weight_of_each_class_multiplies_its_terms(use_softmax, background, weight, kind):
    x, g = logits(2, 3, 7), soft(2, 3, 7)
    options = {"include_background": background, "use_softmax": use_softmax, "reduction": "none"}
    expected = torch.tensor(weight).reshape(-1, 1) * FocalLoss(**options)(x, g)
    assert_all_close([FocalLoss(weight=kind(weight), **options)(x, g)], [expected], 1e-6)


def test_one_class_that_is_left_takes_one_weight():
    x, y = logits(2, 2, 5), labels(2, 1, 5, classes=2)
    options = {"include_background": False, "to_onehot_y": True}
    torch.testing.assert_close(FocalLoss(weight=[3.0], **options)(x, y), 3 * FocalLoss(**options)(x, y))


@BACKENDS
def test_scalar_alpha_is_that_of_the_foreground_and_leaves_the_rest_for_the_background(form):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    with dispatch.forced(form):
        for background, factors in ((True, [0.7, 0.3, 0.3]), (False, [0.3, 0.3])):
            found, plain = (
                FocalLoss(background, to_onehot_y=True, alpha=alpha, reduction="none")(x, y) for alpha in (0.3, None)
            )
            assert_all_close([found], [torch.tensor(factors)[:, None] * plain], 1e-6)


def test_alpha_of_each_class_multiplies_its_terms():
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options = {"to_onehot_y": True, "reduction": "none"}
    found = FocalLoss(alpha=[0.5, 0.3, 0.9], **options)(x, y)
    assert_all_close([found], [torch.tensor([[0.5], [0.3], [0.9]]) * FocalLoss(**options)(x, y)], 1e-6)


# --- one channel, spatial rank, reduction ----------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
def test_single_channel_is_binary_with_a_warning(form, reduction):
    x, g = logits(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match="single channel prediction, `use_softmax=True` ignored"):
        found = value_and_gradient(FocalLoss(reduction=reduction), x, g, form=form)
    expected = value_and_gradient(FocalLoss(use_softmax=False, reduction=reduction), x, g, form=form)
    assert_all_close(found, expected, 0)
    assert_all_close(found, truth(x.double(), g, use_softmax=False, reduction=reduction), 2e-6, 1e-8)


@BACKENDS
@FORMS
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_unreduced_loss_is_the_voxel_map_and_mean_and_sum_follow_from_it(form, use_softmax, background, spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    options = {"include_background": background, "use_softmax": use_softmax, "to_onehot_y": True}
    with dispatch.forced(form):
        none, mean, total = (FocalLoss(reduction=r, **options)(x, y) for r in ("none", "mean", "sum"))
    assert none.shape == (2, 3 if background else 2, *spatial)
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum() / math.prod(spatial))  # sums the mean over the voxels


@BACKENDS
@FORMS
def test_loss_of_a_batch_is_the_mean_of_its_items(form, use_softmax):
    x, y = logits(3, 3, 7, dtype=torch.float64), labels(3, 1, 7)
    loss = FocalLoss(to_onehot_y=True, use_softmax=use_softmax)
    with dispatch.forced(form):
        items = torch.stack([loss(x[i : i + 1], y[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(loss(x, y), items.mean(), rtol=1e-14, atol=0)


# --- targets ---------------------------------------------------------------------------------------------------------


@BACKENDS
@FORMS
def test_loss_is_linear_in_a_soft_target(form, use_softmax):
    x, y, z = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7), labels(2, 1, 7, seed=5)
    loss = FocalLoss(use_softmax=use_softmax)
    found = value_and_gradient(loss, x, 0.25 * one_hot(y) + 0.75 * one_hot(z).double(), form=form)
    ends = [value_and_gradient(loss, x, one_hot(t), form=form) for t in (y, z)]
    assert_all_close(found, [0.25 * a + 0.75 * b for a, b in zip(*ends, strict=True)], 1e-13, 1e-17)


@BACKENDS
@FORMS
def test_without_the_background_an_item_of_background_alone_counts_in_the_binary_form_only(form, use_softmax):
    x, y = logits(2, 4, 7, dtype=torch.float64), labels(2, 1, 7)
    y[1] = 0
    options = {"to_onehot_y": True, "use_softmax": use_softmax, "include_background": False}
    _, gradient = value_and_gradient(FocalLoss(**options), x, y, form=form)
    none = FocalLoss(reduction="none", **options)(x, y)
    if use_softmax:
        assert (none[1] == 0).all()
        assert (gradient[1] == 0).all()
    else:
        assert (none[1] > 0).all()


# --- ignored voxels --------------------------------------------------------------------------------------------------


@BACKENDS
@FORMS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_item_that_is_ignored_as_a_whole_leaves_the_loss_to_the_others(form, use_softmax, reduction):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    y[0] = -1
    options = {"to_onehot_y": True, "use_softmax": use_softmax, "reduction": reduction}
    value, gradient = value_and_gradient(FocalLoss(ignore_index=-1, **options), x, y, form=form)
    alone = value_and_gradient(FocalLoss(**options), x[1:], y[1:], form=form)
    assert_all_close((value, gradient[1:]), alone, 1e-6, 1e-9)
    assert (gradient[0] == 0).all()


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@FORMS
@SATURATION_GAMMAS
@pytest.mark.parametrize("logit", [30.0, 200.0, 1e4])
def test_prediction_that_is_right_beyond_doubt_costs_nothing_and_pulls_no_more(form, use_softmax, gamma, logit):
    y = labels(1, 1, 20)
    x = torch.where(one_hot(y) == 1, logit, -logit)
    options = {"to_onehot_y": True, "gamma": gamma, "use_softmax": use_softmax}
    found = value_and_gradient(FocalLoss(**options), x, y, form=form)
    assert_all_close(found, truth(x, y, **options), 5e-6, 1e-37)


@BACKENDS
def test_infinite_logits_that_are_right_contribute_nothing_in_the_binary_form(form):
    inf = float("inf")
    x, g = torch.tensor([[[inf, -inf, 1.0]]]), torch.tensor([[[1, 0, 1]]])
    options = {"use_softmax": False, "reduction": "none"}
    value, gradient = value_and_gradient(FocalLoss(**options), x, g, form=form)
    assert torch.equal(value[..., :2], torch.zeros(1, 1, 2))
    assert torch.equal(gradient[..., :2], torch.zeros(1, 1, 2))
    assert value[..., 2] > 0


# --- options, layouts, state -----------------------------------------------------------------------------------------


def test_gamma_that_is_no_number_is_a_type_error():
    with pytest.raises(TypeError, match="gamma must be a number, got str"):
        FocalLoss(gamma="2")


@BACKENDS
@pytest.mark.parametrize("ignore_index", [256, -(2**63)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_a_label_beyond_the_type_of_the_target_is_ignored_nowhere(form, dtype, ignore_index):
    x, y = logits(2, 3, 5), labels(2, 1, 5, classes=3)
    with dispatch.forced(form):
        got = FocalLoss(to_onehot_y=True, ignore_index=ignore_index)(x, y.to(dtype))
        assert got == FocalLoss(to_onehot_y=True)(x, y)


def test_more_classes_than_the_type_of_the_target_has_numbers_are_no_error():
    x, y = logits(1, 300, 6), labels(1, 1, 6, classes=100)
    with dispatch.forced("plain"):
        loss = FocalLoss(to_onehot_y=True)
        assert loss(x, y.to(torch.uint8)) == loss(x, y.to(torch.int8)) == loss(x, y)
