"""Squared first differences of a field: their sums along rows, for both stencils."""

from __future__ import annotations

from numba import njit

from twinloss.fast.kernels.cpu.compiled.rows import clear_between
from twinloss.fast.kernels.cpu.compiled.sums import total_of
from twinloss.fast.kernels.cpu.compiled.tile import NEXT, stage

# Rows at the border of a plane that are processed one by one, because their pulls differ from those in the interior.
# This is so as well if only energies are computed, so that their order of addition is always the same.
ALIKE = 2


@stage
def _put_squares(before, here, after, weight, energy):
    for i in range(energy.size):
        one, other = before[i] - here[i], after[i] - here[i]
        energy[i] = weight * (one * one + other * other)


@stage
def _add_squares(before, here, after, weight, energy):
    for i in range(energy.size):
        one, other = before[i] - here[i], after[i] - here[i]
        energy[i] += weight * (one * one + other * other)


@stage
def _add_squares_of_two_axes(before, here, after, weight, below, above, other_weight, energy):
    """Do `_add_squares` for two axes in one loop."""
    for i in range(energy.size):
        u = here[i]
        one, other, lower, upper = before[i] - u, after[i] - u, below[i] - u, above[i] - u
        energy[i] += weight * (one * one + other * other) + other_weight * (lower * lower + upper * upper)


@stage
def put_squares_at_ends(here, width, weight, energy):
    """Put the squares along rows of the first and last voxels, whose only difference counts twice."""
    for first in range(0, here.size, width):
        last = first + width - 1
        one, other = here[first + 1] - here[first], here[last - 1] - here[last]
        energy[first] = weight * (one * one + one * one)
        energy[last] = weight * (other * other + other * other)


@stage
def _put_square(before, after, weight, energy):
    for i in range(energy.size):
        difference = after[i] - before[i]
        energy[i] = weight * (difference * difference)


@stage
def _add_square(before, after, weight, energy):
    for i in range(energy.size):
        difference = after[i] - before[i]
        energy[i] += weight * (difference * difference)


@stage
def _put_square_of_three_axes(left, right, before, after, below, above, weights, energy):
    for i in range(energy.size):
        x, y, z = right[i] - left[i], after[i] - before[i], above[i] - below[i]
        energy[i] = weights[0] * (x * x) + weights[1] * (y * y) + weights[2] * (z * z)


@njit(inline="always")
def rows_from(u, width, z, y, count):
    """Return some rows of a plane, one after the other."""
    return u[z, y * width : (y + count) * width]


@njit(inline="always")
def row_at(u, width, z, y):
    """Return a row of a plane."""
    return rows_from(u, width, z, y, 1)


@njit(inline="always")
def beside(k, n):
    """Return the neighbours before and after place k of n, mirrored at the border."""
    return (k - 1 if k > 0 else 1), (k + 1 if k < n - 1 else n - 2)


@stage
def energies(u, width, z, y, count, weights, energy):
    """Put the energies of rows into `energy`, and return their sum, which is float64 beyond a block."""
    here, height, depth = rows_from(u, width, z, y, count), u.shape[1] // width, u.shape[0]
    n = here.size
    _put_squares(here[: n - 2], here[1 : n - 1], here[2:], weights[0], energy[1 : n - 1])
    put_squares_at_ends(here, width, weights[0], energy)
    if weights.size == 1:
        return total_of(energy)
    before, after = beside(y, height)
    before, after = rows_from(u, width, z, before, count), rows_from(u, width, z, after, count)
    if weights.size == 2:
        _add_squares(before, here, after, weights[1], energy)
        return total_of(energy)
    below, above = beside(z, depth)
    below, above = rows_from(u, width, below, y, count), rows_from(u, width, above, y, count)
    _add_squares_of_two_axes(before, here, after, weights[1], below, above, weights[2], energy)
    return total_of(energy)


@stage
def wide_energies(u, width, z, y, count, weights, energy):
    """Put the energies of interior rows into `energy`, from the second voxel to the last but one.

    Returns their sum, which is float64 beyond a block.
    """
    here = rows_from(u, width, z, y, count)
    n = here.size
    inside = slice(1, n - 1)
    if weights.size > 2:
        _put_square_of_three_axes(
            here[: n - 2], here[2:],
            rows_from(u, width, z, y - 1, count)[inside], rows_from(u, width, z, y + 1, count)[inside],
            rows_from(u, width, z - 1, y, count)[inside], rows_from(u, width, z + 1, y, count)[inside], weights, energy,
        )  # fmt: skip
    else:
        _put_square(here[: n - 2], here[2:], weights[0], energy)
        if weights.size > 1:
            before, after = rows_from(u, width, z, y - 1, count), rows_from(u, width, z, y + 1, count)
            _add_square(before[inside], after[inside], weights[1], energy)
    clear_between(energy, width, NEXT)
    return total_of(energy)
