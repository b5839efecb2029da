"""The places of a program that marches through images (N, D, H, W), and how it reads and writes there.

A program has a block of lanes, each of which is a place across the axis along which the program marches: along z if
`DEEP`, when lanes are places in a plane (y, x), and else along y, when lanes are places (z, x). Helpers take tuples:

* `lanes` is (a, x, march, A, X): the places along the two axes across the march, the steps of the march that a lane
  has, as a range, and the sizes of these axes. A range is a pair of blocks, which is empty where there is no lane, as
  Triton's interpreter cannot combine the mask of a block with that of a step.
* Stored fields are contiguous, and may have fewer planes than the images: plane z is then stored at z modulo their
  number of planes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lanes_of(block, first, count, M, A, X, BLOCK: tl.constexpr, FAR: tl.constexpr):
    """Return the lanes of a block, and which of them there are, if `count` places from `first` on are to be done."""
    lane = block.to(tl.int64 if FAR else tl.int32) * BLOCK + tl.arange(0, BLOCK)
    row = lane // X
    inside = row < count
    return (first + row, lane % X, range_of(inside, 0, M), A, X), inside


@triton.jit
def places_of(lanes, planes, plane, DEEP: tl.constexpr):
    """Return the offsets of the lanes in a stored field, without that of the march."""
    if DEEP:
        return lanes[0] * lanes[4] + lanes[1]
    return (lanes[0] % planes) * plane + lanes[1]


@triton.jit
def offset_of(m, planes, X, plane, DEEP: tl.constexpr):
    """Return the offset of a step of the march in a stored field."""
    if DEEP:
        return (m % planes).to(tl.int64) * plane
    return m.to(tl.int64) * X


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
def pushed(ring, entering):
    """Return a ring with a new last element and without the first one."""
    return ring[1:] + (entering,)  # noqa: RUF005 - Triton cannot unpack
