"""The fast focal Tversky loss: documented behaviour and corner cases."""

import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient

from twinloss.fast import FocalTverskyLoss, TverskyLoss
from twinloss.fast.runtime import dispatch

ON_LABELS = {"softmax": True, "to_onehot_y": True, "reduction": "none"}
GAMMA = [0.5, 1.0, 2.0]
UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}


@BACKENDS
def test_loss_is_a_power_of_the_tversky_loss_of_each_class(form):
    x, y = logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    tversky = TverskyLoss(alpha=0.3, beta=0.7, **ON_LABELS)
    exponent = torch.tensor(GAMMA).reshape(1, 3, 1)
    expected = value_and_gradient(lambda x, y: tversky(x, y) ** exponent, x, y, form=form)
    assert_all_close(value_and_gradient(FocalTverskyLoss(gamma=GAMMA, **ON_LABELS), x, y, form=form), expected, 1e-12)


@BACKENDS
def test_defaults_are_those_of_the_paper_in_our_symbols(form):
    # TP = 1, FP = 1, FN = 2 by hand. The paper weights FN by 0.7 and FP by 0.3, and its exponent is 1/γ with γ = 4/3.
    p, g = torch.tensor([[[1.0, 1, 0, 0]]]), torch.tensor([[[1, 0, 1, 1]]])
    with dispatch.forced(form):
        value = FocalTverskyLoss(**UNSMOOTHED)(p, g)
    torch.testing.assert_close(value.item(), (1 - 1 / (1 + 0.7 * 2 + 0.3 * 1)) ** 0.75, rtol=1e-6, atol=0)


@BACKENDS
@pytest.mark.parametrize("gamma", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [{}, {"smooth_nr": 1.0}])  # with ν > δ, the Tversky loss is negative
def test_perfect_class_has_neither_loss_nor_slope_and_leaves_the_others_alone(form, gamma, smoothing):
    x, y = torch.tensor([[[1.0, 0.0, 0.0], [0.2, 0.9, 0.1]]]), torch.tensor([[[0, 1, 1]]])
    loss = FocalTverskyLoss(to_onehot_y=True, gamma=gamma, reduction="none", **smoothing)
    value, gradient = value_and_gradient(loss, x, y, form=form)
    assert value[0, 0] == 0
    assert (gradient[0, 0] == 0).all()
    assert gradient.isfinite().all()
    assert (value[0, 1] > 0) == (not smoothing)


@pytest.mark.parametrize("gamma", [0, [1.0, 0.0, 2.0]])
def test_exponent_of_0_is_a_value_error_that_says_why(gamma):
    with pytest.raises(ValueError, match=r"gamma must be greater than 0, got .*the loss is constant"):
        FocalTverskyLoss(gamma=gamma)
