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
from twinloss.fast.kernels.cpu.compiled.reading import keep_labels, read_counted, read_weighted
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.compiled.sums import add
from twinloss.fast.kernels.cpu.compiled.surprisal import (
    add_gradient_soft,
    class_sum,
    gradient_own,
    own_slope,
    own_surprisal,
    surprisal_soft,
)
from twinloss.fast.kernels.cpu.compiled.tile import (
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
    block_of,
    clear_where_excluded,
    copy_cast,
    four_classes,
    four_exponentials,
    stage,
    tile_stage,
    volume,
)
from twinloss.fast.kernels.statistic_rows import DISTANCE, FN, FP, HITS, MISSES, NEARNESS, TP, TP_LESS_FN, VOLUME


@stage
def _few_sums(p, scale, rest, y, values, spare, sums):
    """Add the sums of at most four classes.

    A block has half as many voxels as elsewhere, because each sum is spread over fewer vector lanes.
    """
    first, second, third, fourth = four_exponentials(p, spare)
    numbers, half = four_classes(y, p.shape[0] - 1), block_of(p) // 2
    for k in range(0, y.size, half):
        stop = min(k + half, y.size)
        tp, fp, fn, hits = few_confusions(first, second, third, fourth, numbers, scale, rest, y, values, k, stop)
        labels = y[k:stop]
        for c in range(p.shape[0]):
            add(sums, TP, c, tp[c])
            add(sums, FP, c, fp[c])
            add(sums, FN, c, fn[c])
            add(sums, HITS, c, hits[c])
            add(sums, VOLUME, c, volume(tp[c], fn[c], labels, c))


@stage
def _softmax_against_labels(given, b, lo, buffers):
    """Read labels, compute exponentials and return a status; excluded voxels have p = 1 - p = 0 and no class."""
    x, raw, y, p = given.x, given.target[b, 0], buffers.y, buffers.rows[P]
    top, scale, rest, room = buffers.row[TOP], buffers.row[SCALE], buffers.row[REST], buffers.row[SCRATCH_A:OWN]
    status = read_counted(given, raw, x.shape[1], b, lo, y)
    exponentials(x, b, lo, p, top, scale, rest, room, given.excluding, y, raw)
    return status


# A function for a tile takes the arguments of its kernel, the chunk, the item and the first voxel of the tile, and the
# arrays for one tile. `out` may be x: stages are compiled for arrays that do not overlap, so no stage may take both.


@tile_stage
def forward_labels_tile(given, overlap, surprisals, matrix, chunk, b, lo, buffers, by_chunk, kept):
    """Add the statistics of a softmax against labels, and return a status."""
    x, gamma, sums = given.x, given.gamma, by_chunk[chunk]
    p, y, top, scale, rest = buffers.rows[P], buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    status = _softmax_against_labels(given, b, lo, buffers)
    if kept.size > 0:
        keep_labels(y, lo, kept[b, 0])
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
        for k in range(0, y.size, block_of(p)):
            block = slice(k, k + block_of(p))
            if overlap is not None:
                tp, fp, fn = confusion_labels(p[c, block], scale[block], rest[block], y[block], c)
                count = volume(tp, fn, y[block], c)
                add(sums, TP, c, tp)
                add(sums, FP, c, fp)
                add(sums, FN, c, fn)
            if surprisals is not None:
                hits, count = class_sum(buffers.row[SCRATCH_A, block], y[block], c)
                add(sums, HITS, c, hits)
            if matrix is not None:
                far, near, count = distance_sums(
                    buffers.row[SCRATCH_A, block], buffers.row[SCRATCH_B, block], y[block], c
                )
                add(sums, DISTANCE, c, far)
                add(sums, NEARNESS, c, near)
            add(sums, VOLUME, c, count)
    return status


@tile_stage
def forward_weighted_tile(given, overlap, surprisals, matrix, chunk, b, lo, buffers, by_chunk, kept):
    """Add the statistics of a tile of any kind, and return a status."""
    activation, gamma, sums = given.activation, given.gamma, by_chunk[chunk]
    p, q, g, w, y = buffers.rows[P], buffers.rows[Q], buffers.rows[G], buffers.row[W], buffers.y
    status = read_weighted(given, b, lo, buffers)
    if matrix is not None:
        distances(p, y, w, matrix, buffers.row[SCRATCH_B], buffers.row[SCRATCH_A])
    for c in range(p.shape[0]):
        for k in range(0, y.size, block_of(p)):
            block = slice(k, k + block_of(p))
            if overlap is not None:
                tp, fp, fn = confusion_soft(p[c, block], q[c, block], g[c, block], w[block], overlap)
                add(sums, TP, c, tp)
                add(sums, FP, c, fp)
                add(sums, FN, c, fn)
            if surprisals is not None:
                hits, misses = surprisal_soft(
                    activation, p[c, block], q[c, block], g[c, block], buffers.rows[X, c, block], w[block],
                    buffers.row[TOP, block], buffers.row[REST, block], gamma, surprisals == surprisal.ALL,
                    buffers.row[OWN, block], buffers.row[FACTOR, block],
                )  # fmt: skip
                add(sums, HITS, c, hits)
                add(sums, MISSES, c, misses)
            if matrix is not None:
                distance, near, _ = distance_sums(
                    buffers.row[SCRATCH_B, block], buffers.row[SCRATCH_A, block], y[block], c
                )
                add(sums, DISTANCE, c, distance)
                add(sums, NEARNESS, c, near)
            add(sums, VOLUME, c, surprisal.product_sum(g[c, block], w[block]))
    return status


@stage
def _slopes_of_own(given, slopes, b, lo, buffers):
    """Put p dL/dp of each voxel's true class, through its surprisal, into SCRATCH_A."""
    gamma, y, top, scale, rest = given.gamma, buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    own_p, own_q, own = buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A]
    if gamma != 0:
        own_surprisal(given.x, b, lo, buffers.rows[P : P + 1], y, top, scale, rest, gamma, own_p, own_q, own)
    own_slope(own_p, own_q, y, gamma, slopes[HITS, b], own)
    if given.excluding:
        clear_where_excluded(y, buffers.row[SCRATCH_A : SCRATCH_A + 1])


@tile_stage
def backward_labels_tile(given, overlap, surprisals, matrix, chunk, b, lo, buffers, slopes, out):
    """Write dL/dx of a softmax against labels, and return a status."""
    status = _softmax_against_labels(given, b, lo, buffers)
    if status == NOT_BINARY:
        return status
    if surprisals is not None and matrix is None:
        _slopes_of_own(given, slopes, b, lo, buffers)
    p, y, scale, rest = buffers.rows[P], buffers.y, buffers.row[SCALE], buffers.row[REST]
    largest, others, own = buffers.row[W], buffers.row[SCRATCH_B], buffers.row[SCRATCH_A]
    if matrix is not None:
        h = buffers.rows[H]
        table_slopes(y, matrix[b], h)
        gradient_slopes(p, scale, rest, h, largest, others, out, b, lo)
    elif overlap is None:
        gradient_own(p, scale, rest, y, own, buffers.row[OWN : OWN + 2], out, b, lo)
    else:
        if surprisals is None:
            own = own[:0]
        hits, misses = slopes[TP_LESS_FN, b], slopes[FP, b]
        gradient_labels(p, scale, rest, y, hits, misses, largest, others, own, out, b, lo)
    # scale = rest = 0 gives a gradient of 0, unless a slope is infinite, as that of an empty denominator.
    if given.excluding and not _are_small(slopes[:, b], None if matrix is None else matrix[b]):
        clear_where_excluded(y, out[b, :, lo : lo + y.size])
    return VALID


@tile_stage
def surprisals_of_labels_tile(given, overlap, surprisals, matrix, chunk, b, lo, buffers, by_chunk, gradient):
    """Add surprisals and write their gradient at once, and return a status."""
    x, gamma, sums = given.x, given.gamma, by_chunk[chunk]
    slopes, out = gradient
    p, y, top, scale, rest = buffers.rows[P], buffers.y, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST]
    own_p, own_q, own, focused = buffers.row[OWN], buffers.row[FACTOR], buffers.row[SCRATCH_A], buffers.row[SCRATCH_B]
    status = _softmax_against_labels(given, b, lo, buffers)
    own_surprisal(x, b, lo, buffers.rows[P : P + 1], y, top, scale, rest, gamma, own_p, own_q, own)
    copy_cast(own, focused)
    surprisal.focus(own_q, gamma, focused)
    for c in range(p.shape[0]):
        for k in range(0, y.size, block_of(p)):
            block = slice(k, k + block_of(p))
            hits, count = class_sum(focused[block], y[block], c)
            add(sums, HITS, c, hits)
            add(sums, VOLUME, c, count)
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


@tile_stage
def backward_weighted_tile(given, overlap, surprisals, matrix, chunk, b, lo, buffers, slopes, out):
    """Write dL/dx of a tile of any kind, and return a status."""
    activation = given.activation
    p, q, h, w = buffers.rows[P], buffers.rows[Q], buffers.rows[H], buffers.row[W]
    status = read_weighted(given, b, lo, buffers)
    h[:] = p.dtype.type(0)
    for c in range(p.shape[0]):
        if overlap is not None:
            add_confusion_slope(
                p[c], q[c], buffers.rows[G, c], w, slopes[TP, b, c], slopes[FP, b, c], slopes[FN, b, c],
                slopes[TP_LESS_FN, b, c], overlap, h[c],
            )  # fmt: skip
    if matrix is not None:
        distance_slopes(buffers.y, w, matrix[b], h)
    adjoint(activation, p, q, h, buffers.row[SCALE], buffers.row[SCRATCH_A], buffers.row[SCRATCH_B])
    if surprisals is not None:
        add_gradient_soft(activation, buffers, given.gamma, slopes[HITS, b], slopes[MISSES, b])
    for c in range(p.shape[0]):
        copy_cast(h[c], out[b, c, lo : lo + w.size])
    return status
