"""Joint histogram of two images with Parzen windows, and its adjoint; a voxel adds only to the bins that it reaches.

Everything is computed in float64, whatever the type of the images. The weights cost little compared to the histogram,
and in a mutual information close to 0 their digits cancel.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.elementary import exp_nonpositive
from twinloss.fast.kernels.cpu.compiled.lanes import LANES, add_outer, inner
from twinloss.fast.kernels.cpu.compiled.sums import compensated
from twinloss.fast.kernels.cpu.compiled.tile import stage

GAUSSIAN, CUBIC, BOX = 0, 1, 2

# Number of voxels whose weights are in memory at once.
TILE = 128


@stage
def _positions(x, window, bins, low, width, near, offset):
    """Compute the bin from which each voxel's weights are counted, and its offset; return how many values are NaN."""
    missing = 0
    for i in range(x.size):
        value = np.float64(x[i])
        if window == GAUSSIAN:
            inside = value if value > 0.0 else 0.0
            z = (inside if inside < 1.0 else 1.0) * (bins - 1)
            bin_ = np.rint(z)
        else:
            # The products are exact, so that a quotient that is a whole number is computed exactly.
            z = 2.0 + ((value - low) * (bins - 4) / width if width > 0.0 else 0.0)
            bin_ = min(np.floor(z), bins - 3.0)
        known = (value == value) & (z == z)  # z is NaN for infinity over infinity
        missing += not known
        near[i] = np.int64(bin_) if known else 0
        offset[i] = z - bin_ if known else 0.0
    return missing


@stage
def _gaussian_weights(near, offset, bins, reach, exponent, weights, total):
    """Compute exp(-(z - k)^2 / 2 sigma^2), relative to the nearest bin and normalised, (2 reach + 1, voxels)."""
    for i in range(offset.size):
        total[i] = 0.0
    for k in range(2 * reach + 1):
        j = k - reach
        row = weights[k]
        for i in range(offset.size):
            # (j - f)^2 - f^2 = j (j - 2 f), which is not negative as |f| <= 1/2.
            e = exp_nonpositive(j * (2.0 * offset[i] - j) * exponent)
            row[i] = e if (near[i] + j >= 0) & (near[i] + j < bins) else 0.0
            total[i] += row[i]
    for i in range(offset.size):
        total[i] = 1.0 / total[i]
    for k in range(2 * reach + 1):
        for i in range(offset.size):
            weights[k, i] *= total[i]


@stage
def _gaussian_slopes(weights, reach, exponent, slopes, mean):
    """Compute the slopes of the weights, d(weights)/dz = weights (k - mean k) / sigma^2."""
    for i in range(mean.size):
        mean[i] = 0.0
    for k in range(2 * reach + 1):
        for i in range(mean.size):
            mean[i] += (k - reach) * weights[k, i]
    for k in range(2 * reach + 1):
        for i in range(mean.size):
            slopes[k, i] = weights[k, i] * ((k - reach) - mean[i]) * (2.0 * exponent)


@stage
def _cubic_weights(offset, weights):
    """Compute the weights of a cubic B-spline in the bins -1, 0, 1 and 2 from the bin of the voxel."""
    for i in range(offset.size):
        f = offset[i]
        weights[0, i] = (1.0 - f) ** 3 / 6.0
        weights[1, i] = (4.0 - 6.0 * f * f + 3.0 * f * f * f) / 6.0
        weights[2, i] = (1.0 + 3.0 * f + 3.0 * f * f - 3.0 * f * f * f) / 6.0
        weights[3, i] = f * f * f / 6.0


@stage
def _cubic_slopes(offset, slopes):
    for i in range(offset.size):
        f = offset[i]
        slopes[0, i] = -((1.0 - f) ** 2) / 2.0
        slopes[1, i] = (3.0 * f - 4.0) * f / 2.0
        slopes[2, i] = (1.0 + 2.0 * f - 3.0 * f * f) / 2.0
        slopes[3, i] = f * f / 2.0


@stage
def _by_voxel(by_bin, count, voxels):
    """Transpose (bins, voxels) to (voxels, bins)."""
    for i in range(count):
        for k in range(by_bin.shape[0]):
            voxels[i, k] = by_bin[k, i]


@njit
def before(window, reach):
    """Return how many bins a window reaches before the bin of the voxel."""
    return reach if window == GAUSSIAN else (1 if window == CUBIC else 0)


@njit
def reached(window, reach):
    """Return how many bins a window reaches."""
    return 2 * reach + 1 if window == GAUSSIAN else (4 if window == CUBIC else 1)


@stage
def _weights(x, window, bins, reach, exponent, low, width, near, offset, spare, by_bin, voxels):
    """Compute the weights of some voxels, (voxels, bins reached), and their bins; return how many values are NaN.

    If the last tile is not full, its other places are computed from old values, and not used.
    """
    missing = _positions(x, window, bins, low, width, near, offset)
    if window == GAUSSIAN:
        _gaussian_weights(near, offset, bins, reach, exponent, by_bin, spare)
    elif window == CUBIC:
        _cubic_weights(offset, by_bin)
    else:
        by_bin[:] = 1.0
    _by_voxel(by_bin, x.size, voxels)
    return missing


@stage
def _add_voxels(histogram, stride, near, near_y, of_x, of_y, count):
    """Add the products of the weights of each voxel to a flat histogram, whose rows are `stride` apart."""
    rows, lanes = of_x.shape[1], of_y.shape[1]
    flat_x, flat_y = of_x.reshape(-1), of_y.reshape(-1)
    for i in range(count):
        for start in range(0, lanes, LANES):
            place = near[i] * stride + near_y[i] + start
            add_outer(histogram, place, stride, flat_x, i * rows, rows, flat_y, i * lanes + start)


@stage
def _slopes_of_voxels(gamma, stride, near, near_y, slopes, of_y, count, by_z):
    """Compute the sum of slope_k gamma_kl weight_l over bins k, l for each voxel; rows of gamma are `stride` apart.

    The slopes sum to 0, so that the gamma of the middle bin can be subtracted first. Otherwise the rounding errors of
    the common part of all gamma would remain.
    """
    rows, lanes = slopes.shape[1], of_y.shape[1]
    flat_x, flat_y = slopes.reshape(-1), of_y.reshape(-1)
    for i in range(count):
        total = 0.0
        for start in range(0, lanes, LANES):
            place = near[i] * stride + near_y[i] + start
            total += inner(gamma, place, stride, flat_x, i * rows, rows, flat_y, i * lanes + start, rows // 2)
        by_z[i] = total


@stage
def _fold(part, total, lost):
    """Add a part to the total and set it to 0."""
    for i in range(total.size):
        total[i], lost[i] = compensated(total[i], lost[i], part[i])
        part[i] = 0.0


@kernel
def forward(x, y, windows, bins, reach, exponent, ranges, histogram):
    """Add the joint histogram of voxels of one item to `histogram`, (bins, bins); return how many values are NaN.

    `windows` are the windows of x and y. For a Gaussian, `reach` is its reach in bins, and `exponent` is
    1 / (2 sigma^2). For the other windows, `ranges` has the smallest intensity and the width of the range of each
    image.
    """
    # Each addition rounds, and for equal numbers it always rounds in the same direction. For float64 images, whose own
    # rounding errors are no larger, only few numbers are added in this way before they are folded into the total, which
    # loses nothing.
    tile = 16 if x.itemsize == 8 else TILE
    many, few = reached(windows[0], reach), reached(windows[1], reach)
    lanes = -(-few // LANES) * LANES
    first, first_y = before(windows[0], reach), before(windows[1], reach)
    padded = np.zeros((bins + many, bins + few + LANES))
    flat = padded.reshape(-1)
    total, lost = np.zeros(flat.size), np.zeros(flat.size)
    # The total is updated so rarely that this costs a fraction of the work for the voxels.
    held, fold = 0, (tile if x.itemsize == 8 and bins < TILE else max(tile, flat.size // 8))
    near, near_y, offset, spare = np.zeros(tile, np.int64), np.zeros(tile, np.int64), np.zeros(tile), np.zeros(tile)
    bins_x, bins_y = np.empty((many, tile)), np.empty((few, tile))
    of_x, of_y = np.zeros((tile, many)), np.zeros((tile, lanes))
    missing = 0
    for lo in range(0, x.size, tile):
        n = min(tile, x.size - lo)
        missing += _weights(
            x[lo : lo + n], windows[0], bins, reach, exponent, ranges[0, 0], ranges[0, 1], near, offset, spare,
            bins_x, of_x,
        )  # fmt: skip
        missing += _weights(
            y[lo : lo + n], windows[1], bins, reach, exponent, ranges[1, 0], ranges[1, 1], near_y, offset, spare,
            bins_y, of_y,
        )  # fmt: skip
        _add_voxels(flat, padded.shape[1], near, near_y, of_x, of_y, n)
        held += n
        if held >= fold:
            _fold(flat, total, lost)
            held = 0
    _fold(flat, total, lost)
    histogram += total.reshape(padded.shape)[first : first + bins, first_y : first_y + bins]
    return missing


@kernel
def backward(x, y, windows, bins, reach, exponent, ranges, gamma, out):
    """Write dL/dx of voxels of one item, given gamma = dL/d(histogram), padded as in `forward`.

    For a Gaussian, this includes the slope of the clamping to [0, 1]. For a B-spline, it is dL/dz instead, and the
    sum of dL/dz and the sum of dL/dz (z - 2) are returned.
    """
    many, few = reached(windows[0], reach), reached(windows[1], reach)
    lanes = -(-few // LANES) * LANES
    near, near_y, offset, spare = np.zeros(TILE, np.int64), np.zeros(TILE, np.int64), np.zeros(TILE), np.zeros(TILE)
    bins_x, bins_y = np.empty((many, TILE)), np.empty((few, TILE))
    of_x, of_y, slopes = np.zeros((TILE, many)), np.zeros((TILE, lanes)), np.empty((many, TILE))
    low, width = ranges[0, 0], ranges[0, 1]
    flat, total, moment, lost, lost_moment = gamma.reshape(-1), 0.0, 0.0, 0.0, 0.0
    for lo in range(0, x.size, TILE):
        n = min(TILE, x.size - lo)
        _weights(
            y[lo : lo + n], windows[1], bins, reach, exponent, ranges[1, 0], ranges[1, 1], near_y, offset, spare,
            bins_y, of_y,
        )  # fmt: skip
        _weights(
            x[lo : lo + n], windows[0], bins, reach, exponent, low, width, near, offset, spare, bins_x, of_x
        )  # fmt: skip
        if windows[0] == GAUSSIAN:
            _gaussian_slopes(bins_x, reach, exponent, slopes, spare)
        else:
            _cubic_slopes(offset, slopes)
        _by_voxel(slopes, n, of_x)
        _slopes_of_voxels(flat, gamma.shape[1], near, near_y, of_x, of_y, n, spare)
        for i in range(n):
            by_z, value = spare[i], x[lo + i]
            if windows[0] == GAUSSIAN:
                # The slope is 0 for a value outside the range, and NaN for NaN.
                out[lo + i] = by_z * (0.0 if (value < 0.0) | (value > 1.0) else bins - 1.0)
            else:
                out[lo + i] = by_z
                total, lost = compensated(total, lost, by_z)
                moment, lost_moment = compensated(moment, lost_moment, by_z * ((near[i] - 2.0) + offset[i]))
    return total, moment
