"""The places of a program that marches through images (N, D, H, W), and how it reads and writes there.

A program has a block of lanes, each of which is a place across the axis along which the program marches: along z if the
`Step` of `gpu/window.py` is deep, when lanes are places in a plane (y, x), and else along y, when lanes are places
(z, x). A range of steps is a pair of blocks, which is empty where there is no lane, as Triton's interpreter cannot
combine the mask of a block with that of a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import store


class Lanes(NamedTuple):
    """The lanes of a program.

    Attributes:
        a: their places across the march, along y or z.
        x: their places along x.
        march: the steps of the march that a lane has, as a range.
        A: the size of the axis across the march.
        X: the size along x.
        plane: the number of voxels of a plane, H * W.
    """

    a: Any
    x: Any
    march: Any
    A: Any
    X: Any
    plane: Any


class Image(NamedTuple):
    """An image of any layout.

    Attributes:
        first: pointers to the voxels of the lanes, at step 0 of the march.
        along: the stride along the march.
        across: that across it, along y or z.
        row: that along x.
    """

    first: Any
    along: Any
    across: Any
    row: Any


class Stored(NamedTuple):
    """Contiguous fields (N, fields, planes, H, W), which may have fewer planes than the images.

    Plane z is then stored at z modulo their number of planes.

    Attributes:
        first: pointers to the numbers of the lanes in the first field, at step 0 of the march.
        step: the offset from a field to the next.
        planes: the number of planes.
    """

    first: Any
    step: Any
    planes: Any


@triton.jit
def lanes_of(block, first, count, M, A, X, plane, BLOCK: tl.constexpr, FAR: tl.constexpr):
    """Return the lanes of a block, and which of them there are, if `count` places from `first` on are to be done."""
    lane = block.to(tl.int64 if FAR else tl.int32) * BLOCK + tl.arange(0, BLOCK)
    row = lane // X
    inside = row < count
    return Lanes(first + row, lane % X, range_of(inside, 0, M), A, X, plane), inside


@triton.jit
def chunk_of(inside, m_first, m_count, chunk):
    """Return the first step of this program, and the steps that each lane writes, as a range."""
    first = m_first + tl.program_id(1) * chunk
    return first, range_of(inside, first, tl.minimum(first + chunk, m_first + m_count))


@triton.jit
def image_of(pointer, n, lanes, by_item, along, across, row):
    """Return image n, given its strides."""
    return Image(pointer + n * by_item + (lanes.a * across + lanes.x * row), along, across, row)


@triton.jit
def stored_of(pointer, fields, n, lanes, planes, DEEP: tl.constexpr):
    """Return the stored fields of image n."""
    step = planes * (n * 0 + lanes.plane)
    return Stored(pointer + fields * n * step + places_of(lanes, planes, DEEP), step, planes)


@triton.jit
def places_of(lanes, planes, DEEP: tl.constexpr):
    """Return the offsets of the lanes in a stored field, without that of the march."""
    if DEEP:
        return lanes.a * lanes.X + lanes.x
    return (lanes.a % planes) * lanes.plane + lanes.x


@triton.jit
def voxels_at(image, m, j_a, j_x):
    """Return pointers to the voxels of an image at step m, j_a places across and j_x along x from the lanes."""
    return image.first + (m.to(tl.int64) * image.along + (j_a * image.across + j_x * image.row))


@triton.jit
def numbers_at(stored, m, j_a, j_x, lanes, DEEP: tl.constexpr):
    """Return pointers to the numbers of the first stored field, at the same places as `voxels_at`."""
    offset = offset_of(m, stored.planes, lanes, DEEP)
    return stored.first + (offset + (j_a * lanes.X + j_x))


@triton.jit
def offset_of(m, planes, lanes, DEEP: tl.constexpr):
    """Return the offset of a step of the march in a stored field."""
    if DEEP:
        return (m % planes).to(tl.int64) * lanes.plane
    return m.to(tl.int64) * lanes.X


@triton.jit
def found_at(lanes, m, j_a, j_x, STEP: tl.constexpr):
    """Return which lanes have a voxel at step m, j_a places across and j_x along x from them."""
    found = in_range(m, lanes.march)
    if STEP.across > 1:
        found = found & ((lanes.a + j_a >= 0) & (lanes.a + j_a < lanes.A))
    if STEP.row > 1:
        found = found & ((lanes.x + j_x >= 0) & (lanes.x + j_x < lanes.X))
    return found


@triton.jit
def range_of(inside, first, stop):
    """Return a range for each lane, which is empty if there is no lane."""
    return tl.where(inside, first, stop), tl.where(inside, stop, first)


@triton.jit
def in_range(m, steps):
    """Return which lanes have step m in their range."""
    return (m >= steps[0]) & (m < steps[1])


@triton.jit
def read(pointers, there, REAL: tl.constexpr):
    """Return numbers in a type that is at least as wide, 0 where there are none."""
    numbers = tl.load(pointers, there, 0.0)
    if numbers.dtype == tl.bfloat16:
        numbers = numbers.to(tl.float32)  # the interpreter makes no float64 of bfloat16
    return numbers.to(REAL)


@triton.jit
def put(stored, values, m, here, lanes, DEEP: tl.constexpr):
    """Write a tuple of numbers at step m to as many stored fields."""
    at = offset_of(m, stored.planes, lanes, DEEP)
    FIELDS: tl.constexpr = len(values)
    for k in tl.static_range(FIELDS):
        store(stored.first + (at + k * stored.step), values[k], here)


@triton.jit
def pushed(ring, entering):
    """Return a ring with a new last element and without the first one."""
    return ring[1:] + (entering,)  # noqa: RUF005 - Triton cannot unpack
