r"""A loss of the outputs of a network at several resolutions.

Each output is compared with the target on its own grid, so that the coarse layers are trained directly: Lee, Xie,
Gallagher, Zhang, Tu (2015), "Deeply-supervised nets", AISTATS 2015, https://arxiv.org/abs/1409.5185.
"""

from collections.abc import Callable, Sequence

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import typed

Loss = Callable[..., Array]


@typed
def deep_supervision_loss(
    input: Sequence[Array] | Array,
    target: Sequence[Array] | Array,
    loss: Loss,
    *,
    weight_mode: str = "exp",
    weights: Sequence[float] | None = None,
    interp_mode: str = "nearest-exact",
    stacked: bool = False,
    mask: Sequence[Array] | Array | None = None,
) -> Array:
    r"""Return the weighted sum of the losses of all levels.

    .. math:: L = \sum_l w_l \, \ell(x_l, r_l(g)), \qquad
        r_l(g)_i = g_{j(i)}, \quad j(i) = \left\lfloor \left(i + \tfrac12\right) \frac{n}{m} \right\rfloor

    Here l is the level, and j is taken along each axis, on which the target has n voxels and the output m. With
    ``interp_mode="nearest"`` :math:`j(i) = \lfloor i n / m \rfloor`. The weights are :math:`w_l = 2^{-l}` for "exp", 1
    for "same", and 1 for the first and ½ for all other levels for "two". A level of weight 0 is left out, whatever its
    values are.

    Args:
        input: x, a list of outputs (B, C, *S), or (B, L, C, *S) if they are stacked.
        target: g, on one grid, or a list with one for each level.
        loss: the wrapped loss, called as ``loss(x, g)``, or with a mask as ``loss(x, g, mask)``.
        weight_mode: ``"exp"``, ``"same"`` or ``"two"``.
        weights: w, which replaces ``weight_mode``.
        interp_mode: ``"nearest-exact"`` or ``"nearest"``.
        stacked: whether the levels are stacked along axis 1.
        mask: m, on one grid, or a list with one for each level.

    Returns:
        The loss, of the shape that the wrapped loss has.

    Reference: Lee et al. (2015), eq. 3; Isensee et al. (2021) for the weights "exp".

    Example:
        >>> x, g = [np.zeros((1, 1, 4)), np.zeros((1, 1, 2))], np.array([[[0, 1, 2, 3]]])
        >>> float(deep_supervision_loss(x, g, lambda x, g: (g - x).sum()))  # 6 + (1 + 3) / 2
        8.0
    """
    levels = _levels(input, target, mask, weight_mode, weights, interp_mode, stacked)
    return np.asarray(sum(w * np.asarray(loss(*arguments)) for w, arguments in levels if w != 0))


@typed
def deep_supervision_loss_gradient(
    input: Sequence[Array] | Array,
    target: Sequence[Array] | Array,
    loss_gradient: Loss,
    *,
    weight_mode: str = "exp",
    weights: Sequence[float] | None = None,
    interp_mode: str = "nearest-exact",
    stacked: bool = False,
    mask: Sequence[Array] | Array | None = None,
    cotangent: Array | float = 1.0,
) -> list[Array] | Array:
    r"""Return the gradient of ``sum(cotangent * deep_supervision_loss)`` with respect to each output.

    .. math:: \frac{\partial L}{\partial x_l} = w_l \nabla_x \ell(x_l, r_l(g))

    It is a list, or stacked as the input is. ``loss_gradient`` returns the gradient of the wrapped loss with respect to
    x. It is called as ``loss_gradient(x, g, cotangent=…)``, or with a mask as a third argument.

    >>> x, g = [np.zeros((1, 1, 4)), np.zeros((1, 1, 2))], np.array([[[0, 1, 2, 3]]])
    >>> deep_supervision_loss_gradient(x, g, lambda x, g, cotangent: cotangent * (x - g))
    [array([[[ 0., -1., -2., -3.]]]), array([[[-0.5, -1.5]]])]
    """
    gradients = []
    for w, arguments in _levels(input, target, mask, weight_mode, weights, interp_mode, stacked):
        x = arguments[0]
        gradient = w * loss_gradient(*arguments, cotangent=cotangent) if w != 0 else 0
        gradients.append(np.broadcast_to(gradient, x.shape).astype(x.dtype))
    return np.stack(gradients, axis=1) if stacked else gradients


def _levels(
    input: Sequence[Array] | Array,
    target: Sequence[Array] | Array,
    mask: Sequence[Array] | Array | None,
    weight_mode: str,
    weights: Sequence[float] | None,
    interp_mode: str,
    stacked: bool,
) -> list[tuple[float, list[Array]]]:
    """Return the weight of each level, and the arguments of the wrapped loss."""
    outputs = list(np.moveaxis(np.asarray(input), 1, 0)) if stacked else list(input)
    if weights is None:
        rest = {"exp": [2.0**-level for level in range(1, len(outputs))], "same": [1.0] * (len(outputs) - 1)}
        weights = [1.0, *rest.get(weight_mode, [0.5] * (len(outputs) - 1))]
    given = [target] if mask is None else [target, mask]
    made = []
    for level, (w, x) in enumerate(zip(weights, outputs, strict=True)):
        grids = (_on_grid(a, x, interp_mode) if isinstance(a, np.ndarray) else a[level] for a in given)
        made.append((w, [x, *grids]))
    return made


def _on_grid(a: Array, x: Array, interp_mode: str) -> Array:
    """Return r(a), which has at each voxel of x the value of ``a`` at the nearest voxel, (B, …, *S)."""
    for axis in range(2 - x.ndim, 0):
        n, m = a.shape[axis], x.shape[axis]
        i = np.arange(m)
        j = i * n // m if interp_mode == "nearest" else (2 * i + 1) * n // (2 * m)
        a = np.take(a, j, axis)
    return a
