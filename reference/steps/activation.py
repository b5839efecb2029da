r"""Softmax and sigmoid, their logarithms, and the adjoint of each.

The adjoint of a step :math:`p = f(x)` takes a gradient back through the step: it computes
:math:`\partial L/\partial x` from :math:`\partial L/\partial p`. Axis 1 holds the classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def softmax(x: Array) -> Array:
    r"""Return the softmax over the classes, :math:`p_c = e^{x_c} / \sum_k e^{x_k}`.

    >>> softmax(np.log([[1.0, 3.0]]))
    array([[0.25, 0.75]])
    """
    e = np.exp(x - x.max(axis=1, keepdims=True))  # (B, C, *S); the largest element is 1
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def softmax_adjoint(dp: Array, p: Array) -> Array:
    r"""Return the gradient with respect to x, given the gradient ``dp`` and the value ``p`` of the softmax.

    Since :math:`\partial p_k/\partial x_c = p_k ([k = c] - p_c)` and :math:`\sum_k p_k = 1`,

    .. math:: \frac{\partial L}{\partial x_c}
        = p_c \left( \frac{\partial L}{\partial p_c}
            - \sum_k p_k \frac{\partial L}{\partial p_k} \right)
        = p_c \sum_k p_k \left( \frac{\partial L}{\partial p_c}
            - \frac{\partial L}{\partial p_k} \right).

    The last form has no cancellation where some :math:`p_c` is close to 1.
    """
    dx = np.empty_like(p)
    for c in range(p.shape[1]):
        dx[:, c] = p[:, c] * (p * (dp[:, c : c + 1] - dp)).sum(axis=1)
    return dx


def log_softmax(x: Array) -> Array:
    r"""Return the logarithm of the softmax, :math:`\log p_c = x_c - \log \sum_k e^{x_k}`.

    >>> log_softmax(np.array([[0.0, -1e4], [0.0, -np.inf]]))
    array([[     0., -10000.],
           [     0.,    -inf]])
    """
    top = x.max(axis=1, keepdims=True)  # (B, 1, *S)
    z = x - top  # (B, C, *S), no element above 0
    e = np.exp(z)
    # The largest term is 1. log1p adds it, so that log p stays accurate where p is close to 1.
    np.put_along_axis(e, z.argmax(axis=1, keepdims=True), 0, axis=1)
    log_p = z - np.log1p(e.sum(axis=1, keepdims=True))
    return np.asarray(np.where(np.isfinite(top), log_p, np.nan))  # inf/inf if a logit is inf


def log_softmax_adjoint(dl: Array, log_p: Array) -> Array:
    r"""Return the gradient with respect to x, given the gradient ``dl`` with respect to ``log_p``.

    Since :math:`\partial \log p_k/\partial x_c = [k = c] - p_c`,

    .. math:: \frac{\partial L}{\partial x_c}
        = (1 - p_c) \frac{\partial L}{\partial \log p_c}
        - p_c \sum_{k \ne c} \frac{\partial L}{\partial \log p_k}.
    """
    dx = np.empty_like(log_p)
    for c in range(log_p.shape[1]):
        p, q = np.exp(log_p[:, c]), -np.expm1(log_p[:, c])  # p and 1 − p, (B, *S)
        dx[:, c] = q * dl[:, c] - p * np.delete(dl, c, axis=1).sum(axis=1)
    return dx


def sigmoid(x: Array) -> Array:
    r"""Return the sigmoid, :math:`p = 1/(1 + e^{-x})`. The sigmoid of :math:`-x` is :math:`1 - p`.

    >>> sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([0. , 0.5, 1. ])
    """
    e = np.exp(-np.abs(x))  # at most 1
    return np.asarray(np.where(x < 0, e, 1) / (1 + e))


def sigmoid_adjoint(dp: Array, x: Array) -> Array:
    r"""Return the gradient with respect to x, where :math:`\partial p/\partial x = p (1 - p)`."""
    return dp * sigmoid(x) * sigmoid(-x)


def log_sigmoid(x: Array) -> Array:
    r"""Return the logarithm of the sigmoid, :math:`\log p = -\log(1 + e^{-x})`.

    >>> log_sigmoid(np.array([-1e4, 0.0, 1e4]))
    array([-1.00000000e+04, -6.93147181e-01,  0.00000000e+00])
    """
    return np.asarray(np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))))


def log_probabilities(x: Array, exclusive: bool) -> list[Array]:
    r"""Return the log-probabilities of the outcomes, each (B, C, \*S).

    Exclusive classes have one outcome per channel, [log p], by softmax. Otherwise each channel has two outcomes,
    [log p, log (1 - p)], by sigmoid.
    """
    return [log_softmax(x)] if exclusive else [log_sigmoid(x), log_sigmoid(-x)]


def log_probabilities_adjoint(dl: list[Array], x: Array, exclusive: bool) -> Array:
    r"""Return the gradient with respect to x, given the gradient ``dl`` with respect to each log-probability.

    For the sigmoid, :math:`\partial \log p/\partial x = 1 - p` and
    :math:`\partial \log (1 - p)/\partial x = -p`.
    """
    if exclusive:
        return log_softmax_adjoint(dl[0], log_softmax(x))
    return np.asarray(dl[0] * sigmoid(-x) - dl[1] * sigmoid(x))
