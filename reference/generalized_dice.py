r"""Generalised Dice loss.

Sudre, Li, Vercauteren, Ourselin, Cardoso (2017), "Generalised Dice overlap as a deep learning loss function for highly
unbalanced segmentations", DLMIA 2017, https://arxiv.org/abs/1707.03237.
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
    overlap,
    probabilities,
    probabilities_adjoint,
    sum_voxels,
)


@dataclass(frozen=True, kw_only=True)
class GeneralizedDiceOptions(OverlapOptions):
    """Options of the generalised Dice loss."""

    w_type: str = "square"  # w = 1/V² for a class of volume V; "simple": 1/V; "uniform": 1
    normalize_weights: bool = False  # divide the weights by their sum


@takes(GeneralizedDiceOptions)
def generalized_dice_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the generalised Dice loss.

    .. math:: L_b = 1 - \frac{2 \sum_c w_{bc} I_{bc} + \nu}{\sum_c w_{bc} D_{bc} + \delta}, \qquad
        I = \sum_i p_i g_i, \quad D = \sum_i p_i + \sum_i g_i, \quad
        w_{bc} = \Big( \sum_i g_{bci} \Big)^{-2}

    Here b is the item, c the class and i the voxel, and p = act(x). A class that is absent from the target gets the
    largest finite weight of the others. If all classes are absent, the weights are 0, and so is the gradient;
    ``"uniform"`` weights stay 1. With ``soft_label`` :math:`I = \frac12 (\sum p + \sum g - \sum |p - g|)`. With
    ``batch`` the sums also run over the items.

    Args:
        input: x, (B, C, *S) or (B, C): logits, or probabilities if there is no activation.
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`GeneralizedDiceOptions`.

    Returns:
        The loss, (), or with ``reduction="none"`` (B, 1, …), where B is 1 with ``batch``.

    Reference: Sudre et al. (2017), section 2.1, the GDL with the weights GDL_v.

    Example:
        >>> p, g = np.full((1, 2, 3), 0.5), np.array([[[1, 1, 0], [0, 0, 1]]])
        >>> loss = generalized_dice_loss(p, g, smooth_nr=0, smooth_dr=0)  # w = 1/4, 1
        >>> round(float(loss), 6), round(1 - 2 * (1 / 4 + 1 / 2) / (3.5 / 4 + 2.5), 6)
        (0.555556, 0.555556)
    """
    o = GeneralizedDiceOptions(**options)
    with np.errstate(all="ignore"):
        n, m = fraction(*probabilities(input, target, o), o)
        return reduce(1 - n / m, input.ndim, o.reduction)


@takes(GeneralizedDiceOptions)
def generalized_dice_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * generalized_dice_loss)`` with respect to the input.

    The weights depend on g alone. Let L = 1 - N/M. Then :math:`\partial N/\partial p_i = 2 w_c t'_i` and
    :math:`\partial M/\partial p_i = w_c`, so that

    .. math:: \frac{\partial L}{\partial p_i} = \frac{w_c}{M} \left( \frac{N}{M} - 2 t'_i \right),

    where :math:`t'_i = g_i`, or :math:`\frac12 (1 - \operatorname{sign}(p - g))` for soft labels.

    >>> p, g = np.full((1, 2, 3), 0.5), np.array([[[1, 1, 0], [0, 0, 1]]])
    >>> generalized_dice_loss_gradient(p, g, smooth_nr=0, smooth_dr=0).round(4)
    array([[[-0.1152, -0.1152,  0.0329],
            [ 0.1317,  0.1317, -0.4609]]])
    """
    o = GeneralizedDiceOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        n, m = fraction(p, g, o)
        u = reduce_adjoint(cotangent, n, input.ndim, o.reduction)
        _, dt = overlap(p, g, o.soft_label)  # (B, C', *S)
        dp = u * volume_weights(g, o) / m * (n / m - 2 * dt)
        return probabilities_adjoint(dp, input, target, o, other_act_derivative)


def volume_weights(g: Array, o: GeneralizedDiceOptions) -> Array:
    """Return the weight w of each class, (B, C', 1, …)."""
    volume = sum_voxels(g, o.batch)
    power = {"square": 2, "simple": 1, "uniform": 0}[o.w_type]
    w = 1 / volume**power
    finite = np.where(np.isfinite(w), w, 0)
    w = np.where(np.isfinite(w), w, finite.max(axis=1, keepdims=True))  # the absent classes
    total = w.sum(axis=1, keepdims=True)
    return w / np.where(total > 0, total, 1) if o.normalize_weights else w


def fraction(p: Array, g: Array, o: GeneralizedDiceOptions) -> tuple[Array, Array]:
    """Return the numerator N = 2 Σ w I + ν and the denominator M = Σ w D + δ, each (B, 1, 1, …)."""
    t, _ = overlap(p, g, o.soft_label)
    w = volume_weights(g, o)
    i = (w * sum_voxels(t, o.batch)).sum(axis=1, keepdims=True)
    d = (w * (sum_voxels(p, o.batch) + sum_voxels(g, o.batch))).sum(axis=1, keepdims=True)
    return 2 * i + o.smooth_nr, d + o.smooth_dr
