"""A sigmoid against targets of 0 and 1, of which each channel stands for itself: sums of a channel, and its gradient.

The softmax of two classes is one, too: the sigmoid of their logits' difference.

All is counted from the truth: with s = x where the target is 1 and s = -x where it is 0, sigmoid(s) is what a voxel
grants the truth, and sigmoid(-s) what it withholds.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.elementary import log1p_nonnegative
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.compiled.surprisal import focus, slope_of_surprisal
from twinloss.fast.kernels.cpu.compiled.tile import (
    BLOCK,
    FACTOR,
    OWN,
    SCRATCH_A,
    TOP,
    keep_labels,
    read_counted,
    sigmoid,
    stage,
    sums_stage,
    taken,
    volume,
)
from twinloss.fast.kernels.statistic_rows import DISTANCE, FN, FP, HITS, MISSES, NEARNESS, TP, TP_LESS_FN, VOLUME


@njit(inline="always")
def _truth(logit, hit):
    """What a voxel grants the truth, and withholds; s, and exp(-|s|)."""
    s = logit if hit else -logit
    granted, withheld, e = sigmoid(s)
    return granted, withheld, s, e


@stage
def difference(one, other, out):
    """Put one less the other into `out`; NaN where the larger is infinite, as a softmax has it."""
    zero = out.dtype.type(0)
    for i in range(out.size):
        larger = one[i] if one[i] > other[i] else other[i]
        out[i] = (one[i] - other[i]) + zero * larger


@stage
def negate(values, out):
    """Put what is opposite into `out`."""
    for i in range(out.size):
        out[i] = -values[i]


@sums_stage
def overlap_sums(logits, y, number):
    """True and false positives, false and true negatives, where y == number is a target of 1."""
    zero = logits.dtype.type(0)
    tp, fp, fn, tn = zero, zero, zero, zero
    for i in range(y.size):
        hit, miss = y[i] == number, (y[i] != number) & (y[i] >= 0)
        granted, withheld, _, _ = _truth(logits[i], hit)
        tp += granted if hit else zero
        fp += withheld if miss else zero
        fn += withheld if hit else zero
        tn += granted if miss else zero
    return tp, fp, fn, tn


@stage
def overlap_gradient(logits, y, number, hits, misses, out):
    """dL/dx, given the slopes in p where the target is 1, and where it is 0."""
    for i in range(out.size):
        hit = y[i] == number
        granted, withheld, _, _ = _truth(logits[i], hit)
        out[i] = taken((hits if hit else misses) * granted * withheld, y, i)


@stage
def surprise(logits, y, number, granted, withheld, surprisals):
    """What voxels grant the truth and withhold from it; and -log of the first."""
    zero = granted.dtype.type(0)
    for i in range(y.size):
        granted[i], withheld[i], s, e = _truth(logits[i], y[i] == number)
        tail = log1p_nonnegative(e)
        surprisals[i] = tail if s > zero else tail - s


@sums_stage
def surprisal_sums(granted, withheld, values, y, number):
    """`overlap_sums`, and the values where the target is 1, and where it is 0."""
    zero = granted.dtype.type(0)
    tp, fp, fn, tn, hits, misses = zero, zero, zero, zero, zero, zero
    for i in range(y.size):
        hit, miss = y[i] == number, (y[i] != number) & (y[i] >= 0)
        tp += granted[i] if hit else zero
        fp += withheld[i] if miss else zero
        fn += withheld[i] if hit else zero
        tn += granted[i] if miss else zero
        hits += values[i] if hit else zero
        misses += values[i] if miss else zero
    return tp, fp, fn, tn, hits, misses


@stage
def surprisal_gradient(granted, withheld, values, y, number, overlap, hits, misses, out):
    """dL/dx, given the slopes of `overlap_gradient`, if there are any (overlap is not None), and in the surprisals.

    Each slope comes as a pair of both. `values` are, of the surprisals of `surprise`, p dL/dp of the truth.
    """
    for i in range(out.size):
        hit = y[i] == number
        slope = (hits[1] if hit else -misses[1]) * values[i]
        if overlap is not None:
            slope += (hits[0] if hit else misses[0]) * granted[i]
        out[i] = taken(slope * withheld[i], y, i)


# --- a tile -----------------------------------------------------------------------------------------------------------


@stage
def _read_channel(target, item, classes, dense, ignore, mask, b, c, lo, voxels, y):
    """Read labels, unless they are those of the channel before; return a status, see `forward_channels`."""
    if not dense:
        return read_counted(target[b, 0], item, classes, ignore, mask, b, lo, voxels, y) if c == 0 else VALID
    found = read_counted(target[b, c], item, 2, ignore, mask, b, lo, voxels, y)
    return VALID if found == VALID else NOT_BINARY


@stage
def forward_tile(
    x, target, item, overlap, surprisals, gamma, matrix, pair, dense, ignore, mask, b, lo, buffers, sums, kept
):  # fmt: skip
    """Add the statistics of a tile that starts at voxel `lo` and return a status, see `forward_channels`."""
    y, granted, withheld, spare = buffers.y, buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A]
    status = VALID
    for c in range(1, 2) if pair else range(x.shape[1]):
        found = _read_channel(target, item, x.shape[1], dense, ignore, mask, b, 0 if pair else c, lo, x.shape[2], y)
        if found == NOT_BINARY:
            return found
        status = max(status, found)
        if kept.size > 0 and (pair or c == 0):
            keep_labels(y, lo, kept)
        for k in range(0, y.size, BLOCK):
            block, number = slice(k, min(k + BLOCK, y.size)), np.int32(1 if dense else c)
            labels, spread = y[block], buffers.row[TOP, block]
            here = slice(lo + k, lo + k + labels.size)
            if pair:
                difference(x[b, 1, here], x[b, 0, here], spread)
            logits = spread if pair else x[b, c, here]
            if surprisals is None:
                tp, fp, fn, tn = overlap_sums(logits, labels, number)
            else:
                right, wrong, values = granted[block], withheld[block], spare[block]
                surprise(logits, labels, number, right, wrong, values)
                focus(wrong, gamma, values)
                tp, fp, fn, tn, hits, misses = surprisal_sums(right, wrong, values, labels, number)
                sums[HITS, c] += hits
                sums[HITS if pair else MISSES, 0 if pair else c] += misses
            _add_overlap(overlap, matrix, tp, fp, fn, c, sums)
            sums[VOLUME, c] += volume(tp, fn, labels, number)
            if pair:
                _add_overlap(overlap, matrix, tn, fn, fp, 0, sums)
                sums[VOLUME, 0] += volume(tn, fp, labels, 0)
    return status


@stage
def _add_overlap(overlap, matrix, tp, fp, fn, c, sums):
    if overlap is not None:
        sums[TP, c] += tp
        sums[FP, c] += fp
        sums[FN, c] += fn
    if matrix is not None:  # of a pair, whose errors all have one distance
        distance = matrix[c, 1 - c]
        sums[DISTANCE, c] += distance * fn
        sums[NEARNESS, c] += tp + (1 - distance) * fn


@stage
def _slopes_of_channel(matrix, slopes, pair, b, c):
    """The slopes of overlap and surprisal in p, or p of the second of a pair, where the target is 1, and where it is 0.

    Those of the surprisal count from the truth.
    """
    if not pair:
        return (slopes[TP_LESS_FN, b, c], slopes[HITS, b, c]), (slopes[FP, b, c], slopes[MISSES, b, c])
    if matrix is None:
        hit, miss = slopes[TP_LESS_FN, b, 1] - slopes[FP, b, 0], slopes[FP, b, 1] - slopes[TP_LESS_FN, b, 0]
    else:
        hit, miss = matrix[1, 1] - matrix[1, 0], matrix[0, 1] - matrix[0, 0]
    return (hit, slopes[HITS, b, 1]), (miss, slopes[HITS, b, 0])


@stage
def backward_tile(
    x, target, item, overlap, surprisals, gamma, matrix, pair, dense, ignore, mask, slopes, b, lo, buffers, out
):  # fmt: skip
    """Write dL/dx of a tile that starts at voxel `lo` and return a status, see `backward_channels`."""
    y, granted, withheld, spare = buffers.y, buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A]
    for c in range(1, 2) if pair else range(x.shape[1]):
        found = _read_channel(target, item, x.shape[1], dense, ignore, mask, b, 0 if pair else c, lo, x.shape[2], y)
        if found == NOT_BINARY:
            return found
        hits, misses = _slopes_of_channel(matrix, slopes, pair, b, c)
        for k in range(0, y.size, BLOCK):
            block, number = slice(k, min(k + BLOCK, y.size)), np.int32(1 if dense else c)
            labels, spread = y[block], buffers.row[TOP, block]
            here = slice(lo + k, lo + k + labels.size)
            if pair:
                difference(x[b, 1, here], x[b, 0, here], spread)
            logits = spread if pair else x[b, c, here]
            gradient = out[b, c, here]
            if surprisals is None:
                overlap_gradient(logits, labels, number, hits[0], misses[0], gradient)
            else:
                right, wrong, values = granted[block], withheld[block], spare[block]
                surprise(logits, labels, number, right, wrong, values)
                slope_of_surprisal(right, wrong, gamma, values)
                surprisal_gradient(right, wrong, values, labels, number, overlap, hits, misses, gradient)
            if pair:
                negate(gradient, out[b, 0, here])
    return VALID
