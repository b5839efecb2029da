"""Squared second differences of a field, and their adjoint. Each takes one pass and stores nothing of the field's size.

A field is (D, H * W), with size 1 along axes that it does not have. Its differences are along xx, yy, yx, zz, zx, zy,
in this order and as far as it has the axes. `step` is 1 for compact stencils and 2 for wide ones. Differences are
computed without their factors, which the weights include.

Rows lie one after the other in memory, and a loop runs over several of them at once, because single rows are too short
for wide vectors. The values that this computes across the ends of two rows are set to 0.

The gradient is the sum of the adjoints, Dᵀ M w D u, over the differences D, where M restricts to the interior. Away
from the border in z and y, M commutes with all operations along these axes, and DᵀD is again a difference. With δ_n u =
u(+n) - 2 u + u(-n), DᵀD of a mixed difference is -δ₂ along each of its axes, and DᵀD of δ_s is δ_2s - 4 δ_s. So a row
needs no slopes of other rows, and none are stored.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.rows import BLOCK, alike, at, clear_between
from twinloss.fast.kernels.cpu.compiled.sums import compensated, total_of
from twinloss.fast.kernels.cpu.compiled.tile import START, copy_cast, stage

# Numbers before and after the slopes of a row, for the neighbours of the first and the last voxel.
PAD = 2
# The axes (z, y, x) of each difference.
AXES = ((2, 2), (1, 1), (1, 2), (0, 0), (0, 2), (0, 1))


@njit(inline="always")
def _second(before, here, after):
    return (after - here) + (before - here)


@njit(inline="always")
def _cross(one, two, three, four):
    return (one - two) - (three - four)


@njit(inline="always")
def _square(weight, difference):
    return weight * (difference * difference)


@stage
def _energy_of_line(before, here, after, weights, energy):
    for i in range(energy.size):
        energy[i] = _square(weights[0], _second(before[i], here[i], after[i]))


@stage
def _energy_of_plane(left, here, right, before, after, one, two, three, four, weights, energy):
    for i in range(energy.size):
        xx = _square(weights[0], _second(left[i], here[i], right[i]))
        yy = _square(weights[1], _second(before[i], here[i], after[i]))
        energy[i] = xx + yy + _square(weights[2], _cross(one[i], two[i], three[i], four[i]))


@stage
def _add_energy_of_depth(before, here, after, one, two, three, four, five, six, seven, eight, weights, energy):
    for i in range(energy.size):
        zz = _square(weights[3], _second(before[i], here[i], after[i]))
        zx = _square(weights[4], _cross(one[i], two[i], three[i], four[i]))
        energy[i] += zz + zx + _square(weights[5], _cross(five[i], six[i], seven[i], eight[i]))


@stage
def _energies(u, width, step, z, start, weights, energy):
    """Put the energies of consecutive voxels of plane z into `energy`, including columns of the border."""
    here, n, w = u[z], energy, width
    left, mid, right = at(here, start, -step, n), at(here, start, 0, n), at(here, start, step, n)
    if weights.size == 1:
        _energy_of_line(left, mid, right, weights, energy)
    else:
        far = step * w
        _energy_of_plane(
            left, mid, right, at(here, start, -far, n), at(here, start, far, n),
            at(here, start, w + 1, n), at(here, start, w - 1, n),
            at(here, start, 1 - w, n), at(here, start, -w - 1, n), weights, energy,
        )  # fmt: skip
    if weights.size > 3:
        up, down = u[z + 1], u[z - 1]
        _add_energy_of_depth(
            at(u[z - step], start, 0, n), mid, at(u[z + step], start, 0, n),
            at(up, start, 1, n), at(up, start, -1, n), at(down, start, 1, n), at(down, start, -1, n),
            at(up, start, w, n), at(up, start, -w, n), at(down, start, w, n), at(down, start, -w, n),
            weights, energy,
        )  # fmt: skip


@stage
def _clear_ends(rows, width, step):
    """Set the first and the last `step` numbers of each row to 0."""
    zero = rows.dtype.type(0)
    for start in range(0, rows.size, width):
        for i in range(step):
            rows[start + i] = rows[start + width - 1 - i] = zero


@stage
def _put_deep(
    mid, left, right, before, after, down, up, down_before, down_after, up_before, up_after,
    before_else, after_else, down_else, up_else, weights, two, other, flat, cross, second,
):  # fmt: skip
    for i in range(flat.size):
        here = mid[i]
        along_y, along_z = _second(before[i], here, after[i]), _second(down[i], here, up[i])
        below, above = _second(down_before[i], down[i], down_after[i]), _second(up_before[i], up[i], up_after[i])
        yy = two * along_y + other * _second(before_else[i], here, after_else[i])
        zz = two * along_z + other * _second(down_else[i], here, up_else[i])
        flat[i] = weights[1] * yy + weights[3] * zz + weights[5] * _second(below, along_y, above)
        cross[i] = weights[2] * along_y + weights[4] * along_z
        second[i] = weights[0] * _second(left[i], here, right[i])


@stage
def _put_central(before, after, row):
    for i in range(row.size):
        row[i] = after[i] - before[i]


@stage
def _put_gradient(flat, left, mid, right, before, after, out):
    for i in range(out.size):
        out[i] = flat[i] + _second(left[i], mid[i], right[i]) + (after[i] - before[i])


@stage
def _gradient_of_deep_rows(u, width, step, z, start, weights, room, out):
    """Put dL/du of consecutive rows into `out`; they are at least 2 step away from the border in z and y."""
    here, far, n, w = u[z], 2 * width, out, width
    # DᵀD of δ_s is δ_2s - 4 δ_s. One of these terms is a δ₂, which the mixed differences need as well.
    two, other, reach = (1, -4, 1) if step == 1 else (-4, 1, 4)
    flat, cross = at(room[0], PAD, 0, n), at(room[1], PAD, 0, n)
    second, central = at(room[2], PAD, 0, n), at(room[3], PAD, 0, n)
    _put_deep(
        at(here, start, 0, n), at(here, start, -step, n), at(here, start, step, n),
        at(here, start, -far, n), at(here, start, far, n), at(u[z - 2], start, 0, n), at(u[z + 2], start, 0, n),
        at(u[z - 2], start, -far, n), at(u[z - 2], start, far, n),
        at(u[z + 2], start, -far, n), at(u[z + 2], start, far, n),
        at(here, start, -reach * w, n), at(here, start, reach * w, n),
        at(u[z - reach], start, 0, n), at(u[z + reach], start, 0, n),
        weights, u.dtype.type(two), u.dtype.type(other), flat, cross, second,
    )  # fmt: skip
    _put_central(at(room[1], PAD, -1, n), at(room[1], PAD, 1, n), central)
    _clear_ends(flat, width, step)
    _clear_ends(second, width, step)
    _clear_ends(central, width, step)
    _put_gradient(
        flat, at(room[2], PAD, -step, n), second, at(room[2], PAD, step, n),
        at(room[3], PAD, -1, n), at(room[3], PAD, 1, n), out,
    )  # fmt: skip


@stage
def _add_second(before, here, after, factor, upstream, row):
    for i in range(row.size):
        row[i] += factor * upstream[i] * _second(before[i], here[i], after[i])


@stage
def _add_cross(one, two, three, four, factor, upstream, row):
    for i in range(row.size):
        row[i] += factor * upstream[i] * _cross(one[i], two[i], three[i], four[i])


@stage
def _add_adjoint(u, width, step, z, y, axes, shift, factor, upstream, out):
    """Add `factor` times the interior differences of row y of plane z to a row of dL/du.

    `shift` is the number of columns from a voxel of the row to the difference that it is part of.
    """
    (d_z, d_y, d_x), (e_z, e_y, e_x) = _unit(axes[0]), _unit(axes[1])
    start, d, e = y * width + step, d_y * width + d_x, e_y * width + e_x
    n = out[: width - 2 * step]
    row = at(out, step, -shift, n)
    if axes[0] == axes[1]:
        before, after = at(u[z - step * d_z], start, -step * d, n), at(u[z + step * d_z], start, step * d, n)
        _add_second(before, at(u[z], start, 0, n), after, factor, upstream, row)
    else:
        _add_cross(
            at(u[z + d_z + e_z], start, d + e, n), at(u[z + d_z - e_z], start, d - e, n),
            at(u[z - d_z + e_z], start, e - d, n), at(u[z - d_z - e_z], start, -d - e, n),
            factor, upstream, row,
        )  # fmt: skip


@njit(inline="always")
def _unit(axis):
    """Return the unit vector (z, y, x) of an axis."""
    return (1 if axis == 0 else 0, 1 if axis == 1 else 0, 1 if axis == 2 else 0)


@stage
def _gradient_of_row(u, width, step, z, y, margins, weights, upstream, ones, out):
    """Put dL/du of any row into `out`, as the sum over the interior differences that include a voxel of the row."""
    out[:] = 0
    height = u.shape[1] // width
    for term in range(weights.size):
        axes = AXES[term]
        pure = axes[0] == axes[1]
        for j in (-1, 0, 1):
            for k in (-1, 0, 1):
                if (k != 0) if pure else (j * k == 0):
                    continue
                # The offset of the difference, and the coefficient of the voxel in it.
                at = (step if pure else 1) * j
                (d_z, d_y, d_x), (e_z, e_y, e_x) = _unit(axes[0]), _unit(axes[1])
                to_z, to_y, to_x = at * d_z, at * d_y, at * d_x
                if not pure:
                    to_z, to_y, to_x = to_z + k * e_z, to_y + k * e_y, to_x + k * e_x
                zz, yy = z + to_z, y + to_y
                if margins[0] <= zz < u.shape[0] - margins[0] and margins[1] <= yy < height - margins[1]:
                    counts = (1 if j else -2) if pure else j * k
                    by_voxel = upstream[zz - margins[0], yy - margins[1]] if upstream.size > 0 else ones
                    _add_adjoint(u, width, step, zz, yy, axes, to_x, weights[term] * counts, by_voxel, out)


@kernel
def forward(u, width, weights, step, z_start, z_stop, energy):
    """Return the sum of the energies of the interior of some planes.

    If `energy`, (D, H, W - 2 step), is not empty, put the energy of each voxel there instead.
    """
    above = step if weights.size > 1 else 0
    height, lines = u.shape[1] // width, max(BLOCK // width, 1)
    total, lost, room = 0.0, 0.0, np.empty(lines * width, u.dtype)
    for z in range(z_start, z_stop):
        for y in range(above, height - above, lines):
            count = min(lines, height - above - y)
            row = room[: count * width - 2 * step]
            _energies(u, width, step, z, y * width + step, weights, row)
            clear_between(row, width, step)
            if energy.size == 0:
                total, lost = compensated(total, lost, total_of(row))
            else:
                for k in range(count):
                    inside = row[k * width : (k + 1) * width - 2 * step]
                    copy_cast(inside, energy[z - (step if weights.size > 3 else 0), y - above + k])
    return total


@kernel
def backward(u, width, weights, step, upstream, z_start, z_stop, out):
    """Write dL/du of some planes of a field.

    `weights` are twice those of `forward`, and include dL/dE if it is the same for all voxels. Otherwise dL/dE is
    `upstream`, (D, H, W) without the border.
    """
    depth, height = u.shape[0], u.shape[1] // width
    margins = (step if weights.size > 3 else 0, step if weights.size > 1 else 0)
    voxelwise, lines = upstream.size > 0, max(BLOCK // width, 1)
    room, ones = np.zeros((4, lines * width + 2 * PAD), u.dtype), np.ones(width, u.dtype)
    for z in range(z_start, z_stop):
        deep = not voxelwise and weights.size > 3 and 2 * step <= z < depth - 2 * step
        y = START
        while y < height:
            count = alike(y, height, 2 * step, lines) if deep else 1
            rows = out[z, y * width : (y + count) * width]
            if deep and 2 * step <= y < height - 2 * step:
                _gradient_of_deep_rows(u, width, step, z, y * width, weights, room, rows)
            else:
                _gradient_of_row(u, width, step, z, y, margins, weights, upstream, ones, rows)
            y += count


# There is no combined kernel, because the two passes have no computation in common.
both = None
