"""exp and log1p as polynomials, which LLVM vectorises; NumPy's functions in Numba call libm for each value."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# x = k ln2 + r with |r| <= ln2/2 (Cody & Waite 1980). Adding 1.5 * 2^(mantissa bits) rounds x/ln2 to the integer k, and
# leaves k in the low bits of the sum. ln2 is split into two parts so that k * LN2_HI is exact. exp(r) = 1 + r +
# r^2 P(r), where P interpolates at Chebyshev nodes; its error is below 0.2 (float32) and 0.01 (float64) units of
# roundoff.
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
    """Return 2^k, given a float that holds the integer k in its low mantissa bits."""
    bits, mantissa, bias = (32, 23, 127) if shifted == types.float32 else (64, 52, 1023)

    def codegen(context, builder, signature, arguments):
        integer = ir.IntType(bits)
        k = builder.bitcast(arguments[0], integer)
        exponent = builder.shl(builder.add(k, ir.Constant(integer, bias)), ir.Constant(integer, mantissa))
        return builder.bitcast(exponent, arguments[0].type)

    return shifted(shifted), codegen


# Size of a cache line in bytes.
LINE = 64


@intrinsic
def _touch(typingctx, array, index):
    """Prefetch the cache line of array[index]; an index beyond the array has no effect."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
        prefetch = builder.module.globals.get("llvm.prefetch.p0")
        if prefetch is None:
            prefetch = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [address, i32(0), i32(3), i32(1)])  # for reading, into the nearest cache, as data
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


@njit
def prefetch(values, start, count):
    """Prefetch values[start : start + count] while the caller continues; indices beyond the end have no effect."""
    for i in range(start, start + count, LINE // values.itemsize):
        _touch(values, i)


# `contract` lets LLVM fuse a product and a sum. It does not assume the absence of NaN or infinity.
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
    """Return exp(x) for x <= 0 within 2 ulp, 0 where it would be subnormal, and NaN for NaN."""
    raise NotImplementedError("only called from compiled code")


@overload(exp_nonpositive, inline="always")
def _overload_exp_nonpositive(x):
    if x == types.float32:
        return lambda x: _exp_32(x)
    return lambda x: _exp_64(x)


# log1p(s) for s >= 0: 1 + s = 2^k m with m in [sqrt(1/2), sqrt(2)). With f = m - 1, log(m) = 2 artanh(f / (2 + f)) is
# computed by its power series. For small s, k = 0 and f = s are exact. Otherwise the rounding error of 1 + s, divided
# by 1 + s, is added.
_LOG_LIMIT = np.sqrt(2.0) - 1.0


@intrinsic
def _exponent_and_mantissa(typingctx, x):
    """Return k and m with x = 2^k m and m in [sqrt(1/2), sqrt(2)), for a positive normal x."""
    bits, digits, bias, root = (32, 23, 127, 0x3F3504F3) if x == types.float32 else (64, 52, 1023, 0x3FE6A09E667F3BCD)

    def codegen(context, builder, signature, arguments):
        integer = ir.IntType(bits)
        one = ir.Constant(integer, bias << digits)
        raw = builder.bitcast(arguments[0], integer)
        shifted = builder.add(raw, builder.sub(one, ir.Constant(integer, root)))
        k = builder.sub(builder.ashr(shifted, ir.Constant(integer, digits)), ir.Constant(integer, bias))
        fraction = builder.and_(shifted, ir.Constant(integer, (1 << digits) - 1))
        m = builder.bitcast(builder.add(fraction, ir.Constant(integer, root)), arguments[0].type)
        return context.make_tuple(builder, signature.return_type, [builder.sitofp(k, arguments[0].type), m])

    return types.UniTuple(x, 2)(x), codegen


@njit(error_model="numpy")
def _log1p_32(s):
    one, two = np.float32(1), np.float32(2)
    u = one + s
    k, m = _exponent_and_mantissa(u)
    small = s < np.float32(_LOG_LIMIT)
    f = s if small else m - one
    lost = np.float32(0) if small else (s - (u - one)) / u
    t = f / (two + f)
    z = t * t
    series = z * (np.float32(2 / 3) + z * (np.float32(2 / 5) + z * (np.float32(2 / 7) + z * np.float32(2 / 9))))
    high = np.float32(0) if small else k * _LN2_HI_32
    low = np.float32(0) if small else k * _LN2_LO_32
    return high + ((two * t + t * series) + (low + lost))


@njit(error_model="numpy")
def _log1p_64(s):
    u = 1.0 + s
    k, m = _exponent_and_mantissa(u)
    small = s < _LOG_LIMIT
    f = s if small else m - 1.0
    lost = 0.0 if small else (s - (u - 1.0)) / u
    t = f / (2.0 + f)
    z = t * t
    series = 2 / 15 + z * (2 / 17 + z * (2 / 19 + z * (2 / 21 + z * (2 / 23))))
    series = 2 / 9 + z * (2 / 11 + z * (2 / 13 + z * series))
    series = z * (2 / 3 + z * (2 / 5 + z * (2 / 7 + z * series)))
    high = 0.0 if small else k * _LN2_HI_64
    low = 0.0 if small else k * _LN2_LO_64
    return high + ((2.0 * t + t * series) + (low + lost))


def log1p_nonnegative(s):
    """Return log(1 + s) for finite s >= 0 within 2 ulp, and NaN for NaN."""
    raise NotImplementedError("only called from compiled code")


@overload(log1p_nonnegative, inline="always")
def _overload_log1p_nonnegative(s):
    if s == types.float32:
        return lambda s: _log1p_32(s)
    return lambda s: _log1p_64(s)
