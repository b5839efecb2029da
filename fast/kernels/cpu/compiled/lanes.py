"""Operations on vectors of eight float64.

They are written by hand, because LLVM unrolls a loop of eight iterations before it looks for vectors.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
_EIGHT = ir.VectorType(ir.DoubleType(), LANES)
_FUSED = ("contract",)  # a product and a sum may be rounded once, as a fused multiply-add


def _data(context, builder, array_type, array):
    return context.make_array(array_type)(context, builder, array).data


def _lanes(builder, data, index):
    return builder.bitcast(builder.gep(data, [index]), _EIGHT.as_pointer())


def _load(builder, data, index):
    value = builder.load(_lanes(builder, data, index))
    value.align = 8
    return value


def _splat(builder, value):
    single = builder.insert_element(ir.Constant(_EIGHT, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(single, ir.Constant(_EIGHT, ir.Undefined), _mask([0] * LANES))


def _mask(lanes):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _sum(builder, vector):
    """Add the lanes by repeatedly adding the two halves: the order is the same on every machine."""
    width = LANES
    while width > 1:
        width //= 2
        low = builder.shuffle_vector(vector, vector, _mask(list(range(width))))
        high = builder.shuffle_vector(vector, vector, _mask(list(range(width, 2 * width))))
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.IntType(32)(0))


@intrinsic
def add_outer(typingctx, sums, start, stride, first, of_first, rows, second, of_second):
    """Add first[k] * second[l] to sums[start + k * stride + l], for k < rows and l < LANES.

    `first` is read from `of_first` on, and `second` from `of_second` on. Bounds are not checked.
    """

    def codegen(context, builder, signature, arguments):
        sums, start, stride, first, of_first, rows, second, of_second = arguments
        sums, first, second = (
            _data(context, builder, signature.args[i], a) for i, a in ((0, sums), (3, first), (6, second))
        )
        weights = _load(builder, second, of_second)
        with cgutils.for_range(builder, rows) as loop:
            at = builder.add(start, builder.mul(loop.index, stride))
            weight = builder.load(builder.gep(first, [builder.add(of_first, loop.index)]))
            product = builder.fmul(_splat(builder, weight), weights, flags=_FUSED)
            total = builder.fadd(_load(builder, sums, at), product, flags=_FUSED)
            builder.store(total, _lanes(builder, sums, at), align=8)
        return context.get_dummy_value()

    return types.none(sums, types.intp, types.intp, first, types.intp, types.intp, second, types.intp), codegen


@intrinsic
def inner(typingctx, gamma, start, stride, first, of_first, rows, second, of_second, middle):
    """Return the sum of first[k] * (G[k, l] - G[middle, l]) * second[l], for k < rows and l < LANES.

    G[k, l] is gamma[start + k * stride + l]. `first` is read from `of_first` on, and `second` from `of_second` on.
    """

    def codegen(context, builder, signature, arguments):
        gamma, start, stride, first, of_first, rows, second, of_second, middle = arguments
        gamma, first, second = (
            _data(context, builder, signature.args[i], a) for i, a in ((0, gamma), (3, first), (6, second))
        )
        center = _load(builder, gamma, builder.add(start, builder.mul(middle, stride)))
        total = cgutils.alloca_once_value(builder, ir.Constant(_EIGHT, [0.0] * LANES))
        with cgutils.for_range(builder, rows) as loop:
            at = builder.add(start, builder.mul(loop.index, stride))
            weight = builder.load(builder.gep(first, [builder.add(of_first, loop.index)]))
            difference = builder.fsub(_load(builder, gamma, at), center)
            product = builder.fmul(_splat(builder, weight), difference, flags=_FUSED)
            builder.store(builder.fadd(builder.load(total), product, flags=_FUSED), total)
        return _sum(builder, builder.fmul(builder.load(total), _load(builder, second, of_second)))

    arguments = gamma, types.intp, types.intp, first, types.intp, types.intp, second, types.intp, types.intp
    return types.float64(*arguments), codegen
