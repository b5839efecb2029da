r"""Focal Tversky loss.

Abraham, Khan (2019), "A novel focal Tversky loss function with improved attention U-Net for lesion segmentation",
ISBI 2019, https://arxiv.org/abs/1810.07842.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import takes
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.segmentation import (
    Elementwise,
    Weight,
    class_weights,
    complements,
    errors,
    overlap,
    probabilities,
    probabilities_adjoint,
    sum_voxels,
)
from twinloss.reference.tversky import TverskyOptions


@dataclass(frozen=True, kw_only=True)
class FocalTverskyOptions(TverskyOptions):
    """Options of the focal Tversky loss."""

    alpha: float = 0.3  # weight of the false positives; this is the paper's β
    beta: float = 0.7  # weight of the false negatives; this is the paper's α
    gamma: Weight = 0.75  # the exponent, for all included classes or for each; this is 1/γ in the paper


@takes(FocalTverskyOptions)
def focal_tversky_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the focal Tversky loss, a power of the Tversky loss of each item and class.

    .. math:: L_{bc} = (1 - TI_{bc})^{\gamma_c}, \qquad TI = \frac{TP + \nu}{TP + \alpha FP + \beta FN + \delta}

    Here b is the item and c the class. The sums TP, FP and FN are those of the Tversky loss. Where
    :math:`TI \ge 1`, the loss is 0.

    Args:
        input: x, (B, C, *S) or (B, C): logits, or probabilities if there is no activation.
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`FocalTverskyOptions`.

    Returns:
        The loss, (), or with ``reduction="none"`` (B, C', 1, …), where B is 1 with ``batch``.

    Reference: Abraham and Khan (2019), eq. 4, whose exponent is 1/γ with γ = 4/3. In their index (eq. 3), α weights the
    false negatives and β the false positives.

    Example:
        >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
        >>> float(focal_tversky_loss(p, g, alpha=0.25, beta=0.75, gamma=2, smooth_nr=0, smooth_dr=0))  # TI = 1/2
        0.25
    """
    o = FocalTverskyOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        loss, _, _ = tversky(input, target, p, g, o)
        focal = np.where(loss <= 0, 0, loss ** class_weights(o.gamma, p))
        return reduce(class_weights(o.weight, p) * focal, input.ndim, o.reduction)


@takes(FocalTverskyOptions)
def focal_tversky_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * focal_tversky_loss)`` with respect to the input.

    Let T be the Tversky loss of an item and class, so that L is the power of T with exponent :math:`\gamma`. Then

    .. math:: \frac{\partial L}{\partial p_i} = \gamma T^{\gamma - 1} \frac{\partial T}{\partial p_i}, \qquad
        \frac{\partial T}{\partial p_i} = \frac{1}{M} \left(
        (1 - T) \bigl( t'_i + \alpha (1 - t'_i) - \beta t'_i \bigr) - t'_i \right),

    where M is the denominator of TI, and :math:`t'_i` the derivative of the overlap as in the Tversky loss. The power
    has an infinite slope at T = 0 if :math:`\gamma < 1`. Where :math:`T \le 0`, the gradient is defined to be 0.

    >>> p, g = np.array([[[0.5, 0.5, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0]]])
    >>> focal_tversky_loss_gradient(p, g, alpha=0.25, beta=0.75, gamma=2, smooth_nr=0, smooth_dr=0)  # T = 1/2
    array([[[-0.875,  0.125,  0.125,  0.125]]])
    """
    o = FocalTverskyOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        loss, overlapping, m = tversky(input, target, p, g, o)
        gamma = class_weights(o.gamma, p)
        slope = np.where(loss <= 0, 0, gamma * loss ** (gamma - 1))
        u = class_weights(o.weight, p) * reduce_adjoint(cotangent, loss, input.ndim, o.reduction)
        _, dn = overlap(p, g, o.soft_label)  # (B, C', *S)
        dm = dn + o.alpha * (1 - dn) - o.beta * dn
        dp = u * slope / m * (overlapping / m * dm - dn)
        return probabilities_adjoint(dp, input, target, o, other_act_derivative)


def tversky(input: Array, target: Array, p: Array, g: Array, o: FocalTverskyOptions) -> tuple[Array, Array, Array]:
    """Return T = 1 - TI, the numerator TP + ν and the denominator M of TI, each (B, C', 1, …).

    A power with γ < 1 would amplify the rounding error of a difference. So T is computed from the errors.
    """
    fp, fn = (sum_voxels(e, o.batch) for e in errors(p, complements(input, target, o), g, o.soft_label))
    tp = sum_voxels(overlap(p, g, o.soft_label)[0], o.batch)
    weighted = o.alpha * fp + o.beta * fn
    m = tp + weighted + o.smooth_dr
    return (weighted + (o.smooth_dr - o.smooth_nr)) / m, tp + o.smooth_nr, m
