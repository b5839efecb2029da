"""Kernels of the segmentation losses: one pass over a chunk of voxels, forward or backward.

Each pass reads the logits once, a tile at a time. From the probabilities it computes all sums that a loss needs, or the
gradient. Except for the gradient, nothing of the size of the input is stored. To add a statistic, write its sums and
its slope in a module beside `confusion.py`, add a row to `statistic_rows.py`, and call both in the functions here.
"""

from __future__ import annotations

import numpy as np

from twinloss.fast.kernels.cpu.compiled import sigmoid, surprisal
from twinloss.fast.kernels.cpu.compiled.compiler import kernel
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
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
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
    TILES,
    TOP,
    G,
    H,
    P,
    Q,
    W,
    X,
    clear_where_excluded,
    copy_cast,
    exponentials,
    four_classes,
    four_exponentials,
    keep_labels,
    read_counted,
    read_weighted,
    scratch,
    stage,
    tile_width,
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
def _softmax_against_labels(x, target, item, ignore, mask, b, lo, buffers):
    """Read labels, compute exponentials and return a status; excluded voxels have p = 1 - p = 0 and no class."""
    p, top, scale, rest = buffers.rows[P], buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    status = read_counted(target[b, 0], item, x.shape[1], ignore, mask, b, lo, x.shape[2], buffers.y)
    excluding = None if ignore is None and mask is None else buffers.y
    exponentials(x, b, lo, p, top, scale, rest, buffers.row[SCRATCH_A : SCRATCH_A + 2], excluding, target[b, 0])
    return status


@stage
def _forward_labels(x, target, item, overlap, surprisals, gamma, matrix, ignore, mask, b, lo, buffers, sums, kept):
    p, y, top, scale, rest = buffers.rows[P], buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    status = _softmax_against_labels(x, target, item, ignore, mask, b, lo, buffers)
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
def _forward_weighted(activation, overlap, surprisals, gamma, matrix, buffers, sums):
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
def _slopes_of_own(x, gamma, excluding, slopes, b, lo, buffers):
    """Put p dL/dp of each voxel's true class, through its surprisal, into SCRATCH_A."""
    y, top, scale, rest = buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    own_p, own_q, own = buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A]
    if gamma != 0:
        own_surprisal(x, b, lo, buffers.rows[P : P + 1], y, top, scale, rest, gamma, own_p, own_q, own)
    own_slope(own_p, own_q, y, gamma, slopes[HITS, b], own)
    if excluding:
        clear_where_excluded(y, buffers.row[SCRATCH_A : SCRATCH_A + 1])


@stage
def _gradient_labels(overlap, surprisals, matrix, excluding, slopes, small, b, lo, buffers, out):
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
def _surprisals_of_labels(x, target, item, gamma, slopes, b, lo, buffers, sums, out):
    p, y, top, scale, rest = buffers.rows[P], buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    own_p, own_q, own, focused = buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A], buffers.row[SCRATCH_B]
    status = _softmax_against_labels(x, target, item, None, None, b, lo, buffers)
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
def _are_small(slopes, matrix):
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
def _backward_weighted(activation, overlap, surprisals, gamma, matrix, slopes, buffers):
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


@kernel
def forward_labels(x, target, item, overlap, surprisals, gamma, matrix, ignore, mask, b, start, stop, sums, kept):
    """Do what `forward` does for a softmax, labels and a binary mask, the case of most trainings.

    In this case min(p, g) is the product p g, and at its kink p = g = 1 the slope of the softmax is 0. `ignore` and
    `mask` may be None. If `kept`, (B, 1, …) bytes, is not empty, it receives the labels, two in each byte, which the
    backward pass reads in place of the target and the mask. Returns a status, see `status.py`.
    """
    status, step = VALID, tile_width(x.shape[1], stop - start)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        found = _forward_labels(
            x, target, item, overlap, surprisals, gamma, matrix, ignore, mask, b, lo, buffers,
            sums[(lo - start) // (TILES * step)], kept[b, 0],
        )  # fmt: skip
        if found == NOT_BINARY:
            return found
        status = max(status, found)
    return status


@kernel
def backward_labels(x, target, item, overlap, surprisals, gamma, matrix, ignore, mask, slopes, b, start, stop, out):
    """Do what `backward` does in the case of `forward_labels`, and return a status.

    `out` may be x.
    """
    excluding = ignore is not None or mask is not None
    step, small = tile_width(x.shape[1], stop - start), _are_small(slopes[:, b], matrix)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        found = _softmax_against_labels(x, target, item, ignore, mask, b, lo, buffers)
        if found == NOT_BINARY:
            return found
        if surprisals is not None and matrix is None:
            _slopes_of_own(x, gamma, excluding, slopes, b, lo, buffers)
        _gradient_labels(overlap, surprisals, matrix, excluding, slopes, small, b, lo, buffers, out)
    return VALID


@kernel
def surprisals_of_labels(x, target, item, gamma, slopes, b, start, stop, sums, out):
    """Do `forward_labels` and `backward_labels` in one pass, for surprisals only, if no voxel is excluded."""
    status, step = VALID, tile_width(x.shape[1], stop - start)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        of_chunk = sums[(lo - start) // (TILES * step)]
        found = _surprisals_of_labels(x, target, item, gamma, slopes, b, lo, buffers, of_chunk, out)
        status = max(status, found)
    return status


@kernel
def forward_channels(
    x, target, item, overlap, surprisals, gamma, matrix, pair, dense, ignore, mask, b, start, stop, sums, kept
):  # fmt: skip
    """Do what `forward` does for a sigmoid, labels or a dense target of 0 and 1, and a binary mask.

    With `pair`, do it for the softmax of two classes and labels; only then a matrix is allowed. `kept` is as in
    `forward_labels`, for labels and for a dense target of one channel. Returns a status, see `status.py`.
    """
    status, step = VALID, tile_width(x.shape[1], stop - start)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        found = sigmoid.forward_tile(
            x, target, item, overlap, surprisals, gamma, matrix, pair, dense, ignore, mask, b, lo, buffers,
            sums[(lo - start) // (TILES * step)], kept[b, 0],
        )  # fmt: skip
        if found == NOT_BINARY:
            return found
        status = max(status, found)
    return status


@kernel
def backward_channels(
    x, target, item, overlap, surprisals, gamma, matrix, pair, dense, ignore, mask, slopes, b, start, stop, out
):  # fmt: skip
    """Do what `backward` does in the case of `forward_channels`, and return a status."""
    step = tile_width(x.shape[1], stop - start)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        found = sigmoid.backward_tile(
            x, target, item, overlap, surprisals, gamma, matrix, pair, dense, ignore, mask, slopes, b, lo, buffers,
            out,
        )  # fmt: skip
        if found == NOT_BINARY:
            return found
    return VALID


@kernel
def forward(
    x, target, item, overlap, surprisals, gamma, matrix, dense, mask, activation, ignore, b, start, stop, sums
):  # fmt: skip
    """Add the statistics of the voxels start:stop of item b to `sums`, (chunks, ROWS, C), for chunks of `TILES` tiles.

    x is (B, C, N). `target` holds the bytes of the target, (B, 1 or C, N * itemsize), and `item` is the number of its
    type. The distance matrix is (C, C). The mask is (B or 1, N), or (0, 0) if there is none. `ignore` is NaN if no
    label is ignored. `overlap`, `surprisals` and `matrix` are None if they are not needed; None is a type of its own,
    for which Numba leaves out the code that computes them. Returns a status, see `status.py`.
    """
    status, step = VALID, tile_width(x.shape[1], stop - start)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        found = read_weighted(x, target, item, dense, mask, activation, ignore, b, lo, buffers)
        status = max(status, found)
        of_chunk = sums[(lo - start) // (TILES * step)]
        _forward_weighted(activation, overlap, surprisals, gamma, matrix, buffers, of_chunk)
    return status


@kernel
def backward(
    x, target, item, overlap, surprisals, gamma, matrix, dense, mask, activation, ignore, slopes, b, start, stop,
    out,
):  # fmt: skip
    """Write dL/dx of the voxels start:stop of item b, and return a status.

    `slopes`, (ROWS, B, C), is dL/d(statistics), and includes the slope in TP - FN. The matrix, (C, C), holds dL/dp by
    true class and class. `out` may be x.
    """
    status, step = VALID, tile_width(x.shape[1], stop - start)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        found = read_weighted(x, target, item, dense, mask, activation, ignore, b, lo, buffers)
        status = max(status, found)
        _backward_weighted(activation, overlap, surprisals, gamma, matrix, slopes[:, b], buffers)
        for c in range(x.shape[1]):
            copy_cast(buffers.rows[H, c], out[b, c, lo : lo + buffers.y.size])
    return status
