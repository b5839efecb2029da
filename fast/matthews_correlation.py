"""Matthews correlation loss; the twin of `reference/matthews_correlation.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.loss import ClassWeight, ClassWeightedLoss
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import FN, FP, ROWS, TP, VOLUME
from twinloss.fast.runtime.arguments import checked_flag
from twinloss.fast.runtime.dispatch import widened
from twinloss.fast.runtime.ranks import ProcessGroup
from twinloss.fast.runtime.torch_operator import apply, by_numpy, on_arrays, save


class MatthewsCorrelationLoss(ClassWeightedLoss):
    r"""Matthews correlation loss: one minus the correlation of prediction and target, for each item and class.

    .. math::
        L = 1 - \frac{(TP \cdot TN - FP \cdot FN) / N + \nu}{\sqrt{PQ}}, \quad
        P = \frac{(TP + FP)(TN + FN)}{N} + \delta,\; Q = \frac{(TP + FN)(TN + FP)}{N} + \delta

    .. math::
        TP = \sum_i p_i g_i,\; FP = \sum_i p_i (1 - g_i),\; FN = \sum_i (1 - p_i) g_i,\;
        TN = \sum_i (1 - p_i)(1 - g_i)

    Here p is the prediction, g the target, i the voxel and N the number of voxels (Abhishek & Hamarneh 2021, eqs. 3
    to 5, with smoothing terms added). Unlike the Dice loss, it also counts true negatives. The loss lies between 0, for
    a perfect prediction, and 2, for its opposite. A prediction that does not depend on the target has a loss of 1.

    The smoothing terms are counts of voxels. As δ is added to both factors under the root, a class that is absent from
    the target still has a gradient: the loss is 0 if nothing is predicted, and goes to 1 with the number of false
    positives. With a single δ under the root, as in MONAI's MCCLoss, the loss of such a class is constant.

    Args:
        include_background: if False, channel 0 is excluded from the loss. The softmax still includes it.
        to_onehot_y: the target holds class labels, (B, 1, *S), of any integer or floating-point type.
        sigmoid: p is the sigmoid of the input.
        softmax: p is the softmax of the input over all its channels.
        other_act: p is ``other_act(input)``, with values in [0, 1].
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each item and class, (B, C', 1, …), where C' is
            the number of classes that are not excluded.
        smooth_nr: ν, the smoothing term of the numerator.
        smooth_dr: δ, the smoothing term of both factors of the denominator. If it is 0, the loss of a class that is
            absent from the prediction or constant in the target is not finite.
        batch: sum over all items of the batch before the division. ``"none"`` then gives (1, C', 1, …).
        weight: factor on the loss: a number, or a list with one for each class that is not excluded.
        soft_label: use the sum of min(p, g) as TP, and that of min(1 - p, 1 - g) as TN. The minimum of the loss is then
            at p = g for soft targets, too.
        ignore_index: see TverskyLoss. Voxels that it excludes are no true negatives.
        process_group: see DiceLoss.
        return_parts: see DiceLoss.

    Shape:
        input (B, C, *S); target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``. Any number of spatial axes is allowed,
        including none.

    Raises:
        TypeError: if ``other_act`` is neither None nor callable, or if the input is not a floating-point tensor.
        ValueError: if more than one of ``sigmoid``, ``softmax`` and ``other_act`` is given; if the reduction is
            unknown; if weights are negative, NaN or not one for each class; if a label is not a class; if the input is
            empty.
        AssertionError: if the shapes of input and target do not match. The error is also a ValueError.

    Warns:
        UserWarning: about the values of the target, as in DiceLoss.

    Reference:
        Abhishek, K. and Hamarneh, G. (2021) Matthews correlation coefficient loss for deep convolutional networks:
        application to skin lesion segmentation, ISBI (arXiv:2010.13454).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> MatthewsCorrelationLoss(softmax=True, to_onehot_y=True)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0007)
    """

    option_checks: ClassVar = {**ClassWeightedLoss.option_checks, "soft_label": checked_flag}

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        *,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch,
            ignore_index, process_group, return_parts,
        )  # fmt: skip
        self.weight = weight
        self.soft_label = soft_label

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        voxels, activation = self.voxels(input, target, mask), self.activation(input)
        sums = voxels.sums(activation, overlap="minimum" if self.soft_label else "product")
        roundoff, first = torch.finfo(widened(input).dtype).eps / 2, 0 if voxels.background else 1
        asked = _Asked(self.smooth_nr, self.smooth_dr, first, self.batch, roundoff)
        losses = self.by_class(_correlation(sums.stack, self._counts(voxels), asked), voxels)
        return self.answer(losses, losses, input)

    def _counts(self, voxels: Voxels) -> Tensor:
        """Return the number of voxels, or the sum of the mask, of each item or of all, (B or 1, 1); 1 if it is 0."""
        counts = voxels.counts().unsqueeze(1)
        counts = counts.sum(0, keepdim=True) if self.batch else counts
        return torch.where(counts > 0, counts, 1)


class _Asked(NamedTuple):
    """The constants of the formula.

    Attributes:
        smooth_nr: ν.
        smooth_dr: δ.
        first: the first class that is included.
        batch: whether the items are pooled.
        roundoff: the unit roundoff of the computation.
    """

    smooth_nr: float
    smooth_dr: float
    first: int
    batch: bool
    roundoff: float


class _Parts(NamedTuple):
    """The parts of the formula by item and class, (B or 1, C'), as arrays or tensors.

    a = tp + fp, b = tn + fn, g = tp + fn and h = tn + fp. The numerator is r, the two factors under the root are p and
    q, and the root is d.
    """

    tp: Any
    fp: Any
    fn: Any
    tn: Any
    a: Any
    b: Any
    g: Any
    h: Any
    r: Any
    p: Any
    q: Any
    d: Any


def _included(stack: Any, asked: _Asked) -> Any:
    """Return the statistics of the included classes, (ROWS, B or 1, C')."""
    rows = stack[:, :, asked.first :] if asked.first else stack  # torch cannot vmap a slice of everything
    return rows.sum(axis=1, keepdims=True) if asked.batch else rows


def _parts(stack: Any, counts: Any, asked: _Asked) -> _Parts:
    xp: Any = np if isinstance(stack, np.ndarray) else torch
    rows = _included(stack, asked)
    tp, fp, fn, g = (rows[row] for row in (TP, FP, FN, VOLUME))
    h = counts - g
    # FP is rounded, so h - fp cannot resolve a smaller TN, which could make the slope of the root far too large.
    tn = xp.maximum(h - fp, asked.roundoff * fp)
    a, b = tp + fp, tn + fn
    p, q = a * b / counts + asked.smooth_dr, g * h / counts + asked.smooth_dr
    r = (tp * tn - fp * fn) / counts + asked.smooth_nr
    return _Parts(tp, fp, fn, tn, a, b, g, h, r, p, q, xp.sqrt(p * q))


def _value(stack: Any, counts: Any, asked: _Asked) -> Any:
    """Return 1 - r/d, computed as (d² - r²) / (d (d + r)) if r is positive, because a small 1 - r/d loses digits.

    With tp tn = N a, fp fn = N b, e = (tp fn + fp tn)/N and f = (tp fp + fn tn)/N, the product p q is
    (a + b + e + δ)(a + b + f + δ), and r = a - b + ν. In d² - r², the terms a² and b² drop out.
    """
    xp: Any = np if isinstance(stack, np.ndarray) else torch
    m = _parts(stack, counts, asked)
    nu, delta = asked.smooth_nr, asked.smooth_dr
    a, b = m.tp * m.tn / counts, m.fp * m.fn / counts
    e, f = (m.tp * m.fn + m.fp * m.tn) / counts, (m.tp * m.fp + m.fn * m.tn) / counts
    squares = 4 * a * b + (a + b + delta) * (e + f) + e * f + (delta - nu) * (2 * a + delta + nu) + 2 * (delta + nu) * b
    return xp.where(m.r > 0, squares / (m.d * (m.d + m.r)), 1 - m.r / m.d)


def _slopes(stack: Any, counts: Any, asked: _Asked) -> dict[int, Any]:
    """Return the slopes in TP, FP and the volume, (B or 1, C').

    FN and TN are not independent of these: FN is the volume minus TP, and TN is N minus the volume minus FP.
    """
    m = _parts(stack, counts, asked)
    divisor = counts * m.d
    by_prediction, by_target = m.r * (m.b - m.a) / (2 * m.p), m.r * (m.h - m.g) / (2 * m.q)
    return {
        TP: (by_prediction - m.h) / divisor,
        FP: (by_prediction + m.g) / divisor,
        VOLUME: (by_target + m.a) / divisor,
    }


def _slope_in_counts(stack: Tensor, counts: Tensor, asked: _Asked) -> Tensor:
    """Return the slope in N, (B or 1, C'), for the gradient of a mask; if N rises, TN rises by as much."""
    m = _parts(stack, counts, asked)
    in_r = m.tp - (m.r - asked.smooth_nr)
    in_p, in_q = m.a - (m.p - asked.smooth_dr), m.g - (m.q - asked.smooth_dr)
    made: Tensor = (m.r / 2 * (in_p / m.p + in_q / m.q) - in_r) / (counts * m.d)
    return made


# NumPy takes a fifth of the time of torch's operators.
_value_by_numpy = on_arrays(_value)


@on_arrays
def _gradient_by_numpy(upstream: Any, stack: Any, counts: Any, asked: _Asked) -> Any:
    made = np.zeros_like(stack)
    for row, slope in _slopes(stack, counts, asked).items():
        made[row, :, asked.first :] = upstream * slope
    return made


def _gradient_by_torch(upstream: Tensor, stack: Tensor, counts: Tensor, asked: _Asked) -> Tensor:
    slopes, zero = _slopes(stack, counts, asked), torch.zeros_like(upstream)
    rows = torch.stack([upstream * slopes[row] if row in slopes else zero for row in range(len(ROWS))])
    return torch.nn.functional.pad(rows.expand(-1, stack.shape[1], -1), (asked.first, 0))


class _Correlation(torch.autograd.Function):
    """Compute the loss of each item and class from the statistics, and its gradient without cancellation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(stack: Tensor, counts: Tensor, asked: _Asked) -> Tensor:
        made: Tensor = (_value_by_numpy if by_numpy(stack) else _value)(stack, counts, asked)
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.asked = inputs
        save(ctx, *tensors)

    @staticmethod
    def along(ctx: Any, *tangents: Any) -> Tensor:
        """Return the directional derivative along a tangent of the statistics."""
        stack, counts = ctx.saved_tensors
        slopes, made = _slopes(stack, counts, ctx.asked), torch.zeros_like(_included(stack, ctx.asked)[TP])
        if tangents[0] is not None:
            rows = _included(tangents[0], ctx.asked)
            made = made + sum(slope * rows[row] for row, slope in slopes.items())
        if tangents[1] is not None:
            made = made + tangents[1] * _slope_in_counts(stack, counts, ctx.asked)
        return made

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, (stack, counts) = (
            _gradient_by_numpy if by_numpy(upstream[0]) else _gradient_by_torch,
            ctx.saved_tensors,
        )
        of_counts = None
        if ctx.needs_input_grad[1]:
            slopes = upstream[0] * _slope_in_counts(stack, counts, ctx.asked)
            of_counts = slopes.sum(1, keepdim=True)
        return gradient(upstream[0], stack, counts, ctx.asked), of_counts, None


_correlation = apply(_Correlation)
