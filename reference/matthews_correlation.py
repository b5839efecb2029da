r"""Matthews correlation loss.

Abhishek, Hamarneh (2021), "Matthews correlation coefficient loss for deep convolutional networks: application to skin
lesion segmentation", ISBI 2021, https://arxiv.org/abs/2010.13454.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import takes
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.segmentation import (
    Elementwise,
    OverlapOptions,
    Weight,
    class_weights,
    complements,
    errors,
    overlap,
    probabilities,
    probabilities_adjoint,
    sum_voxels,
    voxel_weights,
)


@dataclass(frozen=True, kw_only=True)
class MatthewsCorrelationOptions(OverlapOptions):
    """Options of the Matthews correlation loss."""

    weight: Weight = None  # factor on the loss of each included class, or of all classes


@takes(MatthewsCorrelationOptions)
def matthews_correlation_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return one minus the Matthews correlation coefficient of prediction and target.

    .. math:: L_{bc} = 1 - \frac{(TP \cdot TN - FP \cdot FN) / N + \nu}{\sqrt{PQ}}, \qquad
        P = \frac{(TP + FP)(TN + FN)}{N} + \delta, \quad Q = \frac{(TP + FN)(TN + FP)}{N} + \delta

    Here b is the item, c the class, i the voxel, N the number of voxels, and p = act(x). The soft counts are

    .. math:: TP = \sum_i p_i g_i, \quad FP = \sum_i p_i (1 - g_i), \quad FN = \sum_i (1 - p_i) g_i, \quad
        TN = \sum_i (1 - p_i)(1 - g_i).

    With ``soft_label``, products become minima: TP is the sum of min(p, g), and TN that of min(1 - p, 1 - g). With
    ``batch`` the sums also run over the items. With a mask m, p and g are multiplied by it, N is the sum of m, and TN
    is N less the other counts.

    Args:
        input: x, (B, C, *S) or (B, C): logits, or probabilities if there is no activation.
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`MatthewsCorrelationOptions`.

    Returns:
        The loss, (), or with ``reduction="none"`` (B, C', 1, …), where B is 1 with ``batch``.

    Reference: Abhishek and Hamarneh (2021), eqs. 3 to 5, with ν = δ = 0.

    Example:
        >>> p, g = np.array([[[1, 1, 0, 0, 0.0]]]), np.array([[[1, 0, 1, 0, 0]]])  # TP = FP = FN = 1 and TN = 2
        >>> float(matthews_correlation_loss(p, g, smooth_nr=0, smooth_dr=0))  # 1 - (2 - 1)/6
        0.8333333333333333
    """
    o = MatthewsCorrelationOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        m = moments(counts(input, target, p, g, o), o)
        return reduce(class_weights(o.weight, p) * (1 - m.r / m.d), input.ndim, o.reduction)


@takes(MatthewsCorrelationOptions)
def matthews_correlation_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * matthews_correlation_loss)`` with respect to the input.

    Let R be the numerator and :math:`D = \sqrt{PQ}`, so that L = 1 - R/D. Let :math:`t'_i` be the derivative of the
    overlap as in the Tversky loss. TP grows by :math:`t'_i`, FP by :math:`1 - t'_i`, and FN and TN fall by as much, so
    that

    .. math:: N \frac{\partial R}{\partial p_i} = t'_i (TN + FP) - (1 - t'_i)(TP + FN), \qquad
        N \frac{\partial P}{\partial p_i} = (TN + FN) - (TP + FP)

    and Q does not change. The quotient rule gives

    .. math:: \frac{\partial L}{\partial p_i} = \frac{1}{D} \left(
        \frac{R}{2P} \frac{\partial P}{\partial p_i} - \frac{\partial R}{\partial p_i} \right).

    >>> p, g = np.array([[[1, 1, 0, 0, 0.0]]]), np.array([[[1, 0, 1, 0, 0]]])
    >>> matthews_correlation_loss_gradient(p, g, smooth_nr=0, smooth_dr=0) * 36
    array([[[-17.5,  12.5, -17.5,  12.5,  12.5]]])
    """
    o = MatthewsCorrelationOptions(**options)
    with np.errstate(all="ignore"):
        p, g = probabilities(input, target, o)
        c = counts(input, target, p, g, o)
        m = moments(c, o)
        u = class_weights(o.weight, p) * reduce_adjoint(cotangent, m.r, input.ndim, o.reduction)
        _, dt = overlap(p, g, o.soft_label)  # (B, C', *S)
        dr = (dt * (c.tn + c.fp) - (1 - dt) * (c.tp + c.fn)) / c.n
        dp = ((c.tn + c.fn) - (c.tp + c.fp)) / c.n
        return probabilities_adjoint(u / m.d * (m.r / (2 * m.p) * dp - dr), input, target, o, other_act_derivative)


class Counts(NamedTuple):
    """The soft counts of voxels, each (B, C', 1, …), and the number of voxels N, (B, 1, 1, …)."""

    tp: Array
    fp: Array
    fn: Array
    tn: Array
    n: Array


class Moments(NamedTuple):
    """The numerator R, the factors P and Q under the root, and the denominator D, each (B, C', 1, …)."""

    r: Array
    p: Array
    q: Array
    d: Array


def counts(input: Array, target: Array, p: Array, g: Array, o: MatthewsCorrelationOptions) -> Counts:
    """Return the soft counts; N is 1 if no voxel is left."""
    q, m = complements(input, target, o), voxel_weights(input, target, o)
    both = np.minimum(q, 1 - g) if o.soft_label else q * (1 - g)
    fp, fn = errors(p, q, g, o.soft_label)
    terms = overlap(p, g, o.soft_label)[0], fp, fn, both - (1 - m)
    tp, fp, fn, tn = (sum_voxels(term, o.batch) for term in terms)
    n = sum_voxels(np.broadcast_to(m, (len(p), *m.shape[1:])), o.batch)
    return Counts(tp, fp, fn, tn, np.where(n > 0, n, 1))


def moments(c: Counts, o: MatthewsCorrelationOptions) -> Moments:
    """Return the parts of the loss."""
    r = (c.tp * c.tn - c.fp * c.fn) / c.n + o.smooth_nr
    p = (c.tp + c.fp) * (c.tn + c.fn) / c.n + o.smooth_dr
    q = (c.tp + c.fn) * (c.tn + c.fp) / c.n + o.smooth_dr
    return Moments(r, p, q, np.sqrt(p * q))
