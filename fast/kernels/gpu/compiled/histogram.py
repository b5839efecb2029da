"""Joint histogram of two images with Parzen windows, and its adjoint.

A program adds the products of the weights of its voxels to a tile of bins that it keeps in registers. Each block of
voxels is one product of matrices, (bins of x, voxels) times (voxels, bins of y). The gradient reads only the bins that
a voxel reaches.

Everything is float64, because the digits of a mutual information close to 0 cancel. Exponentials take most of the time,
so they have a function of their own.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import compensated, store

# The Taylor series of exp, 1 / k!, from the highest power: it is exact to 2e-16 up to log(2) / 2.
_DEGREE = tl.constexpr(12)
_SERIES = tl.constexpr(tuple(1 / math.factorial(k) for k in reversed(range(13))))


@triton.jit
def histogram(
    x, y, low_x, high_x, low_y, high_y, parts, voxels, stride_x, stride_y, chunk, chunks, bins, reach, window,
    exponent: tl.float64, GAUSSIAN: tl.constexpr, TILE: tl.constexpr, ONE_TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the joint histogram of a chunk of voxels of one item, or a tile of it.

    Args:
        x: an image, (B, N).
        y: another image.
        low_x: the smallest intensity of each item of x, or None for a Gaussian.
        high_x: the largest one.
        low_y: the smallest intensity of each item of y.
        high_y: the largest one.
        parts: the histograms of the chunks, (B, chunks, K, K).
        voxels: N.
        stride_x: the distance of the items of x in memory.
        stride_y: that of y.
        chunk: the number of voxels of a chunk.
        chunks: the number of chunks of an item.
        bins: K.
        reach: how many bins a window reaches before and after the bin of the voxel.
        window: how many bins a window reaches altogether.
        exponent: 1 / (2 sigma^2).
        GAUSSIAN: whether both windows are Gaussians, or else a cubic B-spline and a box.
        TILE: the number of rows and columns of a tile of bins.
        ONE_TILE: whether a tile has all bins.
        BLOCK: the number of voxels whose weights are computed at once.
    """
    item, part = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    across = tl.cdiv(bins, TILE)
    first, first_y = (tl.program_id(1) // across) * TILE, (tl.program_id(1) % across) * TILE
    k, k_y = first + tl.arange(0, TILE), first_y + tl.arange(0, TILE)
    range_x, range_y = _range(low_x, high_x, item), _range(low_y, high_y, item)
    factor = tl.full((), exponent, tl.float64)
    joint = tl.zeros((TILE, TILE), tl.float64)
    start = part.to(tl.int64) * chunk
    stop = tl.minimum(start + chunk, voxels)
    for at in range(start, stop, BLOCK):
        i = at + tl.arange(0, BLOCK).to(tl.int64)
        there = i < stop
        value_x = tl.load(x + item * stride_x + i, there, 0.0).to(tl.float64)
        value_y = tl.load(y + item * stride_y + i, there, 0.0).to(tl.float64)
        near_x, offset_x = _position(value_x, range_x, bins, GAUSSIAN)
        near_y, offset_y = _position(value_y, range_y, bins, GAUSSIAN)
        needed = tl.full((), 1, tl.int32)
        if not ONE_TILE:  # most voxels reach no bin of the tile; a voxel that is NaN reaches all
            hits = _reaches(near_x, offset_x, first, TILE, reach) & _reaches(near_y, offset_y, first_y, TILE, reach)
            needed = tl.max((hits & there).to(tl.int32), 0)
        if needed > 0:
            of_x, of_y, scale = _weights(
                near_x, offset_x, near_y, offset_y, k, k_y, bins, reach, window, factor, GAUSSIAN, ONE_TILE
            )
            of_y *= tl.where(there, scale, 0.0)[:, None]
            joint = tl.dot(of_x, of_y, joint, input_precision="ieee", out_dtype=tl.float64)
    out = parts + tl.program_id(0).to(tl.int64) * bins * bins + (k[:, None].to(tl.int64) * bins + k_y[None, :])
    tl.store(out, joint, (k < bins)[:, None] & (k_y < bins)[None, :])


@triton.jit
def _weights(
    near_x, offset_x, near_y, offset_y, k, k_y, bins, reach, window, factor, GAUSSIAN: tl.constexpr,
    ONE_TILE: tl.constexpr,
):  # fmt: skip
    """Return the weights of voxels in bins, (bins of x, voxels) and (voxels, bins of y), and a factor of each voxel."""
    if GAUSSIAN:
        of_x = _gaussian(k[:, None] - near_x[None, :], offset_x[None, :], factor)
        of_y = _gaussian(k_y[None, :] - near_y[:, None], offset_y[:, None], factor)
        of_x = tl.where((k < bins)[:, None], of_x, 0.0)
        of_y = tl.where((k_y < bins)[None, :], of_y, 0.0)
        if ONE_TILE:
            scale = 1.0 / (tl.sum(of_x, 0) * tl.sum(of_y, 1))
        else:
            total_x, _ = _moments(near_x, offset_x, bins, reach, window, factor)
            total_y, _ = _moments(near_y, offset_y, bins, reach, window, factor)
            scale = 1.0 / (total_x * total_y)
    else:
        of_x = _cubic(k[:, None] - near_x[None, :], offset_x[None, :])
        of_y = tl.where(k_y[None, :] == near_y[:, None], 1.0, 0.0).to(tl.float64)
        scale = 1.0 + 0.0 * offset_y  # a voxel that is NaN is NaN in all bins
    return of_x, of_y, scale


@triton.jit
def add_parts(
    parts, out, chunks, cells, divisor: tl.float64, PARTS: tl.constexpr, CELLS: tl.constexpr
):  # fmt: skip
    """Write the sums of the parts (B, chunks, cells) of each item, divided by a number; the order is fixed."""
    blocks = tl.cdiv(cells, CELLS)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * CELLS + tl.arange(0, CELLS)
    total = tl.zeros((PARTS, CELLS), tl.float64)
    for start in range(0, chunks, PARTS):
        part = start + tl.arange(0, PARTS)
        at = parts + (item * chunks + part[:, None]) * cells + cell[None, :]
        total += tl.load(at, (part < chunks)[:, None] & (cell < cells)[None, :], 0.0)
    tl.store(out + item * cells + cell, tl.sum(total, 0) / tl.full((), divisor, tl.float64), cell < cells)


@triton.jit
def gaussian_gradient(
    x, y, upstream, out, voxels, stride_x, stride_y, blocks, bins, reach, window,
    exponent: tl.float64, factor: tl.float64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write dL/dx of a block of voxels, given dL/d(histogram), (B, K, K); `factor` is dz/dx / N.

    The slopes of the weights of a voxel sum to 0. So the slope of its nearest bin is subtracted from those of the
    others. Otherwise, rounding errors of the common part would remain.
    """
    item = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < voxels
    value = tl.load(x + item * stride_x + i, there, 0.0).to(tl.float64)
    near_x, offset_x = _position(value, (0.0, 1.0), bins, True)
    value_y = tl.load(y + item * stride_y + i, there, 0.0).to(tl.float64)
    near_y, offset_y = _position(value_y, (0.0, 1.0), bins, True)
    by_distance = tl.full((), exponent, tl.float64)
    total, mean = _moments(near_x, offset_x, bins, reach, window, by_distance)
    total_y, _ = _moments(near_y, offset_y, bins, reach, window, by_distance)
    first, first_y = _first(near_x, bins, reach, window), _first(near_y, bins, reach, window)
    gamma = upstream + item * bins * bins
    by_z = tl.zeros((BLOCK,), tl.float64)
    for along in range(0, window):
        bin_y = first_y + along
        of_y = _gaussian(bin_y - near_y, offset_y, by_distance)
        middle = tl.load(gamma + (near_x * bins + bin_y))
        for across in range(0, window):
            bin_x = first + across
            distance = bin_x - near_x
            slope = _gaussian(distance, offset_x, by_distance) * (distance.to(tl.float64) - mean)
            by_z += (slope * of_y) * (tl.load(gamma + (bin_x * bins + bin_y)) - middle)
    by_z = by_z / (total * total_y) * (2.0 * by_distance)
    # The slope is 0 for a value outside the range, and NaN for NaN.
    slope = by_z * tl.where((value < 0.0) | (value > 1.0), 0.0, tl.full((), factor, tl.float64))
    store(out + item * voxels + i, slope, there)


@triton.jit
def spline_sums(
    x, y, low_x, high_x, low_y, high_y, upstream, parts, voxels, stride_x, stride_y, chunk, chunks, bins,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum what the slopes of the extremes of x need: dL/dz, dL/dz (z - 2), and the numbers of voxels that attain them.

    `parts` is (B, chunks, 4).
    """
    item, part = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks
    range_x, range_y = _range(low_x, high_x, item), _range(low_y, high_y, item)
    gamma = upstream + item * bins * bins
    zero = tl.zeros((BLOCK,), tl.float64)
    total, lost, moment, lost_moment, lowest, highest = zero, zero, zero, zero, zero, zero
    start = part.to(tl.int64) * chunk
    stop = tl.minimum(start + chunk, voxels)
    for at in range(start, stop, BLOCK):
        i = at + tl.arange(0, BLOCK).to(tl.int64)
        there = i < stop
        value = tl.load(x + item * stride_x + i, there, 0.0).to(tl.float64)
        near_x, offset = _position(value, range_x, bins, False)
        near_y, _ = _position(tl.load(y + item * stride_y + i, there, 0.0).to(tl.float64), range_y, bins, False)
        by_z = tl.where(there, _spline_slope(gamma, near_x, offset, near_y, bins), 0.0)
        total, lost = compensated(total, lost, by_z)
        by_place = by_z * ((near_x - 2).to(tl.float64) + offset)
        moment, lost_moment = compensated(moment, lost_moment, by_place)
        lowest += tl.where(there & (value == range_x[0]), 1.0, 0.0)
        highest += tl.where(there & (value == range_x[1]), 1.0, 0.0)
    out = parts + tl.program_id(0).to(tl.int64) * 4
    tl.store(out, tl.sum(total))
    tl.store(out + 1, tl.sum(moment))
    tl.store(out + 2, tl.sum(lowest))
    tl.store(out + 3, tl.sum(highest))


@triton.jit
def spline_gradient(
    x, y, low_x, high_x, low_y, high_y, upstream, sums, out, voxels, stride_x, stride_y, blocks, bins,
    factor: tl.float64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write dL/dx of a block of voxels, with the part through the range of x; `factor` is 1 / N.

    `sums` is the sum of the parts of `spline_sums`, (B, 4). Voxels that attain the same extreme share its part.
    """
    item = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < voxels
    range_x, range_y = _range(low_x, high_x, item), _range(low_y, high_y, item)
    gamma = upstream + item * bins * bins
    value = tl.load(x + item * stride_x + i, there, 0.0).to(tl.float64)
    near_x, offset = _position(value, range_x, bins, False)
    near_y, _ = _position(tl.load(y + item * stride_y + i, there, 0.0).to(tl.float64), range_y, bins, False)
    by_z = _spline_slope(gamma, near_x, offset, near_y, bins)
    total, moment = tl.load(sums + item * 4), tl.load(sums + item * 4 + 1) / (bins - 4)
    of_lowest, of_highest = (total - moment) / tl.load(sums + item * 4 + 2), moment / tl.load(sums + item * 4 + 3)
    by_z -= tl.where(value == range_x[0], of_lowest, 0.0) + tl.where(value == range_x[1], of_highest, 0.0)
    # Divide first: the inverse of a tiny range is infinite, and infinity times 0 would be NaN.
    width = range_x[1] - range_x[0]
    by_x = by_z * tl.full((), factor, tl.float64) / tl.where(width == 0.0, 1.0, width) * (bins - 4)
    store(out + item * voxels + i, tl.where(width == 0.0, 0.0, by_x), there)


@triton.jit
def _range(low, high, item):
    """Return the smallest and the largest intensity of an item, or anything if there are none."""
    if low is None:
        made = (0.0, 1.0)
    else:
        made = (tl.load(low + item).to(tl.float64), tl.load(high + item).to(tl.float64))
    return made


@triton.jit
def _position(value, extremes, bins, GAUSSIAN: tl.constexpr):
    """Return the bin of each voxel and its offset from there, which is NaN for a voxel without a position."""
    if GAUSSIAN:
        z = tl.minimum(tl.maximum(value, 0.0), 1.0) * (bins - 1)
        near = tl.floor(z + 0.5)
    else:
        low, high = extremes
        width = high - low
        # The products are exact, so that a quotient that is a whole number is computed exactly.
        z = 2.0 + tl.where(width > 0.0, (value - low) * (bins - 4) / tl.where(width > 0.0, width, 1.0), 0.0)
        # Places without a voxel may lie far outside the range, and must not lead out of the histogram.
        near = tl.maximum(tl.minimum(tl.floor(z), bins - 3.0), 2.0)
    z = tl.where(value == value, z, value)
    known = z == z  # NaN for infinity over infinity
    return tl.where(known, near, 0.0 if GAUSSIAN else 2.0).to(tl.int32), z - near


@triton.jit
def _gaussian(j, offset, exponent):
    """Return the weight of the bin that is j bins after the nearest one, relative to the weight of that.

    With the offset f, it is exp((f^2 - (j - f)^2) / 2 sigma^2).
    """
    distance = j.to(tl.float64)
    return _exp_nonpositive(distance * (2.0 * offset - distance) * exponent)


@triton.jit
def _exp_nonpositive(x):
    """Return exp(x) for x <= 0 within 2 ulp, 1e-307 or less below -708, and NaN for NaN.

    It is 2^n times a Taylor series in x - n log 2. Adding 1.5 * 2^52 rounds to a whole number, and leaves it in the
    last bits, from where it is added to the exponent.
    """
    clamped = tl.minimum(tl.maximum(x, -708.0), 0.0)
    shifted = clamped * _number(1.4426950408889634) + _number(6755399441055744.0)
    n = shifted - _number(6755399441055744.0)
    # log 2 in two parts, of which the first times n is exact.
    rest = tl.fma(n, tl.broadcast_to(_number(-6.93147180369123816490e-01), n.shape), clamped)
    rest = tl.fma(n, tl.broadcast_to(_number(-1.90821492927058770002e-10), n.shape), rest)
    made = tl.full(n.shape, _SERIES[0], tl.float64)
    for k in tl.static_range(1, _DEGREE + 1):
        made = tl.fma(made, rest, tl.full(n.shape, _SERIES[k], tl.float64))
    bits = made.to(tl.int64, bitcast=True) + (shifted.to(tl.int64, bitcast=True) << 52)
    return tl.where(x == x, bits.to(tl.float64, bitcast=True), x)


@triton.jit
def _number(x):
    """Return a number as float64: a literal would be float32."""
    return tl.full((), x, tl.float64)


@triton.jit
def _first(near, bins, reach, window):
    """Return the first bin of the window of each voxel, so that the whole window is inside the histogram."""
    return tl.maximum(tl.minimum(near - reach, bins - window), 0)


@triton.jit
def _moments(near, offset, bins, reach, window, exponent):
    """Return the sum of the weights of each voxel, and the mean distance of their bins from the nearest one."""
    first = _first(near, bins, reach, window)
    total = tl.zeros(near.shape, tl.float64)
    moment = tl.zeros(near.shape, tl.float64)
    for k in range(0, window):
        weight = _gaussian(first + k - near, offset, exponent)
        total += weight
        moment += weight * (first + k - near).to(tl.float64)
    return total, moment / total


@triton.jit
def _reaches(near, offset, first, TILE: tl.constexpr, reach):
    """Return whether a voxel reaches a bin of a tile, or is NaN."""
    return (near + reach >= first) & (near - reach < first + TILE) | (offset != offset)


@triton.jit
def _cubic(j, f):
    """Return the weight of a cubic B-spline j bins from the bin of the voxel, and NaN for NaN."""
    g = 1.0 - f
    inner = tl.where(j == 0, (4.0 - 6.0 * f * f + 3.0 * f * f * f) / 6.0, 0.0)
    inner = tl.where(j == 1, (1.0 + 3.0 * f + 3.0 * f * f - 3.0 * f * f * f) / 6.0, inner)
    outer = tl.where(j == -1, g * g * g / 6.0, 0.0) + tl.where(j == 2, f * f * f / 6.0, 0.0)
    return inner + outer + 0.0 * f


@triton.jit
def _spline_slope(gamma, near_x, f, near_y, bins):
    """Return dL/dz, the sum of slope_k gamma_kl over the bins k.

    The slopes sum to 0, so that the gamma of the middle is subtracted from each.
    """
    at = gamma + (near_x * bins + near_y)
    middle, g = tl.load(at), 1.0 - f
    made = -(g * g) / 2.0 * (tl.load(at - bins) - middle)
    made += (1.0 + 2.0 * f - 3.0 * f * f) / 2.0 * (tl.load(at + bins) - middle)
    return made + f * f / 2.0 * (tl.load(at + 2 * bins) - middle)
