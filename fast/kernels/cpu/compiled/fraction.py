"""The fraction of `engine/segmentation/fraction.py`, and its slopes.

It is a kernel because NumPy would take as long for these few numbers as the other kernels take for the voxels.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.compiler import kernel
from twinloss.fast.kernels.cpu.compiled.sums import compensated
from twinloss.fast.kernels.cpu.compiled.tile import stage
from twinloss.fast.kernels.statistic_rows import DISTANCE, FN, NEARNESS, TP, TP_LESS_FN, VOLUME


@njit(inline="always")
def _weight(weights, b, c):
    """Return the weight of a class, given weights (1 or B, C'), or 1 if there are none."""
    return weights[min(b, weights.shape[0] - 1), c] if weights.size > 0 else 1.0


@stage
def _part(sums, factors, items, c):
    """Return the overlap or the errors of a class, summed over a range of items."""
    total = 0.0
    for row in range(factors.size):
        if not np.isnan(factors[row]):
            of_row, lost = 0.0, 0.0
            for b in range(items[0], items[1]):
                of_row, lost = compensated(of_row, lost, sums[row, b, c])
            total += factors[row] * of_row
    return total


@stage
def _put_slopes(overlap, errors, smooth, part, complementary, share, w_overlap, w_errors, items, c, slopes):
    """Put the slopes of one class into `slopes`, given the factors and the values (`part`) of overlap and errors."""
    denominator = part[0] + part[1] + smooth[1]
    by_denominator = share / denominator
    in_overlap = -by_denominator * ((part[1] + (smooth[1] - smooth[0])) / denominator)
    in_errors = by_denominator * ((part[0] + smooth[0]) / denominator)
    a, b = overlap[TP], errors[FN] if complementary else 2 * errors[FN]
    both = -by_denominator * ((a * (part[1] + smooth[1]) + b * part[0] + (b - a) * smooth[0]) / denominator)
    for item in range(items[0], items[1]):
        for row in range(overlap.size):
            if not np.isnan(overlap[row]):
                slopes[row, item, c] = w_overlap * (overlap[row] * in_overlap)
            elif not np.isnan(errors[row]):
                slopes[row, item, c] = w_errors * (errors[row] * in_errors)
        if complementary:
            slopes[TP, item, c], slopes[FN, item, c] = w_overlap * both, 0.0
            slopes[VOLUME, item, c] = w_errors * (b * in_errors)
        elif not np.isnan(a):
            slopes[TP_LESS_FN, item, c] = w_overlap * both - (slopes[TP, item, c] - 2 * slopes[FN, item, c])


@stage
def _fraction(sums, overlap, errors, smooth, first, batch, complementary, w_overlap, w_errors, mean, slopes):
    groups = 1 if batch else sums.shape[1]
    classes, pooled = sums.shape[2] - first, w_overlap.size > 0
    count = groups * (1 if pooled else classes) if mean else 1
    share = 1 / count
    total, lost = 0.0, 0.0
    for group in range(groups):
        items = (0, sums.shape[1]) if batch else (group, group + 1)
        whole_overlap, whole_errors = 0.0, 0.0
        for c in range(classes):
            part = _part(sums, overlap, items, first + c), _part(sums, errors, items, first + c)
            if pooled:
                whole_overlap += _weight(w_overlap, group, c) * part[0]
                whole_errors += _weight(w_errors, group, c) * part[1]
            else:
                loss = (part[1] + (smooth[1] - smooth[0])) / (part[0] + part[1] + smooth[1])
                total, lost = compensated(total, lost, loss)
                _put_slopes(overlap, errors, smooth, part, complementary, share, 1.0, 1.0, items, first + c, slopes)
        if pooled:
            whole = whole_overlap, whole_errors
            loss = (whole[1] + (smooth[1] - smooth[0])) / (whole[0] + whole[1] + smooth[1])
            total, lost = compensated(total, lost, loss)
            for c in range(classes):
                weights = _weight(w_overlap, group, c), _weight(w_errors, group, c)
                _put_slopes(overlap, errors, smooth, whole, complementary, share, *weights, items, first + c, slopes)
    return total / count


@njit(inline="always")
def _rounded(value, out, at):
    """Put a number into `out`, and return whether it stays finite if it is, even times four."""
    out[at] = value
    return np.isfinite(out.dtype.type(4) * out[at]) or not np.isfinite(value)


@njit(inline="always")
def _times(factor, slope):
    """Return the product, or 0 if the slope is 0, even if the factor is infinite: it is no part of the loss."""
    return 0.0 if slope == 0 else factor * slope


@kernel
def fraction(sums, overlap, errors, smooth, first, batch, complementary, w_overlap, w_errors, mean, slopes):
    """Return the mean or the sum of the fraction, and put its slopes in the statistics, (ROWS, B, C), into `slopes`.

    `overlap` and `errors` have a factor for each row of the statistics, which is NaN for rows that they do not contain.
    `smooth` is (ν, δ). The weights are (1 or B, C'), or (0, 0) if there are none.
    """
    return _fraction(sums, overlap, errors, smooth, first, batch, complementary, w_overlap, w_errors, mean, slopes)


@kernel
def scaled(slopes, factor, squared, matrix, out, of_matrix):
    """Put the slopes in the statistics, (ROWS, B, C), times a factor into `out`, with the whole slope in TP - FN.

    For squared overlaps it is the slope in TP - 2 FN. Given a distance matrix, (C, C), also put dL/dp by item, true
    class and class into `of_matrix`. As probabilities sum to 1, the nearness falls as the distance grows. Returns
    whether all finite numbers stay finite.
    """
    count, fits = 2.0 if squared else 1.0, True
    for b in range(slopes.shape[1]):
        for c in range(slopes.shape[2]):
            for row in range(slopes.shape[0]):
                fits &= _rounded(_times(factor, slopes[row, b, c]), out, (row, b, c))
            hit, lost = slopes[TP, b, c] - count * slopes[FN, b, c], slopes[TP_LESS_FN, b, c]
            if np.isfinite(lost):  # it is not finite where a slope is infinite
                hit += lost
            fits &= _rounded(_times(factor, hit), out, (TP_LESS_FN, b, c))
            if matrix is not None:
                far = _times(factor, slopes[DISTANCE, b, c]) - _times(factor, slopes[NEARNESS, b, c])
                for k in range(matrix.shape[1]):
                    of_matrix[b, c, k] = far * matrix[c, k]
    return fits
