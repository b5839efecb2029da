"""Wasserstein distance of a prediction from its label, W = sum_l M[y, l] p_l (Fidon 2017, eq. 6), and its adjoint."""

from __future__ import annotations

from twinloss.fast.kernels.tile import stage, sums_stage


@stage
def distances(p, y, w, matrix, far, near):
    """W of each voxel, and 1 - W, which would cancel where all is wrong, as sum_l (1 - M[y, l]) p_l; times w."""
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
    """Sums of both, and count, of the voxels of class c."""
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
    """dL/dp_c = w slopes[y, c]."""
    zero = w.dtype.type(0)
    for c in range(h.shape[0]):
        row = h[c]
        for i in range(y.size):
            slope = slopes[max(y[i], 0), c]
            row[i] += zero if w[i] == zero else w[i] * slope


@stage
def table_slopes(y, slopes, h):
    """dL/dp_c = slopes[y, c]."""
    for c in range(h.shape[0]):
        row = h[c]
        for i in range(y.size):
            row[i] = slopes[max(y[i], 0), c]
