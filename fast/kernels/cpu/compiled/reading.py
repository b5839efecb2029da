"""The logits, target and mask of a tile, read and checked."""

from __future__ import annotations

import numpy as np

from twinloss.fast.kernels.cpu.compiled.probabilities import probabilities
from twinloss.fast.kernels.cpu.compiled.status import INVALID, NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.compiled.tile import EXCLUDED, KEPT, LACKING, G, W, X, stage, sums_stage

# --- reading a tile --------------------------------------------------------------------------------------------------


@stage
def _read_labels(values, classes, ignoring, ignore, y):
    """Read labels as int32, or EXCLUDED where they equal `ignore`, and return how many are not a class."""
    bad = 0
    for i in range(values.size):
        v = values[i]
        inside = (v >= 0) & (v < classes)
        label = np.int32(v) if inside else EXCLUDED
        known = inside & (label == v)
        ignored = ignoring & (v == ignore)
        y[i] = label if known & (not ignored) else EXCLUDED
        bad += not (known | ignored)
    return bad


@stage
def _read(values, row):
    real = row.dtype.type
    for i in range(values.size):
        row[i] = real(values[i])


@stage
def _labels(raw, item, classes, ignoring, ignore, y):
    """Read labels from bytes of the type with number `item`, so that one compiled kernel serves every label type."""
    if item == 0:
        return _read_labels(raw, classes, ignoring, ignore, y)
    if item == 1:
        return _read_labels(raw.view(np.int32), classes, ignoring, ignore, y)
    if item == 2:
        return _read_labels(raw.view(np.int64), classes, ignoring, ignore, y)
    if item == 3:
        return _read_labels(raw.view(np.float32), classes, ignoring, ignore, y)
    return _read_labels(raw.view(np.float64), classes, ignoring, ignore, y)


@stage
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


@stage
def _clear_excluded(x, w):
    """Set the values of excluded voxels to 0, because they may be NaN."""
    zero = x.dtype.type(0)
    for c in range(x.shape[0]):
        row = x[c]
        for i in range(w.size):
            value = row[i]
            row[i] = zero if w[i] == zero else value


@stage
def _weigh(mask, w):
    """Multiply the weights by the mask, and return how many mask values lie outside [0, 1]."""
    zero, one = w.dtype.type(0), w.dtype.type(1)
    bad = 0
    for i in range(w.size):
        value = mask[i]
        w[i] *= value
        bad += not ((value >= zero) & (value <= one))
    return bad


@stage
def _one_hot(y, g):
    one, zero = g.dtype.type(1), g.dtype.type(0)
    for c in range(g.shape[0]):
        row = g[c]
        for i in range(y.size):
            row[i] = one if y[i] == c else zero


@stage
def read_labels(given, raw, classes, lo, y):
    """Read the labels from voxel `lo` on from the bytes of all labels, and return how many are not a class."""
    size = raw.size // given.x.shape[2]
    return _labels(raw[lo * size : (lo + y.size) * size], given.item, classes, given.ignoring, given.ignore, y)


@sums_stage
def _exclude(mask, y):
    """Exclude the voxels where the mask is 0, and return how many mask values are neither 0 nor 1."""
    zero, one = mask.dtype.type(0), mask.dtype.type(1)
    others = zero
    for i in range(y.size):
        value, label = mask[i], y[i]
        others += zero if (value == zero) | (value == one) else one
        y[i] = EXCLUDED if value == zero else label
    return others


@stage
def keep_labels(y, lo, kept):
    """Store the labels of a tile in half a byte each, which the backward pass reads in place of target and mask.

    Each byte holds a label of the first half of the tile and one of the second half.
    """
    start, half = np.uintp(lo // 2), np.uintp((y.size + 1) // 2)
    for i in range(np.uintp(y.size) - half):
        kept[start + i] = np.uint8((y[i] & LACKING) | ((y[half + i] & LACKING) << np.int32(4)))
    if y.size % 2 > 0:
        kept[start + half - np.uintp(1)] = np.uint8(y[half - np.uintp(1)] & LACKING)


@stage
def _read_kept(kept, lo, y):
    start, half = np.uintp(lo // 2), np.uintp((y.size + 1) // 2)
    for i in range(half):
        label = np.int32(kept[start + i]) & LACKING
        y[i] = EXCLUDED if label == LACKING else label
    for i in range(np.uintp(y.size) - half):
        label = np.int32(kept[start + i]) >> np.int32(4)
        y[half + i] = EXCLUDED if label == LACKING else label


@stage
def read_counted(given, raw, classes, b, lo, y):
    """Read labels from their bytes, or EXCLUDED where the mask is 0, and return a status."""
    if given.item == KEPT:
        _read_kept(raw, lo, y)
        return VALID
    bad = read_labels(given, raw, classes, lo, y)
    if given.mask.shape[0] > 0:
        row = given.mask[min(b, given.mask.shape[0] - 1)]
        if _exclude(row[lo : lo + y.size], y) > 0:
            return NOT_BINARY
    return INVALID if bad > 0 else VALID


@stage
def read_weighted(given, b, lo, buffers):
    """Fill all arrays except the slopes, and return a status; excluded voxels get weight 0 and logits 0."""
    x, target, g, w, y = given.x, given.target, buffers.rows[G], buffers.row[W], buffers.y
    classes, width = g.shape
    one, zero = w.dtype.type(1), w.dtype.type(0)
    masked = given.mask.shape[0] > 0
    bad = 0
    w[:] = one
    for c in range(classes):
        _read(x[b, c, lo : lo + width], buffers.rows[X, c])
    if given.dense:
        size = target.shape[2] // x.shape[2]
        for c in range(classes):
            _values(target[b, c, lo * size : (lo + width) * size], given.item, g[c])
        if given.ignoring:
            channel, value = (given.ignore, one) if classes > 1 else (0, w.dtype.type(given.ignore))
            for i in range(width):
                w[i] = zero if g[channel, i] == value else one
    else:
        bad = read_labels(given, target[b, 0], classes, lo, y)
        _one_hot(y, g)
        if given.ignoring:
            for i in range(width):
                w[i] = zero if y[i] < 0 else one
    if masked:
        bad += _weigh(given.mask[min(b, given.mask.shape[0] - 1), lo : lo + width], w)
    if given.ignoring or masked:
        _clear_excluded(buffers.rows[X], w)
        _clear_excluded(g, w)
    probabilities(given.activation, buffers)
    return INVALID if bad > 0 else VALID
