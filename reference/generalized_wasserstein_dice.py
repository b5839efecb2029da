r"""Generalised Wasserstein Dice loss.

Fidon, Li, Garcia-Peraza-Herrera, Ekanayake, Kitchen, Ourselin, Vercauteren (2017), "Generalised Wasserstein Dice Score
for Imbalanced Multi-class Segmentation using Holistic Convolutional Networks", BrainLes 2017,
https://arxiv.org/abs/1707.00478. The variant ``"GDL"`` is in the appendix of Tilborghs et al. (2020), "Comparative
study of deep learning methods for the automatic segmentation of lung, lesion and lesion type in CT scans of COVID-19
patients", https://arxiv.org/abs/2007.15546.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twinloss.reference.steps.activation import Array, softmax, softmax_adjoint
from twinloss.reference.steps.options import takes
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.segmentation import masked_product


@dataclass(frozen=True, kw_only=True)
class WassersteinDiceOptions:
    """Options of the generalised Wasserstein Dice loss."""

    dist_matrix: ArrayLike  # distances between the classes, (C, C)
    weighting_mode: str = "default"  # Fidon et al.; "GDL": Tilborghs et al.
    reduction: str = "mean"  # or "sum", or "none"
    smooth_nr: float = 1e-5  # ν, added to the numerator
    smooth_dr: float = 1e-5  # δ, added to the denominator
    ignore_index: int | None = None  # leave out the voxels with this label
    mask: Array | None = None  # m, the weight of each voxel in [0, 1], (B or 1, 1, *S)


def wasserstein_distance_map(
    flat_proba: Array,
    flat_target: Array,
    dist_matrix: ArrayLike,
) -> Array:
    r"""Return the Wasserstein distance between p and the label y at each of N voxels.

    .. math:: W_i = \sum_c M_{y_i c} \, p_{ic}, \qquad M = \mathrm{dist} / \max \mathrm{dist}

    Args:
        flat_proba: p, probabilities, (B, C, N).
        flat_target: y, labels, (B, N).
        dist_matrix: distances between the classes, in any unit, (C, C).

    Returns:
        W, (B, N), in [0, 1].

    Reference: Fidon et al. (2017), eq. 6.

    Example:
        >>> p, y = np.array([[[0.5], [0.25], [0.25]]]), np.array([[1]])
        >>> wasserstein_distance_map(p, y, [[0, 2, 2], [2, 0, 1], [2, 1, 0]])
        array([[0.625]])
    """
    m = _distances_to_label(flat_proba, flat_target, dist_matrix)
    return np.asarray((m * flat_proba).sum(axis=1))


@takes(WassersteinDiceOptions)
def generalized_wasserstein_dice_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the generalised Wasserstein Dice loss.

    .. math:: L_b = 1 - \frac{2 TP_b + \nu}{2 TP_b + \sum_i W_i + \delta}, \qquad
        TP_b = \sum_i \alpha_{y_i} (1 - W_i), \qquad \alpha_0 = 0, \quad \alpha_c = 1

    Here b is the item and i the voxel. W is the :func:`wasserstein_distance_map` of p = softmax(x). With
    ``weighting_mode="GDL"`` the denominator is :math:`\sum_i \alpha_{y_i} (2 - W_i) + \delta`, and
    :math:`\alpha_c = 1/(V_c + 1)` for every class c including the background, which has :math:`V_c` voxels. A mask
    multiplies the terms of all sums over voxels, also of :math:`V_c`.

    Args:
        input: x, logits, (B, C, *S) or (B, C).
        target: y, labels, (B, *S) or (B, 1, *S).
        **options: the fields of :class:`WassersteinDiceOptions`.

    Returns:
        The loss, (), or (B,) with ``reduction="none"``.

    Reference: Fidon et al. (2017), eq. 9; Tilborghs et al. (2020), appendix.

    Example:
        >>> x, y = np.zeros((1, 2, 3)), np.array([[0, 1, 1]])  # W = 1/2, TP = 1
        >>> options = {"dist_matrix": [[0, 1], [1, 0]], "smooth_nr": 0, "smooth_dr": 0}
        >>> loss = generalized_wasserstein_dice_loss(x, y, **options)
        >>> round(float(loss), 6), round(1 - 2 / 3.5, 6)
        (0.428571, 0.428571)
    """
    o = WassersteinDiceOptions(**options)
    with np.errstate(all="ignore"):
        n, z = _fraction(*_voxels(input, target, o), o)
        return reduce(1 - n / z, 1, o.reduction)


@takes(WassersteinDiceOptions)
def generalized_wasserstein_dice_loss_gradient(
    input: Array, target: Array, *, cotangent: Array | float = 1.0, **options: Any
) -> Array:
    r"""Return the gradient of ``sum(cotangent * generalized_wasserstein_dice_loss)`` with respect to the input.

    Let L = 1 - N/Z. Then :math:`\partial N/\partial W_i = -2 \alpha_{y_i}` and
    :math:`\partial Z/\partial W_i = 1 - 2 \alpha_{y_i}`, or :math:`-\alpha_{y_i}` for "GDL", so that

    .. math:: \frac{\partial L}{\partial p_{ic}} = \frac{M_{y_i c}}{Z} \left(
        \frac{N}{Z} \frac{\partial Z}{\partial W_i} - \frac{\partial N}{\partial W_i} \right).

    The adjoint of the softmax then gives the gradient with respect to x.

    >>> x, y = np.zeros((1, 2, 3)), np.array([[0, 1, 1]])
    >>> options = {"dist_matrix": [[0, 1], [1, 0]], "smooth_nr": 0, "smooth_dr": 0}
    >>> generalized_wasserstein_dice_loss_gradient(x, y, **options).round(4)
    array([[[-0.0408,  0.102 ,  0.102 ],
            [ 0.0408, -0.102 , -0.102 ]]])
    """
    o = WassersteinDiceOptions(**options)
    with np.errstate(all="ignore"):
        p, y, m = _voxels(input, target, o)
        n, z = (a[:, np.newaxis] for a in _fraction(p, y, m, o))  # (B, 1)
        u = reduce_adjoint(cotangent, n[:, 0], 1, o.reduction)[:, np.newaxis]
        alpha = _voxel_weights(p, y, m, o)
        dz = -alpha if o.weighting_mode == "GDL" else 1 - 2 * alpha  # (B, N)
        dw = m * u / z * (n / z * dz + 2 * alpha)  # (B, N)
        dp = dw[:, np.newaxis] * _distances_to_label(p, y, o.dist_matrix)  # (B, C, N)
        return np.where(m[:, np.newaxis] != 0, softmax_adjoint(dp, p), 0).reshape(input.shape)


def _voxels(input: Array, target: Array, o: WassersteinDiceOptions) -> tuple[Array, Array, Array]:
    """Return p, (B, C, N); y, which is 0 where m = 0, (B, N); and the mask m, which is 0 at ignored voxels, (B, N)."""
    p = softmax(np.ascontiguousarray(input).reshape(*input.shape[:2], -1))
    y = target.reshape(p.shape[0], -1)
    m = np.ones(y.shape, p.dtype) if o.mask is None else o.mask.reshape(o.mask.shape[0], -1).astype(p.dtype)
    m = np.where(y == o.ignore_index, 0, m) if o.ignore_index is not None else np.broadcast_to(m, y.shape)
    return p, np.where(m != 0, y, 0).astype(np.intp), m


def _distances_to_label(p: Array, y: Array, dist_matrix: ArrayLike) -> Array:
    """Return M_yc, the distance between each class and the label of each voxel, (B, C, N)."""
    m = np.asarray(dist_matrix, p.dtype)
    return np.stack([(m[:, c] / m.max())[y] for c in range(p.shape[1])], axis=1)


def _voxel_weights(p: Array, y: Array, m: Array, o: WassersteinDiceOptions) -> Array:
    """Return the weight α of each voxel, given by its label, (B, N)."""
    alpha = np.zeros_like(p[:, 0])
    for c in range(p.shape[1]):
        volume = np.where(y == c, m, 0).sum(axis=1, keepdims=True)  # V_c, (B, 1)
        alpha_c = 1 / (volume + 1) if o.weighting_mode == "GDL" else int(c > 0)
        alpha = np.where(y == c, alpha_c, alpha)
    return alpha


def _fraction(p: Array, y: Array, m: Array, o: WassersteinDiceOptions) -> tuple[Array, Array]:
    """Return N = 2 TP + ν and the denominator Z, each (B,)."""
    w = wasserstein_distance_map(p, y, o.dist_matrix)
    near = ((1 - _distances_to_label(p, y, o.dist_matrix)) * p).sum(axis=1)  # 1 − W, since Σ p = 1
    alpha = m * _voxel_weights(p, y, m, o)
    tp = masked_product(alpha, near).sum(axis=1)
    if o.weighting_mode == "GDL":
        return 2 * tp + o.smooth_nr, masked_product(alpha, 2 - w).sum(axis=1) + o.smooth_dr
    return 2 * tp + o.smooth_nr, 2 * tp + masked_product(m, w).sum(axis=1) + o.smooth_dr
