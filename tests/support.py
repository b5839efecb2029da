"""Inputs and comparisons that the tests of the fast losses share."""

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
    """Return labels (B, 1, *S) as a one-hot target (B, C, *S)."""
    return torch.nn.functional.one_hot(y[:, 0], classes).movedim(-1, 1)


def soft(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> torch.Tensor:
    """Return a soft target, whose values sum to 1 over the classes."""
    return logits(*shape, dtype=dtype, seed=seed).softmax(1)


def value_and_gradient(loss, x, *rest, form=None):
    """Return the loss and the gradient of its sum; `form`, one of the BACKENDS, forces kernels or plain torch."""
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


def exact(twin, slope, x, *rest, **options):
    """Return the value and the gradient of a reference loss, computed in long double and rounded to float64."""
    arguments = x.numpy().astype(np.longdouble), *(each.numpy() for each in rest)
    return tuple(torch.from_numpy(np.asarray(f(*arguments, **options), np.float64)) for f in (twin, slope))


def assert_all_close(found, expected, rtol, atol=0.0):
    """Assert that each of the tensors found is close to the expected one; dtypes may differ."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=False)


def polynomial(spatial, f):
    """Return a field (1, 1, *spatial) with the value f(x_0, x_1, ...) at the voxel x."""
    return f(*torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in spatial), indexing="ij"))[None, None]
