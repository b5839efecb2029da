"""Squared second differences of a field, and their adjoint.

The differences are along xx, yy, yx, zz, zx, zy, in this order and as far as the field has the axes. The step is 1 for
compact stencils and 2 for wide ones. It is also the margin, the number of voxels at each border that have no energy.
Differences are computed without their factors, which the weights include.

The gradient is the sum of the adjoints, Dᵀ M w D u, over the differences D, where M restricts to the interior. Both M
and the mixed differences are products of factors along the axes. So the adjoint of a mixed difference is one masked
second difference, with neighbours 2 voxels away, along each of its axes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import store
from twinloss.fast.kernels.gpu.compiled.field import (
    SHAPE,
    at,
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


@triton.jit
def _second(before, here, after):
    return (after - here) + (before - here)


@triton.jit
def _cross(one, two, three, four):
    return (one - two) - (three - four)


@triton.jit
def _square(weight, difference):
    return weight * (difference * difference)


@triton.jit
def _masked_second(before, here, after, has_before, has_after):
    return tl.where(has_after, after - here, 0.0) + tl.where(has_before, before - here, 0.0)


@triton.jit
def _adjoint(far_before, before, here, after, far_after, inner):
    """Return DᵀMD along an axis, given where the second differences D around three places are in the interior."""
    first = tl.where(inner.step_before, _second(far_before, before, here), 0.0)
    middle = tl.where(inner.here, _second(before, here, after), 0.0)
    return _second(first, middle, tl.where(inner.step_after, _second(here, after, far_after), 0.0))


@triton.jit(do_not_specialize_on_alignment=SHAPE)
def march(
    u, weights, upstream, parts, out, fields, components, depth, height, width, stride_n, stride_z, stride_y, stride_x,
    planes, factor: tl.float64, MARGIN: tl.constexpr, RANK: tl.constexpr, VALUE: tl.constexpr, GRADIENT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sum the energies of a tile of some planes, or write dL/du, or both.

    A program visits the planes in order. It reads each of them once, with the neighbours in the plane, and keeps in
    registers what later planes need of it.

    Args:
        u: the fields, (N, D, H, W).
        weights: the weight of each difference, (C, differences).
        upstream: dL/d(value), or None for 1.
        parts: the sums, one for each program.
        out: dL/du.
        fields: N.
        components: C.
        depth: D.
        height: H.
        width: W.
        stride_n: the distance of fields in memory.
        stride_z: that of planes.
        stride_y: that of rows.
        stride_x: that of columns.
        planes: the number of planes of a program.
        factor: the factor of the gradient.
        MARGIN: the step, 1 or 2.
        RANK: the number of axes of the fields.
        VALUE: whether to sum the energies.
        GRADIENT: whether to write dL/du.
        ROWS: the number of rows of a tile.
        COLUMNS: the number of its columns.
        INDEX: the type of offsets in a plane.
        REAL: the type of the arithmetic.
    """
    STEP: tl.constexpr = MARGIN
    FAR: tl.constexpr = 2 * STEP
    TERMS: tl.constexpr = RANK * (RANK + 1) // 2
    # How many planes the program reads ahead of the one whose gradient, or else energy, is complete.
    LEAD: tl.constexpr = 0 if RANK < 3 else (FAR if GRADIENT else STEP)
    field, chunk, y, x = tile_of(fields, height, width, ROWS, COLUMNS, INDEX)
    u += field * stride_n
    by_energy = weights_of(weights, field % components, 1.0, TERMS, REAL)
    if GRADIENT:
        by_slope = weights_of(weights, field % components, slope_of(factor, upstream), TERMS, REAL)
        out += field * depth * height * width
    rows, columns = neighbours(y, height, stride_y, FAR), neighbours(x, width, stride_x, FAR)
    in_field, inner_x, inner_y = (y < height) & (x < width), _interior(x, width, STEP), _interior(y, height, STEP)
    in_plane = inner_x.here & (inner_y.here if RANK > 1 else y < height)
    # The field, its central differences, and two parts of the gradient, of some planes around the current one.
    zero = tl.zeros((ROWS, COLUMNS), REAL)
    column, along_x, along_y = (zero,) * (2 * LEAD + 1), (zero,) * 3, (zero,) * 3
    flat, across = (zero,) * (LEAD + 1), (zero,) * (LEAD + 3)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    start = chunk * planes
    stop = tl.minimum(start + planes, depth)
    for p in range(start - LEAD, stop + LEAD):
        level = u + clamped(p, depth).to(tl.int64) * stride_z
        here = tl.load(level + (rows[FAR] + columns[FAR])).to(REAL)
        column = push(column, here)
        if VALUE:
            energy = _plane_energy(level, rows, columns, here, by_energy, RANK, STEP, REAL)
            if RANK == 3:
                left, right = _sides(level, rows[FAR], columns, 1, REAL)
                up, down = _sides(level, columns[FAR], rows, 1, REAL)
                along_x, along_y = push(along_x, right - left), push(along_y, down - up)
                energy = _with_depth(energy, column, along_x, along_y, by_energy, p, start, stop, depth, STEP)
            total += tl.where(in_plane, energy, 0.0).to(tl.float64)
        if GRADIENT:
            made, of_depth = _plane_slopes(level, rows, columns, here, by_slope, inner_x, inner_y, RANK, STEP, REAL)
            z = p - LEAD
            if RANK == 3:
                flat, across = push(flat, made), push(across, of_depth)
            if z >= start:
                if RANK == 3:
                    made = _slopes_with_depth(z, depth, column, flat, across, by_slope[3], in_plane, STEP)
                store(out + (z.to(tl.int64) * height + y) * width + x, made, in_field)
    if VALUE:
        tl.store(parts + tl.program_id(0), tl.sum(total))


class _Interior(NamedTuple):
    """Whether places are off the border.

    Attributes:
        here: the place itself.
        step_before: its neighbour as many voxels before as the step.
        step_after: the one as many voxels after.
        one_before: the next neighbour before.
        one_after: the next neighbour after.
    """

    here: Any
    step_before: Any
    step_after: Any
    one_before: Any
    one_after: Any


@triton.jit
def _interior(k, n, STEP: tl.constexpr):
    """Return whether the places k of n and their neighbours are off the border."""
    one_before, one_after = within(k - 1, n, STEP), within(k + 1, n, STEP)
    return _Interior(within(k, n, STEP), within(k - STEP, n, STEP), within(k + STEP, n, STEP), one_before, one_after)


@triton.jit
def _sides(level, middle, offsets, FAR: tl.constexpr, REAL: tl.constexpr):
    """Return the neighbours on both sides along an axis, FAR voxels away, in one plane of a field."""
    MIDDLE: tl.constexpr = len(offsets) // 2
    before = tl.load(level + (middle + offsets[MIDDLE - FAR])).to(REAL)
    return before, tl.load(level + (middle + offsets[MIDDLE + FAR])).to(REAL)


@triton.jit
def _plane_energy(level, rows, columns, here, by_energy, RANK: tl.constexpr, STEP: tl.constexpr, REAL: tl.constexpr):
    """Return the energies of the differences within a plane."""
    MIDDLE: tl.constexpr = len(rows) // 2
    left, right = _sides(level, rows[MIDDLE], columns, STEP, REAL)
    energy = _square(by_energy[0], _second(left, here, right))
    if RANK > 1:
        up, down = _sides(level, columns[MIDDLE], rows, STEP, REAL)
        three, one = _sides(level, columns[MIDDLE + 1], rows, 1, REAL)
        four, two = _sides(level, columns[MIDDLE - 1], rows, 1, REAL)
        energy += _square(by_energy[1], _second(up, here, down))
        energy += _square(by_energy[2], _cross(one, two, three, four))
    return energy


@triton.jit
def _with_depth(energy, column, along_x, along_y, by_energy, p, start, stop, depth, STEP: tl.constexpr):
    """Add the energies of the differences along z, of the planes whose neighbours have all been read."""
    LAST: tl.constexpr = len(column) - 1
    mixed = _square(by_energy[4], along_x[2] - along_x[0])
    mixed += _square(by_energy[5], along_y[2] - along_y[0])
    pure = _square(by_energy[3], _second(column[LAST - 2 * STEP], column[LAST - STEP], column[LAST]))
    energy = tl.where(_counts(p, start, stop, depth, STEP), energy, 0.0)
    energy += tl.where(_counts(p - 1, start, stop, depth, STEP), mixed, 0.0)
    return energy + tl.where(_counts(p - STEP, start, stop, depth, STEP), pure, 0.0)


@triton.jit
def _plane_slopes(
    level, rows, columns, here, by_slope, inner_x, inner_y, RANK: tl.constexpr, STEP: tl.constexpr, REAL: tl.constexpr
):
    """Return the gradient from the differences within a plane, and what the mixed differences along z are taken of."""
    MIDDLE: tl.constexpr = len(rows) // 2
    left, right = _sides(level, rows[MIDDLE], columns, STEP, REAL)
    far_left, far_right = _sides(level, rows[MIDDLE], columns, 2 * STEP, REAL)
    slopes = _adjoint(far_left, left, here, right, far_right, inner_x)
    made, of_depth = by_slope[0] * (slopes if RANK == 1 else tl.where(inner_y.here, slopes, 0.0)), slopes
    if RANK > 1:
        up, down = _sides(level, columns[MIDDLE], rows, STEP, REAL)
        far_up, far_down = _sides(level, columns[MIDDLE], rows, 2 * STEP, REAL)
        slopes = _adjoint(far_up, up, here, down, far_down, inner_y)
        made += by_slope[1] * tl.where(inner_x.here, slopes, 0.0)
        # From here on, neighbours are 2 voxels away, whatever the step.
        one, three = _sides(level, columns[MIDDLE - 2], rows, 2, REAL)
        two, four = _sides(level, columns[MIDDLE + 2], rows, 2, REAL)
        if STEP == 1:
            west, east, north, south = far_left, far_right, far_up, far_down
        else:
            west, east, north, south = left, right, up, down
        above = _masked_second(one, north, two, inner_x.one_before, inner_x.one_after)
        along = _masked_second(west, here, east, inner_x.one_before, inner_x.one_after)
        below = _masked_second(three, south, four, inner_x.one_before, inner_x.one_after)
        made += by_slope[2] * _masked_second(above, along, below, inner_y.one_before, inner_y.one_after)
        if RANK == 3:
            vertical = _masked_second(north, here, south, inner_y.one_before, inner_y.one_after)
            of_depth = by_slope[4] * tl.where(inner_y.here, along, 0.0)
            of_depth += by_slope[5] * tl.where(inner_x.here, vertical, 0.0)
    return made, of_depth


@triton.jit
def _slopes_with_depth(z, depth, column, flat, across, by_slope, in_plane, STEP: tl.constexpr):
    """Return the gradient of plane z, given that from differences within the plane, and what is needed around it."""
    MIDDLE: tl.constexpr = len(column) // 2
    before, after = column[MIDDLE - STEP], column[MIDDLE + STEP]
    inner_z = _interior(z, depth, STEP)
    slopes = _adjoint(column[0], before, column[MIDDLE], after, column[2 * MIDDLE], inner_z)
    slopes = tl.where(inner_z.here, flat[0], 0.0) + by_slope * tl.where(in_plane, slopes, 0.0)
    return slopes + _masked_second(across[0], across[2], across[4], inner_z.one_before, inner_z.one_after)


@triton.jit
def _counts(z, start, stop, depth, STEP: tl.constexpr):
    """Return whether a plane is one of the program, and has energies."""
    return (z >= start) & (z < stop) & within(z, depth, STEP)


# --- by voxel: each difference is read by itself ----------------------------------------------------------------------


@triton.jit
def _difference(field, place, STEP: tl.constexpr, TERM: tl.constexpr, REAL: tl.constexpr):
    """Return one of the six differences at a place."""
    if TERM == 0 or TERM == 1 or TERM == 3:
        FAR: tl.constexpr = (STEP if TERM == 3 else 0, STEP if TERM == 1 else 0, STEP if TERM == 0 else 0)
        NEAR: tl.constexpr = (-FAR[0], -FAR[1], -FAR[2])
        made = _second(at(field, place, NEAR, REAL), at(field, place, (0, 0, 0), REAL), at(field, place, FAR, REAL))
    else:
        # The sum and the difference of the unit vectors of the two axes, and their opposites.
        ONE: tl.constexpr = (0, 1, 1) if TERM == 2 else ((1, 0, 1) if TERM == 4 else (1, 1, 0))
        TWO: tl.constexpr = (0, 1, -1) if TERM == 2 else ((1, 0, -1) if TERM == 4 else (1, -1, 0))
        THREE: tl.constexpr = (-TWO[0], -TWO[1], -TWO[2])
        FOUR: tl.constexpr = (-ONE[0], -ONE[1], -ONE[2])
        one, two = at(field, place, ONE, REAL), at(field, place, TWO, REAL)
        made = _cross(one, two, at(field, place, THREE, REAL), at(field, place, FOUR, REAL))
    return made


@triton.jit(do_not_specialize_on_alignment=SHAPE)
def energies(
    u, weights, out, fields, components, depth, height, width, stride_n, stride_z, stride_y, stride_x,
    MARGIN: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Write the energy of each interior voxel; `out` has no border, and the other arguments are those of `march`."""
    TERMS: tl.constexpr = RANK * (RANK + 1) // 2
    MARGINS: tl.constexpr = (MARGIN if RANK > 2 else 0, MARGIN if RANK > 1 else 0, MARGIN)
    size = (depth, height, width)
    n, place = voxels_of(fields, size, BLOCK, INDEX)
    field, made = (u + n * stride_n, (stride_z, stride_y, stride_x), size), without_border(out, n, size, MARGINS)
    by_energy = weights_of(weights, n % components, 1.0, TERMS, REAL)
    energy = tl.zeros((BLOCK,), REAL)
    for term in tl.static_range(TERMS):
        energy += _square(by_energy[term], _difference(field, place, MARGIN, term, REAL))
    store_inside(made, place, size, MARGINS, energy)


@triton.jit
def _slope(
    field, of_energy, here, MARGINS: tl.constexpr, STEP: tl.constexpr, TERM: tl.constexpr, j: tl.constexpr,
    k: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Return the difference j and k places away, times dL/dE there and the coefficient of `here` in the difference."""
    FIRST: tl.constexpr = 2 if TERM < 1 else (1 if TERM < 3 else 0)
    PURE: tl.constexpr = TERM == 0 or TERM == 1 or TERM == 3
    SECOND: tl.constexpr = FIRST if PURE else (1 if TERM == 5 else 2)
    BY: tl.constexpr = STEP * j if PURE else j
    place = (
        here[0] + (BY * (FIRST == 0) + k * (SECOND == 0)),
        here[1] + (BY * (FIRST == 1) + k * (SECOND == 1)),
        here[2] + (BY * (FIRST == 2) + k * (SECOND == 2)),
    )
    slope = at(of_energy, place, (-MARGINS[0], -MARGINS[1], -MARGINS[2]), REAL)
    slope *= _difference(field, place, STEP, TERM, REAL)
    COUNTS: tl.constexpr = (1 if j else -2) if PURE else j * k
    return COUNTS * tl.where(inside(place, field[2], MARGINS), slope, 0.0)


@triton.jit(do_not_specialize_on_alignment=SHAPE)
def gradient_by_voxel(
    u, weights, upstream, out, fields, components, depth, height, width, stride_n, stride_z, stride_y, stride_x,
    MARGIN: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Write dL/du, given dL/dE by voxel without a border; the other arguments are those of `march`."""
    TERMS: tl.constexpr = RANK * (RANK + 1) // 2
    MARGINS: tl.constexpr = (MARGIN if RANK > 2 else 0, MARGIN if RANK > 1 else 0, MARGIN)
    size = (depth, height, width)
    n, here = voxels_of(fields, size, BLOCK, INDEX)
    field = (u + n * stride_n, (stride_z, stride_y, stride_x), size)
    of_energy = without_border(upstream, n, size, MARGINS)
    by_slope = weights_of(weights, n % components, 2.0, TERMS, REAL)
    slopes = tl.zeros((BLOCK,), REAL)
    for term in tl.static_range(TERMS):
        for j in tl.static_range(-1, 2):
            for k in tl.static_range(-1, 2):
                # A pure difference is j steps away along its axis; a mixed one j and k along its axes, none being 0.
                if (k == 0) if (term == 0 or term == 1 or term == 3) else (j * k != 0):
                    slopes += by_slope[term] * _slope(field, of_energy, here, MARGINS, MARGIN, term, j, k, REAL)
    store_inside(without_border(out, n, size, (0, 0, 0)), here, size, (0, 0, 0), slopes)
