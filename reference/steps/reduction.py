"""The last step: from the losses of items and classes to one number, and back."""

import numpy as np

from twinloss.reference.steps.activation import Array


def reduce(loss: Array, ndim: int, reduction: str) -> Array:
    """The mean or the sum of the losses; for "none" they keep the ``ndim`` axes of the input."""
    if reduction == "none":
        return loss.reshape(loss.shape[:ndim])
    return np.asarray(loss.mean() if reduction == "mean" else loss.sum())


def reduce_adjoint(cotangent: Array | float, loss: Array, ndim: int, reduction: str) -> Array:
    """From the gradient in the reduced loss to that in each loss, of the shape of ``loss``."""
    u = np.asarray(cotangent, loss.dtype)
    if reduction == "none":
        return np.broadcast_to(u, loss.shape[:ndim]).reshape(loss.shape)
    return np.broadcast_to(u / loss.size if reduction == "mean" else u, loss.shape)
