"""The terms of the statistics of a segmentation, and their slopes: probabilities, overlaps and surprisals.

Values by voxel have the shape (voxels,), the others (classes, voxels).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import log1p
from twinloss.fast.kernels.gpu.compiled.rows import OF_FP, OF_HIT, OF_HITS, OF_MISSES, OF_TP
from twinloss.fast.kernels.gpu.compiled.voxel_chunk import EXCLUDED, MINIMUM, NONE, PRODUCT, SQUARED


class Probabilities(NamedTuple):
    """The probabilities of classes.

    Attributes:
        p: the probability, which is 0 in excluded voxels.
        q: 1 - p.
        surprisal: -log p.
    """

    p: Any
    q: Any
    surprisal: Any


class Slopes(NamedTuple):
    """The slopes of the loss in the statistics, see `rows.py`; 0 for a statistic that is not needed."""

    tp: Any
    fp: Any
    hit: Any
    hits: Any
    misses: Any


# --- probabilities ----------------------------------------------------------------------------------------------------


@triton.jit
def sigmoid(x, y):
    """Return the probabilities, and the surprisal -log q."""
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    tail = log1p(e)
    above = x > 0
    p = tl.where((y == EXCLUDED)[None, :], 0.0, tl.where(above, large, small))
    q = tl.where(above, small, large)
    return Probabilities(p, q, tl.where(above, tail, tail - x)), tl.where(above, tail + x, tail)


@triton.jit
def softmax(x, y, c):
    """Return the probabilities, and which class is the largest.

    q of the largest class is the sum of the other exponentials, and the surprisal is log(1 + that sum) + (largest - x),
    so that nothing cancels. Classes beyond the last one have the logit -inf.
    """
    top = tl.max(x, 0)
    first = tl.min(tl.where(x == top[None, :], c[:, None], 2147483647), 0)
    largest = c[:, None] == first[None, :]
    e = tl.exp(x - top[None, :])
    # The last difference is 0, or NaN where the largest logit is infinite, so that the softmax is NaN.
    rest = tl.sum(tl.where(largest, 0.0, e), 0) + (top - top)
    scale = tl.where(y == EXCLUDED, 0.0, 1.0 / (1.0 + rest))
    p = e * scale[None, :]
    q = tl.where(largest, (rest * scale)[None, :], 1.0 - p)
    return Probabilities(p, q, log1p(rest)[None, :] + (top[None, :] - x)), largest


@triton.jit
def softmax_of_labels(x, y, own):
    """Return p of all classes but the true one, which gets 0; and the probabilities of the true class.

    q is the sum of the other exponentials. If the true class is not the largest, -log p is at least log 2, so that the
    difference in its sum of exponentials does no harm.
    """
    top = tl.max(x, 0)
    e = tl.exp(x - top[None, :])
    e_others = tl.where(own, 0.0, e)
    others, e_own = tl.sum(e_others, 0), tl.sum(tl.where(own, e, 0.0), 0)
    scale = tl.where(y == EXCLUDED, 0.0, 1.0 / (others + e_own))
    rest = tl.where(e_own == 1.0, others, (others - 1.0) + e_own)
    surprisal = log1p(rest) + (top - tl.sum(tl.where(own, x, 0.0), 0))
    return e_others * scale[None, :], Probabilities(e_own * scale, others * scale, surprisal)


# --- overlaps ---------------------------------------------------------------------------------------------------------


@triton.jit
def _difference(p, q, g):
    """Return p - g, computed from q = 1 - p where that is the smaller number and so more accurate."""
    return tl.where(p > 0.5, (1.0 - g) - q, p - g)


@triton.jit
def confusion(of, g, weight, KIND: tl.constexpr):
    """Return the terms of true positives, false positives and false negatives, given probabilities and the target."""
    p, q = of.p, of.q
    d = _difference(p, q, g)
    if KIND.masked:
        w = weight[None, :]
        p, q, g, d = w * p, (1.0 - w) + w * q, w * g, w * d
    if KIND.overlap == PRODUCT:
        return p * g, p * (1.0 - g), g * q
    excess, lack = tl.where(d < 0, 0.0, d), tl.where(d > 0, 0.0, -d)
    if KIND.overlap == MINIMUM:
        return tl.where(d < 0, p, g), excess, lack
    return p * g, excess * excess, lack * lack


@triton.jit
def confusion_slope(slopes, of, tile, weight, KIND: tl.constexpr):
    """Return dL/dp, given dL/dTP, dL/dFP, and hit = dL/dTP - dL/dFN, or for squared overlaps dL/dTP - 2 dL/dFN."""
    p, target, fp, hit = of.p, tile.g, slopes.fp, slopes.hit
    if KIND.labels and not KIND.masked and KIND.overlap == PRODUCT:
        return tl.where(tile.own, hit, fp)
    d = _difference(p, of.q, target)
    if KIND.masked:
        target, d = weight[None, :] * target, weight[None, :] * d
    if KIND.overlap == PRODUCT:
        slope = (1.0 - target) * fp + target * hit
    elif KIND.overlap == MINIMUM:
        slope = tl.where(d < 0, hit, tl.where(d > 0, fp, 0.5 * (hit + fp)))
    else:
        # Both are the same value. With a large ν, the terms of the first would cancel.
        tp, prediction = slopes.tp, weight[None, :] * p
        slope = tl.where(tl.abs(tp) <= tl.abs(hit), target * tp + 2.0 * d * fp, target * hit + 2.0 * prediction * fp)
    if KIND.masked:  # not a product: the slope of an empty denominator is infinite
        slope = tl.where((weight == 0)[None, :], 0.0, slope * weight[None, :])
    return slope


# --- surprisals -------------------------------------------------------------------------------------------------------


@triton.jit
def weighed(weight, term):
    """Return the product, or 0 where the weight is 0, even if the term is infinite or NaN there."""
    return tl.where(weight == 0, 0.0, weight * term)


@triton.jit
def focused(surprisal, q, gamma, FOCUS: tl.constexpr):
    """Return q^γ times a surprisal; FOCUS is γ if that is 0, 1 or 2, and 3 for any other."""
    if FOCUS == 1:
        surprisal = surprisal * q
    elif FOCUS == 2:
        surprisal = surprisal * (q * q)
    elif FOCUS == 3:
        surprisal = surprisal * tl.exp(gamma * tl.log(q))
    return surprisal


@triton.jit
def focused_slope(surprisal, p, q, gamma, FOCUS: tl.constexpr):
    """Return p d/dp of (1 - p)^γ (-log p), which is -q^γ (1 + γ p (-log p) / q), with its limits at p = 0 and p = 1."""
    if FOCUS == 0:
        return tl.zeros_like(surprisal) - 1.0
    ratio = tl.where(q > 0, surprisal / tl.where(q > 0, q, 1.0), 1.0)
    slope = -(1.0 + tl.where(p > 0, gamma * (p * ratio), 0.0))
    return focused(slope, q, gamma, FOCUS)


@triton.jit
def surprisal_slope(slopes, of, g, weight, gamma, FOCUS: tl.constexpr):
    """Return p dL/dp from the surprisals of all classes."""
    of_target = g * slopes.hits * focused_slope(of.surprisal, of.p, of.q, gamma, FOCUS)
    return weighed(weight[None, :], of_target - slopes.misses)


# --- slopes in the statistics -----------------------------------------------------------------------------------------


@triton.jit
def slope_of(slopes_ptr, row: tl.constexpr, c, KIND: tl.constexpr):
    """Return one of the slopes for the classes c, of any shape, of this program's item."""
    at = (row * tl.num_programs(1) + tl.program_id(1).to(tl.int64)) * KIND.classes + c
    return tl.load(slopes_ptr + at, c < KIND.classes, 0.0)


@triton.jit
def slopes_of(slopes_ptr, c, KIND: tl.constexpr):
    """Return the slopes of overlaps if there are any, and of the surprisals of all classes."""
    tp, fp, hit, hits, misses = 0.0, 0.0, 0.0, 0.0, 0.0
    if KIND.overlap != NONE:
        fp, hit = slope_of(slopes_ptr, OF_FP, c, KIND), slope_of(slopes_ptr, OF_HIT, c, KIND)
        if KIND.overlap == SQUARED:
            tp = slope_of(slopes_ptr, OF_TP, c, KIND)
    if KIND.surprisal != NONE:
        hits, misses = slope_of(slopes_ptr, OF_HITS, c, KIND), slope_of(slopes_ptr, OF_MISSES, c, KIND)
    return Slopes(tp, fp, hit, hits, misses)
