"""Squared first differences of a field, and their adjoint.

With a margin of 0, the differences are those of a voxel and its neighbours, two squares along each axis. The missing
neighbour of a voxel at the border is the mirror image of the one that exists, which therefore counts twice. With a
margin of 1, the differences are those of the two neighbours of a voxel that is not at the border.

Each squared difference is the energy of two voxels, or of the voxel between them. So the gradient is a sum over these
pairs: each voxel is pulled towards its partners.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import store
from twinloss.fast.kernels.gpu.compiled.field import (
    SHAPE,
    at,
    block_of,
    clamped,
    inside,
    neighbours,
    push,
    slope_of,
    store_inside,
    tile_of,
    voxels_of,
    weights_of,
    within,
    without_border,
)


@triton.jit(do_not_specialize_on_alignment=SHAPE)
def march(
    u, weights, upstream, parts, out, fields, components, depth, height, width, stride_n, stride_z, stride_y, stride_x,
    planes, factor: tl.float64, MARGIN: tl.constexpr, RANK: tl.constexpr, VALUE: tl.constexpr, GRADIENT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sum the energies of a tile of some planes, or write dL/du, or both; the arguments are those of bending energy.

    A program keeps in registers what later planes need of the column of a voxel.
    """
    FAR: tl.constexpr = 1 + MARGIN
    # How many planes the program reads ahead of the current one.
    LEAD: tl.constexpr = 0 if RANK < 3 else (FAR if GRADIENT else 1)
    MARGINS: tl.constexpr = (MARGIN if RANK > 2 else 0, MARGIN if RANK > 1 else 0, MARGIN)
    size = (depth, height, width)
    field, chunk, y, x = tile_of(fields, height, width, ROWS, COLUMNS, INDEX)
    u += field * stride_n
    by_energy = weights_of(weights, field % components, 1.0, RANK, REAL)
    if GRADIENT:
        by_slope = weights_of(weights, field % components, slope_of(factor, upstream), RANK, REAL)
        out += field * depth * height * width
    rows, columns = neighbours(y, height, stride_y, FAR), neighbours(x, width, stride_x, FAR)
    total, zero = tl.zeros((ROWS, COLUMNS), tl.float64), tl.zeros((ROWS, COLUMNS), REAL)
    column = (zero,) * (2 * LEAD + 1)
    start, stop = chunk * planes, tl.minimum(chunk * planes + planes, depth)
    for p in range(start - LEAD, stop + LEAD):
        ahead = u + clamped(p, depth).to(tl.int64) * stride_z
        column = push(column, tl.load(ahead + (rows[FAR] + columns[FAR])).to(REAL))
        z = p - LEAD
        if z >= start:
            place, here = (block_of(z), y, x), column[LEAD]
            level = u + clamped(z, depth).to(tl.int64) * stride_z
            energy, slopes = zero, zero
            for axis in tl.static_range(RANK):
                k, n = place[2 - axis], size[2 - axis]
                if VALUE or MARGIN == 0:
                    before, after = _pair(level, rows, columns, column, axis, FAR, 1, REAL)
                    if VALUE:
                        energy += _energy(by_energy[axis], before, here, after, k, n, MARGIN)
                    if GRADIENT and MARGIN == 0:
                        slopes += by_slope[axis] * _pulls(before, here, after, k, n)
                if GRADIENT and MARGIN:
                    before, after = _pair(level, rows, columns, column, axis, FAR, 2, REAL)
                    pulls = _wide_pulls(before, here, after, k, n)
                    slopes += by_slope[axis] * tl.where(_others_inside(place, size, axis, RANK), pulls, 0.0)
            if VALUE:
                total += tl.where(inside(place, size, MARGINS), energy, 0.0).to(tl.float64)
            if GRADIENT:
                store(out + (z.to(tl.int64) * height + y) * width + x, slopes, (y < height) & (x < width))
    if VALUE:
        tl.store(parts + tl.program_id(0), tl.sum(total))


@triton.jit(do_not_specialize_on_alignment=SHAPE)
def energies(
    u, weights, out, fields, components, depth, height, width, stride_n, stride_z, stride_y, stride_x,
    MARGIN: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Write the energy of each voxel; with a margin of 1, the field of energies has no border."""
    MARGINS: tl.constexpr = (MARGIN if RANK > 2 else 0, MARGIN if RANK > 1 else 0, MARGIN)
    size = (depth, height, width)
    n, place = voxels_of(fields, size, BLOCK, INDEX)
    field, made = (u + n * stride_n, (stride_z, stride_y, stride_x), size), without_border(out, n, size, MARGINS)
    by_energy = weights_of(weights, n % components, 1.0, RANK, REAL)
    here, energy = at(field, place, (0, 0, 0), REAL), tl.zeros((BLOCK,), REAL)
    for axis in tl.static_range(RANK):
        before, after = _neighbours_of(field, place, axis, 1, REAL)
        energy += _energy(by_energy[axis], before, here, after, place[2 - axis], size[2 - axis], MARGIN)
    store_inside(made, place, size, MARGINS, energy)


@triton.jit(do_not_specialize_on_alignment=SHAPE)
def gradient_by_voxel(
    u, weights, upstream, out, fields, components, depth, height, width, stride_n, stride_z, stride_y, stride_x,
    MARGIN: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Write dL/du, given dL/dE by voxel; with a margin of 1, the field of energies has no border."""
    MARGINS: tl.constexpr = (MARGIN if RANK > 2 else 0, MARGIN if RANK > 1 else 0, MARGIN)
    size = (depth, height, width)
    n, place = voxels_of(fields, size, BLOCK, INDEX)
    of_place = (place[0] - MARGINS[0], place[1] - MARGINS[1], place[2] - MARGINS[2])
    field = (u + n * stride_n, (stride_z, stride_y, stride_x), size)
    of_energy = without_border(upstream, n, size, MARGINS)
    by_slope = weights_of(weights, n % components, 2.0, RANK, REAL)
    here, own = at(field, place, (0, 0, 0), REAL), at(of_energy, of_place, (0, 0, 0), REAL)
    slopes = tl.zeros((BLOCK,), REAL)
    for axis in tl.static_range(RANK):
        k, length = place[2 - axis], size[2 - axis]
        of_before, of_after = _neighbours_of(of_energy, of_place, axis, 1, REAL)
        before, after = _neighbours_of(field, place, axis, 1 + MARGIN, REAL)
        if MARGIN:
            pulls = tl.where(within(k - 1, length, 1), of_before * (here - before), 0.0)
            pulls += tl.where(within(k + 1, length, 1), of_after * (here - after), 0.0)
            slopes += by_slope[axis] * tl.where(_others_inside(place, size, axis, RANK), pulls, 0.0)
        else:
            mine = _times(k, length, own)
            one = (mine + _times(k - 1, length, of_before)) * (here - before)
            other = (mine + _times(k + 1, length, of_after)) * (here - after)
            slopes += by_slope[axis] * (tl.where(k > 0, one, 0.0) + tl.where(k < length - 1, other, 0.0))
    store_inside(without_border(out, n, size, (0, 0, 0)), place, size, (0, 0, 0), slopes)


@triton.jit
def _pair(level, rows, columns, column, axis: tl.constexpr, REACH: tl.constexpr, FAR: tl.constexpr, REAL: tl.constexpr):
    """Return the neighbours of a place that are FAR voxels away along an axis: 0 is x, 1 is y and 2 is z."""
    if axis == 0:
        before = tl.load(level + (rows[REACH] + columns[REACH - FAR])).to(REAL)
        after = tl.load(level + (rows[REACH] + columns[REACH + FAR])).to(REAL)
    elif axis == 1:
        before = tl.load(level + (rows[REACH - FAR] + columns[REACH])).to(REAL)
        after = tl.load(level + (rows[REACH + FAR] + columns[REACH])).to(REAL)
    else:
        MIDDLE: tl.constexpr = len(column) // 2
        before, after = column[MIDDLE - FAR], column[MIDDLE + FAR]
    return before, after


@triton.jit
def _neighbours_of(field, place, axis: tl.constexpr, FAR: tl.constexpr, REAL: tl.constexpr):
    """Return the same, given a field and a place in it."""
    AFTER: tl.constexpr = (FAR if axis == 2 else 0, FAR if axis == 1 else 0, FAR if axis == 0 else 0)
    BEFORE: tl.constexpr = (-AFTER[0], -AFTER[1], -AFTER[2])
    return at(field, place, BEFORE, REAL), at(field, place, AFTER, REAL)


@triton.jit
def _times(k, n, value):
    """Return the value of a voxel times the weight of the differences to its neighbours, which is 2 at the border."""
    return tl.where((k == 0) | (k == n - 1), value + value, value)


@triton.jit
def _energy(weight, before, here, after, k, n, MARGIN: tl.constexpr):
    """Return the energy along an axis of the voxels at the places k of n."""
    if MARGIN:
        made = weight * ((after - before) * (after - before))
    else:
        one, other = tl.where(k > 0, here - before, 0.0), tl.where(k < n - 1, here - after, 0.0)
        made = weight * _times(k, n, one * one + other * other)
    return made


@triton.jit
def _pulls(before, here, after, k, n):
    """Return the slopes along an axis without their weight, for a margin of 0: a difference counts for both voxels."""
    one, other = tl.where(k > 0, here - before, 0.0), tl.where(k < n - 1, here - after, 0.0)
    mine = _times(k, n, tl.full((1, 1), 1, here.dtype))
    return (mine + _times(k - 1, n, 1.0)) * one + (mine + _times(k + 1, n, 1.0)) * other


@triton.jit
def _wide_pulls(before, here, after, k, n):
    """Return the slopes along an axis without their weight, for a margin of 1 and neighbours two voxels away."""
    pulls = tl.where(within(k - 1, n, 1), here - before, 0.0)
    return pulls + tl.where(within(k + 1, n, 1), here - after, 0.0)


@triton.jit
def _others_inside(place, size, axis: tl.constexpr, RANK: tl.constexpr):
    """Return whether a place is off the border along all axes but one."""
    MARGINS: tl.constexpr = (
        0 if axis == 2 or RANK < 3 else 1,
        0 if axis == 1 or RANK < 2 else 1,
        0 if axis == 0 else 1,
    )
    return inside(place, size, MARGINS)
