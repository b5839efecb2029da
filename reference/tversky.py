r"""Tversky loss.

Salehi, Erdogmus, Gholipour (2017), "Tversky loss function for image segmentation using 3D fully
convolutional deep networks", MLMI 2017, https://arxiv.org/abs/1706.05721.
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
class TverskyOptions(OverlapOptions):
    """The options of the Tversky loss."""

    alpha: float = 0.5  # the weight of false positives
    beta: float = 0.5  # the weight of false negatives


@takes(TverskyOptions)
def tversky_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Tversky loss: (), or (B, C', 1, …) with ``reduction="none"``, where B is 1 with ``batch``.

    .. math:: L_{bc} = 1 - \frac{TP + \nu}{TP + \alpha FP + \beta FN + \delta}, \qquad
        TP = \sum_i p_i g_i, \quad FP = \sum_i p_i (1 - g_i), \quad FN = \sum_i (1 - p_i) g_i

    for item b, class c and voxels i, with p = act(x). With ``soft_label``
    :math:`TP = \frac12 (\sum p + \sum g - \sum |p - g|)`, and in either case
    :math:`FP = \sum p - TP` and :math:`FN = \sum g - TP`. With ``batch`` sums run over items too.

    Args:
        input: x, logits or (without an activation) probabilities, (B, C, *S) or (B, C).
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`TverskyOptions`.

    Reference: Salehi et al. (2017), section 2, who maximise 1 - L with ν = δ = 0.

    >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
    >>> float(tversky_loss(p, g, alpha=0.25, beta=0.75, smooth_nr=0, smooth_dr=0))
    0.5
    """
    o = TverskyOptions(**options)
    with np.errstate(all="ignore"):
        n, m = _fraction(*probabilities(input, target, o), o)
        return reduce(1 - n / m, input.ndim, o.reduction)


@takes(TverskyOptions)
def tversky_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Gradient in the input of the sum of ``cotangent * tversky_loss``, of the input's shape.

    With L = 1 - N/M and t the overlap at a voxel, :math:`\partial N/\partial p_i = t'_i` and

    .. math:: \frac{\partial L}{\partial p_i} = \frac{1}{M} \left(
        \frac{N}{M} \frac{\partial M}{\partial p_i} - t'_i \right), \qquad
        \frac{\partial M}{\partial p_i} = t'_i + \alpha (1 - t'_i) - \beta t'_i,

    where :math:`t'_i = g_i`, or for soft labels :math:`\frac12 (1 - \operatorname{sign}(p - g))`.

    >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
    >>> tversky_loss_gradient(p, g, alpha=0.25, beta=0.75, smooth_nr=0, smooth_dr=0)
    array([[[-0.875,  0.125,  0.125,  0.125]]])
    """
    o = TverskyOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        n, m = _fraction(p, g, o)
        u = reduce_adjoint(cotangent, n, input.ndim, o.reduction)
        _, dn = overlap(p, g, o.soft_label)  # (B, C', *S)
        dm = dn + o.alpha * (1 - dn) - o.beta * dn
        dp = u / m * (n / m * dm - dn)
        return probabilities_adjoint(dp, input, target, o, other_act_derivative)


def _fraction(p: Array, g: Array, o: TverskyOptions) -> tuple[Array, Array]:
    """N = TP + ν and M = TP + α FP + β FN + δ: twice (B, C', 1, …)."""
    t, _ = overlap(p, g, o.soft_label)
    tp = sum_voxels(t, o.batch)
    fp = sum_voxels(p - t, o.batch)
    fn = sum_voxels(g - t, o.batch)
    return tp + o.smooth_nr, tp + o.alpha * fp + o.beta * fn + o.smooth_dr
