r"""Dice loss and cross entropy.

nnU-Net, for example, is trained with their sum: Isensee, Jaeger, Kohl, Petersen, Maier-Hein (2021), "nnU-Net: a
self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 18, 203-211,
https://arxiv.org/abs/1904.08128.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.dice import DiceOptions, dice_loss, dice_loss_gradient
from twinloss.reference.steps.activation import Array, log_probabilities, log_probabilities_adjoint
from twinloss.reference.steps.options import only, takes
from twinloss.reference.steps.segmentation import (
    Elementwise,
    Weight,
    as_volume,
    class_target,
    class_weights,
    masked_product,
    voxel_weights,
)


@dataclass(frozen=True, kw_only=True)
class DiceCEOptions(DiceOptions):
    """Options of Dice loss and cross entropy. ``weight`` goes to both terms, and has an entry for the background."""

    ce_weight: Weight = None  # factor on each class, for the cross entropy alone
    lambda_dice: float = 1.0
    lambda_ce: float = 1.0
    label_smoothing: float = 0.0  # ε, the part of the target that is spread over all classes
    multilabel: bool = False  # the classes are regions that may overlap: a binary problem for each

    def __post_init__(self) -> None:
        """Refuse regions without an activation: the cross entropy takes logits, and the Dice term probabilities."""
        if self.multilabel and not self.sigmoid and self.other_act is None:
            raise ValueError("multilabel=True needs sigmoid=True, or another activation as other_act")


@takes(DiceCEOptions)
def dice_ce_loss(input: Array, target: Array, **options: Any) -> Array:
    r"""Return the weighted sum of the Dice loss and the cross entropy of the logits.

    .. math:: L = \lambda_{dice} L_{dice} + \lambda_{ce} L_{ce}, \qquad
        L_{ce} = -\frac{\sum_i \sum_c w_c g'_{ic} \log p_{ic}}{\sum_i \sum_c w_c g_{ic}}, \qquad
        g' = (1 - \varepsilon) g + \varepsilon / C

    Here i runs over the voxels of all items and c over all classes, and p = softmax(x), whatever the activation of the
    Dice term. ``reduction="sum"`` omits the division. A single channel is a binary problem. With ``multilabel``, so is
    each of the channels: :math:`p = \operatorname{sigmoid}(x)`, :math:`g' = (1 - \varepsilon) g + \varepsilon / 2` and,
    for N voxels,

    .. math:: L_{ce} = -\frac1{NC} \sum_i \sum_c \left(
        w_c g'_{ic} \log p_{ic} + (1 - g'_{ic}) \log (1 - p_{ic}) \right).

    A mask multiplies the terms of all sums over voxels, and :math:`N = \sum_i m_i`.

    Args:
        input: x, logits, (B, C, *S) or (B, C).
        target: g, (B, C, *S), or labels (B, 1, *S) with ``to_onehot_y``.
        **options: the fields of :class:`DiceCEOptions`.

    Returns:
        The loss, ().

    Reference: Isensee et al. (2021), Methods, for the sum; :func:`dice_loss` for the Dice term.

    Example:
        >>> x, y = np.log([[[0.75, 0.5], [0.25, 0.5]]]), np.array([[[0, 1]]])  # p = 3/4 and 1/2
        >>> loss = dice_ce_loss(x, y, to_onehot_y=True, lambda_dice=0)
        >>> np.allclose(loss, (np.log(4 / 3) + np.log(2)) / 2)
        True
    """
    o = DiceCEOptions(**options)
    with np.errstate(all="ignore"):
        x = as_volume(input)
        factors, divisor = _factors(input, target, o)
        outcomes = log_probabilities(x, _exclusive(x, o))
        terms = [masked_product(f, log_p) for f, log_p in zip(factors, outcomes, strict=True)]
        ce = -sum(term.sum() for term in terms) / divisor  # ()
        dice = dice_loss(input, target, **only(DiceOptions, o))  # ()
        return np.asarray(o.lambda_dice * dice + o.lambda_ce * ce)


@takes(DiceCEOptions)
def dice_ce_loss_gradient(
    input: Array,
    target: Array,
    *,
    other_act_derivative: Elementwise | None = None,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    r"""Return the gradient of ``cotangent * dice_ce_loss`` with respect to the input.

    For the cross entropy,

    .. math:: \frac{\partial L_{ce}}{\partial \log p_{ic}} = -\frac{w_c g'_{ic}}{\sum w g}, \qquad
        \text{so that } \frac{\partial L_{ce}}{\partial x_{ic}}
        = \frac{p_{ic} \sum_k w_k g'_{ik} - w_c g'_{ic}}{\sum w g}

    by the adjoint of the log-softmax. The gradient of the Dice term is added.

    >>> x, y = np.log([[[0.75, 0.5], [0.25, 0.5]]]), np.array([[[0, 1]]])
    >>> dice_ce_loss_gradient(x, y, to_onehot_y=True, lambda_dice=0) * 2  # p − g
    array([[[-0.25,  0.5 ],
            [ 0.25, -0.5 ]]])
    """
    o = DiceCEOptions(**options)
    with np.errstate(all="ignore"):
        x, u = as_volume(input), np.asarray(cotangent, input.dtype)
        factors, divisor = _factors(input, target, o)
        dl = [-u / divisor * factor for factor in factors]  # (B, C, *S)
        dx = log_probabilities_adjoint(dl, x, _exclusive(x, o))  # (B, C, *S)
        ce = np.where(voxel_weights(input, target, o) != 0, dx, 0).reshape(input.shape)
        options = only(DiceOptions, o) | {"other_act_derivative": other_act_derivative}
        dice = dice_loss_gradient(input, target, cotangent=u, **options)
        return np.asarray(o.lambda_dice * dice + o.lambda_ce * ce)


def _exclusive(x: Array, o: DiceCEOptions) -> bool:
    """Return whether a voxel has exactly one of the classes."""
    return x.shape[1] > 1 and not o.multilabel


def _factors(input: Array, target: Array, o: DiceCEOptions) -> tuple[list[Array], Array]:
    """Return the factors of each log-probability, which contain the mask m, (B, C, *S), and the divisor, ()."""
    x, m = as_volume(input), voxel_weights(input, target, o)
    g = masked_product(m != 0, class_target(input, target, o))  # (B, C, *S)
    w = class_weights(o.weight if o.ce_weight is None else o.ce_weight, x)  # (1, C, 1, …)
    epsilon = np.asarray(o.label_smoothing, x.dtype)
    if _exclusive(x, o):
        smooth = (1 - epsilon) * g + epsilon / x.shape[1]  # g', (B, C, *S)
        factors, divisor = [w * smooth], (w * m * g).sum()
    else:
        smooth = (1 - epsilon) * g + epsilon / 2
        factors, divisor = [w * smooth, 1 - smooth], np.asarray(m.sum() * x.shape[1])
    if o.reduction == "sum" or divisor == 0:  # if no voxel counts, the loss is 0
        divisor = np.ones_like(divisor)
    return [masked_product(m, factor) for factor in factors], divisor
