r"""Dice loss, and Dice loss within a mask.

Milletari, Navab, Ahmadi (2016), "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation",
3DV 2016, https://arxiv.org/abs/1606.04797, section 3: the Dice coefficient of two volumes is
:math:`2 \sum_i p_i g_i / (\sum_i p_i^2 + \sum_i g_i^2)`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import takes
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.segmentation import (
    Elementwise,
    OverlapOptions,
    Weight,
    class_weights,
    overlap,
    probabilities,
    probabilities_adjoint,
    sum_voxels,
)


@dataclass(frozen=True, kw_only=True)
class DiceOptions(OverlapOptions):
    """Options of the Dice losses."""

    squared_pred: bool = False  # D is the sum of the squares, as in the paper
    jaccard: bool = False  # divide by the union instead of the mean size, which gives the Jaccard index
    weight: Weight = None  # factor on the loss of each included class, or of all classes


@takes(DiceOptions)
def dice_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the Dice loss.

    .. math:: L_{bc} = 1 - \frac{2 I_{bc} + \nu}{D_{bc} + \delta}, \qquad
        I = \sum_i p_i g_i, \qquad D = \sum_i p_i + \sum_i g_i

    Here b is the item, c the class and i the voxel, and p = act(x). The options change the terms:

    * ``squared_pred``: :math:`D = \sum p_i^2 + \sum g_i^2`;
    * ``jaccard``: the denominator is :math:`2 (D - I) + \delta`;
    * ``soft_label``: :math:`I = \frac12 (\sum p + \sum g - \sum |p - g|)`;
    * ``batch``: the sums also run over the items;
    * ``mask``: p and g are multiplied by the mask.

    Args:
        input: x, (B, C, *S) or (B, C): logits, or probabilities if there is no activation.
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`DiceOptions`.

    Returns:
        The loss, (), or with ``reduction="none"`` (B, C', 1, …), where B is 1 with ``batch``.

    Reference: Milletari et al. (2016), section 3. They maximise 1 - L, with squares and ν = δ = 0.

    Example:
        >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
        >>> float(dice_loss(p, g, smooth_nr=0, smooth_dr=0))  # I = 1/2, D = 2
        0.5
    """
    o = DiceOptions(**options)
    with np.errstate(all="ignore"):
        return _dice(*probabilities(input, target, o), o, input.ndim)


@takes(DiceOptions)
def dice_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * dice_loss)`` with respect to the input.

    With N = 2I + ν and M = D + δ, so that L = 1 - N/M, the quotient rule gives

    .. math:: \frac{\partial L}{\partial p_i} = \frac{1}{M} \left(
        \frac{N}{M} \frac{\partial M}{\partial p_i} - 2 \frac{\partial I}{\partial p_i} \right)

    where :math:`\partial I/\partial p_i = g_i`, and :math:`\partial M/\partial p_i` is 1, or :math:`2 p_i` with
    ``squared_pred``. With ``jaccard``, :math:`\partial M = 2 (\partial D - \partial I)`.

    >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
    >>> dice_loss_gradient(p, g, smooth_nr=0, smooth_dr=0)
    array([[[-0.75,  0.25,  0.25,  0.25]]])
    """
    o = DiceOptions(**options)
    with np.errstate(all="ignore"):
        dp = _dice_gradient(*probabilities(input, target, o), o, input.ndim, cotangent)
        return probabilities_adjoint(dp, input, target, o, other_act_derivative)


@takes(DiceOptions)
def masked_dice_loss(input: Array, target: Array, mask: Array, **options: Any) -> Array:
    r"""Return the Dice loss of :math:`p'_i = m_i p_i` and :math:`g'_i = m_i g_i` for a mask m in [0, 1].

    The mask is (B, 1, *S) or (1, 1, *S). Voxels with m = 0 add nothing, even if p is NaN there.

    >>> p, g, m = np.array([[[0.5, 0.5, np.nan]]]), np.array([[[1, 0, 0]]]), np.array([[[1, 1, 0]]])
    >>> float(masked_dice_loss(p, g, m, smooth_nr=0, smooth_dr=0))
    0.5
    """
    return dice_loss(input, target, mask=mask, **options)


@takes(DiceOptions)
def masked_dice_loss_gradient(
    input: Array,
    target: Array,
    mask: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of the masked Dice loss, :math:`\partial L/\partial p_i = m_i \partial L/\partial p'_i`.

    >>> p, g, m = np.array([[[0.5, 0.5, np.nan]]]), np.array([[[1, 0, 0]]]), np.array([[[1, 1, 0]]])
    >>> masked_dice_loss_gradient(p, g, m, smooth_nr=0, smooth_dr=0)
    array([[[-0.75,  0.25,  0.  ]]])
    """
    return dice_loss_gradient(
        input, target, mask=mask, other_act_derivative=other_act_derivative, cotangent=cotangent, **options
    )


def _fraction(p: Array, g: Array, o: DiceOptions) -> tuple[Array, Array]:
    """Return N = 2I + ν and M = D + δ, or M = 2(D − I) + δ with ``jaccard``, each (B, C', 1, …)."""
    t, _ = overlap(p, g, o.soft_label and not o.squared_pred)  # of squares, (p² + g² − (p − g)²)/2 = pg
    i = sum_voxels(t, o.batch)  # (B, C', 1, …)
    a, b = (p**2, g**2) if o.squared_pred else (p, g)
    d = sum_voxels(a, o.batch) + sum_voxels(b, o.batch)
    return 2 * i + o.smooth_nr, (2 * (d - i) if o.jaccard else d) + o.smooth_dr


def _dice(p: Array, g: Array, o: DiceOptions, ndim: int) -> Array:
    n, m = _fraction(p, g, o)
    return reduce(class_weights(o.weight, p) * (1 - n / m), ndim, o.reduction)


def _dice_gradient(p: Array, g: Array, o: DiceOptions, ndim: int, u: Array | float) -> Array:
    n, m = _fraction(p, g, o)
    u = class_weights(o.weight, p) * reduce_adjoint(u, n, ndim, o.reduction)  # (B, C', 1, …)
    _, di = overlap(p, g, o.soft_label and not o.squared_pred)  # ∂I/∂p, (B, C', *S)
    dd = 2 * p if o.squared_pred else np.ones_like(p)  # ∂D/∂p, (B, C', *S)
    dm = 2 * (dd - di) if o.jaccard else dd
    return np.asarray(u / m * (n / m * dm - 2 * di))
