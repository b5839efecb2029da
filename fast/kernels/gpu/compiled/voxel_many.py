"""The statistics of a softmax of any number of classes, and their gradient.

A program takes one tile of voxels, and loops over a few classes at a time. It reads the logits once for the largest one
and the sum of the exponentials, and again for what depends on these; the caches hold them in between. Grid: chunks,
items.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import log1p, store
from twinloss.fast.kernels.gpu.compiled.rows import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    OF_DISTANCE,
    OF_FP,
    OF_HIT,
    OF_HITS,
    OF_MISSES,
    OF_TP,
    ROWS,
    STRETCH,
    TP,
    VOLUME,
)
from twinloss.fast.kernels.gpu.compiled.voxel import put
from twinloss.fast.kernels.gpu.compiled.voxel_tile import (
    ALL,
    EXCLUDED,
    INVALID,
    LOWEST,
    NONE,
    PRODUCT,
    SQUARED,
    confusion,
    confusion_slope,
    focused,
    focused_slope,
    offsets_of,
    read_logits,
    read_target,
    read_voxels,
    weighed,
)


@triton.jit
def _logits(
    x_ptr, c, k, inside, y, x_class, x_step: tl.constexpr, CLASSES: tl.constexpr, REAL: tl.constexpr, EACH: tl.constexpr
):
    """Return the logits of some classes, -inf beyond the last one."""
    offsets = offsets_of(c, k, x_class, x_step, EACH)
    there = (c < CLASSES)[:, None]
    return tl.where(there, read_logits(x_ptr, offsets, there & inside[None, :], y, REAL), LOWEST)


@triton.jit
def _denominator(
    x_ptr, k, inside, y, x_class, x_step: tl.constexpr,
    CLASSES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Return the largest logit, its class, the sum of the other exponentials, and the logit of the true class."""
    top = tl.full((BLOCK,), LOWEST, REAL)
    first = tl.zeros((BLOCK,), tl.int32)
    rest, x_own = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    for start in range(0, CLASSES, WIDTH):
        c = start + tl.arange(0, WIDTH)
        x = _logits(x_ptr, c, k, inside, y, x_class, x_step, CLASSES, REAL, EACH)
        here = tl.max(x, 0)
        number = tl.min(tl.where(x == here[None, :], c[:, None], 2147483647), 0)
        newer = here > top
        higher = tl.where(newer, here, top)
        excluded = (x == LOWEST) | (newer[None, :] & (c[:, None] == number[None, :]))
        added = tl.sum(tl.where(excluded, 0.0, tl.exp(x - higher[None, :])), 0)
        # The exponential of the largest logit so far was 1, and becomes one of the others.
        rest = tl.where(newer, (1.0 + rest) * tl.exp(top - higher), rest) + added
        top, first = higher, tl.where(newer, number, first)
        x_own += tl.sum(tl.where(c[:, None] == y[None, :], x, 0.0), 0)
    # The last difference is 0, or NaN where the largest logit is infinite, so that the softmax is NaN.
    return top, first, rest + (top - top), x_own


@triton.jit
def _probabilities(x, c, top, first, rest, scale):
    """Return p, q = 1 - p and -log p of some classes, and which of them is the largest."""
    largest = c == first[None, :]
    p = tl.exp(x - top[None, :]) * scale[None, :]
    return p, tl.where(largest, (rest * scale)[None, :], 1.0 - p), log1p(rest)[None, :] + (top[None, :] - x), largest


@triton.jit
def _of_own(y, first, top, rest, scale, x_own):
    """Return p, q and -log p of the true class."""
    p = tl.exp(x_own - top) * scale
    return p, tl.where(first == y, rest * scale, 1.0 - p), log1p(rest) + (top - x_own)


@triton.jit
def sums_of_many(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, part_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item,
    x_step: tl.constexpr, y_step: tl.constexpr, mask_step: tl.constexpr,
    CLASSES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr,
    LABELS: tl.constexpr, IGNORE: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAP: tl.constexpr,
    SURPRISAL: tl.constexpr, FOCUS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Do what `sums` does, with PADDED classes at a time."""
    MASKED: tl.constexpr = mask_ptr is not None
    chunk, item = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    gamma = tl.full((), gamma, tl.float64).to(REAL)
    start = chunk * per_program
    x_ptr += item * x_item + start * x_step
    y_ptr += item * y_item + start * y_step
    if MASKED:
        mask_ptr += item * mask_item + start * mask_step
    channel = 0
    if IGNORE is not None and not LABELS:
        channel = tl.full((), y_class, tl.int64) * IGNORE
    k = tl.arange(0, BLOCK)
    inside = k < N - start
    y, weight = read_voxels(y_ptr, mask_ptr, k, inside, channel, y_step, mask_step, CLASSES, LABELS, IGNORE, REAL)
    top, first, rest, x_own = _denominator(x_ptr, k, inside, y, x_class, x_step, CLASSES, PADDED, BLOCK, REAL, EACH)
    scale = tl.where(y == EXCLUDED, 0.0, 1.0 / (1.0 + rest))
    _, q_own, of_own = _of_own(y, first, top, rest, scale, x_own)
    hit = weighed(weight, focused(of_own, q_own, gamma, FOCUS))
    far, near = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    w = weight[None, :]
    nan = tl.where(y == INVALID, float("nan"), 0.0)[None, :]  # in all classes
    part_ptr += (item * tl.num_programs(0) + chunk) * ROWS * CLASSES
    for lowest in range(0, CLASSES, PADDED):
        c = lowest + tl.arange(0, PADDED)
        there = (c < CLASSES)[:, None]
        x = _logits(x_ptr, c, k, inside, y, x_class, x_step, CLASSES, REAL, EACH)
        offsets = offsets_of(c, k, y_class, y_step, EACH)
        g, own = read_target(y_ptr, offsets, there & inside[None, :], y, c, x, LABELS, REAL)
        p, q, surprisal = _probabilities(x, c[:, None], top, first, rest, scale)[:3]
        if OVERLAP != NONE:
            tp, fp, fn = confusion(p, q, g, weight, OVERLAP, MASKED)
            put(part_ptr, TP, tp + nan, c, CLASSES)
            put(part_ptr, FP, fp + nan, c, CLASSES)
            put(part_ptr, FN, fn + nan, c, CLASSES)
        if SURPRISAL != NONE:
            if LABELS:
                put(part_ptr, HITS, tl.where(own, hit[None, :], 0.0) + nan, c, CLASSES)
            else:
                put(part_ptr, HITS, weighed(w * g, focused(surprisal, q, gamma, FOCUS)), c, CLASSES)
            put(part_ptr, MISSES, weighed(w if SURPRISAL == ALL else w * 0.0, surprisal), c, CLASSES)
        if matrix_ptr is not None:
            m = tl.load(matrix_ptr + tl.maximum(y, 0)[None, :] * CLASSES + c[:, None], there, 0.0).to(REAL)
            far += tl.sum(m * p, 0)
            near += tl.sum((1.0 - m) * p, 0)
        put(part_ptr, VOLUME, w * g, c, CLASSES)
    if matrix_ptr is not None:
        for lowest in range(0, CLASSES, PADDED):
            c = lowest + tl.arange(0, PADDED)
            own = c[:, None] == y[None, :]
            put(part_ptr, DISTANCE, tl.where(own, (far * weight)[None, :], 0.0) + nan, c, CLASSES)
            put(part_ptr, NEARNESS, tl.where(own, (near * weight)[None, :], 0.0) + nan, c, CLASSES)


@triton.jit
def _slope(slopes_ptr, row: tl.constexpr, c, CLASSES: tl.constexpr):
    """Return the slopes of some classes, of any shape."""
    at = (row * tl.num_programs(1) + tl.program_id(1).to(tl.int64)) * CLASSES + c
    return tl.load(slopes_ptr + at, c < CLASSES, 0.0)


@triton.jit
def _slopes_of(
    slopes_ptr, matrix_ptr, c, y, own, p, q, g, surprisal, weight, far, gamma,
    CLASSES: tl.constexpr, LABELS: tl.constexpr, MASKED: tl.constexpr, OVERLAP: tl.constexpr, BY_CLASS: tl.constexpr,
    FOCUS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Return dL/dp of some classes from overlaps and distances, and p dL/dp from the surprisals if BY_CLASS.

    c has the shape (classes, 1), or (1, voxels) for one class of each voxel.
    """
    h, u = 0.0 * p, 0.0 * p
    if OVERLAP != NONE:
        fp, hit = _slope(slopes_ptr, OF_FP, c, CLASSES), _slope(slopes_ptr, OF_HIT, c, CLASSES)
        if LABELS and not MASKED and OVERLAP == PRODUCT:
            h = tl.where(own, hit, fp)
        else:
            tp = _slope(slopes_ptr, OF_TP, c, CLASSES) if OVERLAP == SQUARED else hit
            h = confusion_slope(p, q, g, weight, tp, fp, hit, OVERLAP, MASKED)
    if matrix_ptr is not None:
        m = tl.load(matrix_ptr + tl.maximum(y, 0)[None, :] * CLASSES + c, c < CLASSES, 0.0).to(REAL)
        h += m * far[None, :]
    if BY_CLASS:
        hits, misses = _slope(slopes_ptr, OF_HITS, c, CLASSES), _slope(slopes_ptr, OF_MISSES, c, CLASSES)
        u = weighed(weight[None, :], g * hits * focused_slope(surprisal, p, q, gamma, FOCUS) - misses)
    return h, u


@triton.jit
def _slopes_of_first(
    slopes_ptr, matrix_ptr, y_ptr, first, k, inside, y, y_class, y_step: tl.constexpr, top, rest, scale, weight, far,
    gamma, CLASSES: tl.constexpr, LABELS: tl.constexpr, MASKED: tl.constexpr, OVERLAP: tl.constexpr,
    BY_CLASS: tl.constexpr, FOCUS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Return what `_slopes_of` returns, for the largest class of each voxel."""
    own = first == y
    g = own.to(REAL)
    if not LABELS:
        offsets = first.to(tl.int64) * y_class + k * y_step
        g = tl.where(y >= 0, tl.load(y_ptr + offsets, inside, 0).to(REAL), 0.0)
    c = first[None, :]
    p, q, surprisal, _ = _probabilities(top[None, :], c, top, first, rest, scale)
    return _slopes_of(
        slopes_ptr, matrix_ptr, c, y, own[None, :], p, q, g[None, :], surprisal, weight, far, gamma, CLASSES, LABELS,
        MASKED, OVERLAP, BY_CLASS, FOCUS, REAL,
    )  # fmt: skip


@triton.jit
def slopes_of_many(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, slopes_ptr, factor_ptr, out_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item, out_item, out_class,
    x_step: tl.constexpr, y_step: tl.constexpr, mask_step: tl.constexpr, out_step: tl.constexpr,
    CLASSES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr,
    LABELS: tl.constexpr, IGNORE: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAP: tl.constexpr,
    SURPRISAL: tl.constexpr, FOCUS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Do what `slopes` does, with PADDED classes at a time."""
    MASKED: tl.constexpr = mask_ptr is not None
    DISTANT: tl.constexpr = matrix_ptr is not None
    OF_CLASSES: tl.constexpr = OVERLAP != NONE or DISTANT
    BY_CLASS: tl.constexpr = SURPRISAL != NONE and (not LABELS or SURPRISAL == ALL)
    chunk, item = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    gamma = tl.full((), gamma, tl.float64).to(REAL)
    start = chunk * per_program
    x_ptr += item * x_item + start * x_step
    y_ptr += item * y_item + start * y_step
    out_ptr += item * out_item + start * out_step
    if MASKED:
        mask_ptr += item * mask_item + start * mask_step
    channel = 0
    if IGNORE is not None and not LABELS:
        channel = tl.full((), y_class, tl.int64) * IGNORE
    k = tl.arange(0, BLOCK)
    inside = k < N - start
    y, weight = read_voxels(y_ptr, mask_ptr, k, inside, channel, y_step, mask_step, CLASSES, LABELS, IGNORE, REAL)
    top, first, rest, x_own = _denominator(x_ptr, k, inside, y, x_class, x_step, CLASSES, PADDED, BLOCK, REAL, EACH)
    scale = tl.where(y == EXCLUDED, 0.0, 1.0 / (1.0 + rest))
    far, u_own = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    if DISTANT:
        far = weighed(weight, _slope(slopes_ptr, OF_DISTANCE, tl.maximum(y, 0), CLASSES))
    if SURPRISAL != NONE and not BY_CLASS:
        p_own, q_own, of_own = _of_own(y, first, top, rest, scale, x_own)
        hits = _slope(slopes_ptr, OF_HITS, tl.maximum(y, 0), CLASSES)
        u_own = weighed(weight, hits * focused_slope(of_own, p_own, q_own, gamma, FOCUS))

    # The sums over classes relative to the slope of the largest one hold small p alone, so that nothing cancels.
    h_first, u_first = tl.zeros((1, BLOCK), REAL), tl.zeros((1, BLOCK), REAL)
    mean, others = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    if OF_CLASSES or BY_CLASS:
        h_first, u_first = _slopes_of_first(
            slopes_ptr, matrix_ptr, y_ptr, first, k, inside, y, y_class, y_step, top, rest, scale, weight, far, gamma,
            CLASSES, LABELS, MASKED, OVERLAP, BY_CLASS, FOCUS, REAL,
        )  # fmt: skip
        for lowest in range(0, CLASSES, PADDED):
            c = lowest + tl.arange(0, PADDED)
            there = (c < CLASSES)[:, None]
            x = _logits(x_ptr, c, k, inside, y, x_class, x_step, CLASSES, REAL, EACH)
            offsets = offsets_of(c, k, y_class, y_step, EACH)
            g, own = read_target(y_ptr, offsets, there & inside[None, :], y, c, x, LABELS, REAL)
            p, q, surprisal, largest = _probabilities(x, c[:, None], top, first, rest, scale)
            h, u = _slopes_of(
                slopes_ptr, matrix_ptr, c[:, None], y, own, p, q, g, surprisal, weight, far, gamma, CLASSES, LABELS,
                MASKED, OVERLAP, BY_CLASS, FOCUS, REAL,
            )  # fmt: skip
            counted = there & (c[:, None] != first[None, :])
            mean += tl.sum(tl.where(counted, p * (h - h_first), 0.0), 0)
            others += tl.sum(tl.where(counted, u, 0.0), 0)

    stretch = tl.load(slopes_ptr + (STRETCH * tl.num_programs(1) + item) * CLASSES)
    factor = tl.full((), 1.0, REAL)
    if factor_ptr is not None:
        factor = tl.load(factor_ptr).to(REAL)
    for lowest in range(0, CLASSES, PADDED):
        c = lowest + tl.arange(0, PADDED)
        there = (c < CLASSES)[:, None]
        x = _logits(x_ptr, c, k, inside, y, x_class, x_step, CLASSES, REAL, EACH)
        offsets = offsets_of(c, k, y_class, y_step, EACH)
        g, own = read_target(y_ptr, offsets, there & inside[None, :], y, c, x, LABELS, REAL)
        p, q, surprisal, largest = _probabilities(x, c[:, None], top, first, rest, scale)
        h, u = _slopes_of(
            slopes_ptr, matrix_ptr, c[:, None], y, own, p, q, g, surprisal, weight, far, gamma, CLASSES, LABELS,
            MASKED, OVERLAP, BY_CLASS, FOCUS, REAL,
        )  # fmt: skip
        out = tl.zeros((PADDED, BLOCK), REAL)
        if OF_CLASSES:
            out = p * (tl.where(largest, 0.0, h - h_first) - mean[None, :])
        if BY_CLASS:
            out += tl.where(largest, q * u - p * others[None, :], u - p * (others[None, :] + u_first))
        elif SURPRISAL != NONE:
            out += u_own[None, :] * tl.where(own, q, -p)
        out = tl.where((y == EXCLUDED)[None, :] | (out == 0), 0.0, out * stretch * factor)
        offsets = offsets_of(c, k, out_class, out_step, EACH)
        store(out_ptr + offsets, out, there & inside[None, :])
