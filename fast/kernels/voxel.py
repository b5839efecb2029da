"""The voxel engine of the segmentation losses: soft confusion sums over voxels, and their adjoint.

A chunk of one item is worked through in tiles that stay in the caches nearest to the core. For each tile the logits
are read once and become p and 1 - p (twice: forward and backward each do so); from these come the sums or the
gradient, so nothing of the size of the input is ever stored but the gradient itself. Loops run over one row of a tile
and write one or two arrays, so that LLVM proves them free of aliasing and vectorises; flags are tested once a row.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.elementary import exp_nonpositive

# Voxels of a tile for four classes or fewer; more classes share the same room.
TILE = 2048
# Sums are float32 over so many voxels, spread over vector lanes of a few additions each, and float64 beyond.
BLOCK = 512
IDENTITY, SIGMOID, SOFTMAX = 0, 1, 2
PRODUCT, MINIMUM, SQUARED = 0, 1, 2
EXCLUDED = np.int32(-1)

# error_model="numpy": a division by zero gives infinity instead of a branch that raises, so that loops vectorise.
_stage = njit(cache=True, error_model="numpy")
# A row's sum is spread over vector lanes: the order of the sum changes, the terms do not. The order depends on the
# machine's vector width but never on the number of threads. No flag here assumes anything about NaN or infinity.
_sums = njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


# --- reading a tile --------------------------------------------------------------------------------------------------


@_stage
def _read_labels(values, classes, ignore, y):
    """Labels as int32, EXCLUDED where equal to `ignore` (NaN: none is); counts those that are no class."""
    bad = 0
    for i in range(values.size):
        v = values[i]
        inside = (v >= 0) & (v < classes)
        label = np.int32(v) if inside else EXCLUDED
        known = inside & (label == v)
        ignored = v == ignore
        y[i] = label if known & (not ignored) else EXCLUDED
        bad += not (known | ignored)
    return bad


@_stage
def _read(values, row):
    real = row.dtype.type
    for i in range(values.size):
        row[i] = real(values[i])


@_stage
def _labels(raw, item, classes, ignore, y):
    """Labels from bytes of the type with number `item`, so that one compiled kernel reads every label type."""
    if item == 0:
        return _read_labels(raw, classes, ignore, y)
    if item == 1:
        return _read_labels(raw.view(np.int32), classes, ignore, y)
    if item == 2:
        return _read_labels(raw.view(np.int64), classes, ignore, y)
    if item == 3:
        return _read_labels(raw.view(np.float32), classes, ignore, y)
    return _read_labels(raw.view(np.float64), classes, ignore, y)


@_stage
def _values(raw, item, row):
    if item == 0:
        _read(raw, row)
    elif item == 1:
        _read(raw.view(np.int32), row)
    elif item == 2:
        _read(raw.view(np.int64), row)
    elif item == 3:
        _read(raw.view(np.float32), row)
    else:
        _read(raw.view(np.float64), row)


@_stage
def _clear_excluded(x, w):
    """Logits of voxels that take no part may be NaN: put 0 in their place."""
    zero = x.dtype.type(0)
    for c in range(x.shape[0]):
        row = x[c]
        for i in range(w.size):
            value = row[i]
            row[i] = zero if w[i] == zero else value


# --- probabilities ---------------------------------------------------------------------------------------------------


@_stage
def _softmax(p, q, top, rest, ties, with_q):
    """Logits in p -> softmax in p, 1 - softmax in q (if asked for), p of the largest logit in top.

    The largest logits of a voxel have e = 1, those of the others sum to `rest`; so 1 - p is (rest + ties) / (1 + rest +
    ties) for the largest, with `ties` of them beyond the first, and no difference cancels.
    """
    one, zero = p.dtype.type(1), p.dtype.type(0)
    classes, width = p.shape
    top[:] = p[0]
    for c in range(1, classes):
        x = p[c]
        for i in range(width):
            a, b = x[i], top[i]
            top[i] = a if a > b else b
    rest[:] = zero
    ties[:] = -one
    for c in range(classes):
        e = p[c]
        for i in range(width):
            value = exp_nonpositive(e[i] - top[i])
            e[i] = value
            rest[i] += zero if value == one else value
            ties[i] += one if value == one else zero
    for i in range(width):
        rest[i] += ties[i]
        top[i] = one / (one + rest[i])
        rest[i] *= top[i]
    for c in range(classes):
        e, complement = p[c], q[c]
        if with_q:
            for i in range(width):
                complement[i] = rest[i] if e[i] == one else one - e[i] * top[i]
        for i in range(width):
            e[i] *= top[i]


@_stage
def _sigmoid(p, q):
    one, zero = p.dtype.type(1), p.dtype.type(0)
    for c in range(p.shape[0]):
        x, complement = p[c], q[c]
        for i in range(x.size):
            positive = x[i] > zero
            e = exp_nonpositive(-x[i] if positive else x[i])
            large = one / (one + e)
            small = e * large
            complement[i] = small if positive else large
            x[i] = large if positive else small


@_stage
def _probabilities(activation, p, q, top, rest, ties, with_q):
    if activation == SOFTMAX:
        _softmax(p, q, top, rest, ties, with_q)
    elif activation == SIGMOID:
        _sigmoid(p, q)
    else:
        one = p.dtype.type(1)
        for c in range(p.shape[0]):
            x, complement = p[c], q[c]
            for i in range(x.size):
                complement[i] = one - x[i]


# --- targets ---------------------------------------------------------------------------------------------------------


@_stage
def _one_hot(y, g):
    one, zero = g.dtype.type(1), g.dtype.type(0)
    for c in range(g.shape[0]):
        row = g[c]
        for i in range(y.size):
            row[i] = one if y[i] == c else zero


@njit(cache=True, inline="always")
def _difference(p, q, g, half, one):
    """The difference p - g, taken from 1 - p where that is the smaller number."""
    return (one - g) - q if p > half else p - g


# --- forward: true positives, false positives, false negatives -------------------------------------------------------


@_sums
def _confusion_labels(p, q, y, c, squared):
    zero = p.dtype.type(0)
    tp, fp, fn = zero, zero, zero
    if squared:
        for i in range(p.size):
            tp += p[i] if y[i] == c else zero
            fp += zero if (y[i] == c) | (y[i] < 0) else p[i] * p[i]
            fn += q[i] * q[i] if y[i] == c else zero
    else:
        for i in range(p.size):
            tp += p[i] if y[i] == c else zero
            fp += zero if (y[i] == c) | (y[i] < 0) else p[i]
            fn += q[i] if y[i] == c else zero
    return tp, fp, fn


@_sums
def _confusion_soft(p, q, g, w, overlap):
    """As above for any target, p and g weighed by w."""
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


@_stage
def _slope_labels(p, q, y, c, tp, fp, fn, squared, h):
    zero = p.dtype.type(0)
    if squared:
        fn, fp = fn + fn, fp + fp
        for i in range(p.size):
            miss = zero if y[i] < 0 else fp * p[i]
            h[i] = tp - fn * q[i] if y[i] == c else miss
    else:
        hit = tp - fn
        for i in range(p.size):
            miss = zero if y[i] < 0 else fp
            h[i] = hit if y[i] == c else miss


@_stage
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


@_stage
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


@_stage
def _adjoint(activation, p, q, h, top, top_slope, mean):
    if activation == SOFTMAX:
        _softmax_adjoint(p, h, top, top_slope, mean)
    elif activation == SIGMOID:
        for c in range(p.shape[0]):
            probability, complement, slope = p[c], q[c], h[c]
            for i in range(slope.size):
                slope[i] *= probability[i] * complement[i]


# --- one chunk -------------------------------------------------------------------------------------------------------


@_stage
def _tile_width(classes, voxels):
    return min(max(4 * TILE // max(classes, 4), BLOCK), voxels)


@_stage
def _scratch(classes, width, real):
    """p, q, g, h by class; w, y, top, rest, ties by voxel."""
    rows = np.empty((4, classes, width), real)
    row = np.empty((4, width), real)
    return rows[0], rows[1], rows[2], rows[3], row[0], np.empty(width, np.int32), row[1], row[2], row[3]


@_stage
def _tile(x, target, item, dense, mask, activation, overlap, ignore, b, lo, scratch, slopes_only):
    """Fill the scratch for the voxels of item b from `lo` on.

    Returns how many labels are no class, and whether the target stands in g and w rather than in y.
    """
    p, q, g, _, w, y, top, rest, ties = scratch
    classes, width = p.shape
    one, zero = w.dtype.type(1), w.dtype.type(0)
    size = target.shape[2] // x.shape[2]
    first, last = lo * size, (lo + width) * size
    ignoring, masked = not np.isnan(ignore), mask.shape[0] > 0
    bad = 0
    w[:] = one
    for c in range(classes):
        _read(x[b, c, lo : lo + width], p[c])
    if dense:
        for c in range(classes):
            _values(target[b, c, first:last], item, g[c])
        if ignoring:
            channel, value = (int(ignore), one) if classes > 1 else (0, w.dtype.type(ignore))
            for i in range(width):
                w[i] = zero if g[channel, i] == value else one
    else:
        bad = _labels(target[b, 0, first:last], item, classes, ignore, y)
        if ignoring:
            for i in range(width):
                w[i] = zero if y[i] < 0 else one
    if masked:
        row = mask[min(b, mask.shape[0] - 1), lo : lo + width]
        for i in range(width):
            w[i] *= row[i]
    # Hard labels need no target values where p lies in [0, 1] or the overlap is a product.
    soft = dense or masked or (activation == IDENTITY and overlap != PRODUCT)
    if soft and not dense:
        _one_hot(y, g)
    if ignoring or masked:
        _clear_excluded(p, w)
        if soft:
            _clear_excluded(g, w)
    with_q = not slopes_only or soft or overlap == SQUARED
    _probabilities(activation, p, q, top, rest, ties, with_q)
    return bad, soft


@njit(cache=True, nogil=True)
def confusion(x, target, item, dense, mask, activation, overlap, ignore, b, start, stop, sums):
    """Add TP, FP, FN (3, C) of the voxels start:stop of item b to `sums`; returns how many labels are no class.

    x is (B, C, N); target its bytes, (B, 1 or C, N * itemsize), of the type with number `item`; mask (B or 1, N), or
    (0, 0) for none; ignore is NaN for none.
    """
    classes = x.shape[1]
    scratch = _scratch(classes, _tile_width(classes, stop - start), x.dtype)
    bad = 0
    for lo in range(start, stop, _tile_width(classes, stop - start)):
        if stop - lo < scratch[0].shape[1]:
            scratch = _scratch(classes, stop - lo, x.dtype)
        wrong, soft = _tile(x, target, item, dense, mask, activation, overlap, ignore, b, lo, scratch, False)
        bad += wrong
        p, q, g, _, w, y, _, _, _ = scratch
        for c in range(classes):
            for k in range(0, p.shape[1], BLOCK):
                block = slice(k, k + BLOCK)
                if soft:
                    tp, fp, fn = _confusion_soft(p[c, block], q[c, block], g[c, block], w[block], overlap)
                else:
                    tp, fp, fn = _confusion_labels(p[c, block], q[c, block], y[block], c, overlap == SQUARED)
                sums[0, c] += tp
                sums[1, c] += fp
                sums[2, c] += fn
    return bad


@njit(cache=True, nogil=True)
def confusion_backward(x, target, item, dense, mask, activation, overlap, ignore, slopes, b, start, stop, out):
    """Write dL/dx of the voxels start:stop of item b, given slopes = dL/d(TP, FP, FN), (3, B, C)."""
    classes = x.shape[1]
    scratch = _scratch(classes, _tile_width(classes, stop - start), x.dtype)
    for lo in range(start, stop, _tile_width(classes, stop - start)):
        if stop - lo < scratch[0].shape[1]:
            scratch = _scratch(classes, stop - lo, x.dtype)
        _, soft = _tile(x, target, item, dense, mask, activation, overlap, ignore, b, lo, scratch, True)
        p, q, g, h, w, y, top, rest, ties = scratch
        for c in range(classes):
            tp, fp, fn = slopes[0, b, c], slopes[1, b, c], slopes[2, b, c]
            if soft:
                _slope_soft(p[c], q[c], g[c], w, tp, fp, fn, overlap, h[c])
            else:
                _slope_labels(p[c], q[c], y, c, tp, fp, fn, overlap == SQUARED, h[c])
        _adjoint(activation, p, q, h, top, rest, ties)
        width = p.shape[1]
        for c in range(classes):
            out[b, c, lo : lo + width] = h[c]
