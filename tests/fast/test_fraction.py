"""Losses that are no more than a fraction of statistics: one node of the graph, save where somebody looks into it."""

import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient

from twinloss.fast import DiceLoss, GeneralizedDiceLoss, GeneralizedWassersteinDiceLoss, MaskedDiceLoss, TverskyLoss

CLASSES = {"softmax": True, "to_onehot_y": True}
DISTANCES = [[0.0, 1.0, 0.7], [1.0, 0.0, 0.5], [0.9, 0.3, 0.0]]
LOSSES = pytest.mark.parametrize(
    "made",
    [
        lambda **options: DiceLoss(**CLASSES, **options),
        lambda **options: DiceLoss(**CLASSES, jaccard=True, include_background=False, **options),
        lambda **options: DiceLoss(**CLASSES, squared_pred=True, batch=True, **options),
        lambda **options: TverskyLoss(**CLASSES, alpha=0.3, beta=0.9, batch=True, **options),
        lambda **options: GeneralizedDiceLoss(**CLASSES, include_background=False, **options),
        lambda **options: GeneralizedDiceLoss(**CLASSES, batch=True, normalize_weights=True, **options),
        lambda **options: GeneralizedWassersteinDiceLoss(DISTANCES, "GDL", **options),
        lambda **options: GeneralizedWassersteinDiceLoss(1 - torch.eye(3), **options),
    ],
    ids=["Dice", "Jaccard", "squares", "Tversky", "generalised", "normalised", "Wasserstein", "Wasserstein default"],
)


def arguments(dtype=torch.float64):
    return logits(2, 3, 9, 7, dtype=dtype), labels(2, 1, 9, 7)


@LOSSES
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_gradient_are_those_of_the_loss_of_each_item_and_class_reduced_afterwards(made, reduction):
    parts, whole = made(reduction="none"), made(reduction=reduction)
    expected = value_and_gradient(lambda *args: getattr(parts(*args), reduction)(), *arguments(), form="kernel")
    assert_all_close(value_and_gradient(whole, *arguments(), form="kernel"), expected, 1e-13, 1e-18)


@pytest.mark.parametrize(
    ("made", "classes", "options"),
    [
        (DiceLoss, 2, CLASSES),
        (GeneralizedDiceLoss, 2, {**CLASSES, "ignore_index": 1}),
        (DiceLoss, 3, {**CLASSES, "ignore_index": 1}),
        (DiceLoss, 3, {"sigmoid": True, "to_onehot_y": True, "include_background": False}),
        (TverskyLoss, 1, {"sigmoid": True, "soft_label": True}),
        (GeneralizedDiceLoss, 1, {"sigmoid": True, "ignore_index": 0}),
        (MaskedDiceLoss, 2, CLASSES),
        (MaskedDiceLoss, 3, {"sigmoid": True, "to_onehot_y": True}),
    ],
)
def test_value_and_gradient_are_so_too_of_two_classes_of_sigmoids_and_of_voxels_left_out(made, classes, options):
    x, y, mask = logits(2, classes, 9, 7, dtype=torch.float64), labels(2, 1, 9, 7, classes=2), labels(1, 1, 9, 7)
    rest = (y, mask.clamp_max(1)) if made is MaskedDiceLoss else (y,)
    expected = value_and_gradient(lambda *args: made(**options, reduction="none")(*args).mean(), x, *rest, form="plain")
    assert_all_close(value_and_gradient(made(**options), x, *rest, form="kernel"), expected, 1e-12, 1e-17)


@LOSSES
def test_gradient_is_a_multiple_of_what_it_is_multiplied_with_and_adds_up_in_a_graph_that_is_kept(made):
    x, y = arguments()
    expected = value_and_gradient(made(), x, y)[1]
    x.requires_grad_()
    loss = 3 * made()(x, y)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_all_close([x.grad], [6 * expected], 1e-13, 1e-18)


@LOSSES
def test_derivatives_of_second_order_are_those_of_the_loss(made):
    x, y = logits(2, 3, 4, dtype=torch.float64).requires_grad_(), labels(2, 1, 4)
    assert torch.autograd.gradgradcheck(lambda x: made()(x, y), x)
    recorded = torch.autograd.grad(made()(x, y), x, create_graph=True)[0]
    assert_all_close([recorded.detach()], [value_and_gradient(made(), x.detach(), y)[1]], 1e-12, 1e-18)


@LOSSES
def test_an_input_that_changes_before_backward_is_an_error(made):
    x, y = arguments()
    moved = x.requires_grad_().clone()
    loss = made()(moved, y)
    moved += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@LOSSES
def test_loss_has_the_type_of_the_input(made, dtype):
    value, gradient = value_and_gradient(made(), *arguments(dtype))
    assert (value.dtype, gradient.dtype) == (dtype, dtype)


@BACKENDS
def test_a_factor_of_0_does_not_hide_what_is_not_a_number(form):
    x, y = torch.tensor([[[0.5, float("nan")]]]), torch.tensor([[[1.0, 0.0]]])
    assert value_and_gradient(TverskyLoss(sigmoid=True, alpha=0.0, beta=2.0), x, y, form=form)[1].isnan().all()


@pytest.mark.parametrize("upstream", [float("inf"), float("nan")])
def test_a_background_that_takes_no_part_has_no_gradient_whatever_comes_from_above(upstream):
    x, target = logits(2, 3, 9).requires_grad_(), (logits(2, 3, 9, seed=3) > 0).float()
    (upstream * DiceLoss(sigmoid=True, include_background=False)(x, target)).backward()
    assert (x.grad[:, 0] == 0).all()
    assert not x.grad[:, 1:].isfinite().any()


def test_slopes_near_the_end_of_float32_make_no_gradient_infinite_that_fits():
    x, y = torch.zeros(1, 4, 8), torch.arange(8).remainder(4).reshape(1, 1, 8)
    x[:, 1] = -200  # whose exponential is 0, and times an infinite difference of slopes NaN
    x[:, 2:, 0] = -1
    loss, largest = DiceLoss(**CLASSES, smooth_nr=0, smooth_dr=0, reduction="sum"), torch.finfo(torch.float32).max
    expected = largest * value_and_gradient(loss, x.double(), y, form="plain")[1]
    assert expected.abs().max() < largest / 4
    found = value_and_gradient(lambda *args: loss(*args) * largest, x, y, form="kernel")[1]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_slopes_near_the_end_of_float64_are_taken_as_they_are():  # there is no wider type to turn to
    x, y = torch.zeros(1, 4, 8, dtype=torch.float64), torch.arange(8).remainder(4).reshape(1, 1, 8)
    loss, largest = DiceLoss(**CLASSES, smooth_nr=0, smooth_dr=0, reduction="sum"), torch.finfo(torch.float64).max
    found = value_and_gradient(lambda *args: loss(*args) * largest, x, y, form="kernel")[1]
    assert found.isfinite().all()


def test_gradient_of_squared_overlaps_keeps_its_digits_where_smoothing_outweighs_the_errors():
    # dL/dp where p = 0 is -2 g upstream / D; the slopes in TP and FN, each 48 times as large, would cancel.
    target = torch.zeros(2, 4, 1, dtype=torch.float64)
    target[1, 2, 0] = 0.14415961271963373
    x = torch.zeros_like(target)
    squares = target.sum() ** 2 + 1e-5
    expected = torch.zeros_like(target)
    expected[1, 2, 0] = -2 * target[1, 2, 0] / squares
    for reduction in ("sum", "none"):
        loss = DiceLoss(squared_pred=True, smooth_nr=1.0, reduction=reduction)
        found = value_and_gradient(lambda *args, loss=loss: loss(*args).sum(), x, target, form="kernel")[1]
        torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)
