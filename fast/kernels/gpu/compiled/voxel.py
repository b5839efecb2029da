"""The statistics of a segmentation in one pass over the voxels, and the gradient in one more.

A program takes a chunk of voxels of an item, and holds all classes of a tile in registers. Without a softmax, classes
are independent, and a program takes a group of them. Grid: chunks, items, groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import store
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
from twinloss.fast.kernels.gpu.compiled.voxel_tile import (
    ALL,
    EXCLUDED,
    INVALID,
    LOWEST,
    NONE,
    PRODUCT,
    SIGMOID,
    SOFTMAX,
    SQUARED,
    confusion,
    confusion_slope,
    focused,
    focused_slope,
    offsets_of,
    read_logits,
    read_target,
    read_voxels,
    sigmoid,
    softmax,
    softmax_of_labels,
    weighed,
)

# A count of voxels takes 8 bits of an int32. A program adds at most as many tiles, so that it fits.
MOST_TILES = 64


@triton.jit
def _distances(matrix_ptr, y, c, CLASSES: tl.constexpr, REAL: tl.constexpr):
    """Return the distance of each class to the true one."""
    k = tl.maximum(y, 0)[None, :] * CLASSES + c[:, None]
    return tl.load(matrix_ptr + k, (c < CLASSES)[:, None], 0.0).to(REAL)


@triton.jit
def put(part_ptr, row: tl.constexpr, values, c, CLASSES: tl.constexpr):
    """Write the sums over voxels."""
    store(part_ptr + row * CLASSES + c, tl.sum(values, 1), c < CLASSES)


@triton.jit
def sums(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, part_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item,
    x_step: tl.constexpr, y_step: tl.constexpr, mask_step: tl.constexpr,
    CLASSES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr,
    LABELS: tl.constexpr, IGNORE: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAP: tl.constexpr,
    SURPRISAL: tl.constexpr, FOCUS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Write the statistics of a chunk of voxels to its place in `part`, (B, chunks, ROWS, C) float64.

    Rows that are not asked for stay as they are. x is at `x_ptr + b * x_item + c * x_class + voxel * x_step`, and so
    are target and mask.
    """
    MASKED: tl.constexpr = mask_ptr is not None
    COUNTED: tl.constexpr = LABELS and not MASKED and PADDED >= 16  # to spare registers
    HARD: tl.constexpr = LABELS and not MASKED and ACTIVATION == SOFTMAX and matrix_ptr is None and SURPRISAL != ALL
    WORDS: tl.constexpr = PADDED // 4
    chunk, item = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    gamma = tl.full((), gamma, tl.float64).to(REAL)
    first = tl.program_id(2) * PADDED
    c = first + tl.arange(0, PADDED)
    there = c < CLASSES
    start = chunk * per_program
    x_ptr += item * x_item + start * x_step
    y_ptr += item * y_item + start * y_step
    if MASKED:
        mask_ptr += item * mask_item + start * mask_step
    channel = 0
    if IGNORE is not None and not LABELS and CLASSES > 1:
        channel = tl.full((), y_class, tl.int64) * IGNORE

    wrong = tl.zeros((BLOCK,), REAL)
    zero = tl.zeros((PADDED, BLOCK), REAL)
    if OVERLAP != NONE:
        tp, fp, fn = zero, zero, zero
    if SURPRISAL != NONE:
        hits, misses = zero, zero
    if matrix_ptr is not None:
        distance, nearness = zero, zero
    if COUNTED:
        count, word = tl.zeros((WORDS, BLOCK), tl.int32), first // 4 + tl.arange(0, WORDS)
    else:
        volume = zero

    for at in range(0, tl.minimum(N - start, per_program).to(tl.int32), BLOCK):
        k = at + tl.arange(0, BLOCK)
        inside = k < N - start
        both = there[:, None] & inside[None, :]
        y, weight = read_voxels(y_ptr, mask_ptr, k, inside, channel, y_step, mask_step, CLASSES, LABELS, IGNORE, REAL)
        x = read_logits(x_ptr, offsets_of(c, k, x_class, x_step, EACH), both, y, REAL)
        g, own = read_target(y_ptr, offsets_of(c, k, y_class, y_step, EACH), both, y, c, x, LABELS, REAL)
        w = weight[None, :]
        wrong += tl.where(y == INVALID, float("nan"), 0.0)
        if HARD:
            p, p_own, q_own, of_own = softmax_of_labels(tl.where(there[:, None], x, LOWEST), y, own)
            if OVERLAP != NONE:
                tp += tl.where(own, p_own[None, :], 0.0)
                fp += p * p if OVERLAP == SQUARED else p
                fn += tl.where(own, (q_own * q_own if OVERLAP == SQUARED else q_own)[None, :], 0.0)
            if SURPRISAL != NONE:
                hits += tl.where(own, focused(of_own, q_own, gamma, FOCUS)[None, :], 0.0)
        elif ACTIVATION == SOFTMAX:
            p, q, surprisal, _ = softmax(tl.where(there[:, None], x, LOWEST), y, c)
        elif ACTIVATION == SIGMOID:
            p, q, surprisal, against = sigmoid(x, y)
        else:
            p, q = x, 1.0 - x

        if OVERLAP != NONE and not HARD:
            of_tp, of_fp, of_fn = confusion(p, q, g, weight, OVERLAP, MASKED)
            tp += of_tp
            fp += of_fp
            fn += of_fn
        if SURPRISAL != NONE and not HARD:
            hits += weighed(w * g, focused(surprisal, q, gamma, FOCUS))
            if ACTIVATION == SIGMOID:
                misses += weighed(w * (1.0 - g), focused(against, p, gamma, FOCUS))
            elif SURPRISAL == ALL:
                misses += weighed(w, surprisal)
        if matrix_ptr is not None:
            m = _distances(matrix_ptr, y, c, CLASSES, REAL)
            far, near = tl.sum(m * p, 0) * weight, tl.sum((1.0 - m) * p, 0) * weight
            distance += tl.where(own, far[None, :], 0.0)
            nearness += tl.where(own, near[None, :], 0.0)
        if COUNTED:
            count += tl.where(word[:, None] == (y >> 2)[None, :], (1 << ((y & 3) * 8))[None, :], 0)
        else:
            volume += g if HARD else w * g

    part_ptr += (item * tl.num_programs(0) + chunk) * ROWS * CLASSES
    nan = wrong[None, :]  # in all classes, if a voxel is invalid
    if OVERLAP != NONE:
        put(part_ptr, TP, tp + nan, c, CLASSES)
        put(part_ptr, FP, fp + nan, c, CLASSES)
        put(part_ptr, FN, fn + nan, c, CLASSES)
    if SURPRISAL != NONE:
        put(part_ptr, HITS, hits + nan, c, CLASSES)
        put(part_ptr, MISSES, misses + nan, c, CLASSES)
    if matrix_ptr is not None:
        put(part_ptr, DISTANCE, distance + nan, c, CLASSES)
        put(part_ptr, NEARNESS, nearness + nan, c, CLASSES)
    if COUNTED:
        for place in tl.static_range(4):
            put(part_ptr, VOLUME, (count >> (8 * place)) & 255, 4 * word + place, CLASSES)
    else:
        put(part_ptr, VOLUME, volume, c, CLASSES)


@triton.jit
def slopes(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, slopes_ptr, factor_ptr, out_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item, out_item, out_class,
    x_step: tl.constexpr, y_step: tl.constexpr, mask_step: tl.constexpr, out_step: tl.constexpr,
    CLASSES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, REAL: tl.constexpr,
    LABELS: tl.constexpr, IGNORE: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAP: tl.constexpr,
    SURPRISAL: tl.constexpr, FOCUS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Write dL/dx of a chunk of voxels, times a factor unless it is None, given the slopes of `rows.py`."""
    MASKED: tl.constexpr = mask_ptr is not None
    DISTANT: tl.constexpr = matrix_ptr is not None
    OWN: tl.constexpr = ACTIVATION == SOFTMAX and LABELS and SURPRISAL != ALL
    chunk, item = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    gamma = tl.full((), gamma, tl.float64).to(REAL)
    c = tl.program_id(2) * PADDED + tl.arange(0, PADDED)
    there = c < CLASSES
    start = chunk * per_program
    x_ptr += item * x_item + start * x_step
    y_ptr += item * y_item + start * y_step
    out_ptr += item * out_item + start * out_step
    if MASKED:
        mask_ptr += item * mask_item + start * mask_step
    channel = 0
    if IGNORE is not None and not LABELS and CLASSES > 1:
        channel = tl.full((), y_class, tl.int64) * IGNORE
    at = item * CLASSES + c
    row = tl.num_programs(1) * CLASSES
    stretch = tl.load(slopes_ptr + STRETCH * row + item * CLASSES)
    if OVERLAP != NONE:
        fp = tl.load(slopes_ptr + OF_FP * row + at, there, 0.0)[:, None]
        hit = tl.load(slopes_ptr + OF_HIT * row + at, there, 0.0)[:, None]
        tp = hit
        if OVERLAP == SQUARED:
            tp = tl.load(slopes_ptr + OF_TP * row + at, there, 0.0)[:, None]
    if SURPRISAL != NONE:
        hits = tl.load(slopes_ptr + OF_HITS * row + at, there, 0.0)[:, None]
        misses = tl.load(slopes_ptr + OF_MISSES * row + at, there, 0.0)[:, None]
    if DISTANT:
        far = tl.load(slopes_ptr + OF_DISTANCE * row + at, there, 0.0)[:, None]
    factor = tl.full((), 1.0, REAL)
    if factor_ptr is not None:
        factor = tl.load(factor_ptr).to(REAL)

    for at in range(0, tl.minimum(N - start, per_program).to(tl.int32), BLOCK):
        k = at + tl.arange(0, BLOCK)
        inside = k < N - start
        both = there[:, None] & inside[None, :]
        y, weight = read_voxels(y_ptr, mask_ptr, k, inside, channel, y_step, mask_step, CLASSES, LABELS, IGNORE, REAL)
        x = read_logits(x_ptr, offsets_of(c, k, x_class, x_step, EACH), both, y, REAL)
        g, own = read_target(y_ptr, offsets_of(c, k, y_class, y_step, EACH), both, y, c, x, LABELS, REAL)
        if ACTIVATION == SOFTMAX:
            x = tl.where(there[:, None], x, LOWEST)
            p, q, surprisal, largest = softmax(x, y, c)
        elif ACTIVATION == SIGMOID:
            p, q, surprisal, against = sigmoid(x, y)
        else:
            p, q = x, 1.0 - x

        out = tl.zeros((PADDED, BLOCK), REAL)
        if OVERLAP != NONE or DISTANT:
            h = out
            if OVERLAP != NONE and LABELS and not MASKED and OVERLAP == PRODUCT:
                h = tl.where(own, hit, fp)
            elif OVERLAP != NONE:
                h = confusion_slope(p, q, g, weight, tp, fp, hit, OVERLAP, MASKED)
            if DISTANT:
                m = _distances(matrix_ptr, y, c, CLASSES, REAL)
                h += m * weighed(weight, tl.sum(tl.where(own, far, 0.0), 0))[None, :]
            if ACTIVATION == SOFTMAX:
                # Relative to the slope of the largest class, the sum has small p only: nothing cancels as p -> 1.
                of_largest = tl.sum(tl.where(largest, h, 0.0), 0)[None, :]
                d = tl.where(largest | (c >= CLASSES)[:, None], 0.0, h - of_largest)
                out = p * (d - tl.sum(p * d, 0)[None, :])
            elif ACTIVATION == SIGMOID:
                out = h * p * q
            else:
                out = h
        w = weight[None, :]
        if SURPRISAL != NONE and OWN:
            ALONE: tl.constexpr = OVERLAP == NONE and not DISTANT  # no softmax of all classes is needed
            if ALONE:
                p_others, p_own, q_own, of_own = softmax_of_labels(x, y, own)
            else:
                p_own, q_own = tl.sum(tl.where(own, p, 0.0), 0), tl.sum(tl.where(own, q, 0.0), 0)
                of_own = tl.sum(tl.where(own, surprisal, 0.0), 0)
            u = tl.sum(tl.where(own, hits, 0.0), 0) * focused_slope(of_own, p_own, q_own, gamma, FOCUS)
            u = weighed(weight, u)[None, :]
            out += tl.where(own, u * q_own[None, :], -(u * p_others)) if ALONE else u * tl.where(own, q, -p)
        elif SURPRISAL != NONE and ACTIVATION == SOFTMAX:
            # dL/dx_c = q_c u_c - p_c (the sum of the other u). The u of the largest class is not subtracted from a sum
            # that contains it, so that nothing cancels.
            u = weighed(w, g * hits * focused_slope(surprisal, p, q, gamma, FOCUS) - misses)
            others = tl.sum(tl.where(largest, 0.0, u), 0)[None, :]
            of_largest = tl.sum(tl.where(largest, u, 0.0), 0)[None, :]
            out += tl.where(largest, q * u - p * others, u - p * (others + of_largest))
        elif SURPRISAL != NONE:
            up = g * hits * focused_slope(surprisal, p, q, gamma, FOCUS) * q
            down = (1.0 - g) * misses * focused_slope(against, q, p, gamma, FOCUS) * p
            out += weighed(w, up - down)
        # Not a product: the slope of an empty denominator is infinite, and so may be the slope of a scaled loss.
        out = tl.where((y == EXCLUDED)[None, :] | (out == 0), 0.0, out * stretch * factor)
        store(out_ptr + offsets_of(c, k, out_class, out_step, EACH), out, both)
