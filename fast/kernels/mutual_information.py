"""The joint histogram of two images under Parzen windows, and its adjoint: only the bins that a voxel reaches.

Everything is computed in float64, whatever the images hold: next to the histogram, the weights cost little, and a
mutual information close to 0 is what is left of them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels import SOURCES
from twinloss.fast.kernels.elementary import exp_nonpositive
from twinloss.fast.kernels.tile import stage

GAUSSIAN, CUBIC, BOX = 0, 1, 2

# Voxels whose weights are held at a time, and numbers of a wide register: rows of weights are a multiple of that.
TILE = 256
LANES = 8


@stage
def _positions(x, window, bins, low, width, near, offset):
    """The bin from which each voxel's weights are counted, and how far off it lies; returns how many are NaN."""
    missing = 0
    for i in range(x.size):
        value = np.float64(x[i])
        if window == GAUSSIAN:
            inside = value if value > 0.0 else 0.0
            z = (inside if inside < 1.0 else 1.0) * (bins - 1)
            bin_ = np.rint(z)
        else:
            # The products are exact, so that where the quotient is a whole number it is found to be that.
            z = 2.0 + ((value - low) * (bins - 4) / width if width > 0.0 else 0.0)
            bin_ = min(np.floor(z), bins - 3.0)
        known = value == value
        missing += not known
        near[i] = np.int64(bin_) if known else 0
        offset[i] = z - bin_ if known else 0.0
    return missing


@stage
def _gaussian_weights(near, offset, bins, reach, exponent, weights, total):
    """exp(-(z - k)^2 / 2 sigma^2) over that of the nearest bin, (2 reach + 1, voxels), then made to add up to 1."""
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
    """D weights / dz = weights (k - mean k) / sigma^2."""
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
    """Those of a cubic B-spline in the bins -1, 0, 1 and 2."""
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
    """(bins, voxels) -> (voxels, bins)."""
    for i in range(count):
        for k in range(by_bin.shape[0]):
            voxels[i, k] = by_bin[k, i]


@njit
def before(window, reach):
    """How many bins before the one that is counted from a window reaches."""
    return reach if window == GAUSSIAN else (1 if window == CUBIC else 0)


@njit
def reached(window, reach):
    """How many bins a window reaches in all."""
    return 2 * reach + 1 if window == GAUSSIAN else (4 if window == CUBIC else 1)


@stage
def _weights(x, window, bins, reach, exponent, low, width, near, offset, spare, by_bin, voxels):
    """The weights of some voxels, (voxels, bins reached), and the bin that the first is of; counts NaN.

    Of a last tile that is not full, the rest is computed likewise, from what was there before.
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
def _add_voxel(histogram, row, column, first, second):
    for k in range(first.size):
        for start in range(0, second.size, LANES):
            line, weights = histogram[row + k, column + start : column + start + LANES], second[start : start + LANES]
            weight = first[k]
            for j in range(LANES):
                line[j] += weight * weights[j]


@stage
def _slope_of_voxel(gamma, row, column, middle, slopes, second):
    """The sum over bins k, l of slope_k gamma_kl weight_l; gamma less that of k = middle, as the slopes add up to 0."""
    total = 0.0
    for start in range(0, second.size, LANES):
        here = slice(column + start, column + start + LANES)
        center, weights = gamma[row + middle, here], second[start : start + LANES]
        a, b, c, d, e, f, g, h = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(slopes.size):
            line, slope = gamma[row + k, here], slopes[k]
            a += slope * (line[0] - center[0])
            b += slope * (line[1] - center[1])
            c += slope * (line[2] - center[2])
            d += slope * (line[3] - center[3])
            e += slope * (line[4] - center[4])
            f += slope * (line[5] - center[5])
            g += slope * (line[6] - center[6])
            h += slope * (line[7] - center[7])
        total += (a * weights[0] + b * weights[1]) + (c * weights[2] + d * weights[3])
        total += (e * weights[4] + f * weights[5]) + (g * weights[6] + h * weights[7])
    return total


def _compiled(sources):
    """The two kernels, cached on disk under the hash of all sources (see `SOURCES`)."""

    @njit(cache=True, nogil=True)
    def forward(x, y, windows, bins, reach, exponent, ranges, histogram):
        """Add the joint histogram (bins, bins) of voxels of one item; returns how many of them are NaN in x or y.

        `windows` are those of x and y; `reach` is a gaussian's, in bins, and `exponent` its 1 / (2 sigma^2); `ranges`
        hold the smallest intensity and the width of the range of x and y, for the other windows.
        """
        sources  # noqa: B018
        many, few = reached(windows[0], reach), reached(windows[1], reach)
        lanes = -(-few // LANES) * LANES
        first, first_y = before(windows[0], reach), before(windows[1], reach)
        padded = np.zeros((bins + many, bins + few + LANES))
        near, near_y, offset, spare = np.zeros(TILE, np.int64), np.zeros(TILE, np.int64), np.zeros(TILE), np.zeros(TILE)
        bins_x, bins_y = np.empty((many, TILE)), np.empty((few, TILE))
        of_x, of_y = np.zeros((TILE, many)), np.zeros((TILE, lanes))
        missing = 0
        for lo in range(0, x.size, TILE):
            n = min(TILE, x.size - lo)
            missing += _weights(
                x[lo : lo + n], windows[0], bins, reach, exponent, ranges[0, 0], ranges[0, 1], near, offset, spare,
                bins_x, of_x,
            )  # fmt: skip
            missing += _weights(
                y[lo : lo + n], windows[1], bins, reach, exponent, ranges[1, 0], ranges[1, 1], near_y, offset, spare,
                bins_y, of_y,
            )  # fmt: skip
            for i in range(n):
                _add_voxel(padded, near[i], near_y[i], of_x[i], of_y[i])
        histogram += padded[first : first + bins, first_y : first_y + bins]
        return missing

    @njit(cache=True, nogil=True)
    def backward(x, y, windows, bins, reach, exponent, ranges, gamma, out):
        """Write dL/dx of voxels of one item, for gamma = dL/d(histogram), padded as in `forward`.

        Gaussian: with the slope of the clamping to [0, 1]. Else dL/dz; returned are its sum, and that of its products
        with (x - low) / width.
        """
        sources  # noqa: B018
        many, few = reached(windows[0], reach), reached(windows[1], reach)
        lanes = -(-few // LANES) * LANES
        near, near_y, offset, spare = np.zeros(TILE, np.int64), np.zeros(TILE, np.int64), np.zeros(TILE), np.zeros(TILE)
        bins_x, bins_y = np.empty((many, TILE)), np.empty((few, TILE))
        of_x, of_y, slopes = np.zeros((TILE, many)), np.zeros((TILE, lanes)), np.empty((many, TILE))
        low, width = ranges[0, 0], ranges[0, 1]
        total, moment = 0.0, 0.0
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
            for i in range(n):
                by_z = _slope_of_voxel(gamma, near[i], near_y[i], many // 2, of_x[i], of_y[i])
                value = np.float64(x[lo + i])
                if windows[0] == GAUSSIAN:
                    # So that a value beyond the range has no slope, and NaN a slope that is NaN.
                    out[lo + i] = 0.0 if (value < 0.0) | (value > 1.0) else by_z * (bins - 1)
                else:
                    out[lo + i] = by_z
                    total += by_z
                    moment += by_z * ((value - low) / width)
        return total, moment

    return forward, backward


forward, backward = _compiled(SOURCES)
