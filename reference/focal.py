r"""Focal loss.

Lin, Goyal, Girshick, He, Dollár (2017), "Focal Loss for Dense Object Detection", ICCV 2017,
https://arxiv.org/abs/1708.02002. For several classes: Zhu et al. (2018), "AnatomyNet: Deep learning for fast and fully
automated whole-volume segmentation of head and neck anatomy", Medical Physics, https://arxiv.org/abs/1808.05238.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.steps.activation import Array, log_probabilities, log_probabilities_adjoint
from twinloss.reference.steps.options import takes
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.segmentation import (
    SegmentationOptions,
    Weight,
    as_volume,
    class_target,
    class_weights,
    first_class,
    masked_product,
    sum_voxels,
    voxel_weights,
)


@dataclass(frozen=True, kw_only=True)
class FocalOptions(SegmentationOptions):
    """Options of the focal loss."""

    gamma: float = 2.0  # the larger the exponent, the less an easy voxel counts
    weight: Weight = None  # factor on each included class, or on all classes
    alpha: Weight = None  # α of the foreground or the positives, the others get 1 − α; or one per class
    use_softmax: bool = True  # False: each channel is a binary problem, as a single channel always is


@takes(FocalOptions)
def focal_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the focal loss.

    .. math:: L_{ic} = -\alpha_c (1 - p_{ic})^\gamma g_{ic} \log p_{ic}, \qquad p = softmax(x)

    Here i is the voxel and c the class. With ``use_softmax=False``, p = sigmoid(x), and the loss also has a term for
    the negatives, :math:`-(1 - \alpha_c) \, p_{ic}^\gamma (1 - g_{ic}) \log (1 - p_{ic})`. ``weight`` multiplies both
    terms. The reduction "mean" averages over voxels, classes and items; "sum" averages over the voxels, and sums over
    classes and items. Ignored voxels do not count. With a mask, the averages are weighted by m, and the values of
    "none" are multiplied by m.

    Args:
        input: x, logits, (B, C, *S) or (B, C).
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`FocalOptions`.

    Returns:
        The loss, (), or a value for each voxel, (B, C', *S), with ``reduction="none"``.

    Reference: Lin et al. (2017), eq. 4, and eq. 5 with α; Zhu et al. (2018).

    Example:
        >>> x, y = np.log([[[0.75, 0.5], [0.25, 0.5]]]), np.array([[[0, 1]]])  # p = 3/4 and 1/2
        >>> loss = focal_loss(x, y, to_onehot_y=True, reduction="none")
        >>> np.allclose(loss, [[[np.log(4 / 3) / 16, 0], [0, np.log(2) / 4]]])
        True
    """
    o = FocalOptions(**options)
    with np.errstate(all="ignore"):
        x, first = as_volume(input), first_class(input, o)
        loss = np.zeros_like(x)
        outcomes = log_probabilities(x, _exclusive(x, o))
        for factor, log_p in zip(_factors(input, target, o), outcomes, strict=False):
            q = -np.expm1(log_p)  # 1 − p, (B, C, *S)
            loss += masked_product(factor, -(q**o.gamma) * log_p)  # eq. 5
        if o.reduction == "none":
            return reduce(loss[:, first:], input.ndim, "none")
        return np.asarray((sum_voxels(loss, batch=False) / _count(input, target, o)).sum())


@takes(FocalOptions)
def focal_loss_gradient(
    input: Array,
    target: Array,
    *,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * focal_loss)`` with respect to the input.

    With :math:`\ell = \log p`, q = 1 - p and :math:`\partial q/\partial \ell = -p`,

    .. math:: \frac{\partial}{\partial \ell} \left( -q^\gamma \ell \right)
        = -q^\gamma + \gamma q^{\gamma - 1} p \ell
        = -q^\gamma \left( 1 - \gamma p \frac{\ell}{q} \right).

    As p goes to 1, :math:`\ell/q \to -1`, so that the last form is finite even for :math:`\gamma < 1`. The adjoint of
    :math:`\ell(x)` then gives the gradient with respect to x.

    >>> x, y = np.log([[[0.75, 0.5], [0.25, 0.5]]]), np.array([[[0, 1]]])
    >>> focal_loss_gradient(x, y, to_onehot_y=True, gamma=0) * 4  # cross entropy: p − g
    array([[[-0.25,  0.5 ],
            [ 0.25, -0.5 ]]])
    """
    o = FocalOptions(**options)
    with np.errstate(all="ignore"):
        x, first = as_volume(input), first_class(input, o)
        u = np.zeros_like(x)  # the gradient with respect to L at each voxel, (B, C, *S)
        if o.reduction == "none":
            u[:, first:] = reduce_adjoint(cotangent, u[:, first:], input.ndim, "none")
        else:
            u += np.asarray(cotangent, x.dtype) / _count(input, target, o)
        dl = []
        outcomes = log_probabilities(x, _exclusive(x, o))
        for factor, log_p in zip(_factors(input, target, o), outcomes, strict=False):
            p, q = np.exp(log_p), -np.expm1(log_p)  # (B, C, *S)
            ratio = np.divide(masked_product(p, log_p), q, out=np.full_like(q, -1), where=q != 0)
            dl.append(masked_product(u * factor, -(q**o.gamma) * (1 - o.gamma * ratio)))
        dx = log_probabilities_adjoint(dl, x, _exclusive(x, o))
        return np.where(voxel_weights(input, target, o) != 0, dx, 0).reshape(input.shape)


def _exclusive(x: Array, o: FocalOptions) -> bool:
    """Return whether the classes exclude each other, so that p is a softmax."""
    return o.use_softmax and x.shape[1] > 1


def _factors(input: Array, target: Array, o: FocalOptions) -> tuple[Array, Array]:
    """Return the factors of log p and of log (1 − p), which contain the mask, each (B, C, *S)."""
    x, first = as_volume(input), first_class(input, o)
    w = class_weights(o.weight, x, first)  # (1, C, 1, …)
    positive, negative = w, w
    if o.alpha is not None:
        given = np.asarray(o.alpha)
        others = given.ndim == 0 or not _exclusive(x, o)  # 1 − α is a weight as well
        if (given < 0).any() or (others and (given > 1).any()):
            raise ValueError(f"alpha and 1 - alpha must not be negative, got alpha = {o.alpha}")
        a = class_weights(o.alpha, x, first)
        if np.size(o.alpha) == 1 and _exclusive(x, o):
            a[:, 0] = 1 - a[:, 0]  # the background
        positive, negative = w * a, w * (1 - a)
    m, g = voxel_weights(input, target, o), class_target(input, target, o)
    return masked_product(positive * m, g), masked_product(negative * m, 1 - g)


def _count(input: Array, target: Array, o: FocalOptions) -> Array:
    """Return the divisor of the sum over voxels: the number of values, (), or of the item's voxels, (B, 1, 1, …).

    A voxel counts as much as the mask says.
    """
    m = voxel_weights(input, target, o)
    if o.reduction == "sum":
        count = sum_voxels(m, batch=False)
    else:
        count = np.asarray(m.sum() * (input.shape[1] - first_class(input, o)))
    return np.where(count > 0, count, np.ones_like(count))  # if no voxel is kept, the loss is 0
