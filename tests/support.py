"""What the tests of the fast losses share."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from twinloss.fast.runtime import dispatch

BACKENDS = pytest.mark.parametrize("form", ["kernel", "plain"])


def logits(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, classes: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def one_hot(y: torch.Tensor, classes: int = 3) -> torch.Tensor:
    """Labels (B, 1, *S) as (B, C, *S)."""
    return torch.nn.functional.one_hot(y[:, 0], classes).movedim(-1, 1)


def soft(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> torch.Tensor:
    """A target in probabilities."""
    return logits(*shape, dtype=dtype, seed=seed).softmax(1)


def value_and_gradient(loss, x, *rest, form=None):
    """The loss and the gradient of its sum; computed with one of the BACKENDS if `form` names it."""
    x = x.clone().requires_grad_()
    with nullcontext() if form is None else dispatch.forced(form):
        value = loss(x, *rest)
        value.sum().backward()
    return value.detach(), x.grad


def value_and_gradients(loss, *arguments, form=None):
    """Return the loss, and the gradients of its sum in all arguments."""
    arguments = [a.clone().requires_grad_() for a in arguments]
    with nullcontext() if form is None else dispatch.forced(form):
        value = loss(*arguments)
        gradients = torch.autograd.grad(value.sum(), arguments, materialize_grads=True)
    return value.detach(), *gradients


def exact(twin, slope, x, target, **options):
    """The value and gradient of a reference loss and its gradient, in long double, rounded to float64."""
    arguments = x.numpy().astype(np.longdouble), target.numpy()
    return tuple(torch.from_numpy(np.asarray(f(*arguments, **options), np.float64)) for f in (twin, slope))


def assert_all_close(found, expected, rtol, atol=0.0):
    """Each of the tensors found is that expected, but for its dtype."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=False)
