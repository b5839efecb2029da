"""The voxel engine of the segmentation losses: one pass over a chunk of voxels, forward or backward.

Logits are read once forward and once backward, a tile at a time; from their probabilities come all the sums that a loss
asks for, or the gradient. Nothing of the size of the input is ever stored but the gradient itself. To add a statistic:
a module beside `confusion.py` with its sums and its slope, a row below, and a call of each in the two functions here.
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
    """The sums of at most four classes, over fewer voxels at a time, as they are spread over fewer lanes."""
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
    """Fill labels and exponentials and return a status; excluded voxels have p = 1 - p = 0, and no class."""
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


# The gradient may be written over the logits: LLVM is told that the arrays of a stage are apart, so that none has both.


@stage
def _slopes_of_own(x, gamma, excluding, slopes, b, lo, buffers):
    """Put p dL/dp of the surprisal of each voxel's own class into SCRATCH_A."""
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
    # Of scale = rest = 0 comes a gradient of 0, unless slopes are infinite, as those of an empty denominator.
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
    """Whether sums of a few slopes are finite."""
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
    """`forward` of softmax against labels, voxels counting or not: the case that trainings spend their time in.

    There min(p, g) is the product; and at its kink p = g = 1 the softmax has no slope. The number to ignore and the
    mask may be None. If `kept`, (B, 1, …) bytes, has room for two voxels in each byte, it gets what
    the backward needs of the target and the mask. Returns a status, see `status.py`.
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
    """Do what `backward` does in the same case, and return a status like that of `forward_labels`.

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
    """`forward_labels` and `backward_labels` at once, of surprisals alone where all voxels count."""
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
    """`forward` of sigmoid against labels, or a dense target of 0 and 1, voxels counting or not.

    Or of the softmax of a `pair` of classes against labels; only these have a matrix. `kept` is as in
    `forward_labels`, for labels, or for a dense target of one channel. Returns a status, see `status.py`.
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
    """Do what `backward` does in the same case, and return a status like that of `forward_channels`."""
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
    """Add the statistics of the voxels start:stop of item b to `sums`, (N, ROWS, C), by chunks of `TILES` tiles.

    x is (B, C, N); target its bytes, (B, 1 or C, N * itemsize), of the type with number `item`; the distance matrix
    is (C, C), mask (B or 1, N), or (0, 0) for none; ignore is NaN for none. Overlap, surprisals and matrix are None
    where they are not asked for, which is part of their types: what is not asked for is not compiled. Returns a
    status, see `status.py`.
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
    """Write dL/dx of the voxels start:stop of item b, given slopes = dL/d(statistics), (ROWS, B, C), and TP - FN.

    The matrix is (C, C) and holds dL/dp by true class and class. `out` may be x.
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
