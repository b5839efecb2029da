"""Squared first differences of a field, and their adjoint: a pass each, or one for both; nothing else is stored.

A field is (D, H * W), axes that it does not have being of size 1; `weights` holds a factor for each axis that it has,
in the order x, y, z: whatever makes a squared difference what it counts. With a `margin` of 0 differences are those of
a voxel and its neighbours, two squares along each axis; the missing neighbour of a voxel at the border is the mirror
image of the one that is there, which counts twice. With 1 they are those between the two neighbours of a voxel off the
border.

Where one voxel's energy has the square of a difference, so has the other's, or that of the voxel between them: the
gradient is a sum over these pairs, of each voxel's pull towards its partner.

Rows lie one after the other, and loops run over several of them in one go: rows alone are too short for wide vectors.
What that makes of the voxels at the ends of rows, which have other neighbours, is put right afterwards.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.diffusion_energies import (
    ALIKE,
    beside,
    energies,
    put_squares_at_ends,
    row_at,
    rows_from,
    wide_energies,
)
from twinloss.fast.kernels.cpu.compiled.rows import BLOCK, alike
from twinloss.fast.kernels.cpu.compiled.sums import compensated, total_of
from twinloss.fast.kernels.cpu.compiled.tile import NEXT, START, copy_cast, stage


@stage
def _pull(here, other, own, others, by_own, by_others, out):
    """Add the slopes in `here` of squared differences between `here` and `other`, which both energies include.

    `own` and `others` are dL/dE of the two energies, and `by_own` and `by_others` the weights of the square in them.
    """
    for i in range(out.size):
        out[i] += (by_own * own[i] + by_others * others[i]) * (here[i] - other[i])


@stage
def _pull_along(here, slopes, start, stop, by_first, by_second, out):
    """Do `_pull` for the pairs of neighbours in a row whose first voxel is in start:stop."""
    first, second = here[start:stop], here[start + 1 : stop + 1]
    of_first, of_second = slopes[start:stop], slopes[start + 1 : stop + 1]
    _pull(first, second, of_first, of_second, by_first, by_second, out[start:stop])
    _pull(second, first, of_second, of_first, by_second, by_first, out[start + 1 : stop + 1])


@njit(inline="always")
def _counted(weight, k, n):
    """Return the weight of the difference to a neighbour at place k of n, which is double at the border.

    It is a sum, because a product with 2 would not keep the type.
    """
    return weight + weight if (k == 0 or k == n - 1) else weight


@njit(inline="always")
def _slopes(upstream, z, y, ones):
    """Return dL/dE of a row of energies."""
    return upstream[z, y] if upstream.size > 0 else ones


@stage
def _gradient_by_voxel(u, width, z, y, weights, upstream, out):
    """Put dL/du of a row into `out`, for the compact stencil and a dL/dE for each voxel."""
    out[:] = 0
    here, height, depth = row_at(u, width, z, y), u.shape[1] // width, u.shape[0]
    own, last, w = upstream[z, y], width - 1, weights[0]
    if last == 1:
        _pull_along(here, own, START, NEXT, w + w, w + w, out)
    else:
        _pull_along(here, own, START, NEXT, w + w, w, out)
        _pull_along(here, own, NEXT, last - 1, w, w, out)
        _pull_along(here, own, last - 1, last, w, w + w, out)
    for step in (-1, 1):
        to = y + step
        if 0 <= to < height:
            mine, theirs = _counted(weights[1], y, height), _counted(weights[1], to, height)
            _pull(here, row_at(u, width, z, to), own, upstream[z, to], mine, theirs, out)
        to = z + step
        if 0 <= to < depth:
            mine, theirs = _counted(weights[2], z, depth), _counted(weights[2], to, depth)
            _pull(here, row_at(u, width, to, y), own, upstream[to, y], mine, theirs, out)


@njit(inline="always")
def _pulls(weights, axis, k, n):
    """Return the factors of the pulls by the neighbours before and after place k of n, for a dL/dE of 1.

    A squared difference counts in the energies of both of its voxels.
    """
    weight, real = weights[axis], weights.dtype.type
    two, three = real(2) * weight, real(3) * weight
    if n == 2:
        return two, two
    if k == 0 or k == n - 1:  # the only neighbour and its mirror image
        return real(0.5) * three, real(0.5) * three
    return (three if k == 1 else two), (three if k == n - 2 else two)


@stage
def _put_pulls(before, here, after, by_before, by_after, out):
    for i in range(out.size):
        out[i] = by_before * (here[i] - before[i]) + by_after * (here[i] - after[i])


@stage
def _add_pulls(before, here, after, by_before, by_after, out):
    for i in range(out.size):
        out[i] += by_before * (here[i] - before[i]) + by_after * (here[i] - after[i])


@stage
def _add_pulls_of_two_axes(before, here, after, by_before, by_after, below, above, by_below, by_above, out):
    for i in range(out.size):
        u = here[i]
        along_y = by_before * (u - before[i]) + by_after * (u - after[i])
        out[i] += along_y + (by_below * (u - below[i]) + by_above * (u - above[i]))


@stage
def _put_pulls_at_ends(here, width, weights, out):
    """Put the pulls along rows of the first two and the last two voxels."""
    for start in range(0, here.size, width):
        for j in range(min(width, 4)):
            k = j if j < 2 else width + 1 - j
            (before, after), (by_before, by_after) = beside(k, width), _pulls(weights, 0, k, width)
            u = here[start + k]
            out[start + k] = by_before * (u - here[start + before]) + by_after * (u - here[start + after])


@stage
def _gradient_of_rows(u, width, z, y, count, weights, out):
    """Put dL/du of rows into `out`, for the compact stencil and a dL/dE of 1."""
    here, height, depth = rows_from(u, width, z, y, count), u.shape[1] // width, u.shape[0]
    n, two = here.size, weights[0] + weights[0]
    _put_pulls(here[: n - 2], here[1 : n - 1], here[2:], two, two, out[1 : n - 1])
    _put_pulls_at_ends(here, width, weights, out)
    if weights.size == 1:
        return
    (before, after), (by_before, by_after) = beside(y, height), _pulls(weights, 1, y, height)
    before, after = rows_from(u, width, z, before, count), rows_from(u, width, z, after, count)
    if weights.size == 2:
        _add_pulls(before, here, after, by_before, by_after, out)
        return
    (below, above), (by_below, by_above) = beside(z, depth), _pulls(weights, 2, z, depth)
    below, above = rows_from(u, width, below, y, count), rows_from(u, width, above, y, count)
    _add_pulls_of_two_axes(before, here, after, by_before, by_after, below, above, by_below, by_above, out)


# --- energies and gradient in one pass, for the compact stencil and three axes ----------------------------------------


@stage
def _put_both(before, here, after, weight, pull, energy, out):
    for i in range(out.size):
        one, other = here[i] - before[i], here[i] - after[i]
        energy[i] = weight * (one * one + other * other)
        out[i] = pull * one + pull * other


@stage
def _add_both_of_two_axes(
    before, here, after, weight, by_before, by_after, below, above, other_weight, by_below, by_above, energy, out
):  # fmt: skip
    for i in range(out.size):
        u = here[i]
        one, other, lower, upper = u - before[i], u - after[i], u - below[i], u - above[i]
        energy[i] += weight * (one * one + other * other) + other_weight * (lower * lower + upper * upper)
        out[i] += (by_before * one + by_after * other) + (by_below * lower + by_above * upper)


@stage
def _both_of_rows(u, width, z, y, count, weights, pulls, energy, out):
    """Do `energies` and `_gradient_of_rows` for the same rows; they share the differences."""
    here, height, depth = rows_from(u, width, z, y, count), u.shape[1] // width, u.shape[0]
    inside, two = slice(1, here.size - 1), pulls[0] + pulls[0]
    _put_both(here[: here.size - 2], here[inside], here[2:], weights[0], two, energy[inside], out[inside])
    put_squares_at_ends(here, width, weights[0], energy)
    _put_pulls_at_ends(here, width, pulls, out)
    (before, after), (by_before, by_after) = beside(y, height), _pulls(pulls, 1, y, height)
    before, after = rows_from(u, width, z, before, count), rows_from(u, width, z, after, count)
    (below, above), (by_below, by_above) = beside(z, depth), _pulls(pulls, 2, z, depth)
    below, above = rows_from(u, width, below, y, count), rows_from(u, width, above, y, count)
    _add_both_of_two_axes(
        before, here, after, weights[1], by_before, by_after, below, above, weights[2], by_below, by_above, energy, out
    )  # fmt: skip
    return total_of(energy)


@stage
def _pull_wide(here, other, slopes, weight, out):
    for i in range(out.size):
        out[i] += weight * slopes[i] * (here[i] - other[i])


@stage
def _put_wide_pulls_at_ends(here, width, place, weight, out):
    """Put the pulls along rows of the voxels that are `place` voxels, 0 or 1, from the ends."""
    for start in range(0, here.size, width):
        for k in (place, width - 1 - place):
            u, total = here[start + k], here.dtype.type(0)
            if k >= 2:
                total += weight * (u - here[start + k - 2])
            if k + 2 < width:
                total += weight * (u - here[start + k + 2])
            out[start + k] = total


@stage
def _wide_gradient_of_rows(u, width, z, y, count, weights, out):
    """Put dL/du of rows into `out`, for the wide stencil and a dL/dE of 1.

    The rows must be at least 2 away from the border in z and y.
    """
    here, w = rows_from(u, width, z, y, count), weights[0]
    n = here.size
    _put_pulls(here[: n - 4], here[2 : n - 2], here[4:], w, w, out[2 : n - 2])
    _put_wide_pulls_at_ends(here, width, NEXT, w, out)
    before, after = rows_from(u, width, z, y - 2, count), rows_from(u, width, z, y + 2, count)
    if weights.size == 2:
        _add_pulls(before, here, after, weights[1], weights[1], out)
    else:
        below, above = rows_from(u, width, z - 2, y, count), rows_from(u, width, z + 2, y, count)
        _add_pulls_of_two_axes(
            before, here, after, weights[1], weights[1], below, above, weights[2], weights[2], out
        )  # fmt: skip
    # The voxels at the ends have no energy, and so no differences along y and z: overwrite their pulls.
    _put_wide_pulls_at_ends(here, width, START, w, out)


@stage
def _wide_gradient_of_row(u, width, z, y, weights, upstream, ones, out):
    """Put dL/du of a row into `out`, for the wide stencil."""
    out[:] = 0
    here, n, height, depth = row_at(u, width, z, y), width, u.shape[1] // width, u.shape[0]
    # The planes and rows at each border that have no energy.
    above, before = (1 if weights.size > 2 else 0), (1 if weights.size > 1 else 0)
    inside_z, inside_y = above <= z < depth - above, before <= y < height - before
    if inside_z and inside_y:
        slopes = _slopes(upstream, z - above, y - before, ones)[: n - 2]
        _pull_wide(here[: n - 2], here[2:], slopes, weights[0], out[: n - 2])
        _pull_wide(here[2:], here[: n - 2], slopes, weights[0], out[2:])
    for step in (-1, 1):
        if inside_z and before > 0 and 1 <= y + step < height - 1:
            slopes = _slopes(upstream, z - above, y + step - 1, ones)[: n - 2]
            other = row_at(u, width, z, y + 2 * step)
            _pull_wide(here[1 : n - 1], other[1 : n - 1], slopes, weights[1], out[1 : n - 1])
        if inside_y and above > 0 and 1 <= z + step < depth - 1:
            slopes = _slopes(upstream, z + step - 1, y - before, ones)[: n - 2]
            other = row_at(u, width, z + 2 * step, y)
            _pull_wide(here[1 : n - 1], other[1 : n - 1], slopes, weights[2], out[1 : n - 1])


@kernel
def forward(u, width, weights, margin, z_start, z_stop, energy):
    """Return the sum of the energies of some planes.

    If `energy`, (D, H, W) without the border, is not empty, also put the energy of each voxel there.
    """
    above, before = (margin if weights.size > 2 else 0), (margin if weights.size > 1 else 0)
    height, lines = u.shape[1] // width, max(BLOCK // width, 1)
    total, lost, room = 0.0, 0.0, np.empty(lines * width, u.dtype)
    for z in range(z_start, z_stop):
        y = START + before
        while y < height - before:
            count = alike(y, height, ALIKE, lines)
            rows = room[: count * width - 2 * margin]
            if margin:
                total, lost = compensated(total, lost, wide_energies(u, width, z, y, count, weights, rows))
            else:
                total, lost = compensated(total, lost, energies(u, width, z, y, count, weights, rows))
            if energy.size > 0:
                for k in range(count):
                    copy_cast(rows[k * width : (k + 1) * width - 2 * margin], energy[z - above, y - before + k])
            y += count
    return total


@kernel
def backward(u, width, weights, margin, upstream, z_start, z_stop, out):
    """Write dL/du of some planes of a field.

    `weights` are twice those of `forward`, and include dL/dE if it is the same for all voxels. Otherwise dL/dE is
    `upstream`, (D, H, W) without the border.
    """
    ones, height, depth = np.ones(width, u.dtype), u.shape[1] // width, u.shape[0]
    lines, voxelwise = max(BLOCK // width, 1), upstream.size > 0
    for z in range(z_start, z_stop):
        deep = weights.size > 1 and (weights.size == 2 or 2 <= z < depth - 2)
        y = START
        while y < height:
            count = 1 if voxelwise or (margin and not deep) else alike(y, height, ALIKE, lines)
            rows = rows_from(out, width, z, y, count)
            if margin and deep and not voxelwise and 2 <= y < height - 2:
                _wide_gradient_of_rows(u, width, z, y, count, weights, rows)
            elif margin:
                _wide_gradient_of_row(u, width, z, y, weights, upstream, ones, rows)
            elif voxelwise:
                _gradient_by_voxel(u, width, z, y, weights, upstream, rows)
            else:
                _gradient_of_rows(u, width, z, y, count, weights, rows)
            y += count


@kernel
def both(u, width, weights, pulls, z_start, z_stop, out):
    """Do `forward` and `backward` in one pass, for the compact stencil and three axes.

    `weights` are those of `forward`, and `pulls` those of `backward`.
    """
    height, lines = u.shape[1] // width, max(BLOCK // width, 1)
    total, lost, room = 0.0, 0.0, np.empty(lines * width, u.dtype)
    for z in range(z_start, z_stop):
        y = START
        while y < height:
            count = alike(y, height, ALIKE, lines)
            rows = rows_from(out, width, z, y, count)
            energy = _both_of_rows(u, width, z, y, count, weights, pulls, room[: count * width], rows)
            total, lost = compensated(total, lost, energy)
            y += count
    return total
