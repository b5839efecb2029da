"""Losses that are no more than a fraction of statistics: one node of the graph, save where somebody looks into it."""

import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient

from twinloss.fast import DiceLoss, GeneralizedDiceLoss, GeneralizedWassersteinDiceLoss, TverskyLoss

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
    assert value_and_gradient(TverskyLoss(alpha=0.0, beta=2.0), x, y, form=form)[1].isnan().all()
