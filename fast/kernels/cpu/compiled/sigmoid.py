"""Statistics of a sigmoid and targets of 0 and 1, where each channel is a binary problem, and their gradient.

The softmax of two classes is the same, as it is the sigmoid of the difference of their logits.

Let s = x where the target is 1, and s = -x where it is 0. Then `right` = sigmoid(s) is the probability of the true
answer, and `wrong` = sigmoid(-s) = 1 - `right`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.elementary import log1p_nonnegative
from twinloss.fast.kernels.cpu.compiled.probabilities import sigmoid
from twinloss.fast.kernels.cpu.compiled.reading import keep_labels, read_counted
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.compiled.sums import add
from twinloss.fast.kernels.cpu.compiled.surprisal import focus, slope_of_surprisal
from twinloss.fast.kernels.cpu.compiled.tile import (
    BLOCK,
    FACTOR,
    OWN,
    SCRATCH_A,
    SOFTMAX,
    TOP,
    block_of,
    stage,
    sums_stage,
    taken,
    tile_stage,
    volume,
)
from twinloss.fast.kernels.statistic_rows import DISTANCE, FN, FP, HITS, MISSES, NEARNESS, TP, TP_LESS_FN, VOLUME


@njit(inline="always")
def _truth(logit, hit):
    """Return right, wrong, s and exp(-|s|), given whether the target is 1 (hit)."""
    s = logit if hit else -logit
    right, wrong, e = sigmoid(s)
    return right, wrong, s, e


@stage
def difference(one, other, out):
    """Put `one` minus `other` into `out`, or NaN where the larger is infinite, as a softmax gives it."""
    zero = out.dtype.type(0)
    for i in range(out.size):
        larger = one[i] if one[i] > other[i] else other[i]
        out[i] = (one[i] - other[i]) + zero * larger


@stage
def negate(values, out):
    """Put the negated values into `out`."""
    for i in range(out.size):
        out[i] = -values[i]


@sums_stage
def overlap_sums(logits, y, number):
    """Return true and false positives, false and true negatives, where y == number means a target of 1."""
    zero = logits.dtype.type(0)
    tp, fp, fn, tn = zero, zero, zero, zero
    for i in range(y.size):
        hit, miss = y[i] == number, (y[i] != number) & (y[i] >= 0)
        right, wrong, _, _ = _truth(logits[i], hit)
        tp += right if hit else zero
        fp += wrong if miss else zero
        fn += wrong if hit else zero
        tn += right if miss else zero
    return tp, fp, fn, tn


@stage
def overlap_gradient(logits, y, number, hits, misses, out):
    """Write dL/dx, given dL/dp where the target is 1 (hits), and where it is 0 (misses)."""
    for i in range(out.size):
        hit = y[i] == number
        right, wrong, _, _ = _truth(logits[i], hit)
        out[i] = taken((hits if hit else misses) * right * wrong, y, i)


@stage
def surprise(logits, y, number, right, wrong, surprisals):
    """Compute right, wrong and -log(right) of each voxel."""
    zero = right.dtype.type(0)
    for i in range(y.size):
        right[i], wrong[i], s, e = _truth(logits[i], y[i] == number)
        tail = log1p_nonnegative(e)
        surprisals[i] = tail if s > zero else tail - s


@sums_stage
def surprisal_sums(right, wrong, values, y, number):
    """Return `overlap_sums`, and the sums of the values where the target is 1, and where it is 0."""
    zero = right.dtype.type(0)
    tp, fp, fn, tn, hits, misses = zero, zero, zero, zero, zero, zero
    for i in range(y.size):
        hit, miss = y[i] == number, (y[i] != number) & (y[i] >= 0)
        tp += right[i] if hit else zero
        fp += wrong[i] if miss else zero
        fn += wrong[i] if hit else zero
        tn += right[i] if miss else zero
        hits += values[i] if hit else zero
        misses += values[i] if miss else zero
    return tp, fp, fn, tn, hits, misses


@stage
def surprisal_gradient(right, wrong, values, y, number, overlap, hits, misses, out):
    """Write dL/dx, given the slopes in the overlaps and in the surprisals.

    `hits` (target 1) and `misses` (target 0) are pairs: dL/dp from the overlaps, which does not count if `overlap` is
    None, and the slope in the sum of the surprisals. `values` are the results of `slope_of_surprisal` for `right`.
    """
    for i in range(out.size):
        hit = y[i] == number
        slope = (hits[1] if hit else -misses[1]) * values[i]
        if overlap is not None:
            slope += (hits[0] if hit else misses[0]) * right[i]
        out[i] = taken(slope * wrong[i], y, i)


# --- a tile -----------------------------------------------------------------------------------------------------------


@stage
def _read_channel(given, b, c, lo, y):
    """Read the labels, unless they are the same as for the previous channel; return a status."""
    if not given.dense:
        first = 1 if given.activation == SOFTMAX else 0
        return read_counted(given, given.target[b, 0], given.x.shape[1], b, lo, y) if c == first else VALID
    found = read_counted(given, given.target[b, c], 2, b, lo, y)
    return VALID if found == VALID else NOT_BINARY


@tile_stage
def forward_channels_tile(given, overlap, surprisals, matrix, chunk, b, lo, buffers, by_chunk, kept):
    """Add the statistics of a tile, as in `forward_channels`, and return a status."""
    x, gamma, dense, pair, sums = given.x, given.gamma, given.dense, given.activation == SOFTMAX, by_chunk[chunk]
    y, row_right, row_wrong, spare = buffers.y, buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A]
    status, first = VALID, 1 if pair else 0
    for c in range(first, x.shape[1]):
        found = _read_channel(given, b, c, lo, y)
        if found == NOT_BINARY:
            return found
        status = max(status, found)
        if kept.size > 0 and c == first:
            keep_labels(y, lo, kept[b, 0])
        for k in range(0, y.size, block_of(spare)):
            block, number = slice(k, min(k + block_of(spare), y.size)), np.int32(1 if dense else c)
            labels, spread = y[block], buffers.row[TOP, block]
            here = slice(lo + k, lo + k + labels.size)
            if pair:
                difference(x[b, 1, here], x[b, 0, here], spread)
            logits = spread if pair else x[b, c, here]
            if surprisals is None:
                tp, fp, fn, tn = overlap_sums(logits, labels, number)
            else:
                right, wrong, values = row_right[block], row_wrong[block], spare[block]
                surprise(logits, labels, number, right, wrong, values)
                focus(wrong, gamma, values)
                tp, fp, fn, tn, hits, misses = surprisal_sums(right, wrong, values, labels, number)
                add(sums, HITS, c, hits)
                add(sums, HITS if pair else MISSES, 0 if pair else c, misses)
            _add_overlap(overlap, matrix, tp, fp, fn, c, sums)
            add(sums, VOLUME, c, volume(tp, fn, labels, number))
            if pair:
                _add_overlap(overlap, matrix, tn, fn, fp, 0, sums)
                add(sums, VOLUME, 0, volume(tn, fp, labels, 0))
    return status


@stage
def _add_overlap(overlap, matrix, tp, fp, fn, c, sums):
    if overlap is not None:
        add(sums, TP, c, tp)
        add(sums, FP, c, fp)
        add(sums, FN, c, fn)
    if matrix is not None:  # a pair of classes, whose errors all have the same distance
        distance = matrix[c, 1 - c]
        add(sums, DISTANCE, c, distance * fn)
        add(sums, NEARNESS, c, tp + (1 - distance) * fn)


@stage
def _slopes_of_channel(matrix, slopes, pair, b, c):
    """Return the pairs of slopes `hits` and `misses` that `surprisal_gradient` takes.

    With `pair`, dL/dp is with respect to the p of the second class.
    """
    if not pair:
        return (slopes[TP_LESS_FN, b, c], slopes[HITS, b, c]), (slopes[FP, b, c], slopes[MISSES, b, c])
    if matrix is None:
        hit, miss = slopes[TP_LESS_FN, b, 1] - slopes[FP, b, 0], slopes[FP, b, 1] - slopes[TP_LESS_FN, b, 0]
    else:
        hit, miss = matrix[b, 1, 1] - matrix[b, 1, 0], matrix[b, 0, 1] - matrix[b, 0, 0]
    return (hit, slopes[HITS, b, 1]), (miss, slopes[HITS, b, 0])


@tile_stage
def backward_channels_tile(given, overlap, surprisals, matrix, chunk, b, lo, buffers, slopes, out):
    """Write dL/dx of a tile, as in `backward_channels`, and return a status."""
    x, gamma, dense, pair = given.x, given.gamma, given.dense, given.activation == SOFTMAX
    y, row_right, row_wrong, spare = buffers.y, buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A]
    for c in range(1 if pair else 0, x.shape[1]):
        found = _read_channel(given, b, c, lo, y)
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
                right, wrong, values = row_right[block], row_wrong[block], spare[block]
                surprise(logits, labels, number, right, wrong, values)
                slope_of_surprisal(right, wrong, gamma, values)
                surprisal_gradient(right, wrong, values, labels, number, overlap, hits, misses, gradient)
            if pair:
                negate(gradient, out[b, 0, here])
    return VALID
