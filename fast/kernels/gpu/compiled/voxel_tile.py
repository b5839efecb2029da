"""A tile of voxels of a segmentation: reading, probabilities, and the terms of the statistics with their slopes.

A tile is a block of classes by voxels. Values by voxel have the shape (voxels,), the others (classes, voxels).
"""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import log1p

IDENTITY, SIGMOID, SOFTMAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NONE, PRODUCT, MINIMUM, SQUARED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
TARGET, ALL = tl.constexpr(1), tl.constexpr(2)

# In place of the class: the voxel takes no part, or its label is no class or its mask lies outside [0, 1].
EXCLUDED, INVALID = tl.constexpr(-1), tl.constexpr(-2)
LOWEST = tl.constexpr(float("-inf"))


# --- reading ----------------------------------------------------------------------------------------------------------


@triton.jit
def offsets_of(c, k, by_class, step: tl.constexpr, EACH: tl.constexpr):
    """Return where voxels k of classes c lie in memory; a thread takes EACH neighbours at a time, if they are any."""
    offsets = c.to(tl.int64)[:, None] * by_class + (k * step)[None, :]
    if step == 1:  # otherwise the compiler would spread a voxel's classes over threads, to load more neighbours at once
        offsets = tl.max_contiguous(offsets, [1, EACH])
    return offsets


@triton.jit
def read_voxels(
    y_ptr, mask_ptr, k, inside, channel, y_step: tl.constexpr, mask_step: tl.constexpr,
    CLASSES: tl.constexpr, LABELS: tl.constexpr, IGNORE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Return the class of each voxel k, or 0 for a dense target, or EXCLUDED or INVALID; and its weight.

    `channel` is the offset of the channel of a dense target that is 1 in voxels to exclude, if IGNORE is its number.
    """
    if LABELS:
        y = _labels(tl.load(y_ptr + k * y_step, inside, 0), CLASSES, IGNORE)
    else:
        y = tl.zeros_like(k)
        if IGNORE is not None:
            g = tl.load(y_ptr + channel + k * y_step, inside, 0).to(REAL)
            y = tl.where(g == (IGNORE if CLASSES == 1 else 1), EXCLUDED, y)
    y = tl.where(inside, y, EXCLUDED)
    weight = (y != EXCLUDED).to(REAL)
    if mask_ptr is not None:
        m = tl.load(mask_ptr + k * mask_step, inside, 0).to(REAL)
        y = tl.where((m == 0) & (y >= 0), EXCLUDED, y)
        valid = (m >= 0) & (m <= 1)
        y = tl.where(valid | (y == EXCLUDED), y, INVALID)
        weight = tl.where(y == EXCLUDED, 0.0, tl.where(y == INVALID, float("nan"), m))
    return y, weight


@triton.jit
def _labels(y, CLASSES: tl.constexpr, IGNORE: tl.constexpr):
    if y.dtype.is_floating():
        if y.dtype != tl.float64:
            y = y.to(tl.float32)
    elif y.dtype.primitive_bitwidth < 32:
        y = y.to(tl.int32)
    known = (y >= 0) & (y < CLASSES)
    label = tl.where(known, y, 0).to(tl.int32)
    if y.dtype.is_floating():
        known = known & (label.to(y.dtype) == y)
    label = tl.where(known, label, INVALID)
    if IGNORE is not None:
        label = tl.where(y == IGNORE, EXCLUDED, label)
    return label


@triton.jit
def read_logits(x_ptr, offsets, there, y, REAL: tl.constexpr):
    """Return the logits, 0 in excluded voxels and NaN in invalid ones, whatever they hold."""
    # The mask of the load hangs on the place alone: one that hangs on labels would cost the loads of 16 bytes.
    x = tl.load(x_ptr + offsets, there, 0.0).to(REAL)
    return tl.where((y >= 0)[None, :], x, tl.where(y == INVALID, float("nan"), 0.0)[None, :])


@triton.jit
def read_target(y_ptr, offsets, there, y, c, x, LABELS: tl.constexpr, REAL: tl.constexpr):
    """Return the target of each class, and whether the label names it."""
    # The second condition always holds, and costs nothing. It lets the compiler compare in the threads that hold x.
    own = (c[:, None] == y[None, :]) & ((x == x) | (x != x))
    if LABELS:
        return own.to(REAL), own
    g = tl.load(y_ptr + offsets, there, 0).to(REAL)
    return tl.where((y >= 0)[None, :], g, 0.0), own


# --- probabilities ----------------------------------------------------------------------------------------------------


@triton.jit
def sigmoid(x, y):
    """Return p and q = 1 - p, where p = 0 in excluded voxels, and the surprisals -log p and -log q."""
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    tail = log1p(e)
    above = x > 0
    p = tl.where((y == EXCLUDED)[None, :], 0.0, tl.where(above, large, small))
    q = tl.where(above, small, large)
    return p, q, tl.where(above, tail, tail - x), tl.where(above, tail + x, tail)


@triton.jit
def softmax(x, y, c):
    """Return p and q = 1 - p, where p = 0 in excluded voxels, the surprisals -log p, and which class is the largest.

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
    return p, q, log1p(rest)[None, :] + (top[None, :] - x), largest


@triton.jit
def softmax_of_labels(x, y, own):
    """Return p of all classes but the true one, which gets 0; and p, q and -log p of the true class.

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
    return e_others * scale[None, :], e_own * scale, others * scale, surprisal


# --- terms of the statistics ------------------------------------------------------------------------------------------


@triton.jit
def _difference(p, q, g):
    """Return p - g, computed from q = 1 - p where that is the smaller number and so more accurate."""
    return tl.where(p > 0.5, (1.0 - g) - q, p - g)


@triton.jit
def confusion(p, q, g, weight, OVERLAP: tl.constexpr, MASKED: tl.constexpr):
    """Return the terms of true positives, false positives and false negatives."""
    d = _difference(p, q, g)
    if MASKED:
        w = weight[None, :]
        p, q, g, d = w * p, (1.0 - w) + w * q, w * g, w * d
    if OVERLAP == PRODUCT:
        return p * g, p * (1.0 - g), g * q
    excess, lack = tl.where(d < 0, 0.0, d), tl.where(d > 0, 0.0, -d)
    if OVERLAP == MINIMUM:
        return tl.where(d < 0, p, g), excess, lack
    return p * g, excess * excess, lack * lack


@triton.jit
def confusion_slope(p, q, g, weight, tp, fp, hit, OVERLAP: tl.constexpr, MASKED: tl.constexpr):
    """Return dL/dp, given dL/dTP, dL/dFP, and hit = dL/dTP - dL/dFN, or for squared overlaps dL/dTP - 2 dL/dFN."""
    target = g
    d = _difference(p, q, g)
    if MASKED:
        target, d = weight[None, :] * g, weight[None, :] * d
    if OVERLAP == PRODUCT:
        slope = (1.0 - target) * fp + target * hit
    elif OVERLAP == MINIMUM:
        slope = tl.where(d < 0, hit, tl.where(d > 0, fp, 0.5 * (hit + fp)))
    else:
        # Both are the same value. With a large ν, the terms of the first would cancel.
        prediction = weight[None, :] * p
        slope = tl.where(tl.abs(tp) <= tl.abs(hit), target * tp + 2.0 * d * fp, target * hit + 2.0 * prediction * fp)
    if MASKED:  # not a product: the slope of an empty denominator is infinite
        slope = tl.where((weight == 0)[None, :], 0.0, slope * weight[None, :])
    return slope


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
