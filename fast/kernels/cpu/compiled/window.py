"""Sums over windows that move along an axis, and moments within them, without differences of large sums.

Arrays are flat: a window along an axis takes the numbers at i, i + stride, …, and one loop computes all windows. The
results of windows that do not fit are meaningless.

A window of ones is composed of windows of 3, 9, … numbers, each made of three windows of a third of its length, as long
as the length is divisible by 3, and then of 1, 2, 4, … of those. The cost grows with the logarithm of the length.
Unlike in a running sum, numbers that have left the window leave no rounding error behind. Other windows are summed
number by number.

Moments are the means of two images, t and p, and the sums of squares and products of the deviations from the means: tt,
pp, tp. The moments of two windows are merged after Chan, Golub and LeVeque (1979), who add only squares: no variance is
computed as a difference.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.tile import START, copy_cast, stage

MOMENTS = 5

# Numbers of a field that are processed at once, so that all rooms of all fields stay in the second-level cache; and how
# many of them come from one row at least, if it is as long.
ROOM, SIDE = 6144, 128
# Planes of a slab, including margins, so that long parts of a row fit into a room: short ones are slow.
SLAB = 104


@stage
def _merge(t, p, tt, pp, tp, u, q, uu, qq, uq, share, factor, out_t, out_p, out_tt, out_pp, out_tp):
    """Merge the moments t, p, tt, pp, tp of windows with the moments u, q, uu, qq, uq of others.

    `share` is the share of the others in the total weight, and `factor` is the product of both weights over their sum.
    """
    for i in range(t.size):
        dt, dp = u[i] - t[i], q[i] - p[i]
        out_t[i], out_p[i] = t[i] + share * dt, p[i] + share * dp
        out_tt[i] = (tt[i] + uu[i]) + factor * (dt * dt)
        out_pp[i] = (pp[i] + qq[i]) + factor * (dp * dp)
        out_tp[i] = (tp[i] + uq[i]) + factor * (dt * dp)


@stage
def _absorb(t, p, tt, pp, tp, u, q, uu, qq, uq, share, factor):
    """Do what `_merge` does, in place."""
    for i in range(t.size):
        dt, dp = u[i] - t[i], q[i] - p[i]
        t[i] += share * dt
        p[i] += share * dp
        tt[i] += uu[i] + factor * (dt * dt)
        pp[i] += qq[i] + factor * (dp * dp)
        tp[i] += uq[i] + factor * (dt * dp)


@stage
def _add(one, other, out):
    for i in range(out.size):
        out[i] = one[i] + other[i]


@stage
def _accumulate(source, out):
    for i in range(out.size):
        out[i] += source[i]


@stage
def _scaled(source, weight, out):
    for i in range(out.size):
        out[i] = weight * source[i]


@stage
def _accumulate_scaled(source, weight, out):
    for i in range(out.size):
        out[i] += weight * source[i]


@stage
def _accumulate_difference(source, middle, weight, out):
    for i in range(out.size):
        out[i] += weight * (source[i] - middle[i])


@stage
def _accumulate_moments(t, p, tt, pp, tp, mean_t, mean_p, weight, count, out_tt, out_pp, out_tp):
    for i in range(mean_t.size):
        dt, dp = t[i] - mean_t[i], p[i] - mean_p[i]
        out_tt[i] += weight * (tt[i] + count * (dt * dt))
        out_pp[i] += weight * (pp[i] + count * (dp * dp))
        out_tp[i] += weight * (tp[i] + count * (dt * dp))


@stage
def _sum_of_three(one, middle, other, outer, inner, out):
    for i in range(out.size):
        out[i] = inner * middle[i] + outer * (one[i] + other[i])


@stage
def _sums_in_threes(source, stride, outer, inner, n, result):
    middle, other = slice(stride, stride + n), slice(2 * stride, 2 * stride + n)
    for f in range(source.shape[0]):
        _sum_of_three(source[f, :n], source[f, middle], source[f, other], outer, inner, result[f, :n])


@stage
def _moments_of_three(t, t_mid, t_end, p, p_mid, p_end, share, factor, out_t, out_p, out_tt, out_pp, out_tp):
    """Compute the moments of three numbers with the weights o, i, o.

    `share` is o / (2 o + i), and `factor` is o times the weight that each number stands for. With x and y the
    differences of the outer numbers from the middle one, the sum of squared deviations from the mean is
    o (x² + y² - o (x + y)² / (2 o + i)), which is computed as a sum of squares.
    """
    of_each, of_both = factor * (1.0 - 2.0 * share), factor * share
    for i in range(out_t.size):
        x, y = t[i] - t_mid[i], t_end[i] - t_mid[i]
        u, v = p[i] - p_mid[i], p_end[i] - p_mid[i]
        out_t[i], out_p[i] = t_mid[i] + share * (x + y), p_mid[i] + share * (u + v)
        out_tt[i] = of_each * (x * x + y * y) + of_both * ((x - y) * (x - y))
        out_pp[i] = of_each * (u * u + v * v) + of_both * ((u - v) * (u - v))
        out_tp[i] = of_each * (x * u + y * v) + of_both * ((x - y) * (u - v))


@stage
def _accumulate_sum_of_three(one, middle, other, outer, inner, out):
    for i in range(out.size):
        out[i] += inner * middle[i] + outer * (one[i] + other[i])


@stage
def _moments_in_threes(source, stride, outer, inner, count, n, result):
    """Compute the moments of windows of three numbers, the most common ones, in one loop."""
    middle, other = slice(stride, stride + n), slice(2 * stride, 2 * stride + n)
    _moments_of_three(
        source[0, :n], source[0, middle], source[0, other], source[1, :n], source[1, middle], source[1, other],
        outer / (2.0 * outer + inner), outer * count,
        result[0, :n], result[1, :n], result[2, :n], result[3, :n], result[4, :n],
    )  # fmt: skip
    for f in range(2, MOMENTS):
        _accumulate_sum_of_three(source[f, :n], source[f, middle], source[f, other], outer, inner, result[f, :n])


@stage
def _add_shifted(source, shift, n, out):
    for f in range(source.shape[0]):
        _add(source[f, :n], source[f, shift : shift + n], out[f, :n])


@stage
def sums_along(rooms, at, size, stride, window, ones, weighted):
    """Sum over windows along an axis, and return which of the three `rooms`, (3, fields, numbers), has the sums.

    The numbers are in room `at`. `window` has the weights. `ones` is None if they are not all 1, and `weighted` is None
    if they are. None is a type of its own, for which Numba leaves out the code of that case.
    """
    length = window.size
    if length == 1 and window[0] == 1:
        return at
    while length % 3 == 0 and (ones is not None or length == 3):
        size -= 2 * stride
        _sums_in_threes(rooms[at], stride, window[0], window[1], size, rooms[(at + 1) % 3])
        at, stride, length = (at + 1) % 3, 3 * stride, length // 3
        if length == 1:
            return at
    result, spare = (at + 1) % 3, (at + 2) % 3
    if weighted is not None:
        n = size - (length - 1) * stride
        for f in range(rooms.shape[1]):
            _scaled(rooms[at, f, :n], window[0], rooms[result, f, :n])
            for j in range(1, length):
                _accumulate_scaled(rooms[at, f, j * stride : j * stride + n], window[j], rooms[result, f, :n])
    if ones is not None:
        for f in range(rooms.shape[1]):
            copy_cast(rooms[at, f, :size], rooms[result, f, :size])
        have, half = 1, 1
        while 2 * half <= length:
            _add_shifted(rooms[at], half * stride, size - (2 * half - 1) * stride, rooms[spare])
            at, spare, half = spare, at, 2 * half
            if length & half:
                n = size - (have + half - 1) * stride
                for f in range(rooms.shape[1]):
                    _accumulate(rooms[at, f, have * stride : have * stride + n], rooms[result, f, :n])
                have += half
    return result


@stage
def _merge_shifted(source, shift, n, factor, out):
    there = slice(shift, shift + n)
    _merge(
        source[0, :n], source[1, :n], source[2, :n], source[3, :n], source[4, :n],
        source[0, there], source[1, there], source[2, there], source[3, there], source[4, there],
        0.5, factor, out[0, :n], out[1, :n], out[2, :n], out[3, :n], out[4, :n],
    )  # fmt: skip


@stage
def _absorb_shifted(result, source, shift, n, share, factor):
    there = slice(shift, shift + n)
    _absorb(
        result[0, :n], result[1, :n], result[2, :n], result[3, :n], result[4, :n],
        source[0, there], source[1, there], source[2, there], source[3, there], source[4, there], share, factor,
    )  # fmt: skip


@stage
def _weighted_moments(source, n, stride, window, count, result):
    total = 0.0
    for j in range(window.size):
        total += window[j]
    # The mean is computed relative to the number in the middle, so that a large offset rounds it only once.
    centre = slice(window.size // 2 * stride, window.size // 2 * stride + n)
    for f in range(2):
        for i in range(n):
            result[f, i] = 0.0
        for j in range(window.size):
            here = slice(j * stride, j * stride + n)
            _accumulate_difference(source[f, here], source[f, centre], window[j] / total, result[f, :n])
        _accumulate(source[f, centre], result[f, :n])
    for f in range(2, MOMENTS):
        for i in range(n):
            result[f, i] = 0.0
    for j in range(window.size):
        here = slice(j * stride, j * stride + n)
        _accumulate_moments(
            source[0, here], source[1, here], source[2, here], source[3, here], source[4, here],
            result[0, :n], result[1, :n], window[j], count, result[2, :n], result[3, :n], result[4, :n],
        )  # fmt: skip


@stage
def moments_along(rooms, at, size, stride, window, ones, weighted, count):
    """Do what `sums_along` does for moments; `count` is the total weight that each number stands for already."""
    length = window.size
    while length % 3 == 0 and (ones is not None or length == 3):
        size -= 2 * stride
        _moments_in_threes(rooms[at], stride, window[0], window[1], count, size, rooms[(at + 1) % 3])
        at, stride, length, count = (at + 1) % 3, 3 * stride, length // 3, 3 * count
    if length == 1:
        return at
    result, spare = (at + 1) % 3, (at + 2) % 3
    if weighted is not None:
        _weighted_moments(rooms[at], size - (length - 1) * stride, stride, window, count, rooms[result])
    if ones is not None:
        for f in range(MOMENTS):
            copy_cast(rooms[at, f, :size], rooms[result, f, :size])
        have, half = 1, 1
        while 2 * half <= length:
            _merge_shifted(rooms[at], half * stride, size - (2 * half - 1) * stride, count * half / 2, rooms[spare])
            at, spare, half = spare, at, 2 * half
            if length & half:
                total = float(have + half)
                n = size - (have + half - 1) * stride
                _absorb_shifted(rooms[result], rooms[at], have * stride, n, half / total, count * have * half / total)
                have += half
    return result


@stage
def clear(room, start, stop):
    """Set the numbers start:stop of all fields of a room to 0."""
    for f in range(room.shape[0]):
        for i in range(start, stop):
            room[f, i] = 0.0


@stage
def total_weight(window):
    """Return the sum of the weights of a window."""
    total = 0.0
    for j in range(window.size):
        total += np.float64(window[j])
    return total


def tile_of_plane(height, width, radius_x):
    """Return the rows and columns of a tile; it is nearly square, because each tile also loads its margins."""
    columns = min(max(ROOM // height, SIDE), width)
    columns = -(-width // -(-width // columns))
    return min(max(ROOM // (columns + 2 * radius_x), 1), height), columns


@stage
def place_of_tile(tile, height, width, rows, columns):
    """Return the plane, the first row and the first column of a tile, and its numbers of rows and columns."""
    across = -(-width // columns)
    down = -(-height // rows)
    y, x = (tile // across) % down * rows, tile % across * columns
    return tile // (across * down), y, x, min(rows, height - y), min(columns, width - x)


@stage
def columns_at_once(columns, depth, radius_z):
    """Return how many consecutive voxels of a plane are processed at once along the depth."""
    return min(max(ROOM // (depth + 2 * radius_z), 16), columns)


def planes_at_once(depth, radius_z):
    """Return the number of planes of a slab; all slabs have about the same."""
    planes = max(SLAB - 2 * radius_z, 4 * radius_z)
    return depth if depth + 2 * radius_z <= SLAB else -(-depth // -(-depth // planes))


# These are inlined in their callers, because compiling a stage of its own takes longer.


@njit(inline="always")
def begin_slab(room, carried, low, z, n, radius):
    """Restore the planes before a slab that starts at plane z, as they were before they were processed.

    The windows of the slab reach them. Returns the first plane to load. The first slab, at plane `low`, has nothing to
    restore, and also loads the planes before it.
    """
    if z == low:
        clear(room, START, max(radius - low, 0) * n)
        return max(low - radius, 0)
    for f in range(room.shape[0]):
        copy_cast(carried[f, : radius * n], room[f, : radius * n])
    return z


@njit(inline="always")
def end_slab(room, carried, loaded, stop, margin):
    """Put zeros after the `loaded` numbers, and carry over the last planes of a slab, which end at `stop`."""
    clear(room, loaded, stop + margin)
    for f in range(room.shape[0]):
        copy_cast(room[f, stop - margin : stop], carried[f, :margin])


@stage
def reach(start, count, radius, size):
    """Return the range, within `size`, that windows around `count` places from `start` on reach."""
    return max(start - radius, 0), min(start + count + radius, size)


@stage
def load_tile(plane, y_start, x_start, rows, columns, radius_y, radius_x, out):
    """Load a tile of a plane with the margins that windows reach; beyond the image it is 0."""
    pitch = columns + 2 * radius_x
    for i in range((rows + 2 * radius_y) * pitch):
        out[i] = 0.0
    top, bottom = reach(y_start, rows, radius_y, plane.shape[0])
    left, right = reach(x_start, columns, radius_x, plane.shape[1])
    for y in range(top, bottom):
        begin = (y - y_start + radius_y) * pitch + left - x_start + radius_x
        copy_cast(plane[y, left:right], out[begin : begin + right - left])
