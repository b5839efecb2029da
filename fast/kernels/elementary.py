"""exp as a polynomial that LLVM vectorises; NumPy's `exp` in Numba is one scalar libm call a value."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# x = k ln2 + r, |r| <= ln2/2 (Cody & Waite 1980): adding 1.5 * 2^(mantissa bits) rounds x/ln2 to the
# integer k and leaves k in the low bits of the sum. ln2 is split so that k * LN2_HI is exact.
# exp(r) = 1 + r + r^2 P(r), P interpolates at Chebyshev nodes: its own error is below 0.2 (float32) and
# 0.01 (float64) units of roundoff.
_ROUND_32 = np.float32(12582912.0)
_LOG2E_32 = np.float32(1.4426950408889634)
_LN2_HI_32 = np.float32(0.693359375)
_LN2_LO_32 = np.float32(-2.12194440e-4)
_LOWEST_32 = np.float32(-87.0)
_P0, _P1, _P2, _P3, _P4 = (
    np.float32(c) for c in (0.5, 0.16666576266288757, 0.041666556149721146, 0.008363178931176662, 0.0013926184037700295)
)

_ROUND_64 = 6755399441055744.0
_LOG2E_64 = 1.4426950408889634
_LN2_HI_64 = 6.93147180369123816490e-01
_LN2_LO_64 = 1.90821492927058770002e-10
_LOWEST_64 = -708.0
_Q0, _Q1, _Q2, _Q3, _Q4, _Q5, _Q6, _Q7, _Q8, _Q9, _Q10 = (
    0.5, 0.1666666666666667, 0.04166666666666666, 0.008333333333326169, 0.001388888888888928,
    0.0001984126987477312, 2.480158731459148e-05, 2.755725542134176e-06, 2.7557282368718745e-07,
    2.5105216765072204e-08, 2.0912311268242538e-09,
)  # fmt: skip


@intrinsic
def _power_of_two(typingctx, shifted):
    """2^k from a float that holds the integer k in its low mantissa bits."""
    bits, mantissa, bias = (32, 23, 127) if shifted == types.float32 else (64, 52, 1023)

    def codegen(context, builder, signature, arguments):
        integer = ir.IntType(bits)
        k = builder.bitcast(arguments[0], integer)
        exponent = builder.shl(builder.add(k, ir.Constant(integer, bias)), ir.Constant(integer, mantissa))
        return builder.bitcast(exponent, arguments[0].type)

    return shifted(shifted), codegen


# `contract` lets LLVM fuse a product and a sum; it assumes nothing about NaN or infinity.
@njit(fastmath={"contract"})
def _exp_32(x):
    k = x * _LOG2E_32 + _ROUND_32
    n = k - _ROUND_32
    r = (x - n * _LN2_HI_32) - n * _LN2_LO_32
    poly = _P0 + r * (_P1 + r * (_P2 + r * (_P3 + r * _P4)))
    value = (np.float32(1) + (r + r * r * poly)) * _power_of_two(k)
    return np.float32(0) if x < _LOWEST_32 else value


@njit(fastmath={"contract"})
def _exp_64(x):
    k = x * _LOG2E_64 + _ROUND_64
    n = k - _ROUND_64
    r = (x - n * _LN2_HI_64) - n * _LN2_LO_64
    poly = _Q5 + r * (_Q6 + r * (_Q7 + r * (_Q8 + r * (_Q9 + r * _Q10))))
    poly = _Q0 + r * (_Q1 + r * (_Q2 + r * (_Q3 + r * (_Q4 + r * poly))))
    value = (1.0 + (r + r * r * poly)) * _power_of_two(k)
    return 0.0 if x < _LOWEST_64 else value


def exp_nonpositive(x):
    """exp(x) for x <= 0 within 2 ulp; 0 where it would be subnormal; NaN stays NaN."""
    raise NotImplementedError("only called from compiled code")


@overload(exp_nonpositive, inline="always")
def _overload_exp_nonpositive(x):
    if x == types.float32:
        return lambda x: _exp_32(x)
    return lambda x: _exp_64(x)
