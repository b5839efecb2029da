"""Derivatives of every loss by torch.func, in forward mode, and of batches, held against those of autograd."""

from contextlib import nullcontext

import pytest
import torch
from every_loss import EVERY_LOSS
from loss_options import (
    ERRORS,
    EXPONENTS,
    FOCAL_FORMS,
    MATRIX,
    MODES,
    ONEHOT,
    REDUCTIONS,
    SIGMOID,
    SOFTMAX,
    SPACING,
    STENCILS,
    WINDOWS,
    for_labels,
    grid,
    registration_arguments,
    registration_loss,
    usual,
    values,
    with_options,
)
from support import BACKENDS, assert_all_close, labels, logits, soft

from twinloss.fast import (
    BendingEnergyLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    DiffusionLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    LocalNormalizedCrossCorrelationLoss,
    MatthewsCorrelationLoss,
    TverskyLoss,
)
from twinloss.fast.runtime import dispatch

# Torch itself still uses it, in rules of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

WAYS = {
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "reverse, vectorized": lambda f: lambda x: torch.autograd.functional.jacobian(f, x, vectorize=True),
    "forward, vectorized": lambda f: (
        lambda x: torch.autograd.functional.jacobian(f, x, vectorize=True, strategy="forward-mode")
    ),
}


def _in_one_argument(each, dtype=torch.float64):
    x, *rest = each.arguments(dtype)
    return (lambda x: each(x, *rest)), x


@EVERY_LOSS
@pytest.mark.parametrize("way", list(WAYS))
def test_jacobian_is_that_of_autograd(each, way):
    f, x = _in_one_argument(each)
    expected = torch.autograd.functional.jacobian(f, x)
    assert_all_close([WAYS[way](f)(x)], [expected], rtol=1e-9, atol=1e-12)


@EVERY_LOSS
def test_slope_along_a_direction_is_that_of_autograd(each):
    f, x = _in_one_argument(each)
    direction = torch.sin(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
    expected = torch.tensordot(torch.autograd.functional.jacobian(f, x), direction, x.ndim)
    value, slope = torch.func.jvp(f, (x,), (direction,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, direction)))
    assert_all_close([value, slope, *dual], [f(x), expected, f(x), expected], rtol=1e-9, atol=1e-12)


@EVERY_LOSS
def test_hessian_is_that_of_autograd(each):
    f, x = _in_one_argument(each)

    def total(x):
        return f(x).sum()

    expected = torch.autograd.functional.hessian(total, x)
    found = torch.func.hessian(total)(x), torch.autograd.functional.hessian(total, x, vectorize=True)
    assert_all_close(found, [expected, expected], rtol=1e-8, atol=1e-11)


@EVERY_LOSS
@BACKENDS
def test_gradients_of_a_batch_of_slopes_and_in_forward_mode_pass_gradcheck(each, form):
    f, x = _in_one_argument(each)
    with dispatch.forced(form) if form == "plain" else nullcontext():
        torch.autograd.gradcheck(f, x.requires_grad_(), fast_mode=True, check_batched_grad=True)
        torch.autograd.gradcheck(f, x, fast_mode=True, check_forward_ad=True, check_backward_ad=False)


SMOOTHED = SIGMOID | {"label_smoothing": 0.2}


@with_options(
    {
        DiceLoss: [
            SOFTMAX | {"to_onehot_y": True},
            SIGMOID | {"squared_pred": True, "to_onehot_y": False, "smooth_nr": 0.5, "smooth_dr": 2.0},
            SOFTMAX | {"jaccard": True, "to_onehot_y": False},
            SOFTMAX | {"ignore_index": 1, "to_onehot_y": True},
        ],
        TverskyLoss: grid([ERRORS], [SOFTMAX, SIGMOID | {"batch": True}], ONEHOT),
        MatthewsCorrelationLoss: grid([SOFTMAX, SIGMOID | {"batch": True}], ONEHOT),
        FocalTverskyLoss: grid(EXPONENTS, [SOFTMAX, SIGMOID | {"batch": True}], ONEHOT),
        GeneralizedDiceLoss: grid([SOFTMAX, SIGMOID | {"batch": True, "w_type": "simple"}], ONEHOT),
        GeneralizedWassersteinDiceLoss: grid([{"dist_matrix": MATRIX}], MODES),
        FocalLoss: grid([{"to_onehot_y": True}], values("gamma", 0, 0.5, 2), FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: [*grid([SOFTMAX, SMOOTHED], [{"to_onehot_y": False}]), {"channels": 1}, SMOOTHED | {"channels": 1}],
        DiceFocalLoss: grid(
            [{"to_onehot_y": True}], [SOFTMAX, SIGMOID | {"use_softmax": False, "gamma": 0.5}], REDUCTIONS
        ),
    },
    others=lambda loss_class: [for_labels(loss_class, *usual(loss_class))],
)
def test_segmentation_loss_passes_gradgradcheck(loss_class, options):
    options = dict(options)
    channels = options.pop("channels", 3)
    x = logits(2, channels, 4, dtype=torch.float64).requires_grad_()
    if channels == 1:
        target = torch.rand(2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    else:
        target = labels(2, 1, 4) if options.get("to_onehot_y", True) else soft(2, 3, 4, dtype=torch.float64)
    loss = loss_class(**options)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), x)


FIELDS = grid([{"normalize": True}], REDUCTIONS, STENCILS, values("spatial", (6,), (5, 6), (5, 5, 6)))


@BACKENDS
@with_options(
    {
        BendingEnergyLoss: FIELDS,
        DiffusionLoss: FIELDS,
        LocalNormalizedCrossCorrelationLoss: grid(
            [{"smooth_dr": 0.5}], WINDOWS, REDUCTIONS, values("spatial", (9,), (5, 7), (4, 5, 6))
        ),
    }
)
def test_registration_loss_passes_gradcheck_and_gradgradcheck(form, loss_class, options):
    options = dict(options)
    spatial = options.pop("spatial")
    channels = 1
    if "normalize" in options:
        channels, options["spacing"] = len(spatial), SPACING[: len(spatial)]
    loss = registration_loss(loss_class, options, ndim=len(spatial))
    shape = (1, channels, *spatial)
    arguments = [a.requires_grad_() for a in registration_arguments(loss_class, *shape, dtype=torch.float64)]
    with dispatch.forced(form):
        assert torch.autograd.gradcheck(loss, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(loss, arguments, fast_mode=True)
