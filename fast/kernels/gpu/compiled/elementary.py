"""Functions that all kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

# Triton's interpreter rounds towards 0 when it makes bfloat16. A GPU rounds to the nearest.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def store(pointers, values, mask=None):
    """Store values in the type of the pointers, rounded to the nearest."""
    kind: tl.constexpr = pointers.dtype.element_ty
    if kind == tl.bfloat16:
        if values.dtype == tl.float64:
            values = values.to(tl.float32)
        if _INTERPRETED:
            bits = values.to(tl.uint32, bitcast=True)
            nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000
            values = tl.where(values == values, nearest.to(tl.float32, bitcast=True), values)
    tl.store(pointers, values.to(kind), mask)


@triton.jit
def compensated(total, lost, value):
    """Return `total` plus a value, and the rounding error of this, to be passed to the next call (Kahan 1965).

    An infinite total has no error.
    """
    term = value - lost
    raised = total + term
    return raised, tl.where(tl.abs(raised) < float("inf"), (raised - total) - term, 0.0)


@triton.jit
def log1p(x):
    """Return log(1 + x) for x >= 0, to the last digit but one (Kahan): Triton itself has none."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))
