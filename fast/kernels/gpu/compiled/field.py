"""What the kernels of displacement fields share: tiles of a field, offsets of neighbours, and the sum of the parts.

A field is one component of one item, (D, H, W), with size 1 along axes that it does not have. A program has a tile of
rows and columns, and visits the planes of a chunk one after the other. A neighbour beyond the border is replaced by the
voxel at the border, so that each address is valid; what is computed from it is not used.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import compensated, store

# The arguments whose alignment must not matter. Otherwise, each thread would take four neighbouring columns to store
# them at once, and the loads of a warp, most of which are not aligned, would touch four times as many lines.
SHAPE = ("depth", "height", "width", "stride_n", "stride_z", "stride_y", "stride_x")


@triton.jit
def tile_of(fields, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """Return the field and the chunk of this program, and its rows (ROWS, 1) and columns (1, COLUMNS)."""
    program = tl.program_id(0)
    field, program = program % fields, program // fields
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    column, program = program % across, program // across
    row, chunk = program % down, program // down
    rows = row.to(INDEX) * ROWS + tl.arange(0, ROWS)
    columns = column.to(INDEX) * COLUMNS + tl.arange(0, COLUMNS)
    return field.to(tl.int64), chunk, rows[:, None], columns[None, :]


@triton.jit
def within(k, n, margin):
    """Return whether a place k of n is at least `margin` away from the border."""
    return (k >= margin) & (k < n - margin)


@triton.jit
def clamped(k, n):
    """Return k, or the nearest of the numbers 0 to n - 1."""
    return tl.minimum(tl.maximum(k, 0), n - 1)


@triton.jit
def neighbours(k, n, stride, REACH: tl.constexpr):
    """Return the offsets in memory of the places k - REACH to k + REACH of n."""
    made = ()
    for far in tl.static_range(-REACH, REACH + 1):
        made = made + (clamped(k + far, n) * stride,)  # noqa: RUF005
    return made


@triton.jit
def weights_of(weights, component, slope, TERMS: tl.constexpr, REAL: tl.constexpr):
    """Return the weight of each difference of a component, times a slope."""
    made = ()
    for term in tl.static_range(TERMS):
        made = made + ((tl.load(weights + component * TERMS + term) * slope).to(REAL),)  # noqa: RUF005
    return made


@triton.jit
def slope_of(factor, upstream):
    """Return a factor times dL/d(value), which may be None for 1."""
    slope = tl.full((), factor, tl.float64)
    if upstream is not None:
        slope *= tl.load(upstream).to(tl.float64)
    return slope


@triton.jit
def push(queue, new):
    """Append to a queue, and drop its first element."""
    return queue[1:] + (new,)  # noqa: RUF005


@triton.jit
def voxels_of(fields, size, BLOCK: tl.constexpr, INDEX: tl.constexpr):
    """Return the field of this program, and the places (z, y, x) of its voxels, (BLOCK,) along each axis."""
    program = tl.program_id(0)
    i = (program // fields).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    row = i // size[2]
    return (program % fields).to(tl.int64), (row // size[1], row % size[1], i % size[2])


@triton.jit
def at(field, place, offset: tl.constexpr, REAL: tl.constexpr):
    """Return a field (pointer, strides, sizes) at an offset from a place, both (z, y, x)."""
    u, strides, size = field
    row = u + clamped(place[0] + offset[0], size[0]).to(tl.int64) * strides[0]
    row += clamped(place[1] + offset[1], size[1]).to(tl.int64) * strides[1]
    return tl.load(row + clamped(place[2] + offset[2], size[2]).to(tl.int64) * strides[2]).to(REAL)


@triton.jit
def without_border(u, n, size, MARGINS: tl.constexpr):
    """Return field n of some contiguous fields without a border: pointer, strides and sizes."""
    height, width = size[1] - 2 * MARGINS[1], size[2] - 2 * MARGINS[2]
    depth = size[0] - 2 * MARGINS[0]
    plane = height.to(tl.int64) * width
    return u + n * depth * plane, (plane, width, 1), (depth, height, width)


@triton.jit
def store_inside(field, place, size, MARGINS: tl.constexpr, values):
    """Store the values of the places in a field without a border, if they are off the border."""
    u, strides, _ = field
    row = (place[0] - MARGINS[0]) * strides[0] + (place[1] - MARGINS[1]) * strides[1].to(tl.int64)
    store(u + (row + (place[2] - MARGINS[2])), values, inside(place, size, MARGINS))


@triton.jit
def inside(place, size, MARGINS: tl.constexpr):
    """Return whether a place is off the border, whose width is given for each axis."""
    here = within(place[1], size[1], MARGINS[1]) & within(place[2], size[2], MARGINS[2])
    return here & within(place[0], size[0], MARGINS[0])


@triton.jit
def block_of(k):
    """Return a number as a block of one: Triton's interpreter does not combine conditions on numbers and on blocks."""
    return tl.zeros((1, 1), tl.int32) + k


@triton.jit
def add_parts(parts, out, count, divisor: tl.float64, BLOCK: tl.constexpr):
    """Write the sum of some float64 numbers, divided by a number; the order of the sum is fixed."""
    total, lost = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        total, lost = compensated(total, lost, tl.load(parts + k, k < count, 0.0))
    store(out, tl.sum(total) / tl.full((), divisor, tl.float64))
