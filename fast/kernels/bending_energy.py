"""Squared second differences of a field, and their adjoint: one pass each, nothing of the field's size is stored.

A field is (D, H * W), axes that it does not have being of size 1. Its differences are, in this order and as far as it
has the axes, along xx, yy, yx, zz, zx, zy; `step` is 1 for compact stencils and 2 for wide ones. They come without
their factors, which are the business of the weights.

Rows lie one after the other, and loops run over several of them in one go: rows alone are too short for wide vectors.
What is computed in between, across the ends of two rows, is put to 0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels import SOURCES
from twinloss.fast.kernels.tile import stage, sums_stage

# Voxels that are looked at in one go: what is computed of them stays in the nearest cache.
BLOCK = 2048
# Room before and after the slopes, for the neighbours of the first and the last voxel.
PAD = 2


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
def _slope_of_second(before, here, after, weight, row):
    for i in range(row.size):
        row[i] = weight * _second(before[i], here[i], after[i])


@stage
def _slope_of_cross(one, two, three, four, weight, row):
    for i in range(row.size):
        row[i] = weight * _cross(one[i], two[i], three[i], four[i])


@stage
def _put_line(before, here, after, row):
    for i in range(row.size):
        row[i] = _second(before[i], here[i], after[i])


@stage
def _put_plane(left, mid, right, before, here, after, one, two, three, four, row):
    for i in range(row.size):
        along = _second(left[i], mid[i], right[i]) + _second(before[i], here[i], after[i])
        row[i] = along + _cross(one[i], two[i], three[i], four[i])


@stage
def _add_depth(before, here, after, one, two, three, four, five, six, seven, eight, row):
    for i in range(row.size):
        crosses = _cross(one[i], two[i], three[i], four[i]) + _cross(five[i], six[i], seven[i], eight[i])
        row[i] += _second(before[i], here[i], after[i]) + crosses


@njit(inline="always")
def _at(plane, start, offset, like):
    return plane[start + offset : start + offset + like.size]


@stage
def _energies(u, width, step, z, start, weights, energy):
    """Put the energies of consecutive voxels of plane z into `energy`, border columns among them."""
    here, n, w = u[z], energy, width
    left, mid, right = _at(here, start, -step, n), _at(here, start, 0, n), _at(here, start, step, n)
    if weights.size == 1:
        _energy_of_line(left, mid, right, weights, energy)
    else:
        far = step * w
        _energy_of_plane(
            left, mid, right, _at(here, start, -far, n), _at(here, start, far, n),
            _at(here, start, w + 1, n), _at(here, start, w - 1, n),
            _at(here, start, 1 - w, n), _at(here, start, -w - 1, n), weights, energy,
        )  # fmt: skip
    if weights.size > 3:
        up, down = u[z + 1], u[z - 1]
        _add_energy_of_depth(
            _at(u[z - step], start, 0, n), mid, _at(u[z + step], start, 0, n),
            _at(up, start, 1, n), _at(up, start, -1, n), _at(down, start, 1, n), _at(down, start, -1, n),
            _at(up, start, w, n), _at(up, start, -w, n), _at(down, start, w, n), _at(down, start, -w, n),
            weights, energy,
        )  # fmt: skip


@stage
def _slopes(u, width, step, z, start, weights, plane, room):
    """Put weights * differences of consecutive voxels of plane z into that `room` of `plane`, (differences, voxels)."""
    here, n, w = u[z], plane[0, room], width
    mid = _at(here, start, 0, n)
    _slope_of_second(_at(here, start, -step, n), mid, _at(here, start, step, n), weights[0], plane[0, room])
    if weights.size > 1:
        far = step * w
        _slope_of_second(_at(here, start, -far, n), mid, _at(here, start, far, n), weights[1], plane[1, room])
        _slope_of_cross(
            _at(here, start, w + 1, n), _at(here, start, w - 1, n),
            _at(here, start, 1 - w, n), _at(here, start, -w - 1, n), weights[2], plane[2, room],
        )  # fmt: skip
    if weights.size > 3:
        up, down = u[z + 1], u[z - 1]
        _slope_of_second(_at(u[z - step], start, 0, n), mid, _at(u[z + step], start, 0, n), weights[3], plane[3, room])
        _slope_of_cross(
            _at(up, start, 1, n), _at(up, start, -1, n), _at(down, start, 1, n), _at(down, start, -1, n),
            weights[4], plane[4, room],
        )  # fmt: skip
        _slope_of_cross(
            _at(up, start, w, n), _at(up, start, -w, n), _at(down, start, w, n), _at(down, start, -w, n),
            weights[5], plane[5, room],
        )  # fmt: skip


@stage
def _gather(slopes, width, step, z, start, row):
    """Put dL/du of consecutive voxels into `row`, from slopes around them, (planes in a ring, differences, voxels)."""
    # One turn of the ring more, as the remainder of a negative number is none.
    planes, w = slopes.shape[0], width
    z += planes
    here, n = slopes[z % planes], row
    left, mid, right = _at(here[0], start, -step, n), _at(here[0], start, 0, n), _at(here[0], start, step, n)
    if slopes.shape[1] == 1:
        _put_line(left, mid, right, row)
    else:
        far = step * w
        _put_plane(
            left, mid, right,
            _at(here[1], start, -far, n), _at(here[1], start, 0, n), _at(here[1], start, far, n),
            _at(here[2], start, -w - 1, n), _at(here[2], start, 1 - w, n),
            _at(here[2], start, w - 1, n), _at(here[2], start, w + 1, n), row,
        )  # fmt: skip
    if slopes.shape[1] > 3:
        far_up, far_down = slopes[(z + step) % planes], slopes[(z - step) % planes]
        up, down = slopes[(z + 1) % planes], slopes[(z - 1) % planes]
        _add_depth(
            _at(far_down[3], start, 0, n), _at(here[3], start, 0, n), _at(far_up[3], start, 0, n),
            _at(down[4], start, -1, n), _at(down[4], start, 1, n), _at(up[4], start, -1, n), _at(up[4], start, 1, n),
            _at(down[5], start, -w, n), _at(down[5], start, w, n), _at(up[5], start, -w, n), _at(up[5], start, w, n),
            row,
        )  # fmt: skip


@stage
def _clear_between(row, width, step):
    """Put to 0 what lies between the interiors of rows; the first interior begins at 0."""
    zero = row.dtype.type(0)
    for start in range(width - 2 * step, row.size, width):
        for i in range(start, min(start + 2 * step, row.size)):
            row[i] = zero


@stage
def _multiply(row, width, upstream):
    """Times dL/dE of the interior voxels (rows, W - 2 step)."""
    for y in range(upstream.shape[0]):
        for i in range(upstream.shape[1]):
            row[y * width + i] *= upstream[y, i]


@sums_stage
def _total(values):
    total = values.dtype.type(0)
    for i in range(values.size):
        total += values[i]
    return total


def _compiled(sources):
    """The two kernels, cached on disk under the hash of all sources (see `SOURCES`)."""

    @njit(cache=True, nogil=True)
    def forward(u, width, weights, step, z_start, z_stop, energy):
        """The sum of the energies of the interior of some planes; or each voxel's into `energy`, (D, H, W - 2 step)."""
        sources  # noqa: B018
        above = step if weights.size > 1 else 0
        height, lines = u.shape[1] // width, max(BLOCK // width, 1)
        total, room = 0.0, np.empty(lines * width, u.dtype)
        for z in range(z_start, z_stop):
            for y in range(above, height - above, lines):
                count = min(lines, height - above - y)
                row = room[: count * width - 2 * step]
                _energies(u, width, step, z, y * width + step, weights, row)
                _clear_between(row, width, step)
                if energy.size == 0:
                    for i in range(0, row.size, BLOCK):
                        total += np.float64(_total(row[i : i + BLOCK]))
                else:
                    for k in range(count):
                        inside = row[k * width : (k + 1) * width - 2 * step]
                        energy[z - (step if weights.size > 3 else 0), y - above + k] = inside
        return total

    @njit(cache=True, nogil=True)
    def backward(u, width, weights, step, upstream, z_start, z_stop, y_start, y_stop, out):
        """Write dL/du of the rows y_start:y_stop of some planes of a field.

        `weights` are twice those of `forward`, and hold dL/dE if that is one for all voxels; else it is `upstream`,
        (D, H, W) without the border.
        """
        sources  # noqa: B018
        terms, depth, height = weights.size, u.shape[0], u.shape[1] // width
        above, before = (step if terms > 1 else 0), (step if terms > 3 else 0)
        # Planes, rows and columns beyond the interior have no differences: their slopes stay 0.
        first, last = max(y_start - above, above), min(y_stop + above, height - above)
        tile = (y_stop - y_start + 2 * above) * width
        slopes = np.zeros((2 * before + 1, terms, tile + 2 * PAD), u.dtype)
        begin = PAD + (first - y_start + above) * width + step
        room = slice(begin, begin + max(last - first, 0) * width - 2 * step)
        for z_ahead in range(z_start - before, z_stop + before):
            plane = slopes[(z_ahead + slopes.shape[0]) % slopes.shape[0]]
            if before <= z_ahead < depth - before and first < last:
                _slopes(u, width, step, z_ahead, first * width + step, weights, plane, room)
                for k in range(terms):
                    _clear_between(plane[k, room], width, step)
                    if upstream.size > 0:
                        _multiply(plane[k, room], width, upstream[z_ahead - before, first - above : last - above])
            else:
                plane[:] = 0
            z = z_ahead - before
            if z >= z_start:
                _gather(slopes, width, step, z, PAD + above * width, out[z, y_start * width : y_stop * width])

    return forward, backward


forward, backward = _compiled(SOURCES)
