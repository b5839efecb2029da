"""The kernels of the segmentation losses: one pass over chunks of voxels, forward or backward.

Logits are read once forward and once backward, a tile at a time; from their probabilities come all the sums that a loss
asks for, or the gradient. Nothing of the size of the input is ever stored but the gradient itself. To add a statistic:
a module beside `confusion.py` with its sums and its slope, a row of the statistics, and a call of each in
`voxel_tile.py`.

There are three pairs of kernels. `forward` and `backward` serve all cases. The others serve common ones faster:
`forward_labels` and `backward_labels` a softmax of labels with a binary mask, where min(p, g) is the product p g, and
at its kink p = g = 1 the slope of the softmax is 0; `forward_channels` and `backward_channels` a sigmoid with labels or
a dense target of 0 and 1 and a binary mask, and the softmax of two classes with labels. All take the same arguments
first:

* x: logits or probabilities, (B, C, N);
* target: the bytes of the target, (B, 1 or C, N * itemsize);
* item: the number of the type of the target;
* overlap, surprisals, matrix: the statistics, see `Plan`, and the distances between classes, (C, C), backward dL/dp by
  item, true class and class, (B, C, C). They are None if they are not needed; None is a type of its own, for which
  Numba leaves out the code that computes them;
* gamma, activation, dense (whether the target holds no labels): see `Plan`;
* ignoring, ignore: whether there is a label of voxels to exclude, and this label;
* excluding: whether any voxels may be excluded, by `ignore` or by the mask;
* mask: (B or 1, N), or (0, 0) if there is none;
* first, end: the range of chunks; a chunk is `TILES` tiles of an item.

Forward kernels add the statistics of each chunk to `sums`, (chunks, 2, ROWS, C), as `add` in `sums.py` does. If `kept`,
(B, 1, ...) bytes, is not empty, it receives the labels, two in each byte, which the backward pass reads in place of the
target and the mask. Backward kernels write dL/dx to `out`, which may be x, except for `backward_channels`. `slopes`,
(ROWS, B, C), is dL/d(statistics), and includes the slope in TP - FN. All return a status, see `status.py`.
"""

from __future__ import annotations

from numba import njit

from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.sigmoid import backward_channels_tile, forward_channels_tile
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.compiled.tile import TILES, Given, scratch, tile_width
from twinloss.fast.kernels.cpu.compiled.voxel_tile import (
    backward_labels_tile,
    backward_weighted_tile,
    forward_labels_tile,
    forward_weighted_tile,
    surprisals_of_labels_tile,
)


@njit(inline="always")
def _over_tiles(function, given, overlap, surprisals, matrix, first, end, one, other):
    """Call a function for each tile of some chunks, and return the largest status."""
    x = given.x
    classes, voxels = x.shape[1], x.shape[2]
    width = tile_width(classes, voxels)
    chunks = -(-voxels // (TILES * width))
    status, buffers = VALID, scratch(classes, width, x.dtype)
    for chunk in range(first, end):
        b, start = chunk // chunks, chunk % chunks * (TILES * width)
        for lo in range(start, min(start + TILES * width, voxels), width):
            if min(width, voxels - lo) != buffers.y.size:
                buffers = scratch(classes, min(width, voxels - lo), x.dtype)
            found = function(given, overlap, surprisals, matrix, chunk, b, lo, buffers, one, other)
            if found == NOT_BINARY:
                return found
            status = max(status, found)
    return status


@kernel
def forward_labels(
    x, target, item, overlap, surprisals, matrix, gamma, activation, dense, ignoring, ignore, excluding, mask, first,
    end, sums, kept,
):  # fmt: skip
    """Sum the statistics of a softmax of labels."""
    given = Given(x, target, item, gamma, activation, dense, ignoring, ignore, excluding, mask)
    return _over_tiles(forward_labels_tile, given, overlap, surprisals, matrix, first, end, sums, kept)


@kernel
def backward_labels(
    x, target, item, overlap, surprisals, matrix, gamma, activation, dense, ignoring, ignore, excluding, mask, first,
    end, slopes, out,
):  # fmt: skip
    """Write the gradient of a softmax of labels."""
    given = Given(x, target, item, gamma, activation, dense, ignoring, ignore, excluding, mask)
    return _over_tiles(backward_labels_tile, given, overlap, surprisals, matrix, first, end, slopes, out)


@kernel
def surprisals_of_labels(
    x, target, item, overlap, surprisals, matrix, gamma, activation, dense, ignoring, ignore, excluding, mask, first,
    end, sums, slopes, out,
):  # fmt: skip
    """Do `forward_labels` and `backward_labels` in one pass, for surprisals only, if no voxel is excluded."""
    given = Given(x, target, item, gamma, activation, dense, ignoring, ignore, excluding, mask)
    gradient = slopes, out
    return _over_tiles(surprisals_of_labels_tile, given, overlap, surprisals, matrix, first, end, sums, gradient)


@kernel
def forward_channels(
    x, target, item, overlap, surprisals, matrix, gamma, activation, dense, ignoring, ignore, excluding, mask, first,
    end, sums, kept,
):  # fmt: skip
    """Sum the statistics of a sigmoid, or of a softmax of two classes; only for the latter a matrix is allowed."""
    given = Given(x, target, item, gamma, activation, dense, ignoring, ignore, excluding, mask)
    return _over_tiles(forward_channels_tile, given, overlap, surprisals, matrix, first, end, sums, kept)


@kernel
def backward_channels(
    x, target, item, overlap, surprisals, matrix, gamma, activation, dense, ignoring, ignore, excluding, mask, first,
    end, slopes, out,
):  # fmt: skip
    """Write the gradient of a sigmoid, or of a softmax of two classes."""
    given = Given(x, target, item, gamma, activation, dense, ignoring, ignore, excluding, mask)
    return _over_tiles(backward_channels_tile, given, overlap, surprisals, matrix, first, end, slopes, out)


@kernel
def forward(
    x, target, item, overlap, surprisals, matrix, gamma, activation, dense, ignoring, ignore, excluding, mask, first,
    end, sums, kept,
):  # fmt: skip
    """Sum the statistics in any case; nothing is kept."""
    given = Given(x, target, item, gamma, activation, dense, ignoring, ignore, excluding, mask)
    return _over_tiles(forward_weighted_tile, given, overlap, surprisals, matrix, first, end, sums, kept)


@kernel
def backward(
    x, target, item, overlap, surprisals, matrix, gamma, activation, dense, ignoring, ignore, excluding, mask, first,
    end, slopes, out,
):  # fmt: skip
    """Write the gradient in any case."""
    given = Given(x, target, item, gamma, activation, dense, ignoring, ignore, excluding, mask)
    return _over_tiles(backward_weighted_tile, given, overlap, surprisals, matrix, first, end, slopes, out)
