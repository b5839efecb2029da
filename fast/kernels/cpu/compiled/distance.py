"""Wasserstein distance between prediction and label, and its adjoint.

It is W = sum_l M[y, l] p_l (Fidon et al. 2017, eq. 6).
"""

from __future__ import annotations

from numba import njit

from twinloss.fast.kernels.cpu.compiled.tile import four_classes, stage, sums_stage


@njit(inline="always")
def _column(matrix, numbers, c):
    return matrix[numbers[0], c], matrix[numbers[1], c], matrix[numbers[2], c], matrix[numbers[3], c]


@njit(inline="always")
def _entry(column, y, numbers):
    """Return the entry for the label y; choosing it is far faster than reading it from a table."""
    here = column[2] if y == numbers[2] else column[3]
    here = column[1] if y == numbers[1] else here
    return column[0] if y <= numbers[0] else here


@stage
def _few_distances(p, y, w, matrix, far, near):
    last, one = p.shape[0] - 1, p.dtype.type(1)
    numbers = four_classes(y, last)
    zeroth, two, three, four = numbers
    of_a, of_b, of_c, of_d = (
        _column(matrix, numbers, zeroth), _column(matrix, numbers, two),
        _column(matrix, numbers, three), _column(matrix, numbers, four),
    )  # fmt: skip
    # Padding classes, which repeat the last one, get weight 0.
    second, third, fourth = one * (two > zeroth), one * (three > two), one * (four > three)
    a, b, c, d = p[0], p[two], p[three], p[four]
    for i in range(y.size):
        k = y[i]
        m = _entry(of_a, k, numbers), _entry(of_b, k, numbers), _entry(of_c, k, numbers), _entry(of_d, k, numbers)
        e = a[i], second * b[i], third * c[i], fourth * d[i]
        far[i] = w[i] * ((m[0] * e[0] + m[1] * e[1]) + (m[2] * e[2] + m[3] * e[3]))
        near[i] = w[i] * (((one - m[0]) * e[0] + (one - m[1]) * e[1]) + ((one - m[2]) * e[2] + (one - m[3]) * e[3]))


@stage
def distances(p, y, w, matrix, far, near):
    """Compute w W and w (1 - W) of each voxel.

    1 - W is computed as sum_l (1 - M[y, l]) p_l, because the difference would cancel for W close to 1.
    """
    if p.shape[0] <= 4:
        _few_distances(p, y, w, matrix, far, near)
        return
    zero = p.dtype.type(0)
    for i in range(y.size):
        far[i] = zero
        near[i] = zero
    for c in range(p.shape[0]):
        _add_distance(p[c], y, matrix, c, far, near)
    for i in range(y.size):
        far[i] *= w[i]
        near[i] *= w[i]


@stage
def _add_distance(row, y, matrix, c, far, near):
    one = row.dtype.type(1)
    for i in range(y.size):
        distance = matrix[max(y[i], 0), c]
        far[i] += distance * row[i]
        near[i] += (one - distance) * row[i]


@sums_stage
def distance_sums(far, near, y, c):
    """Return the sums of `far` and `near`, and the number, of the voxels of class c."""
    zero, one = far.dtype.type(0), far.dtype.type(1)
    total_far, total_near, count = zero, zero, zero
    for i in range(y.size):
        hit = y[i] == c
        total_far += far[i] if hit else zero
        total_near += near[i] if hit else zero
        count += one if hit else zero
    return total_far, total_near, count


@stage
def distance_slopes(y, w, slopes, h):
    """Add dL/dp_c = w slopes[y, c] to h."""
    zero = w.dtype.type(0)
    for c in range(h.shape[0]):
        row = h[c]
        for i in range(y.size):
            slope = slopes[max(y[i], 0), c]
            row[i] += zero if w[i] == zero else w[i] * slope


@stage
def _choose_entries(column, y, numbers, row):
    for i in range(y.size):
        row[i] = _entry(column, y[i], numbers)


@stage
def table_slopes(y, slopes, h):
    """Put dL/dp_c = slopes[y, c] into h."""
    for c in range(h.shape[0]):
        if h.shape[0] <= 4:
            numbers = four_classes(y, h.shape[0] - 1)
            _choose_entries(_column(slopes, numbers, c), y, numbers, h[c])
        else:
            row = h[c]
            for i in range(y.size):
                row[i] = slopes[max(y[i], 0), c]
