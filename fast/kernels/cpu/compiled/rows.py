"""Rows of a displacement field, which lie one after the other in memory."""

from __future__ import annotations

from numba import njit

from twinloss.fast.kernels.cpu.compiled.tile import stage

# Number of voxels that are processed at once, so that intermediate values stay in the nearest cache.
BLOCK = 2048


@njit(inline="always")
def at(plane, start, offset, like):
    """Return as many numbers as `like` has, beginning at `start + offset`."""
    return plane[start + offset : start + offset + like.size]


@njit(inline="always")
def alike(y, height, border, lines):
    """Return how many rows from y on are processed at once: up to `lines` in the interior, one in the border."""
    return min(lines, height - border - y) if border <= y < height - border else 1


@stage
def clear_between(row, width, step):
    """Set the values between the interiors of consecutive rows to 0; the first interior begins at 0."""
    zero = row.dtype.type(0)
    for start in range(width - 2 * step, row.size, width):
        for i in range(start, min(start + 2 * step, row.size)):
            row[i] = zero
