"""A chunk of voxels of a segmentation: where it lies in memory, and how a program reads it tile by tile.

A tile is a block of classes by voxels. Values by voxel have the shape (voxels,), the others (classes, voxels).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import store
from twinloss.fast.kernels.gpu.compiled.rows import ROWS, STRETCH

IDENTITY, SIGMOID, SOFTMAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NONE, PRODUCT, MINIMUM, SQUARED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
TARGET, ALL = tl.constexpr(1), tl.constexpr(2)

# In place of the class: the voxel takes no part, or its label is no class or its mask lies outside [0, 1].
EXCLUDED, INVALID = tl.constexpr(-1), tl.constexpr(-2)
LOWEST = tl.constexpr(float("-inf"))


class Kind(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        x_step: the distance of the voxels of the logits in memory.
        y_step: that of the target.
        mask_step: that of the mask.
        classes: C.
        padded: the number of classes of a tile, a power of 2.
        block: the number of voxels of a tile.
        each: the number of voxels that a thread loads at once.
        real: the type of the arithmetic.
        labels: whether the target is a label, and not a number for each class.
        ignore: `ignore_index`, or None.
        masked: whether there is a mask.
        distant: whether there is a matrix of distances between classes.
        activation: IDENTITY, SIGMOID or SOFTMAX.
        overlap: NONE, PRODUCT, MINIMUM or SQUARED.
        surprisal: NONE, TARGET or ALL.
        by_class: whether each class of a softmax has a surprisal, and not the true one alone.
        focus: γ if that is 0, 1 or 2, and 3 for any other.
    """

    x_step: int
    y_step: int
    mask_step: int
    classes: int
    padded: int
    block: int
    each: int
    real: Any
    labels: bool
    ignore: int | float | None
    masked: bool
    distant: bool
    activation: int
    overlap: int
    surprisal: int
    by_class: bool
    focus: int


class Chunk(NamedTuple):
    """The voxels of a program.

    Attributes:
        x: pointer to the logits of the first voxel.
        x_class: the distance of classes in memory.
        y: pointer to its target.
        y_class: the distance of classes in memory, if the target is dense.
        ignored: the offset of the channel of a dense target that is 1 in voxels to exclude, if there is one.
        mask: the offset of the first voxel in the mask.
        voxels: how many voxels the item has from the first one on.
    """

    x: Any
    x_class: Any
    y: Any
    y_class: Any
    ignored: Any
    mask: Any
    voxels: Any


class Voxels(NamedTuple):
    """The voxels of a tile.

    Attributes:
        k: their places in the chunk.
        inside: whether the item has them.
        y: the class, or 0 for a dense target, or EXCLUDED or INVALID.
        weight: the weight, which is 0 in excluded voxels.
    """

    k: Any
    inside: Any
    y: Any
    weight: Any


class Tile(NamedTuple):
    """Some classes of the voxels of a tile.

    Attributes:
        x: the logits, 0 in excluded voxels and NaN in invalid ones, whatever they hold.
        g: the target.
        own: whether the label names the class.
        there: whether the item has the voxel and the class.
    """

    x: Any
    g: Any
    own: Any
    there: Any


class Gradient(NamedTuple):
    """The gradient in the logits of a chunk.

    Attributes:
        out: pointer to that of the first voxel.
        out_class: the distance of classes in memory.
        stretch: the number by which the slopes have been divided, see `rows.py`.
        factor: a factor of the gradient.
    """

    out: Any
    out_class: Any
    stretch: Any
    factor: Any


# --- reading ----------------------------------------------------------------------------------------------------------


@triton.jit
def chunk_of(x_ptr, y_ptr, N, per_program, x_item, x_class, y_item, y_class, mask_item, KIND: tl.constexpr):
    """Return the chunk of this program.

    x is at `x_ptr + item * x_item + c * x_class + voxel * KIND.x_step`, and so are target and mask.
    """
    chunk, item = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    start = chunk * per_program
    x = x_ptr + (item * x_item + start * KIND.x_step)
    y = y_ptr + (item * y_item + start * KIND.y_step)
    ignored = 0
    if KIND.ignore is not None and not KIND.labels and KIND.classes > 1:
        ignored = tl.full((), y_class, tl.int64) * KIND.ignore
    return Chunk(x, x_class, y, y_class, ignored, item * mask_item + start * KIND.mask_step, N - start)


@triton.jit
def voxels_of(chunk, mask_ptr, at, KIND: tl.constexpr):
    """Return the voxels of a tile that begins at place `at` of a chunk."""
    k = at + tl.arange(0, KIND.block)
    inside = k < chunk.voxels
    if KIND.labels:
        y = _labels(tl.load(chunk.y + k * KIND.y_step, inside, 0), KIND)
    else:
        y = tl.zeros_like(k)
        if KIND.ignore is not None:
            g = tl.load(chunk.y + chunk.ignored + k * KIND.y_step, inside, 0).to(KIND.real)
            y = tl.where(g == (KIND.ignore if KIND.classes == 1 else 1), EXCLUDED, y)
    y = tl.where(inside, y, EXCLUDED)
    weight = (y != EXCLUDED).to(KIND.real)
    if KIND.masked:
        m = tl.load(mask_ptr + chunk.mask + k * KIND.mask_step, inside, 0).to(KIND.real)
        y = tl.where((m == 0) & (y >= 0), EXCLUDED, y)
        valid = (m >= 0) & (m <= 1)
        y = tl.where(valid | (y == EXCLUDED), y, INVALID)
        weight = tl.where(y == EXCLUDED, 0.0, tl.where(y == INVALID, float("nan"), m))
    return Voxels(k, inside, y, weight)


@triton.jit
def _labels(y, KIND: tl.constexpr):
    if y.dtype.is_floating():
        if y.dtype != tl.float64:
            y = y.to(tl.float32)
    elif y.dtype.primitive_bitwidth < 32:
        y = y.to(tl.int32)
    known = (y >= 0) & (y < KIND.classes)
    label = tl.where(known, y, 0).to(tl.int32)
    if y.dtype.is_floating():
        known = known & (label.to(y.dtype) == y)
    label = tl.where(known, label, INVALID)
    if KIND.ignore is not None:
        label = tl.where(y == KIND.ignore, EXCLUDED, label)
    return label


@triton.jit
def offsets_of(c, k, by_class, step: tl.constexpr, EACH: tl.constexpr):
    """Return where voxels k of classes c lie in memory; a thread takes EACH neighbours at a time, if they are any."""
    offsets = c.to(tl.int64)[:, None] * by_class + (k * step)[None, :]
    if step == 1:  # otherwise the compiler would spread a voxel's classes over threads, to load more neighbours at once
        offsets = tl.max_contiguous(offsets, [1, EACH])
    return offsets


@triton.jit
def logits_of(chunk, voxels, c, KIND: tl.constexpr):
    """Return the logits of the classes c; under a softmax, they are -inf beyond the last class."""
    there = (c < KIND.classes)[:, None]
    # The mask of the load hangs on the place alone: one that hangs on labels would cost the loads of 16 bytes.
    offsets = offsets_of(c, voxels.k, chunk.x_class, KIND.x_step, KIND.each)
    x = tl.load(chunk.x + offsets, there & voxels.inside[None, :], 0.0).to(KIND.real)
    x = tl.where((voxels.y >= 0)[None, :], x, tl.where(voxels.y == INVALID, float("nan"), 0.0)[None, :])
    return tl.where(there, x, LOWEST) if KIND.activation == SOFTMAX else x


@triton.jit
def tile_of(chunk, voxels, c, KIND: tl.constexpr):
    """Return the classes c of some voxels."""
    x = logits_of(chunk, voxels, c, KIND)
    there = (c < KIND.classes)[:, None] & voxels.inside[None, :]
    # The second condition always holds, and costs nothing. It lets the compiler compare in the threads that hold x.
    own = (c[:, None] == voxels.y[None, :]) & ((x == x) | (x != x))
    if KIND.labels:
        g = own.to(KIND.real)
    else:
        offsets = offsets_of(c, voxels.k, chunk.y_class, KIND.y_step, KIND.each)
        g = tl.load(chunk.y + offsets, there, 0).to(KIND.real)
        g = tl.where((voxels.y >= 0)[None, :], g, 0.0)
    return Tile(x, g, own, there)


@triton.jit
def distances_of(matrix_ptr, voxels, c, KIND: tl.constexpr):
    """Return the distance of the classes c to the true one, where c has a shape that combines with (1, voxels)."""
    k = tl.maximum(voxels.y, 0)[None, :] * KIND.classes + c
    return tl.load(matrix_ptr + k, c < KIND.classes, 0.0).to(KIND.real)


# --- writing ----------------------------------------------------------------------------------------------------------


@triton.jit
def part_of(part_ptr, KIND: tl.constexpr):
    """Return the place of this program's chunk in the parts, (B, chunks, ROWS, C)."""
    chunk, item = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    return part_ptr + (item * tl.num_programs(0) + chunk) * ROWS * KIND.classes


@triton.jit
def put(part_ptr, row: tl.constexpr, values, c, KIND: tl.constexpr):
    """Write the sums over voxels of one of the statistics."""
    store(part_ptr + row * KIND.classes + c, tl.sum(values, 1), c < KIND.classes)


@triton.jit
def gradient_of(
    out_ptr, slopes_ptr, factor_ptr, per_program, out_item, out_class, out_step: tl.constexpr, KIND: tl.constexpr
):
    """Return where the gradient of this program's chunk is, with its factors; `factor_ptr` may be None."""
    chunk, item = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    stretch = tl.load(slopes_ptr + (STRETCH * tl.num_programs(1) + item) * KIND.classes)
    factor = tl.full((), 1.0, KIND.real)
    if factor_ptr is not None:
        factor = tl.load(factor_ptr).to(KIND.real)
    return Gradient(out_ptr + (item * out_item + chunk * per_program * out_step), out_class, stretch, factor)


@triton.jit
def put_gradient(gradient, values, voxels, c, there, out_step: tl.constexpr, KIND: tl.constexpr):
    """Write the gradient in some classes of some voxels, given its values without the factors."""
    # Not a product: the slope of an empty denominator is infinite, and so may be the slope of a scaled loss.
    dropped = (voxels.y == EXCLUDED)[None, :] | (values == 0)
    values = tl.where(dropped, 0.0, values * gradient.stretch * gradient.factor)
    store(gradient.out + offsets_of(c, voxels.k, gradient.out_class, out_step, KIND.each), values, there)
