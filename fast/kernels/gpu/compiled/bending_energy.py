"""Squared second differences of a field, and their adjoint.

The differences are along xx, yy, yx, zz, zx, zy, in this order and as far as the field has the axes. The step is 1 for
compact stencils and 2 for wide ones. It is also the margin, the number of voxels at each border that have no energy.
Differences are computed without their factors, which the weights include.

The gradient is the sum of the adjoints, Dᵀ M w D u, over the differences D, where M restricts to the interior. Both M
and the mixed differences are products of factors along the axes. So the adjoint of a mixed difference is one masked
second difference, with neighbours 2 voxels away, along each of its axes.
"""

from __future__ import annotations

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
def _adjoint(far_before, before, here, after, far_after, has_before, has, has_after):
    """Return DᵀMD along an axis, given where the second differences D around three places are in the interior."""
    first = tl.where(has_before, _second(far_before, before, here), 0.0)
    middle = tl.where(has, _second(before, here, after), 0.0)
    return _second(first, middle, tl.where(has_after, _second(here, after, far_after), 0.0))


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
        slope = tl.full((), factor, tl.float64)
        if upstream is not None:
            slope *= tl.load(upstream).to(tl.float64)
        by_slope = weights_of(weights, field % components, slope, TERMS, REAL)
        out += field * depth * height * width
    rows, columns = neighbours(y, height, stride_y, FAR), neighbours(x, width, stride_x, FAR)
    middle_row, middle_column = rows[FAR], columns[FAR]
    in_field = (y < height) & (x < width)
    # Whether there are differences around a place and its neighbours.
    in_x, x_step_before, x_step_after = _in_interior(x, width, STEP, STEP)
    x_one_before, x_one_after = within(x - 1, width, STEP), within(x + 1, width, STEP)
    in_plane = in_x & (y < height)
    if RANK > 1:
        in_y, y_step_before, y_step_after = _in_interior(y, height, STEP, STEP)
        y_one_before, y_one_after = within(y - 1, height, STEP), within(y + 1, height, STEP)
        in_plane = in_x & in_y
    # The field, its central differences, and two parts of the gradient, of some planes around the current one.
    zero = tl.zeros((ROWS, COLUMNS), REAL)
    column, along_x, along_y = (zero,) * (2 * LEAD + 1), (zero,) * 3, (zero,) * 3
    flat, across = (zero,) * (LEAD + 1), (zero,) * (LEAD + 3)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    start = chunk * planes
    stop = tl.minimum(start + planes, depth)
    for p in range(start - LEAD, stop + LEAD):
        level = u + clamped(p, depth).to(tl.int64) * stride_z
        here = tl.load(level + (middle_row + middle_column)).to(REAL)
        left = tl.load(level + (middle_row + columns[FAR - STEP])).to(REAL)
        right = tl.load(level + (middle_row + columns[FAR + STEP])).to(REAL)
        energy = _square(by_energy[0], _second(left, here, right))
        if GRADIENT:
            far_left = tl.load(level + (middle_row + columns[0])).to(REAL)
            far_right = tl.load(level + (middle_row + columns[2 * FAR])).to(REAL)
            slopes = _adjoint(far_left, left, here, right, far_right, x_step_before, in_x, x_step_after)
            level_slopes = by_slope[0] * (slopes if RANK == 1 else tl.where(in_y, slopes, 0.0))
        if RANK > 1:
            up = tl.load(level + (rows[FAR - STEP] + middle_column)).to(REAL)
            down = tl.load(level + (rows[FAR + STEP] + middle_column)).to(REAL)
            if VALUE:
                one = tl.load(level + (rows[FAR + 1] + columns[FAR + 1])).to(REAL)
                two = tl.load(level + (rows[FAR + 1] + columns[FAR - 1])).to(REAL)
                three = tl.load(level + (rows[FAR - 1] + columns[FAR + 1])).to(REAL)
                four = tl.load(level + (rows[FAR - 1] + columns[FAR - 1])).to(REAL)
                energy += _square(by_energy[1], _second(up, here, down))
                energy += _square(by_energy[2], _cross(one, two, three, four))
            if GRADIENT:
                far_up = tl.load(level + (rows[0] + middle_column)).to(REAL)
                far_down = tl.load(level + (rows[2 * FAR] + middle_column)).to(REAL)
                slopes = _adjoint(far_up, up, here, down, far_down, y_step_before, in_y, y_step_after)
                level_slopes += by_slope[1] * tl.where(in_x, slopes, 0.0)
                # From here on, neighbours are 2 voxels away, whatever the step.
                one = tl.load(level + (rows[FAR - 2] + columns[FAR - 2])).to(REAL)
                two = tl.load(level + (rows[FAR - 2] + columns[FAR + 2])).to(REAL)
                three = tl.load(level + (rows[FAR + 2] + columns[FAR - 2])).to(REAL)
                four = tl.load(level + (rows[FAR + 2] + columns[FAR + 2])).to(REAL)
                if STEP == 1:
                    west, east, north, south = far_left, far_right, far_up, far_down
                else:
                    west, east, north, south = left, right, up, down
                above = _masked_second(one, north, two, x_one_before, x_one_after)
                along = _masked_second(west, here, east, x_one_before, x_one_after)
                below = _masked_second(three, south, four, x_one_before, x_one_after)
                level_slopes += by_slope[2] * _masked_second(above, along, below, y_one_before, y_one_after)
        if RANK < 3:
            if VALUE:
                total += tl.where(in_plane, energy, 0.0).to(tl.float64)
            if GRADIENT:
                store(out + (p * height + y) * width + x, level_slopes, in_field)
        else:
            column = push(column, here)
            if VALUE:
                if STEP == 1:
                    along_x, along_y = push(along_x, right - left), push(along_y, down - up)
                else:
                    west_one = tl.load(level + (middle_row + columns[FAR - 1])).to(REAL)
                    east_one = tl.load(level + (middle_row + columns[FAR + 1])).to(REAL)
                    north_one = tl.load(level + (rows[FAR - 1] + middle_column)).to(REAL)
                    south_one = tl.load(level + (rows[FAR + 1] + middle_column)).to(REAL)
                    along_x, along_y = push(along_x, east_one - west_one), push(along_y, south_one - north_one)
                mixed = _square(by_energy[4], along_x[2] - along_x[0])
                mixed += _square(by_energy[5], along_y[2] - along_y[0])
                LAST: tl.constexpr = 2 * LEAD
                pure = _square(by_energy[3], _second(column[LAST - FAR], column[LAST - STEP], column[LAST]))
                # Energies of three planes: of those whose neighbours have all been read.
                energy = tl.where(_counts(p, start, stop, depth, STEP), energy, 0.0)
                energy += tl.where(_counts(p - 1, start, stop, depth, STEP), mixed, 0.0)
                energy += tl.where(_counts(p - STEP, start, stop, depth, STEP), pure, 0.0)
                total += tl.where(in_plane, energy, 0.0).to(tl.float64)
            if GRADIENT:
                vertical = _masked_second(north, here, south, y_one_before, y_one_after)
                slopes = by_slope[4] * tl.where(in_y, along, 0.0) + by_slope[5] * tl.where(in_x, vertical, 0.0)
                flat, across = push(flat, level_slopes), push(across, slopes)
                z = p - LEAD
                if z >= start:
                    in_z, z_step_before, z_step_after = _in_interior(z, depth, STEP, STEP)
                    slopes = _adjoint(
                        column[0], column[LEAD - STEP], column[LEAD], column[LEAD + STEP], column[2 * LEAD],
                        z_step_before, in_z, z_step_after,
                    )  # fmt: skip
                    slopes = tl.where(in_z, flat[0], 0.0) + by_slope[3] * tl.where(in_plane, slopes, 0.0)
                    slopes += _masked_second(
                        across[0], across[2], across[4], within(z - 1, depth, STEP), within(z + 1, depth, STEP)
                    )
                    store(out + (z.to(tl.int64) * height + y) * width + x, slopes, in_field)
    if VALUE:
        tl.store(parts + tl.program_id(0), tl.sum(total))


@triton.jit
def _in_interior(k, n, margin, STEP: tl.constexpr):
    """Return whether a place k of n, its neighbour STEP voxels before, and that after it are off the border."""
    return within(k, n, margin), within(k - STEP, n, margin), within(k + STEP, n, margin)


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
