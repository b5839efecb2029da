r"""A loss within a mask.

The mask weights what the loss sums over voxels, after the activation. Multiplying the logits by a mask instead, as some
libraries do, turns each voxel outside of it into one with equal probabilities for all classes, which counts.
"""

import inspect
from collections.abc import Callable

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.segmentation import masked_product

Loss = Callable[..., Array]


def masked_loss(input: Array, target: Array, mask: Array, loss: Loss) -> Array:
    r"""Return a loss of the voxels within a mask m in [0, 1].

    A segmentation loss of this package weights its sums over voxels by the mask. Overlaps become
    :math:`\sum_i m_i p_i m_i g_i` and sizes :math:`\sum_i m_i p_i`, with p = act(x), and the mean of the values
    :math:`\ell_i` of voxels, as in the focal loss and the cross entropy, becomes

    .. math:: L = \frac{\sum_i m_i \ell_i}{\sum_i m_i}

    Thus a mask of zeros and ones gives the loss of the voxels where it is 1. Any other loss gets both arguments times
    the mask, :math:`L = \ell(m x, m g)`. Voxels with m = 0 add nothing, even if x is NaN there.

    Args:
        input: x, (B, C, *S).
        target: g, (B, C', *S) or (B, *S), as the loss takes it; integers are labels, which are set to 0 where m = 0 and
            not multiplied.
        mask: m, (B, 1, *S) or (1, 1, *S).
        loss: the wrapped loss, called as ``loss(x, g, mask=m)`` if it has this argument, else as ``loss(m x, m g)``.

    Returns:
        The loss, of the shape that the wrapped loss has.

    Example:
        >>> x, g, m = np.array([[[2.0, 3.0, np.nan]]]), np.array([[[1.0, 1.0, 1.0]]]), np.array([[[1, 0.5, 0]]])
        >>> float(masked_loss(x, g, m, lambda x, g: ((x - g) ** 2).sum()))  # 1 + (3/2 - 1/2)²
        2.0
    """
    if _takes_mask(loss):
        return np.asarray(loss(input, target, mask=mask))
    return np.asarray(loss(_times(mask, input), _times(mask, target)))


def masked_loss_gradient(
    input: Array, target: Array, mask: Array, loss_gradient: Loss, *, cotangent: Array | float = 1.0
) -> Array:
    r"""Return the gradient of ``sum(cotangent * masked_loss)`` with respect to the input.

    .. math:: \frac{\partial L}{\partial x_i} = m_i \, (\nabla_x \ell)(m x, m g)_i

    for a loss that does not take the mask. ``loss_gradient`` returns the gradient of the wrapped loss.

    >>> x, g, m = np.array([[[2.0, 3.0, np.nan]]]), np.array([[[1.0, 1.0, 1.0]]]), np.array([[[1, 0.5, 0]]])
    >>> masked_loss_gradient(x, g, m, lambda x, g, cotangent: cotangent * 2 * (x - g))
    array([[[2., 1., 0.]]])
    """
    if _takes_mask(loss_gradient):
        return np.asarray(loss_gradient(input, target, mask=mask, cotangent=cotangent))
    return _times(mask, loss_gradient(_times(mask, input), _times(mask, target), cotangent=cotangent))


def _takes_mask(loss: Loss) -> bool:
    """Return whether a loss has an argument ``mask``."""
    return "mask" in inspect.signature(loss).parameters


def _times(mask: Array, a: Array) -> Array:
    """Return the array times the mask, and exactly 0 where it is 0. Integers are only cut."""
    m = mask if a.ndim == mask.ndim else mask[:, 0]  # labels may have no axis of channels
    m = np.broadcast_to(m if a.dtype.kind == "f" else m != 0, a.shape)
    return masked_product(m.astype(a.dtype), a)
