r"""Dice loss and focal loss.

AnatomyNet is trained with their sum: Zhu et al. (2018), "AnatomyNet: Deep learning for fast and fully automated
whole-volume segmentation of head and neck anatomy", Medical Physics, https://arxiv.org/abs/1808.05238.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.dice import DiceOptions, dice_loss, dice_loss_gradient
from twinloss.reference.focal import FocalOptions, focal_loss, focal_loss_gradient
from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import only, takes
from twinloss.reference.steps.segmentation import Elementwise, Weight, first_class


@dataclass(frozen=True, kw_only=True)
class DiceFocalOptions(DiceOptions, FocalOptions):
    """Options of Dice loss and focal loss. ``weight`` goes to both terms, and has an entry for the background."""

    focal_weight: Weight = None  # factor on each class, for the focal loss alone
    lambda_dice: float = 1.0
    lambda_focal: float = 1.0


@takes(DiceFocalOptions)
def dice_focal_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the weighted sum of the Dice loss and the focal loss of the logits.

    .. math:: L = \lambda_{dice} L_{dice} + \lambda_{focal} L_{focal}

    The focal term takes logits, whatever the activation of the Dice term. With ``reduction="none"`` the Dice loss of an
    item and class (of a class, with ``batch``) is added to the focal loss at each of its voxels.

    Args:
        input: x, logits, (B, C, *S) or (B, C).
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`DiceFocalOptions`.

    Returns:
        The loss, (), or (B, C', *S) with ``reduction="none"``.

    Reference: Zhu et al. (2018) for the sum; :func:`dice_loss` and :func:`focal_loss` for the terms.

    Example:
        >>> x, y = np.log([[[0.75, 0.25], [0.25, 0.75]]]), np.array([[[0, 1]]])
        >>> both = dice_focal_loss(x, y, to_onehot_y=True, softmax=True, lambda_focal=0.5)
        >>> dice = dice_loss(x, y, to_onehot_y=True, softmax=True)
        >>> np.allclose(both, dice + 0.5 * focal_loss(x, y, to_onehot_y=True))
        True
    """
    o = DiceFocalOptions(**options)
    dice = dice_loss(input, target, **only(DiceOptions, o))
    focal = focal_loss(input, target, **_focal_options(o))
    return np.asarray(o.lambda_dice * dice + o.lambda_focal * focal)


@takes(DiceFocalOptions)
def dice_focal_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * dice_focal_loss)`` with respect to the input.

    .. math:: \frac{\partial L}{\partial x} = \lambda_{dice} \frac{\partial L_{dice}}{\partial x}
        + \lambda_{focal} \frac{\partial L_{focal}}{\partial x}

    With ``reduction="none"`` one Dice loss is added at many voxels, so that its cotangent is the sum of theirs.

    >>> x, y = np.log([[[0.75, 0.25], [0.25, 0.75]]]), np.array([[[0, 1]]])
    >>> dice_focal_loss_gradient(x, y, to_onehot_y=True, lambda_dice=0, gamma=0) * 4  # p − g
    array([[[-0.25,  0.25],
            [ 0.25, -0.25]]])
    """
    o = DiceFocalOptions(**options)
    u = np.asarray(cotangent, input.dtype)
    if o.reduction == "none":
        classes = input.shape[1] - first_class(input, o)
        u = np.broadcast_to(u, (input.shape[0], classes, *input.shape[2:]))
    focal = focal_loss_gradient(input, target, cotangent=u, **_focal_options(o))
    if o.reduction == "none":
        axes = [axis for axis in range(u.ndim) if axis > 1 or (axis == 0 and o.batch)]
        u = u.sum(axis=tuple(axes), keepdims=True)  # (B, C', 1, …)
    options = only(DiceOptions, o) | {"other_act_derivative": other_act_derivative}
    dice = dice_loss_gradient(input, target, cotangent=u, **options)
    return np.asarray(o.lambda_dice * dice + o.lambda_focal * focal)


def _focal_options(o: DiceFocalOptions) -> dict[str, Any]:
    """Return the options of the focal term, where ``focal_weight`` replaces ``weight``."""
    own = {} if o.focal_weight is None else {"weight": o.focal_weight}
    return only(FocalOptions, o) | own
