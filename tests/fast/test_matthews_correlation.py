"""The fast Matthews correlation loss: documented behaviour and corner cases."""

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, soft, value_and_gradient

from twinloss import reference
from twinloss.fast import MaskedLoss, MatthewsCorrelationLoss
from twinloss.fast.runtime import dispatch

NONE = {"reduction": "none"}


def truth(x, target, **options):
    return exact(
        reference.matthews_correlation_loss, reference.matthews_correlation_loss_gradient, x, target, **options
    )


@BACKENDS
def test_hard_predictions_have_one_minus_pearsons_correlation(form):
    rng = np.random.default_rng(0)
    p, g = rng.integers(0, 2, (2, 1, 1, 50)).astype(float)
    expected = 1 - np.corrcoef(p.ravel(), g.ravel())[0, 1]
    with dispatch.forced(form):
        value = MatthewsCorrelationLoss(smooth_nr=0.0, smooth_dr=0.0)(torch.tensor(p), torch.tensor(g))
    assert value.item() == pytest.approx(expected, rel=1e-12)


@BACKENDS
def test_class_that_is_absent_from_the_target_costs_its_false_positives_and_has_a_gradient(form):
    g = torch.zeros(1, 1, 8)
    loss = MatthewsCorrelationLoss(sigmoid=True)
    losses = [value_and_gradient(loss, torch.full((1, 1, 8), x), g, form=form) for x in (-60.0, -12.0, 0.0)]
    values = [value.item() for value, _ in losses]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[2] > 0.99
    assert (losses[1][1] > 0).all()


@BACKENDS
def test_item_whose_voxels_are_all_ignored_has_neither_loss_nor_gradient(form):
    x, y = logits(2, 3, 5), labels(2, 1, 5)
    y[1], x[1] = 255, float("nan")
    loss = MatthewsCorrelationLoss(softmax=True, to_onehot_y=True, ignore_index=255, **NONE)
    value, gradient = value_and_gradient(loss, x, y, form=form)
    assert (value[1] == 0).all()
    assert (gradient[1] == 0).all()
    assert (value[0] > 0).all()


@BACKENDS
def test_true_negatives_that_round_to_none_leave_the_gradient_bounded(form):
    # The negatives have p = 1 - 2e-9, which float32 rounds to 1, and the positives p = 1 - 2e-22.
    x, g = torch.tensor([[[50.0] * 4 + [20.0] * 4]]), torch.tensor([[[1.0] * 4 + [0.0] * 4]])
    loss = MatthewsCorrelationLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
    value, gradient = value_and_gradient(loss, x, g, form=form)
    expected, slope = truth(x, g, sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
    assert value.item() == pytest.approx(expected.item(), abs=1e-3)
    assert gradient.abs().max() < 2 * slope.abs().max()


@pytest.mark.parametrize("soft_label", [False, True])
def test_slope_in_a_soft_target_is_its_derivative(soft_label):
    x, g = logits(2, 3, 5, dtype=torch.float64), soft(2, 3, 5, dtype=torch.float64).requires_grad_()
    loss = MatthewsCorrelationLoss(softmax=True, soft_label=soft_label)
    assert torch.autograd.gradcheck(lambda g: loss(x, g), g)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("batch", [False, True])
def test_slope_in_a_mask_is_its_derivative(batch):
    x, y = logits(2, 3, 5, dtype=torch.float64), labels(2, 1, 5)
    mask = soft(2, 1, 5, dtype=torch.float64).requires_grad_()
    loss = MaskedLoss(MatthewsCorrelationLoss(softmax=True, to_onehot_y=True, batch=batch))
    assert torch.autograd.gradcheck(lambda m: loss(x, y, 0.2 + 0.5 * m), mask, check_forward_ad=True)


@BACKENDS
def test_swapping_foreground_and_background_negates_the_gradient(form):
    x, g = logits(2, 1, 40, dtype=torch.float64), labels(2, 1, 40, classes=2)
    loss = MatthewsCorrelationLoss(sigmoid=True)
    value, gradient = value_and_gradient(loss, x, g, form=form)
    other = value_and_gradient(loss, -x, 1 - g, form=form)
    assert_all_close((value, -gradient), other, 1e-12, 1e-16)
