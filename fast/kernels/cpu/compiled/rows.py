"""Rows of a field, one after the other in memory."""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.tile import stage, sums_stage

# Voxels that are looked at in one go: what is computed of them stays in the nearest cache.
BLOCK = 2048


@njit(inline="always")
def at(plane, start, offset, like):
    """As many numbers as `like` has, from a place on."""
    return plane[start + offset : start + offset + like.size]


@njit(inline="always")
def alike(y, height, border, lines):
    """How many rows from y on are done in one go: at most so many off the border, or one of the border."""
    return min(lines, height - border - y) if border <= y < height - border else 1


@sums_stage
def _total(values):
    total = values.dtype.type(0)
    for i in range(values.size):
        total += values[i]
    return total


@njit(inline="always")
def total_of(values):
    """The sum, float64 beyond a block."""
    total = 0.0
    for i in range(0, values.size, BLOCK):
        total += np.float64(_total(values[i : i + BLOCK]))
    return total


@stage
def clear_between(row, width, step):
    """Put to 0 what lies between the interiors of rows; the first interior begins at 0."""
    zero = row.dtype.type(0)
    for start in range(width - 2 * step, row.size, width):
        for i in range(start, min(start + 2 * step, row.size)):
            row[i] = zero
