"""Soft confusion sums over voxels, and their adjoint: the kernels behind `fast/confusion.py`.

Logits are read once forward and once backward, a tile at a time, and become p and 1 - p; from these come the sums or
the gradient, so nothing of the size of the input is ever stored but the gradient itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.tile import (
    BLOCK,
    SIGMOID,
    SOFTMAX,
    exponentials,
    read_labels,
    read_logits,
    read_weighted,
    scratch,
    stage,
    sums_stage,
    tile_width,
)  # fmt: skip

PRODUCT, MINIMUM, SQUARED = 0, 1, 2


@njit(cache=True, inline="always")
def _difference(p, q, g, half, one):
    """The difference p - g, taken from 1 - p where that is the smaller number."""
    return (one - g) - q if p > half else p - g


# --- forward: true positives, false positives, false negatives -------------------------------------------------------


@sums_stage
def _confusion_labels(e, scale, rest, y, c):
    """The sums of class c for the target y == c and the softmax e * scale: where trainings spend their time."""
    zero, one = e.dtype.type(0), e.dtype.type(1)
    tp, fp, fn = zero, zero, zero
    for i in range(e.size):
        p = e[i] * scale[i]
        q = rest[i] if e[i] == one else one - p
        hit = y[i] == c
        tp += p if hit else zero
        fp += zero if hit else p
        fn += q if hit else zero
    return tp, fp, fn


@sums_stage
def _confusion_soft(p, q, g, w, overlap):
    """The sums of a class for any target, p and g weighed by w."""
    real = p.dtype.type
    zero, half, one = real(0), real(0.5), real(1)
    tp, fp, fn = zero, zero, zero
    for i in range(p.size):
        prediction, target = w[i] * p[i], w[i] * g[i]
        complement = (one - w[i]) + w[i] * q[i]
        d = _difference(prediction, complement, target, half, one)
        if overlap == MINIMUM:
            tp += prediction if d < zero else target
        else:
            tp += prediction * target
        if overlap == PRODUCT:
            fp += prediction * (one - target)
            fn += target * complement
        else:
            excess = zero if d < zero else d
            lack = zero if d > zero else -d
            fp += excess * excess if overlap == SQUARED else excess
            fn += lack * lack if overlap == SQUARED else lack
    return tp, fp, fn


# --- backward: h = dL/dp from the three coefficients of a class, then dL/dx ------------------------------------------


@stage
def _gradient_labels(e, scale, y, hits, misses, top_slope, mean, out, b, lo):
    """dL/dx_c = p_c (h_c - sum_k p_k h_k) for the softmax p = e * scale, h_c = hits[c] where y == c, else misses[c].

    h is counted from that of the largest logit, so nothing cancels.
    """
    one = e.dtype.type(1)
    width = y.size
    for c in range(e.shape[0]):
        row, hit, miss = e[c], hits[c], misses[c]
        for i in range(width):
            before = top_slope[i]
            slope = hit if y[i] == c else miss
            top_slope[i] = slope if row[i] == one else before
    mean[:] = e.dtype.type(0)
    for c in range(e.shape[0]):
        row, hit, miss = e[c], hits[c], misses[c]
        for i in range(width):
            slope = hit if y[i] == c else miss
            mean[i] += row[i] * (slope - top_slope[i])
    for i in range(width):
        mean[i] *= scale[i]
    for c in range(e.shape[0]):
        row, hit, miss, gradient = e[c], hits[c], misses[c], out[b, c, lo : lo + width]
        for i in range(width):
            slope = hit if y[i] == c else miss
            gradient[i] = row[i] * scale[i] * ((slope - top_slope[i]) - mean[i])


@stage
def _slope_soft(p, q, g, w, tp, fp, fn, overlap, h):
    real = p.dtype.type
    zero, half, one, two = real(0), real(0.5), real(1), real(2)
    hit = tp - fn
    tie = half * (hit + fp)
    for i in range(p.size):
        prediction, target = w[i] * p[i], w[i] * g[i]
        complement = (one - w[i]) + w[i] * q[i]
        d = _difference(prediction, complement, target, half, one)
        if overlap == PRODUCT:
            slope = (one - target) * fp + target * hit
        elif overlap == MINIMUM:
            slope = hit if d < zero else (fp if d > zero else tie)
        else:
            slope = target * tp + two * d * (fn if d < zero else fp)
        h[i] = slope * w[i]


@stage
def _softmax_adjoint(p, h, top, top_slope, mean):
    """dL/dx_c = p_c (h_c - sum_k p_k h_k), in h; h is counted from that of the largest logit, so nothing cancels."""
    for c in range(p.shape[0]):
        probability, slope = p[c], h[c]
        for i in range(top.size):
            here, before = slope[i], top_slope[i]
            top_slope[i] = here if probability[i] == top[i] else before
    mean[:] = p.dtype.type(0)
    for c in range(p.shape[0]):
        probability, slope = p[c], h[c]
        for i in range(top.size):
            mean[i] += probability[i] * (slope[i] - top_slope[i])
    for c in range(p.shape[0]):
        probability, slope = p[c], h[c]
        for i in range(top.size):
            slope[i] = probability[i] * ((slope[i] - top_slope[i]) - mean[i])


@stage
def _adjoint(activation, p, q, h, top, top_slope, mean):
    if activation == SOFTMAX:
        _softmax_adjoint(p, h, top, top_slope, mean)
    elif activation == SIGMOID:
        for c in range(p.shape[0]):
            probability, complement, slope = p[c], q[c], h[c]
            for i in range(slope.size):
                slope[i] *= probability[i] * complement[i]


# --- one chunk -------------------------------------------------------------------------------------------------------


@stage
def _common(dense, mask, activation, overlap, ignore):
    """Whether it is the common case: softmax against labels, with all voxels counting.

    There min(p, g) is the product; and at its kink p = g = 1 the softmax has no slope.
    """
    everywhere = mask.shape[0] == 0 and np.isnan(ignore)
    return activation == SOFTMAX and overlap != SQUARED and not dense and everywhere


@njit(cache=True, nogil=True)
def confusion(x, target, item, dense, mask, activation, overlap, ignore, b, start, stop, sums):
    """Add TP, FP, FN of the voxels start:stop of item b to `sums`, (3, C); returns how many labels are no class.

    x is (B, C, N); target its bytes, (B, 1 or C, N * itemsize), of the type with number `item`; mask (B or 1, N), or
    (0, 0) for none; ignore is NaN for none.
    """
    classes = x.shape[1]
    common = _common(dense, mask, activation, overlap, ignore)
    step = tile_width(classes, stop - start)
    buffers = scratch(classes, step, x.dtype)
    bad = 0
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(classes, stop - lo, x.dtype)
        p, q, g, _, w, scale, rest, ties, y = buffers
        if common:
            bad += read_labels(target, item, classes, ignore, b, lo, x.shape[2], y)
            read_logits(x, b, lo, p)
            exponentials(p, scale, rest, ties)
        else:
            bad += read_weighted(x, target, item, dense, mask, activation, ignore, b, lo, buffers)
        for c in range(classes):
            for k in range(0, y.size, BLOCK):
                block = slice(k, k + BLOCK)
                if common:
                    tp, fp, fn = _confusion_labels(p[c, block], scale[block], rest[block], y[block], c)
                else:
                    tp, fp, fn = _confusion_soft(p[c, block], q[c, block], g[c, block], w[block], overlap)
                sums[0, c] += tp
                sums[1, c] += fp
                sums[2, c] += fn
    return bad


@njit(cache=True, nogil=True)
def confusion_backward(x, target, item, dense, mask, activation, overlap, ignore, slopes, b, start, stop, out):
    """Write dL/dx of the voxels start:stop of item b, given slopes = dL/d(TP, FP, FN), (3, B, C)."""
    classes = x.shape[1]
    common = _common(dense, mask, activation, overlap, ignore)
    hits, misses = slopes[0, b] - slopes[2, b], slopes[1, b]
    step = tile_width(classes, stop - start)
    buffers = scratch(classes, step, x.dtype)
    for lo in range(start, stop, step):
        if stop - lo < step:
            buffers = scratch(classes, stop - lo, x.dtype)
        p, q, g, h, w, scale, rest, ties, y = buffers
        if common:
            read_labels(target, item, classes, ignore, b, lo, x.shape[2], y)
            read_logits(x, b, lo, p)
            exponentials(p, scale, rest, ties)
            _gradient_labels(p, scale, y, hits, misses, rest, ties, out, b, lo)
            continue
        read_weighted(x, target, item, dense, mask, activation, ignore, b, lo, buffers)
        for c in range(classes):
            _slope_soft(p[c], q[c], g[c], w, slopes[0, b, c], slopes[1, b, c], slopes[2, b, c], overlap, h[c])
        _adjoint(activation, p, q, h, scale, rest, ties)
        for c in range(classes):
            out[b, c, lo : lo + y.size] = h[c]
