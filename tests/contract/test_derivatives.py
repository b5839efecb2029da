"""Derivatives of every loss by torch.func, in forward mode, and of batches, held against those of autograd."""

from contextlib import nullcontext

import pytest
import torch
from every_loss import EVERY_LOSS
from support import BACKENDS, assert_all_close

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
