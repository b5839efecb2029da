"""The last step: reduce the losses of items and classes to one number."""

import numpy as np

from twinloss.reference.steps.activation import Array


def reduce(loss: Array, ndim: int, reduction: str) -> Array:
    """Return the mean or the sum of the losses. With "none" they keep the ``ndim`` axes of the input."""
    if reduction == "none":
        return loss.reshape(loss.shape[:ndim])
    return np.asarray(loss.mean() if reduction == "mean" else loss.sum())


def reduce_adjoint(cotangent: Array | float, loss: Array, ndim: int, reduction: str) -> Array:
    """Return the gradient with respect to each loss, given the gradient with respect to the reduced loss."""
    u = np.asarray(cotangent, loss.dtype)
    if reduction == "none":
        return np.broadcast_to(u, loss.shape[:ndim]).reshape(loss.shape)
    return np.broadcast_to(u / loss.size if reduction == "mean" else u, loss.shape)
