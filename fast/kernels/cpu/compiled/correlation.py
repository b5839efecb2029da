"""Local normalised cross-correlation: moments in windows, and the adjoint.

Each takes one pass within planes and one along the depth. Images are (D, H, W), with size 1 along axes that they do not
have. Everything is computed in float64. Between the passes, the means are stored in float64: rounded means would lose a
faint contrast on a large offset, and means relative to the centre voxel would lose one beside a single bright voxel.
All other results are stored in the type of the images.
"""

from __future__ import annotations

import numpy as np

from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.sums import compensated, total_of
from twinloss.fast.kernels.cpu.compiled.tile import NEXT, START, copy_cast, stage
from twinloss.fast.kernels.cpu.compiled.window import (
    MOMENTS,
    begin_slab,
    clear,
    columns_at_once,
    end_slab,
    load_tile,
    moments_along,
    place_of_tile,
    reach,
    sums_along,
    total_weight,
)

# Between the passes, the means of t and p are stored, (2, D, H, W), and the sums tt, pp and tp, (3, D, H, W). The
# gradient in the first image p needs A and B, the slopes of the correlation in tp and pp, and A (mean t - t) + 2 B
# (mean p - p). These may overwrite the sums. The gradient in t needs A, and in an array of their own, (2, D, H, W), B
# and the last term with the images exchanged.
#
# All these arrays may have fewer planes than the images. Plane z is then stored at z modulo their number of planes,
# where it overwrites a plane that is no longer needed.


@stage
def _score(t, p, mean_t, mean_p, tt, pp, tp, nu, delta, clamped, score, a, by_p, of_p, by_t, of_t):
    """Compute the correlation of each window, and the arrays that its gradient needs."""
    for i in range(score.size):
        # A window of one voxel has no deviations, but may be NaN.
        c = tp[i] + 0.0 * (mean_t[i] + mean_p[i])
        s, r = tt[i], pp[i]
        if clamped:
            s_up, r_up = max(s, delta), max(r, delta)
            denominator = s_up * r_up
            slope_p, slope_t = (s_up if r > delta else 0.0), (r_up if s > delta else 0.0)
        else:
            denominator, slope_p, slope_t = s * r + delta, s, r
        # There is only one division, because it takes as long as all the rest.
        inverse = 1.0 / denominator
        value = (c * c + nu) * inverse
        score[i] = value
        a[i] = 2.0 * c * inverse
        by_p[i] = -value * (slope_p * inverse)
        by_t[i] = -value * (slope_t * inverse)
        dt, dp = mean_t[i] - t[i], mean_p[i] - p[i]
        of_p[i] = a[i] * dt + 2.0 * by_p[i] * dp
        of_t[i] = a[i] * dp + 2.0 * by_t[i] * dt


# These take indices and not slices, because a slice of an array takes a tenth of a second to compile.


@stage
def _load(fields, z, start, n, room, first, at):
    """Copy n numbers of plane z of all fields, from `start` on, into a room.

    There the first field is `first`, and the first number is at `at`.
    """
    start, at = np.uintp(start), np.uintp(at)  # unsigned: no check for a negative index
    plane = z % fields.shape[1]
    for f in range(fields.shape[0]):
        for i in range(np.uintp(n)):
            room[first + f, at + i] = fields[f, plane, start + i]


@stage
def _store(room, first, at, n, fields, z, start):
    """Copy in the opposite direction of `_load`."""
    start, at = np.uintp(start), np.uintp(at)
    plane = z % fields.shape[1]
    for f in range(fields.shape[0]):
        for i in range(np.uintp(n)):
            fields[f, plane, start + i] = room[first + f, at + i]


@stage
def _weigh(field, upstream, out):
    """Multiply a field by dL/d(score), which has a value for each voxel or one for all."""
    if upstream.size == 1:
        for i in range(out.size):
            out[i] = field[i] * upstream[0]
    else:
        for i in range(out.size):
            out[i] = field[i] * upstream[i]


@stage
def _moment(a, b, t, p, of):
    """Add A t + 2 B p to `of`."""
    for i in range(of.size):
        of[i] += a[i] * t[i] + 2.0 * b[i] * p[i]


@stage
def _keep_moment(a, b, of, t, p, out_a, out_b, out):
    """Store the sums of A and B, and the sum of A t + 2 B p + … relative to the centre voxel.

    The latter is computed before A and B are rounded. Their rounding is then the same in all terms of the slope
    A (t - …) + 2 B (p - …), and a large offset does not amplify it.
    """
    for i in range(out.size):
        out_a[i], out_b[i] = a[i], b[i]
        out[i] = of[i] - (a[i] * t[i] + 2.0 * b[i] * p[i])


@stage
def _slope(a, b, of, t, p, out):
    for i in range(out.size):
        out[i] = (a[i] * t[i] + 2.0 * b[i] * p[i]) - of[i]


@stage
def _moments_in_tile(p, t, z, y, x, rows, columns, window_y, window_x, ones, weighted, rooms, means, fields):
    radius_y, radius_x = window_y.size // 2, window_x.size // 2
    pitch = columns + 2 * radius_x
    size = (rows + 2 * radius_y) * pitch
    clear(rooms[0, 2:], START, size)
    load_tile(t[z], y, x, rows, columns, radius_y, radius_x, rooms[0, 0])
    load_tile(p[z], y, x, rows, columns, radius_y, radius_x, rooms[0, 1])
    at = moments_along(rooms, START, size, NEXT, window_x, ones, weighted, 1.0)
    # Windows that begin at the last numbers of the last row do not fit.
    size -= window_x.size - 1
    at = moments_along(rooms, at, size, pitch, window_y, ones, weighted, total_weight(window_x))
    there, plane = slice(x, x + columns), z % means.shape[1]
    for k in range(rows):
        here, row = slice(k * pitch, k * pitch + columns), y + k
        for f in range(2):
            copy_cast(rooms[at, f, here], means[f, plane, row, there])
        for f in range(3):
            copy_cast(rooms[at, 2 + f, here], fields[f, plane, row, there])


# The results of a slab may overwrite its input. Stages are compiled for arrays that do not overlap, so no stage may
# take both.


@stage
def _load_slab(means, fields, depth, low, z_start, planes, start, n, radius, rooms, carried):
    """Load the moments of the planes that the windows of a slab reach, from `start` on in each plane."""
    bottom, top = begin_slab(rooms[0], carried, low, z_start, n, radius), min(z_start + planes + radius, depth)
    for z in range(bottom, top):
        line = (z - z_start + radius) * n
        _load(means, z, start, n, rooms[0], 0, line)
        _load(fields, z, start, n, rooms[0], 2, line)
    end_slab(rooms[0], carried, (top - z_start + radius) * n, (planes + radius) * n, radius * n)


@stage
def _score_slab(
    p, t, z_start, planes, start, n, nu, delta, clamped, rooms, at, row, score, made_fields, more, gradients
):  # fmt: skip
    moments, made, scores, here = rooms[at], rooms[(at + 1) % 3], row[:n], slice(start, start + n)
    total, lost = 0.0, 0.0
    for z in range(z_start, z_start + planes):
        line = slice((z - z_start) * n, (z - z_start + 1) * n)
        _score(
            t[z, here], p[z, here], moments[0, line], moments[1, line], moments[2, line], moments[3, line],
            moments[4, line], nu, delta, clamped, scores, made[0, line], made[1, line], made[2, line], made[3, line],
            made[4, line],
        )  # fmt: skip
        if score.size > 0:
            copy_cast(scores, score[z, here])
        else:
            total, lost = compensated(total, lost, total_of(scores))
        if gradients > 0:
            _store(made, 0, line.start, n, made_fields, z, start)
        if gradients > 1:
            _store(made, 3, line.start, n, more, z, start)
    return total


@stage
def _load_slopes(p, t, a, b, of, upstream, z, y, x, rows, columns, radius_y, radius_x, room):
    """Load A, B and A t + 2 B p + … of the windows within reach, times `upstream`."""
    pitch = columns + 2 * radius_x
    clear(room, START, (rows + 2 * radius_y) * pitch)
    top, bottom = reach(y, rows, radius_y, p.shape[1])
    left, right = reach(x, columns, radius_x, p.shape[2])
    there, plane = slice(left, right), z % a.shape[0]
    for row in range(top, bottom):
        up = upstream[0, 0, 0:1] if upstream.size == 1 else upstream[z, row, there]
        begin = (row - y + radius_y) * pitch + left - x + radius_x
        line = slice(begin, begin + right - left)
        _weigh(a[plane, row, there], up, room[0, line])
        _weigh(b[plane, row, there], up, room[1, line])
        _weigh(of[plane, row, there], up, room[2, line])
        _moment(room[0, line], room[1, line], t[z, row, there], p[z, row, there], room[2, line])


@stage
def _sums_in_tile(
    p, t, a, b, of, upstream, z, y, x, rows, columns, window_y, window_x, ones, weighted, rooms, of_a, fields
):
    radius_y, radius_x = window_y.size // 2, window_x.size // 2
    pitch = columns + 2 * radius_x
    size = (rows + 2 * radius_y) * pitch
    _load_slopes(p, t, a, b, of, upstream, z, y, x, rows, columns, radius_y, radius_x, rooms[0])
    at = sums_along(rooms, START, size, NEXT, window_x, ones, weighted)
    size -= window_x.size - 1
    at = sums_along(rooms, at, size, pitch, window_y, ones, weighted)
    there, plane = slice(x, x + columns), z % of_a.shape[0]
    for k in range(rows):
        here, row = slice(k * pitch, k * pitch + columns), y + k
        _keep_moment(
            rooms[at, 0, here], rooms[at, 1, here], rooms[at, 2, here], t[z, row, there], p[z, row, there],
            of_a[plane, row, there], fields[0, plane, row, there], fields[1, plane, row, there],
        )  # fmt: skip


@stage
def _load_slopes_of_slab(p, t, low, z_start, planes, start, n, radius, rooms, carried, of_a, fields):
    here = slice(start, start + n)
    bottom, top = begin_slab(rooms[0], carried, low, z_start, n, radius), min(z_start + planes + radius, p.shape[0])
    for z in range(bottom, top):
        line, plane = slice((z - z_start + radius) * n, (z - z_start + radius + 1) * n), z % of_a.shape[0]
        copy_cast(of_a[plane, here], rooms[0, 0, line])
        copy_cast(fields[0, plane, here], rooms[0, 1, line])
        copy_cast(fields[1, plane, here], rooms[0, 2, line])
        _moment(rooms[0, 0, line], rooms[0, 1, line], t[z, here], p[z, here], rooms[0, 2, line])
    end_slab(rooms[0], carried, (top - z_start + radius) * n, (planes + radius) * n, radius * n)


@stage
def _slopes_of_slab(p, t, z_start, planes, start, n, rooms, at, out):
    here = slice(start, start + n)
    for z in range(z_start, z_start + planes):
        line = slice((z - z_start) * n, (z - z_start + 1) * n)
        _slope(rooms[at, 0, line], rooms[at, 1, line], rooms[at, 2, line], t[z, here], p[z, here], out[z, here])


@kernel
def planes(p, t, start, stop, rows, columns, window_y, window_x, ones, weighted, means, fields):
    """Compute the moments of the windows around the voxels of tiles start:stop, within their plane.

    Tiles have `rows` by `columns` voxels, and are numbered plane by plane.
    """
    _, height, width = p.shape
    room = (rows + 2 * (window_y.size // 2)) * (columns + 2 * (window_x.size // 2))
    rooms = np.empty((3, MOMENTS, room))
    for tile in range(start, stop):
        z, y, x, n, m = place_of_tile(tile, height, width, rows, columns)
        _moments_in_tile(p, t, z, y, x, n, m, window_y, window_x, ones, weighted, rooms, means, fields)


@kernel
def depth(
    p, t, low, high, start, stop, slab, window_z, ones, weighted, count, nu, delta, clamped, score, means, fields,
    made, more, gradients,
):  # fmt: skip
    """Return the sum of the correlations of the voxels start:stop of the planes low:high, or put each into `score`.

    Images, `score` and fields have planes of H * W voxels. `gradients` is the number of images that need a gradient:
    `made`, which may be `fields`, receives the arrays for the first, and `more` those for the second. `count` is the
    total weight of a window within a plane, and `slab` is the number of planes that are processed at once.
    """
    radius = window_z.size // 2
    step = columns_at_once(stop - start, slab, radius)
    rooms, row = np.empty((3, MOMENTS, (slab + 2 * radius) * step)), np.empty(step)
    carried = np.empty((MOMENTS, radius * step))
    total, lost = 0.0, 0.0
    for k in range(start, stop, step):
        n = min(step, stop - k)
        for z in range(low, high, slab):
            m = min(slab, high - z)
            _load_slab(means, fields, p.shape[0], low, z, m, k, n, radius, rooms, carried)
            at = moments_along(rooms, START, (m + 2 * radius) * n, n, window_z, ones, weighted, count)
            part = _score_slab(p, t, z, m, k, n, nu, delta, clamped, rooms, at, row, score, made, more, gradients)
            total, lost = compensated(total, lost, part)
    return total


@kernel
def planes_backward(
    p, t, a, b, of, upstream, start, stop, rows, columns, window_y, window_x, ones, weighted, of_a, fields
):
    """Sum A, B and the third array that `depth` stored for p, times `upstream`, over windows within their plane.

    `of_a`, which may be the array of the gradient, receives the sum of A, and `fields` the other two. `upstream` is
    (D, H, W) or (1, 1, 1). Tiles are those of `planes`.
    """
    _, height, width = p.shape
    room = (rows + 2 * (window_y.size // 2)) * (columns + 2 * (window_x.size // 2))
    rooms = np.empty((3, 3, room))
    for tile in range(start, stop):
        z, y, x, n, m = place_of_tile(tile, height, width, rows, columns)
        _sums_in_tile(p, t, a, b, of, upstream, z, y, x, n, m, window_y, window_x, ones, weighted, rooms, of_a, fields)


@kernel
def depth_backward(p, t, low, high, start, stop, slab, window_z, ones, weighted, of_a, fields, out):
    """Write the gradient in p of the voxels start:stop of the planes low:high; `out` may be `of_a`."""
    radius = window_z.size // 2
    step = columns_at_once(stop - start, slab, radius)
    rooms, carried = np.empty((3, 3, (slab + 2 * radius) * step)), np.empty((3, radius * step))
    for k in range(start, stop, step):
        n = min(step, stop - k)
        for z in range(low, high, slab):
            m = min(slab, high - z)
            _load_slopes_of_slab(p, t, low, z, m, k, n, radius, rooms, carried, of_a, fields)
            at = sums_along(rooms, START, (m + 2 * radius) * n, n, window_z, ones, weighted)
            _slopes_of_slab(p, t, z, m, k, n, rooms, at, out)
