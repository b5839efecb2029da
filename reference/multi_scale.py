r"""A loss of two images at several scales.

Both images are smoothed with the same kernel before they are compared, so that coarse structure is aligned first:
Lindeberg (1994), "Scale-space theory", J. Applied Statistics 21(1-2), https://doi.org/10.1080/757582976.
"""

from collections.abc import Callable, Sequence

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import typed
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.window import correlated

Loss = Callable[..., Array]


@typed
def multi_scale_loss(
    y_true: Array,
    y_pred: Array,
    loss: Loss,
    *,
    scales: Sequence[float] | None = None,
    kernel: str = "gaussian",
    reduction: str = "mean",
    normalize_kernel: bool = False,
) -> Array:
    r"""Return the loss of the smoothed images, averaged over the scales.

    .. math:: L = \frac1S \sum_s \ell(k_s * p, k_s * t), \qquad
        (k_s * p)_v = \sum_j p_{v+j} \prod_d k_s(j_d)

    with p = 0 beyond the borders. The Gaussian of scale σ is
    :math:`k(j) = e^{-j^2 / 2 \sigma^2} / (\sigma \sqrt{2 \pi})` for :math:`|j| \le 3 \sigma + ½`. The Cauchy kernel is
    :math:`k(j) \propto 1 / (j^2 / \sigma^2 + 1)` for :math:`|j| \le 5 \sigma`, and sums to 1. A scale of 0 does not
    smooth. Without ``scales`` the loss is called once, on the images themselves.

    Args:
        y_true: t, (B, C, *S).
        y_pred: p, of the same shape.
        loss: the wrapped loss, called as ``loss(p, t)``.
        scales: σ of each scale, in voxels.
        kernel: ``"gaussian"`` or ``"cauchy"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, over the scales and all values that the loss returns.
        normalize_kernel: scale the Gaussian so that it sums to 1, which its samples do not for small σ.

    Returns:
        The loss, (), or that of each scale, (scales, …), with ``reduction="none"``.

    Example:
        >>> p, t = np.array([[[0.0, 1.0, 0.0]]]), np.zeros((1, 1, 3))
        >>> float(multi_scale_loss(t, p, lambda p, t: (p - t).sum(), scales=[0, 1], reduction="sum").round(4))
        1.8829
    """
    losses = [np.asarray(loss(p, t)) for p, t, _ in _smoothed(y_true, y_pred, scales, kernel, normalize_kernel)]
    stack = losses[0] if scales is None else np.stack(losses)
    return reduce(stack, stack.ndim, reduction)


@typed
def multi_scale_loss_gradient(
    y_true: Array,
    y_pred: Array,
    loss: Loss,
    loss_gradient: Loss,
    *,
    scales: Sequence[float] | None = None,
    kernel: str = "gaussian",
    reduction: str = "mean",
    normalize_kernel: bool = False,
    cotangent: Array | float = 1.0,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * multi_scale_loss)`` with respect to ``y_pred``.

    .. math:: \frac{\partial L}{\partial p} = \frac1S \sum_s k_s * \nabla_p \ell(k_s * p, k_s * t)

    because the correlation with a symmetric kernel is its own adjoint on images that are zero beyond their borders.

    ``loss_gradient`` returns the gradient of ``loss`` with respect to p. It is called as
    ``loss_gradient(p, t, cotangent=…)``.

    >>> p, t = np.array([[[0.0, 1.0, 0.0]]]), np.zeros((1, 1, 3))
    >>> one = lambda p, t, cotangent: cotangent * np.ones_like(p)
    >>> multi_scale_loss_gradient(t, p, lambda p, t: (p - t).sum(), one, scales=[0, 1]).round(4)
    array([[[0.8475, 0.9414, 0.8475]]])
    """
    points = list(_smoothed(y_true, y_pred, scales, kernel, normalize_kernel))
    losses = [np.asarray(loss(p, t)) for p, t, _ in points]
    stack = losses[0][np.newaxis] if scales is None else np.stack(losses)
    kept = losses[0] if scales is None else stack
    u = reduce_adjoint(cotangent, kept, kept.ndim, reduction).reshape(stack.shape)
    gradient = np.zeros_like(y_pred)
    for (p, t, kernels), of_scale in zip(points, u, strict=True):
        gradient += correlated(loss_gradient(p, t, cotangent=of_scale), kernels)
    return gradient


def _smoothed(
    y_true: Array, y_pred: Array, scales: Sequence[float] | None, kernel: str, normalize: bool
) -> list[tuple[Array, Array, list[Array]]]:
    """Return, for each scale, both smoothed images and the smoothing kernel along each axis."""
    rank, made = y_pred.ndim - 2, []
    for sigma in [0] if scales is None else scales:
        kernels = [_kernel(sigma, kernel, normalize).astype(y_pred.dtype)] * rank
        made.append((correlated(y_pred, kernels), correlated(y_true.astype(y_pred.dtype), kernels), kernels))
    return made


def _kernel(sigma: float, kernel: str, normalize: bool) -> Array:
    """Return k(j) for all j at which it is not 0."""
    if sigma == 0:
        return np.ones(1, np.longdouble)
    if sigma > 1000:
        raise ValueError(f"scales must be at most 1000 voxels, got {sigma}")
    s = np.longdouble(sigma)
    reach = int(3 * sigma + 0.5) if kernel == "gaussian" else int(5 * sigma)
    j = np.arange(-reach, reach + 1)
    if kernel == "gaussian":
        pi = np.arccos(np.longdouble(-1))  # np.pi has only the digits of float64
        k = np.exp(-(j**2) / (2 * s**2)) / (s * np.sqrt(2 * pi))
    else:
        k = 1 / ((j / s) ** 2 + 1)
    return np.asarray(k / k.sum() if normalize or kernel == "cauchy" else k)
