r"""Generalised Dice loss.

Sudre, Li, Vercauteren, Ourselin, Cardoso (2017), "Generalised Dice overlap as a deep learning loss
function for highly unbalanced segmentations", DLMIA 2017, https://arxiv.org/abs/1707.03237.
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
    """The options of the generalised Dice loss."""

    w_type: str = "square"  # w of a class is 1/V², or "simple": 1/V, or "uniform": 1
    normalize_weights: bool = False  # weights are divided by their sum


@takes(GeneralizedDiceOptions)
def generalized_dice_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Generalised Dice loss: (), or (B, 1, …) with ``reduction="none"``, B being 1 with ``batch``.

    .. math:: L_b = 1 - \frac{2 \sum_c w_{bc} I_{bc} + \nu}{\sum_c w_{bc} D_{bc} + \delta}, \qquad
        I = \sum_i p_i g_i, \quad D = \sum_i p_i + \sum_i g_i, \quad
        w_{bc} = \Big( \sum_i g_{bci} \Big)^{-2}

    for item b, classes c and voxels i, with p = act(x). A class that is absent from the target
    takes the largest finite weight; when all are absent the weights are 0, and so is the gradient
    (``"uniform"`` weights stay 1).
    With ``soft_label`` :math:`I = \frac12 (\sum p + \sum g - \sum |p - g|)`. With ``batch`` sums
    run over items too.

    Args:
        input: x, logits or (without an activation) probabilities, (B, C, *S) or (B, C).
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`GeneralizedDiceOptions`.

    Reference: Sudre et al. (2017), section 2.1, GDL, whose weights are there called GDL_v.

    >>> p, g = np.full((1, 2, 3), 0.5), np.array([[[1, 1, 0], [0, 0, 1]]])
    >>> loss = generalized_dice_loss(p, g, smooth_nr=0, smooth_dr=0)  # w = 1/4, 1
    >>> round(float(loss), 6), round(1 - 2 * (1 / 4 + 1 / 2) / (3.5 / 4 + 2.5), 6)
    (0.555556, 0.555556)
    """
    o = GeneralizedDiceOptions(**options)
    with np.errstate(all="ignore"):
        n, m = _fraction(*probabilities(input, target, o), o)
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
    r"""Gradient in the input of the sum of ``cotangent * generalized_dice_loss``, of its shape.

    The weights depend on g alone. With L = 1 - N/M, :math:`\partial N/\partial p_i = 2 w_c t'_i`
    and :math:`\partial M/\partial p_i = w_c`,

    .. math:: \frac{\partial L}{\partial p_i} = \frac{w_c}{M} \left( \frac{N}{M} - 2 t'_i \right),

    where :math:`t'_i = g_i`, or for soft labels :math:`\frac12 (1 - \operatorname{sign}(p - g))`.

    >>> p, g = np.full((1, 2, 3), 0.5), np.array([[[1, 1, 0], [0, 0, 1]]])
    >>> generalized_dice_loss_gradient(p, g, smooth_nr=0, smooth_dr=0).round(4)
    array([[[-0.1152, -0.1152,  0.0329],
            [ 0.1317,  0.1317, -0.4609]]])
    """
    o = GeneralizedDiceOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        n, m = _fraction(p, g, o)
        u = reduce_adjoint(cotangent, n, input.ndim, o.reduction)
        _, dt = overlap(p, g, o.soft_label)  # (B, C', *S)
        dp = u * _class_weights(g, o) / m * (n / m - 2 * dt)
        return probabilities_adjoint(dp, input, target, o, other_act_derivative)


def _class_weights(g: Array, o: GeneralizedDiceOptions) -> Array:
    """The weight w of each class: (B, C', 1, …)."""
    volume = sum_voxels(g, o.batch)
    power = {"square": 2, "simple": 1, "uniform": 0}[o.w_type]
    w = 1 / volume**power
    finite = np.where(np.isfinite(w), w, 0)
    w = np.where(np.isfinite(w), w, finite.max(axis=1, keepdims=True))  # the absent classes
    total = w.sum(axis=1, keepdims=True)
    return w / np.where(total > 0, total, 1) if o.normalize_weights else w


def _fraction(p: Array, g: Array, o: GeneralizedDiceOptions) -> tuple[Array, Array]:
    """N = 2 Σ w I + ν and M = Σ w D + δ: twice (B, 1, 1, …)."""
    t, _ = overlap(p, g, o.soft_label)
    w = _class_weights(g, o)
    i = (w * sum_voxels(t, o.batch)).sum(axis=1, keepdims=True)
    d = (w * (sum_voxels(p, o.batch) + sum_voxels(g, o.batch))).sum(axis=1, keepdims=True)
    return 2 * i + o.smooth_nr, d + o.smooth_dr
