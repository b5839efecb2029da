r"""Dice loss and focal loss.

Their sum trains AnatomyNet: Zhu et al. (2018), "AnatomyNet: Deep learning for fast and fully
automated whole-volume segmentation of head and neck anatomy", Medical Physics,
https://arxiv.org/abs/1808.05238.
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
    """The options of Dice and focal loss; ``weight`` goes to both, with the background."""

    focal_weight: Weight = None  # a factor for each class in the focal loss alone
    lambda_dice: float = 1.0
    lambda_focal: float = 1.0


@takes(DiceFocalOptions)
def dice_focal_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Dice loss and focal loss of the logits: (), or (B, C', *S) with ``reduction="none"``.

    .. math:: L = \lambda_{dice} L_{dice} + \lambda_{focal} L_{focal}

    Focal loss makes probabilities of the logits itself, whatever activation Dice has. With "none"
    the Dice loss of an item and class, with ``batch`` of a class, is added to each of its voxels.

    Args:
        input: x, logits, (B, C, *S) or (B, C).
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`DiceFocalOptions`.

    Reference: Zhu et al. (2018); the two terms see :func:`dice_loss` and :func:`focal_loss`.

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
    r"""Gradient in the input of the sum of ``cotangent * dice_focal_loss``, of the input's shape.

    .. math:: \frac{\partial L}{\partial x} = \lambda_{dice} \frac{\partial L_{dice}}{\partial x}
        + \lambda_{focal} \frac{\partial L_{focal}}{\partial x}

    With "none" a Dice loss stands at many voxels: its cotangent is the sum of theirs.

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
    """The options of the focal term: its own weight stands in for that of both."""
    own = {} if o.focal_weight is None else {"weight": o.focal_weight}
    return only(FocalOptions, o) | own
