"""The voxel engine of the segmentation losses: one pass over a chunk of voxels, forward or backward.

Logits are read once forward and once backward, a tile at a time; from their probabilities come all the sums that a loss
asks for, or the gradient. Nothing of the size of the input is ever stored but the gradient itself. To add a statistic:
a module beside `confusion.py` with its sums and its slope, a row of the statistics, and a call of each in
`voxel_tile.py`.
"""

from __future__ import annotations

from twinloss.fast.kernels.cpu.compiled import sigmoid
from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.reading import read_weighted
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.compiled.tile import TILES, H, copy_cast, scratch, tile_width
from twinloss.fast.kernels.cpu.compiled.voxel_tile import (
    are_small,
    backward_weighted_tile,
    forward_labels_tile,
    forward_weighted_tile,
    gradient_labels_tile,
    slopes_of_own,
    softmax_against_labels,
    surprisals_of_labels_tile,
)


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
        found = forward_labels_tile(
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
    step, small = tile_width(x.shape[1], stop - start), are_small(slopes[:, b], matrix)
    buffers = scratch(x.shape[1], step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(x.shape[1], stop - lo, x.dtype)
        found = softmax_against_labels(x, target, item, ignore, mask, b, lo, buffers)
        if found == NOT_BINARY:
            return found
        if surprisals is not None and matrix is None:
            slopes_of_own(x, gamma, excluding, slopes, b, lo, buffers)
        gradient_labels_tile(overlap, surprisals, matrix, excluding, slopes, small, b, lo, buffers, out)
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
        found = surprisals_of_labels_tile(x, target, item, gamma, slopes, b, lo, buffers, of_chunk, out)
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
        forward_weighted_tile(activation, overlap, surprisals, gamma, matrix, buffers, of_chunk)
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
        backward_weighted_tile(activation, overlap, surprisals, gamma, matrix, slopes[:, b], buffers)
        for c in range(x.shape[1]):
            copy_cast(buffers.rows[H, c], out[b, c, lo : lo + buffers.y.size])
    return status
