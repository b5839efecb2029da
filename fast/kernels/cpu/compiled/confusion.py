"""True positives, false positives and false negatives of a class in a tile, and their adjoint."""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.tile import (
    SIGMOID,
    SOFTMAX,
    four_exponentials,
    four_rows,
    four_values,
    fused_stage,
    stage,
    sums_stage,
)

NONE, PRODUCT, MINIMUM, SQUARED = 0, 1, 2, 3


@njit(inline="always")
def _p_and_complement(e, scale, rest):
    """Return the softmax p = e * scale, and 1 - p, which is rest * scale for the largest logit, e = 1."""
    p = e * scale
    return p, (rest * scale if e == 1 else type(e)(1) - p)


@njit(inline="always")
def _difference(p, q, g, half, one):
    """Return p - g, computed from q = 1 - p where that is the smaller number and so more accurate."""
    return (one - g) - q if p > half else p - g


# --- forward: true positives, false positives, false negatives -------------------------------------------------------


@sums_stage
def confusion_labels(e, scale, rest, y, c):
    """Return the sums of class c for the softmax e * scale and the target y == c, the case of most trainings."""
    zero = e.dtype.type(0)
    tp, fp, fn = zero, zero, zero
    for i in range(e.size):
        p, q = _p_and_complement(e[i], scale[i], rest[i])
        hit = y[i] == c
        tp += p if hit else zero
        fp += zero if hit else p
        fn += q if hit else zero
    return tp, fp, fn


@njit(inline="always")
def _added(sums, values, taken):
    """Return four sums, to each of which the value of its class is added if it is taken."""
    zero = type(sums[0])(0)
    return (
        sums[0] + (values[0] if taken[0] else zero), sums[1] + (values[1] if taken[1] else zero),
        sums[2] + (values[2] if taken[2] else zero), sums[3] + (values[3] if taken[3] else zero),
    )  # fmt: skip


@njit(inline="always")
def _own(e, hit, scale, rest):
    """Return p and 1 - p of a voxel's true class, which is one of four."""
    own = e[2] if hit[2] else e[3]
    own = e[1] if hit[1] else own
    own = e[0] if hit[0] else own
    return _p_and_complement(own, scale, rest)


@sums_stage
def few_confusions(a, b, c, d, numbers, scale, rest, y, values, start, stop):
    """Do `confusion_labels` for at most four classes in one loop, and sum `values` by true class unless it is None.

    Returns four sums each of true positives, false positives, false negatives and values, over the voxels start:stop.
    The arguments are not slices, because a slice of an array takes a tenth of a second to compile.
    """
    zero = scale.dtype.type(0)
    none = zero, zero, zero, zero
    tp, fp, fn, total = none, none, none, none
    first, second, third, fourth = numbers
    for i in range(np.uintp(start), np.uintp(stop)):  # unsigned: no check for a negative index
        e, t = (a[i], b[i], c[i], d[i]), y[i]
        hit = t == first, t == second, t == third, t == fourth
        miss = t != first, t != second, t != third, t != fourth
        p, q = _own(e, hit, scale[i], rest[i])
        tp, fn = _added(tp, (p, p, p, p), hit), _added(fn, (q, q, q, q), hit)
        fp = _added(fp, (e[0] * scale[i], e[1] * scale[i], e[2] * scale[i], e[3] * scale[i]), miss)
        if values is not None:
            v = values[i]
            total = _added(total, (v, v, v, v), hit)
    return tp, fp, fn, total


@sums_stage
def confusion_soft(p, q, g, w, overlap):
    """Return the sums of a class for any target, where p and g are multiplied by w."""
    real = p.dtype.type
    zero, half, one = real(0), real(0.5), real(1)
    tp, fp, fn = zero, zero, zero
    for i in range(p.size):
        prediction, target = w[i] * p[i], w[i] * g[i]
        complement = (one - w[i]) + w[i] * q[i]
        d = w[i] * _difference(p[i], q[i], g[i], half, one)
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


@njit(inline="always")
def _adjoint(e, scale, rest, h, largest, others):
    """Return p_c (h_c - sum_k p_k h_k) for the softmax p = e * scale.

    `largest` is the sum of e_k h_k over the classes with e = 1, and `others` that over the other classes. For the
    largest logit, e = 1, the result is p_c (q_c h_c - sum of the other p_k h_k) with q = 1 - p = rest * scale: its own
    h is not subtracted from a sum that contains it, so that nothing cancels.
    """
    if e == 1:
        return e * scale * (scale * (rest * h - (others + (largest - h))))
    return e * scale * (h - scale * (others + largest))


@njit(inline="always")
def own_term(e, scale, rest, own, here):
    """Return the part of dL/dx from the true class: own = p dL/dp of it, times 1 - p there and -p elsewhere."""
    p, q = _p_and_complement(e, scale, rest)
    return own * (q if here else -p)


@njit(inline="always")
def own_terms(e, scale, rest, own, t):
    """Return `own_term` for four classes, of which t is the true one."""
    hit = t == 0, t == 1, t == 2, t == 3
    _, q = _own(e, hit, scale, rest)
    here, elsewhere = own * q, -own * scale
    return (
        here if hit[0] else elsewhere * e[0], here if hit[1] else elsewhere * e[1],
        here if hit[2] else elsewhere * e[2], here if hit[3] else elsewhere * e[3],
    )  # fmt: skip


@njit(inline="always")
def _chosen(hits, misses, t):
    """Return the slopes of four classes: hits for the true class t, misses for the others."""
    return (
        hits[0] if t == 0 else misses[0], hits[1] if t == 1 else misses[1],
        hits[2] if t == 2 else misses[2], hits[3] if t == 3 else misses[3],
    )  # fmt: skip


@njit(inline="always")
def _four_adjoints(e, h, scale):
    """Return p_c (h_c - sum_k p_k h_k) for the softmax p = e * scale of four classes.

    The h of the largest logit, e = 1, is subtracted from all h, so that nothing cancels.
    """
    top = h[2] if e[2] == 1 else h[3]
    top = h[1] if e[1] == 1 else top
    top = h[0] if e[0] == 1 else top
    p = e[0] * scale, e[1] * scale, e[2] * scale, e[3] * scale
    d = h[0] - top, h[1] - top, h[2] - top, h[3] - top
    mean = (p[0] * d[0] + p[1] * d[1]) + (p[2] * d[2] + p[3] * d[3])
    return p[0] * (d[0] - mean), p[1] * (d[1] - mean), p[2] * (d[2] - mean), p[3] * (d[3] - mean)


@fused_stage
def _few_gradients(a, b, c, d, scale, rest, y, hits, misses, own, e, f, g, h):
    """Do `gradient_labels` for at most four classes in one loop."""
    if own.size == 0:
        for i in range(y.size):
            slopes = _chosen(hits, misses, y[i])
            e[i], f[i], g[i], h[i] = _four_adjoints((a[i], b[i], c[i], d[i]), slopes, scale[i])
        return
    for i in range(y.size):
        voxel, s, r, t = (a[i], b[i], c[i], d[i]), scale[i], rest[i], y[i]
        adjoints = _four_adjoints(voxel, _chosen(hits, misses, t), s)
        terms = own_terms(voxel, s, r, own[i], t)
        e[i], f[i] = adjoints[0] + terms[0], adjoints[1] + terms[1]
        g[i], h[i] = adjoints[2] + terms[2], adjoints[3] + terms[3]


@stage
def gradient_labels(e, scale, rest, y, hits, misses, largest, others, own, out, b, lo):
    """Write dL/dx, given dL/dp_c = hits[c] where y == c, and misses[c] elsewhere.

    If `own` is not empty, it is a further p dL/dp of the true class. `largest` and `others` are rows for intermediate
    values.
    """
    last, at = e.shape[0] - 1, slice(lo, lo + y.size)
    if last > 3:
        _many_gradients(e, scale, rest, y, hits, misses, largest, others, own, out, b, lo)
        return
    first, second, third, fourth = four_exponentials(e, largest)
    g, h, i, j = four_rows(out[b], at, others)
    _few_gradients(
        first, second, third, fourth, scale, rest, y, four_values(hits), four_values(misses), own, g, h, i, j
    )  # fmt: skip


@stage
def _many_gradients(e, scale, rest, y, hits, misses, largest, others, own, out, b, lo):
    width = y.size
    _clear(largest, others)
    for c in range(e.shape[0]):
        _add_slopes(e[c], y, c, hits[c], misses[c], largest, others)
    for c in range(e.shape[0]):
        row, hit, miss, gradient = e[c], hits[c], misses[c], out[b, c, lo : lo + width]
        if own.size == 0:
            for i in range(width):
                slope = hit if y[i] == c else miss
                gradient[i] = _adjoint(row[i], scale[i], rest[i], slope, largest[i], others[i])
        else:
            for i in range(width):
                slope = hit if y[i] == c else miss
                adjoint = _adjoint(row[i], scale[i], rest[i], slope, largest[i], others[i])
                gradient[i] = adjoint + own_term(row[i], scale[i], rest[i], own[i], y[i] == c)


@fused_stage
def _few_gradients_of_slopes(a, b, c, d, of_a, of_b, of_c, of_d, scale, e, f, g, h):
    for i in range(scale.size):
        slopes = (of_a[i], of_b[i], of_c[i], of_d[i])
        e[i], f[i], g[i], h[i] = _four_adjoints((a[i], b[i], c[i], d[i]), slopes, scale[i])


@stage
def gradient_slopes(e, scale, rest, h, largest, others, out, b, lo):
    """Write dL/dx, given dL/dp = h; `largest` and `others` are rows for intermediate values."""
    width, last = scale.size, e.shape[0] - 1
    if last <= 3:
        everywhere = slice(0, width)
        first, second, third, fourth = four_exponentials(e, largest)
        of_first, of_second, of_third, of_fourth = four_rows(h, everywhere, largest)
        g, i, j, k = four_rows(out[b], slice(lo, lo + width), others)
        _few_gradients_of_slopes(
            first, second, third, fourth, of_first, of_second, of_third, of_fourth, scale, g, i, j, k
        )  # fmt: skip
        return
    _clear(largest, others)
    for c in range(e.shape[0]):
        _add(e[c], h[c], largest, others)
    for c in range(e.shape[0]):
        row, slope, gradient = e[c], h[c], out[b, c, lo : lo + width]
        for i in range(width):
            gradient[i] = _adjoint(row[i], scale[i], rest[i], slope[i], largest[i], others[i])


@stage
def _clear(largest, others):
    for i in range(largest.size):
        largest[i] = 0
        others[i] = 0


@stage
def _add(row, h, largest, others):
    """Add e h to `others`, or to `largest` where e = 1."""
    zero, one = row.dtype.type(0), row.dtype.type(1)
    for i in range(h.size):
        largest[i] += h[i] if row[i] == one else zero
        others[i] += zero if row[i] == one else row[i] * h[i]


@stage
def _add_slopes(row, y, c, hit, miss, largest, others):
    """Do what `_add` does for h = hit where y == c, and h = miss elsewhere."""
    zero, one = row.dtype.type(0), row.dtype.type(1)
    for i in range(y.size):
        slope = hit if y[i] == c else miss
        largest[i] += slope if row[i] == one else zero
        others[i] += zero if row[i] == one else row[i] * slope


@stage
def add_confusion_slope(p, q, g, w, tp, fp, fn, hit, overlap, h):
    """Add dL/dp to h, given dL/dTP, dL/dFP and dL/dFN of the class.

    `hit` is dL/dTP - dL/dFN, or for squared overlaps dL/dTP - 2 dL/dFN.
    """
    real = p.dtype.type
    zero, half, one, two = real(0), real(0.5), real(1), real(2)
    tie = half * (hit + fp)
    for i in range(p.size):
        target = w[i] * g[i]
        d = w[i] * _difference(p[i], q[i], g[i], half, one)
        if overlap == PRODUCT:
            slope = (one - target) * fp + target * hit
        elif overlap == MINIMUM:
            slope = hit if d < zero else (fp if d > zero else tie)
        elif abs(tp) <= abs(hit):
            slope = target * tp + two * d * fp
        else:  # the same value, for a large nu, with which the two terms above would cancel
            slope = target * hit + two * (w[i] * p[i]) * fp
        # A weight of 0 gives 0. It is not multiplied, because the slope of an empty denominator is infinite.
        h[i] += zero if w[i] == zero else slope * w[i]


@stage
def _softmax_adjoint(p, h, top, top_slope, mean):
    """Replace h by dL/dx_c = p_c (h_c - sum_k p_k h_k).

    The h of the largest logit is subtracted from all h, so that nothing cancels.
    """
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
def adjoint(activation, p, q, h, top, top_slope, mean):
    """Replace dL/dp in h by dL/dx; `top` is the softmax of the largest logit."""
    if activation == SOFTMAX:
        _softmax_adjoint(p, h, top, top_slope, mean)
    elif activation == SIGMOID:
        for c in range(p.shape[0]):
            probability, complement, slope = p[c], q[c], h[c]
            for i in range(slope.size):
                slope[i] *= probability[i] * complement[i]
