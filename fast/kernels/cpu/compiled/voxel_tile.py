"""What the kernels of `voxel.py` do with one tile of voxels."""

from __future__ import annotations

import numpy as np

from twinloss.fast.kernels.cpu.compiled import surprisal
from twinloss.fast.kernels.cpu.compiled.confusion import (
    add_confusion_slope,
    adjoint,
    confusion_labels,
    confusion_soft,
    few_confusions,
    gradient_labels,
    gradient_slopes,
)
from twinloss.fast.kernels.cpu.compiled.distance import distance_slopes, distance_sums, distances, table_slopes
from twinloss.fast.kernels.cpu.compiled.probabilities import exponentials
from twinloss.fast.kernels.cpu.compiled.reading import keep_labels, read_counted
from twinloss.fast.kernels.cpu.compiled.surprisal import (
    add_gradient_soft,
    class_sum,
    gradient_own,
    own_slope,
    own_surprisal,
    surprisal_soft,
)
from twinloss.fast.kernels.cpu.compiled.tile import (
    BLOCK,
    FACTOR,
    OWN,
    REST,
    SCALE,
    SCRATCH_A,
    SCRATCH_B,
    TOP,
    G,
    H,
    P,
    Q,
    W,
    X,
    clear_where_excluded,
    copy_cast,
    four_classes,
    four_exponentials,
    stage,
    volume,
)
from twinloss.fast.kernels.statistic_rows import DISTANCE, FN, FP, HITS, MISSES, NEARNESS, TP, TP_LESS_FN, VOLUME


@stage
def _few_sums(p, scale, rest, y, values, spare, sums):
    """Add the sums of at most four classes.

    A block has half as many voxels as elsewhere, because each sum is spread over fewer vector lanes.
    """
    first, second, third, fourth = four_exponentials(p, spare)
    numbers = four_classes(y, p.shape[0] - 1)
    for k in range(0, y.size, BLOCK // 2):
        tp, fp, fn, hits = few_confusions(
            first, second, third, fourth, numbers, scale, rest, y, values, k, min(k + BLOCK // 2, y.size)
        )  # fmt: skip
        labels = y[k : min(k + BLOCK // 2, y.size)]
        for c in range(p.shape[0]):
            sums[TP, c] += tp[c]
            sums[FP, c] += fp[c]
            sums[FN, c] += fn[c]
            sums[HITS, c] += hits[c]
            sums[VOLUME, c] += volume(tp[c], fn[c], labels, c)


@stage
def softmax_against_labels(x, target, item, ignore, mask, b, lo, buffers):
    """Read labels, compute exponentials and return a status; excluded voxels have p = 1 - p = 0 and no class."""
    p, top, scale, rest = buffers.rows[P], buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    status = read_counted(target[b, 0], item, x.shape[1], ignore, mask, b, lo, x.shape[2], buffers.y)
    excluding = None if ignore is None and mask is None else buffers.y
    exponentials(x, b, lo, p, top, scale, rest, buffers.row[SCRATCH_A : SCRATCH_A + 2], excluding, target[b, 0])
    return status


@stage
def forward_labels_tile(x, target, item, overlap, surprisals, gamma, matrix, ignore, mask, b, lo, buffers, sums, kept):
    """Add the statistics of a softmax against labels, and return a status."""
    p, y, top, scale, rest = buffers.rows[P], buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    status = softmax_against_labels(x, target, item, ignore, mask, b, lo, buffers)
    if kept.size > 0:
        keep_labels(y, lo, kept)
    if surprisals is not None:
        own_surprisal(
            x, b, lo, buffers.rows[P : P + 1], y, top, scale, rest, gamma,
            buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A],
        )  # fmt: skip
        surprisal.focus(buffers.row[FACTOR], gamma, buffers.row[SCRATCH_A])
    if matrix is not None:
        distances(p, y, scale, matrix, buffers.row[SCRATCH_A], buffers.row[SCRATCH_B])
    if overlap is not None and p.shape[0] <= 4:
        _few_sums(p, scale, rest, y, None if surprisals is None else buffers.row[SCRATCH_A], buffers.row[W], sums)
        return status
    for c in range(p.shape[0]):
        for k in range(0, y.size, BLOCK):
            block = slice(k, k + BLOCK)
            if overlap is not None:
                tp, fp, fn = confusion_labels(p[c, block], scale[block], rest[block], y[block], c)
                count = volume(tp, fn, y[block], c)
                sums[TP, c] += tp
                sums[FP, c] += fp
                sums[FN, c] += fn
            if surprisals is not None:
                hits, count = class_sum(buffers.row[SCRATCH_A, block], y[block], c)
                sums[HITS, c] += hits
            if matrix is not None:
                far, near, count = distance_sums(
                    buffers.row[SCRATCH_A, block], buffers.row[SCRATCH_B, block], y[block], c
                )
                sums[DISTANCE, c] += far
                sums[NEARNESS, c] += near
            sums[VOLUME, c] += count
    return status


@stage
def forward_weighted_tile(activation, overlap, surprisals, gamma, matrix, buffers, sums):
    """Add the statistics of a tile of any kind, which has been read."""
    p, q, g, w, y = buffers.rows[P], buffers.rows[Q], buffers.rows[G], buffers.row[W], buffers.y
    if matrix is not None:
        distances(p, y, w, matrix, buffers.row[SCRATCH_B], buffers.row[SCRATCH_A])
    for c in range(p.shape[0]):
        for k in range(0, y.size, BLOCK):
            block = slice(k, k + BLOCK)
            if overlap is not None:
                tp, fp, fn = confusion_soft(p[c, block], q[c, block], g[c, block], w[block], overlap)
                sums[TP, c] += tp
                sums[FP, c] += fp
                sums[FN, c] += fn
            if surprisals is not None:
                hits, misses = surprisal_soft(
                    activation, p[c, block], q[c, block], g[c, block], buffers.rows[X, c, block], w[block],
                    buffers.row[TOP, block], buffers.row[REST, block], gamma, surprisals == surprisal.ALL,
                    buffers.row[OWN, block], buffers.row[FACTOR, block],
                )  # fmt: skip
                sums[HITS, c] += hits
                sums[MISSES, c] += misses
            if matrix is not None:
                distance, near, _ = distance_sums(
                    buffers.row[SCRATCH_B, block], buffers.row[SCRATCH_A, block], y[block], c
                )
                sums[DISTANCE, c] += distance
                sums[NEARNESS, c] += near
            sums[VOLUME, c] += surprisal.product_sum(g[c, block], w[block])


# The gradient may overwrite the logits. Stages are compiled for arrays that do not overlap, so no stage may take both.


@stage
def slopes_of_own(x, gamma, excluding, slopes, b, lo, buffers):
    """Put p dL/dp of each voxel's true class, through its surprisal, into SCRATCH_A."""
    y, top, scale, rest = buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    own_p, own_q, own = buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A]
    if gamma != 0:
        own_surprisal(x, b, lo, buffers.rows[P : P + 1], y, top, scale, rest, gamma, own_p, own_q, own)
    own_slope(own_p, own_q, y, gamma, slopes[HITS, b], own)
    if excluding:
        clear_where_excluded(y, buffers.row[SCRATCH_A : SCRATCH_A + 1])


@stage
def gradient_labels_tile(overlap, surprisals, matrix, excluding, slopes, small, b, lo, buffers, out):
    """Write dL/dx of a softmax against labels."""
    p, y, scale, rest = buffers.rows[P], buffers.y, buffers.row[SCALE], buffers.row[REST]
    largest, others, own = buffers.row[W], buffers.row[SCRATCH_B], buffers.row[SCRATCH_A]
    if matrix is not None:
        h = buffers.rows[H]
        table_slopes(y, matrix, h)
        gradient_slopes(p, scale, rest, h, largest, others, out, b, lo)
    elif overlap is None:
        gradient_own(p, scale, rest, y, own, buffers.row[OWN : OWN + 2], out, b, lo)
    else:
        if surprisals is None:
            own = own[:0]
        hits, misses = slopes[TP_LESS_FN, b], slopes[FP, b]
        gradient_labels(p, scale, rest, y, hits, misses, largest, others, own, out, b, lo)
    # scale = rest = 0 gives a gradient of 0, unless a slope is infinite, as that of an empty denominator.
    if excluding and not small:
        clear_where_excluded(y, out[b, :, lo : lo + y.size])


@stage
def surprisals_of_labels_tile(x, target, item, gamma, slopes, b, lo, buffers, sums, out):
    """Add surprisals and write their gradient at once, and return a status."""
    p, y, top, scale, rest = buffers.rows[P], buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    own_p, own_q, own, focused = buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A], buffers.row[SCRATCH_B]
    status = softmax_against_labels(x, target, item, None, None, b, lo, buffers)
    own_surprisal(x, b, lo, buffers.rows[P : P + 1], y, top, scale, rest, gamma, own_p, own_q, own)
    copy_cast(own, focused)
    surprisal.focus(own_q, gamma, focused)
    for c in range(p.shape[0]):
        for k in range(0, y.size, BLOCK):
            block = slice(k, k + BLOCK)
            hits, count = class_sum(focused[block], y[block], c)
            sums[HITS, c] += hits
            sums[VOLUME, c] += count
    own_slope(own_p, own_q, y, gamma, slopes[HITS, b], own)
    gradient_own(p, scale, rest, y, own, buffers.row[OWN : OWN + 2], out, b, lo)
    return status


@stage
def are_small(slopes, matrix):
    """Return whether sums of a few slopes are finite."""
    total = slopes.dtype.type(0)
    for row in range(slopes.shape[0]):
        for c in range(slopes.shape[1]):
            total += abs(slopes[row, c])
    if matrix is not None:
        for row in range(matrix.shape[0]):
            for c in range(matrix.shape[1]):
                total += abs(matrix[row, c])
    return np.isfinite(slopes.dtype.type(8) * total)


@stage
def backward_weighted_tile(activation, overlap, surprisals, gamma, matrix, slopes, buffers):
    """Put dL/dx of a tile of any kind, which has been read, into its slopes h."""
    p, q, h, w = buffers.rows[P], buffers.rows[Q], buffers.rows[H], buffers.row[W]
    h[:] = p.dtype.type(0)
    for c in range(p.shape[0]):
        if overlap is not None:
            add_confusion_slope(
                p[c], q[c], buffers.rows[G, c], w, slopes[TP, c], slopes[FP, c], slopes[FN, c], slopes[TP_LESS_FN, c],
                overlap, h[c],
            )  # fmt: skip
    if matrix is not None:
        distance_slopes(buffers.y, w, matrix, h)
    adjoint(activation, p, q, h, buffers.row[SCALE], buffers.row[SCRATCH_A], buffers.row[SCRATCH_B])
    if surprisals is not None:
        add_gradient_soft(activation, buffers, gamma, slopes[HITS], slopes[MISSES])
