r"""Generalised Dice loss and focal loss.

The Dice term weights classes by their volumes: Sudre et al. (2017), "Generalised Dice overlap as a deep learning loss
function for highly unbalanced segmentations", DLMIA 2017, https://arxiv.org/abs/1707.03237. The focal term weights
voxels by their difficulty: Lin et al. (2017), "Focal Loss for Dense Object Detection", ICCV 2017,
https://arxiv.org/abs/1708.02002.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.focal import FocalOptions, focal_loss, focal_loss_gradient
from twinloss.reference.generalized_dice import (
    GeneralizedDiceOptions,
    generalized_dice_loss,
    generalized_dice_loss_gradient,
)
from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import only, takes
from twinloss.reference.steps.segmentation import Elementwise, first_class


@dataclass(frozen=True, kw_only=True)
class GeneralizedDiceFocalOptions(GeneralizedDiceOptions, FocalOptions):
    """Options of generalised Dice loss and focal loss. ``weight`` goes to the focal loss."""

    lambda_gdl: float = 1.0
    lambda_focal: float = 1.0


@takes(GeneralizedDiceFocalOptions)
def generalized_dice_focal_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the weighted sum of the generalised Dice loss and the focal loss of the logits.

    .. math:: L = \lambda_{gdl} L_{gdl} + \lambda_{focal} L_{focal}

    The focal term takes logits, whatever the activation of the Dice term. With ``reduction="none"`` the Dice loss of an
    item (of the batch, with ``batch``) is added to the focal loss at each of its voxels and classes.

    Args:
        input: x, logits, (B, C, *S) or (B, C).
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`GeneralizedDiceFocalOptions`.

    Returns:
        The loss, (), or (B, C', *S) with ``reduction="none"``.

    Reference: Sudre et al. (2017) and Lin et al. (2017); :func:`generalized_dice_loss` and :func:`focal_loss` for the
    terms.

    Example:
        >>> x, y = np.log([[[0.75, 0.25], [0.25, 0.75]]]), np.array([[[0, 1]]])
        >>> both = generalized_dice_focal_loss(x, y, to_onehot_y=True, softmax=True, lambda_focal=0.5)
        >>> dice = generalized_dice_loss(x, y, to_onehot_y=True, softmax=True)
        >>> np.allclose(both, dice + 0.5 * focal_loss(x, y, to_onehot_y=True))
        True
    """
    o = GeneralizedDiceFocalOptions(**options)
    dice = generalized_dice_loss(input, target, **only(GeneralizedDiceOptions, o))
    focal = focal_loss(input, target, **only(FocalOptions, o))
    return np.asarray(o.lambda_gdl * dice + o.lambda_focal * focal)


@takes(GeneralizedDiceFocalOptions)
def generalized_dice_focal_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * generalized_dice_focal_loss)`` with respect to the input.

    .. math:: \frac{\partial L}{\partial x} = \lambda_{gdl} \frac{\partial L_{gdl}}{\partial x}
        + \lambda_{focal} \frac{\partial L_{focal}}{\partial x}

    With ``reduction="none"`` one Dice loss is added at many voxels and classes, so that its cotangent is the sum of
    theirs.

    >>> x, y = np.log([[[0.75, 0.25], [0.25, 0.75]]]), np.array([[[0, 1]]])
    >>> generalized_dice_focal_loss_gradient(x, y, to_onehot_y=True, lambda_gdl=0, gamma=0) * 4  # p − g
    array([[[-0.25,  0.25],
            [ 0.25, -0.25]]])
    """
    o = GeneralizedDiceFocalOptions(**options)
    u = np.asarray(cotangent, input.dtype)
    if o.reduction == "none":
        classes = input.shape[1] - first_class(input, o)
        u = np.broadcast_to(u, (input.shape[0], classes, *input.shape[2:]))
    focal = focal_loss_gradient(input, target, cotangent=u, **only(FocalOptions, o))
    if o.reduction == "none":
        u = u.sum(axis=tuple(range(0 if o.batch else 1, u.ndim)), keepdims=True)  # (B, 1, 1, …)
    options = only(GeneralizedDiceOptions, o) | {"other_act_derivative": other_act_derivative}
    dice = generalized_dice_loss_gradient(input, target, cotangent=u, **options)
    return np.asarray(o.lambda_gdl * dice + o.lambda_focal * focal)
