"""Sums of many numbers whose rounding error does not grow with their count.

Each addition rounds, and for equal numbers, as in a constant image, it often rounds in the same direction: the error of
a plain sum is then up to a quarter of a roundoff for each number. Therefore blocks of numbers, which are spread over
vector lanes, are added with compensation.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from twinloss.fast.kernels.cpu.compiled.tile import OF_STAGE, block_of, stage, sums_stage


@njit(inline="always")
def compensated(total, lost, value):
    """Return `total` plus a value, and the rounding error of this, to be passed to the next call (Kahan 1965).

    An infinite total has no error. The caller must not be a `sums_stage`, which changes the order of operations.
    """
    term = value - lost
    raised = total + term
    return raised, (raised - total) - term if np.isfinite(raised) else 0.0


def add(sums, row, c, part):
    """Add the sum of a block to the statistic `row` of class c; `sums`, (2, ROWS, C), has totals and rounding errors.

    In float32, the errors of float64 totals do not matter, and are not computed.
    """


@overload(add, jit_options=OF_STAGE)
def _add(sums, row, c, part):
    def plain(sums, row, c, part):
        sums[0, row, c] += part

    def exact(sums, row, c, part):
        sums[0, row, c], sums[1, row, c] = compensated(sums[0, row, c], sums[1, row, c], part)

    return plain if part is types.float32 else exact


@sums_stage
def _total(values):
    total = values.dtype.type(0)
    for i in range(values.size):
        total += values[i]
    return total


@stage
def total_of(values):
    """Return the sum, which is accumulated in float64 beyond a block."""
    total, lost = 0.0, 0.0
    block = block_of(values)
    for i in range(0, values.size, block):
        total, lost = compensated(total, lost, np.float64(_total(values[i : i + block])))
    return total
