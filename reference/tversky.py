r"""Tversky loss.

Salehi, Erdogmus, Gholipour (2017), "Tversky loss function for image segmentation using 3D fully convolutional deep
networks", MLMI 2017, https://arxiv.org/abs/1706.05721.
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
class TverskyOptions(OverlapOptions):
    """Options of the Tversky loss."""

    alpha: float = 0.5  # weight of the false positives
    beta: float = 0.5  # weight of the false negatives
    weight: Weight = None  # factor on the loss of each included class, or of all classes


@takes(TverskyOptions)
def tversky_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the Tversky loss.

    .. math:: L_{bc} = 1 - \frac{TP + \nu}{TP + \alpha FP + \beta FN + \delta}, \qquad
        TP = \sum_i p_i g_i, \quad FP = \sum_i p_i (1 - g_i), \quad FN = \sum_i (1 - p_i) g_i

    Here b is the item, c the class and i the voxel, and p = act(x). TP, FP and FN count the true positives, false
    positives and false negatives. With ``soft_label`` :math:`TP = \frac12 (\sum p + \sum g - \sum |p - g|)`. In both
    cases :math:`FP = \sum p - TP` and :math:`FN = \sum g - TP`. With ``batch`` the sums also run over the items.

    Args:
        input: x, (B, C, *S) or (B, C): logits, or probabilities if there is no activation.
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`TverskyOptions`.

    Returns:
        The loss, (), or with ``reduction="none"`` (B, C', 1, …), where B is 1 with ``batch``.

    Reference: Salehi et al. (2017), section 2. They maximise 1 - L, with ν = δ = 0.

    Example:
        >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
        >>> float(tversky_loss(p, g, alpha=0.25, beta=0.75, smooth_nr=0, smooth_dr=0))
        0.5
    """
    o = TverskyOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        n, m = _fraction(p, g, o)
        return reduce(class_weights(o.weight, p) * (1 - n / m), input.ndim, o.reduction)


@takes(TverskyOptions)
def tversky_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * tversky_loss)`` with respect to the input.

    Let L = 1 - N/M, and let t be the overlap at a voxel. Then :math:`\partial N/\partial p_i = t'_i` and

    .. math:: \frac{\partial L}{\partial p_i} = \frac{1}{M} \left(
        \frac{N}{M} \frac{\partial M}{\partial p_i} - t'_i \right), \qquad
        \frac{\partial M}{\partial p_i} = t'_i + \alpha (1 - t'_i) - \beta t'_i,

    where :math:`t'_i = g_i`, or :math:`\frac12 (1 - \operatorname{sign}(p - g))` for soft labels.

    >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
    >>> tversky_loss_gradient(p, g, alpha=0.25, beta=0.75, smooth_nr=0, smooth_dr=0)
    array([[[-0.875,  0.125,  0.125,  0.125]]])
    """
    o = TverskyOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        n, m = _fraction(p, g, o)
        u = class_weights(o.weight, p) * reduce_adjoint(cotangent, n, input.ndim, o.reduction)
        _, dn = overlap(p, g, o.soft_label)  # (B, C', *S)
        dm = dn + o.alpha * (1 - dn) - o.beta * dn
        dp = u / m * (n / m * dm - dn)
        return probabilities_adjoint(dp, input, target, o, other_act_derivative)


def _fraction(p: Array, g: Array, o: TverskyOptions) -> tuple[Array, Array]:
    """Return N = TP + ν and M = TP + α FP + β FN + δ, each (B, C', 1, …)."""
    t, _ = overlap(p, g, o.soft_label)
    tp = sum_voxels(t, o.batch)
    fp = sum_voxels(p - t, o.batch)
    fn = sum_voxels(g - t, o.batch)
    return tp + o.smooth_nr, tp + o.alpha * fp + o.beta * fn + o.smooth_dr
