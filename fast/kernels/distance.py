"""Wasserstein distance of a prediction from its label, W = sum_l M[y, l] p_l (Fidon 2017, eq. 6), and its adjoint."""

from __future__ import annotations

from twinloss.fast.kernels.tile import stage


@stage
def distances(p, y, w, matrix, out):
    """W of each voxel, times its weight."""
    out[:] = p.dtype.type(0)
    for c in range(p.shape[0]):
        probability = p[c]
        for i in range(y.size):
            out[i] += matrix[max(y[i], 0), c] * probability[i]
    for i in range(y.size):
        out[i] *= w[i]


@stage
def add_distance_slope(y, w, matrix, c, h):
    """dL/dp_c += w matrix[y, c], with the distances already multiplied by dL/d(sum of class y)."""
    zero = w.dtype.type(0)
    for i in range(y.size):
        slope = matrix[max(y[i], 0), c]
        h[i] += zero if w[i] == zero else w[i] * slope
