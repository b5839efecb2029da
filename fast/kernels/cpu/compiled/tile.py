"""Tiles of voxels: reading logits, target and mask, and computing probabilities from the logits.

A tile fits into the caches nearest to the core. Each loop runs over one row and writes few arrays, so that LLVM can
rule out aliasing and vectorise it. Flags are tested once for each row, and not for each voxel.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import njit
from numba.core.compiler import CompilerBase, DefaultPassBuilder

from twinloss.fast.kernels.cpu.compiled.elementary import LINE, exp_nonpositive, prefetch
from twinloss.fast.kernels.cpu.compiled.status import INVALID, NOT_BINARY, VALID

# Voxels of a tile for at most four classes. With more classes, a tile has fewer voxels.
TILE = 4032
# Tiles of a chunk. Threads work on whole chunks, and the float64 sums of the chunks are added in a fixed order.
TILES = 16
# Number of voxels whose sum is computed in float32, over vector lanes with few additions each. Sums of blocks are
# float64.
BLOCK = 512
IDENTITY, SIGMOID, SOFTMAX = 0, 1, 2
EXCLUDED = np.int32(-1)
# KEPT is the type number of labels that `keep_labels` has stored. They are less than MOST_KEPT, which stands for
# EXCLUDED.
KEPT, MOST_KEPT = 5, 15
_LACKING = np.int32(MOST_KEPT)
# Numba compiles a stage again for each literal number among its arguments, but not for these.
START, NEXT = np.intp(0), np.intp(1)

# Arrays for one tile: `rows`, (5, C, width), has values for each class, `row`, (8, width), has values for each voxel,
# and y, (width), has the labels.
Buffers = namedtuple("Buffers", "rows row y")
# The arrays in `rows`: p; q = 1 - p; target g; slopes h = dL/dp; logits x.
P, Q, G, H, X = range(5)
# The rows in `row`: weight w; the largest logit, scale and rest of `exponentials`; two adjacent rows for intermediate
# values; p and 1 - p of the voxel's true class, or intermediate values.
W, TOP, SCALE, REST, SCRATCH_A, SCRATCH_B, OWN, FACTOR = range(8)


# Compiles for arrays that do not overlap, and without the wrappers for calls from Python or C.
class _NoAlias(CompilerBase):
    def define_pipelines(self):
        self.state.flags.noalias = True
        self.state.flags.no_cpython_wrapper = True
        self.state.flags.no_cfunc_wrapper = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


# error_model="numpy": a division by zero gives infinity instead of a branch that raises, so that loops are vectorised.
stage = njit(error_model="numpy", _nrt=False, pipeline_class=_NoAlias)
# Here a product and a sum may be rounded once, as a fused multiply-add.
fused_stage = njit(error_model="numpy", fastmath={"contract"}, _nrt=False, pipeline_class=_NoAlias)
# Here the sum of a row may be spread over vector lanes, which changes the order of the additions. The order depends on
# the vector width of the machine, but never on the number of threads. No flag assumes the absence of NaN or infinity.
sums_stage = njit(error_model="numpy", fastmath={"reassoc", "contract"}, _nrt=False, pipeline_class=_NoAlias)


@njit(inline="always")
def four_rows(rows, at, other):
    """Return the rows of four classes at some voxels.

    With fewer classes, the missing ones get `other`, whose results are not used.
    """
    classes = rows.shape[0]
    return (
        rows[0, at], rows[1, at] if classes > 1 else other, rows[2, at] if classes > 2 else other,
        rows[3, at] if classes > 3 else other,
    )  # fmt: skip


@njit(inline="always")
def four_exponentials(e, spare):
    """Return the exponentials of four classes; with fewer classes, those of the missing ones are 0."""
    if e.shape[0] < 4:
        spare[:] = 0
    return four_rows(e, slice(0, e.shape[1]), spare)


@njit(inline="always")
def four_classes(y, last):
    """Return the numbers of four classes, in the type of the labels; with fewer classes, the last one is repeated.

    If LLVM knew the numbers at compile time, the loops that it generates would take a tenth longer.
    """
    label = y.dtype.type
    return label(0), label(min(1, last)), label(min(2, last)), label(last)


@njit(inline="always")
def four_values(values):
    """Return the values of four classes; with fewer classes, the last one is repeated."""
    last = values.size - 1
    return values[0], values[min(1, last)], values[min(2, last)], values[last]


@stage
def copy_cast(values, out):
    """Copy numbers into `out` and cast them to its type.

    For an assignment of slices, Numba would also compile the code that formats its error messages.
    """
    for i in range(out.size):
        out[i] = values[i]


# --- reading a tile --------------------------------------------------------------------------------------------------


@stage
def _read_labels(values, classes, ignore, y):
    """Read labels as int32, or EXCLUDED where they equal `ignore`, and return how many are not a class.

    `ignore` is NaN or None if no label is ignored. None is a type of its own, for which the comparison is not compiled;
    for int64 labels, reading then takes a third of the time.
    """
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


@stage
def _read(values, row):
    real = row.dtype.type
    for i in range(values.size):
        row[i] = real(values[i])


@stage
def _labels(raw, item, classes, ignore, y):
    """Read labels from bytes of the type with number `item`, so that one compiled kernel serves every label type."""
    if item == 0:
        return _read_labels(raw, classes, ignore, y)
    if item == 1:
        return _read_labels(raw.view(np.int32), classes, ignore, y)
    if item == 2:
        return _read_labels(raw.view(np.int64), classes, ignore, y)
    if item == 3:
        return _read_labels(raw.view(np.float32), classes, ignore, y)
    return _read_labels(raw.view(np.float64), classes, ignore, y)


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


# --- probabilities ---------------------------------------------------------------------------------------------------


@stage
def _largest(one, other, top):
    for i in range(top.size):
        top[i] = one[i] if one[i] > other[i] else other[i]


@stage
def _larger(one, other, top):
    for i in range(top.size):
        larger, old = one[i] if one[i] > other[i] else other[i], top[i]
        top[i] = larger if larger > old else old


@stage
def _exponentials(logits, raw, after, size, top, e, rest, ties):
    """Compute the exponentials of a class, and prefetch as `_few_exponentials` does."""
    one, zero, width = e.dtype.type(1), e.dtype.type(0), e.size
    step = 4 * LINE // e.itemsize
    for start in range(0, width, step):
        prefetch(logits, width + start, step)
        if raw is not None:
            prefetch(raw, after + start * size, step * size)
        for i in range(np.uintp(start), np.uintp(min(start + step, width))):
            value = exp_nonpositive(logits[i] - top[i])
            e[i] = value
            rest[i] += zero if value == one else value
            ties[i] += one if value == one else zero


@njit(inline="always")
def taken(value, y, i):
    """Return `value`, or 0 if voxel `i` is excluded; `y=None` excludes nothing."""
    if y is None:
        return value
    return type(value)(0) if y[i] < 0 else value


@stage
def clear_where_excluded(y, rows):
    """Set the values of excluded voxels to 0, because they may be NaN."""
    for c in range(rows.shape[0]):
        row = rows[c]
        for i in range(y.size):
            row[i] = taken(row[i], y, i)


@njit(inline="always")
def _ordered(one, other):
    """Return whether the first is larger, the larger and the smaller."""
    first = one > other
    return first, one if first else other, other if first else one


@stage
def _few_exponentials(a, b, c, d, y, raw, after, size, e, f, g, h, top, scale, rest):
    """Compute the exponentials of four classes in one loop.

    The exponential of the largest logit is 1, so that only three are computed and then assigned to their classes. The
    loop also prefetches the logits of the next tile, and its labels if their bytes are given as `raw`: they begin at
    `after` and have `size` bytes each. It does so a few cache lines at a time, because only so many loads can be
    pending at once.
    """
    one, width = scale.dtype.type(1), scale.size
    step = 4 * LINE // a.itemsize
    for start in range(0, width, step):
        prefetch(a, width + start, step)
        prefetch(b, width + start, step)
        prefetch(c, width + start, step)
        prefetch(d, width + start, step)
        if raw is not None:
            prefetch(raw, after + start * size, step * size)
        for i in range(np.uintp(start), np.uintp(min(start + step, width))):
            ab, larger_ab, smaller_ab = _ordered(taken(a[i], y, i), taken(b[i], y, i))
            cd, larger_cd, smaller_cd = _ordered(taken(c[i], y, i), taken(d[i], y, i))
            among_ab, largest, second = _ordered(larger_ab, larger_cd)
            e_second = exp_nonpositive(second - largest)
            e_ab, e_cd = exp_nonpositive(smaller_ab - largest), exp_nonpositive(smaller_cd - largest)
            # The last difference is 0, or NaN where the largest logit is infinite, so that the softmax is NaN.
            others = (e_ab + e_cd) + (e_second + (largest - largest))
            top_ab, top_cd = one if among_ab else e_second, e_second if among_ab else one
            e[i], f[i] = top_ab if ab else e_ab, e_ab if ab else top_ab
            g[i], h[i] = top_cd if cd else e_cd, e_cd if cd else top_cd
            top[i], rest[i], scale[i] = largest, taken(others, y, i), taken(one / (one + others), y, i)


@stage
def _many_exponentials(x, b, lo, raw, after, size, p, top, scale, rest, ties):
    one, zero = p.dtype.type(1), p.dtype.type(0)
    width = scale.size
    at = slice(lo, lo + width)
    _largest(x[b, 0, at], x[b, min(1, p.shape[0] - 1), at], top)
    for c in range(2, p.shape[0], 2):
        _larger(x[b, c, at], x[b, min(c + 1, p.shape[0] - 1), at], top)
    rest[:] = zero
    ties[:] = -one
    for c in range(p.shape[0]):
        _exponentials(x[b, c, at], raw, after, size if c == 0 else 0, top, p[c], rest, ties)
    for i in range(width):
        rest[i] += ties[i]
        scale[i] = one / (one + rest[i])


@stage
def exponentials(x, b, lo, p, top, scale, rest, room, y, raw):
    """Compute e in p, so that the softmax is e * scale, and 1 - softmax is rest * scale where e = 1.

    e is exp(logit - top) for the logits of item b from voxel `lo` on, where `top` is the largest logit. e = 1 for the
    classes that have the largest logit. `rest` is the sum of the e of the other classes, plus 1 for each further class
    with the largest logit, so that 1 - p is not a difference that cancels. Voxels that the labels y exclude have
    scale = rest = 0, whatever their logits; y=None, which is a type of its own, excludes none. `room` has two rows for
    intermediate values. `raw` holds the bytes of all labels, to prefetch those of the next tile, or is None. Labels
    that `keep_labels` has stored are small and are not prefetched.
    """
    last, width = p.shape[0] - 1, scale.size
    size = 0 if raw is None else raw.size // x.shape[2]
    after = (lo + width) * size
    if last > 3:
        _many_exponentials(x, b, lo, raw, after, size, p, top, scale, rest, room[0])
        if y is not None:
            clear_where_excluded(y, p)
            for i in range(width):
                scale[i], rest[i] = taken(scale[i], y, i), taken(rest[i], y, i)
        return
    # With fewer than four classes, the missing ones get the logit -inf, and their results are not used.
    if last < 3:
        room[0] = -np.inf
    first, second, third, fourth = four_rows(x[b], slice(lo, lo + width), room[0])
    e, f, g, h = four_rows(p, slice(0, width), room[1])
    _few_exponentials(first, second, third, fourth, y, raw, after, size, e, f, g, h, top, scale, rest)


@stage
def _softmax(x, p, q, top, scale, rest, room):
    exponentials(x, START, START, p, top, scale, rest, room, None, None)
    one = p.dtype.type(1)
    for c in range(p.shape[0]):
        e, complement = p[c], q[c]
        for i in range(e.size):
            value = e[i] * scale[i]
            complement[i] = rest[i] * scale[i] if e[i] == one else one - value
            e[i] = value


@njit(inline="always")
def sigmoid(x):
    """Return the sigmoid of x and of -x, and exp(-|x|)."""
    zero, one = type(x)(0), type(x)(1)
    positive = x > zero
    e = exp_nonpositive(-x if positive else x)
    large = one / (one + e)
    small = e * large
    return large if positive else small, small if positive else large, e


@stage
def _sigmoid(x, p, q):
    for c in range(p.shape[0]):
        logits, probability, complement = x[0, c], p[c], q[c]
        for i in range(logits.size):
            probability[i], complement[i], _ = sigmoid(logits[i])


@stage
def _probabilities(activation, buffers):
    """Compute p and q = 1 - p from the logits; q is not a difference that cancels."""
    x, p, q = buffers.rows[X : X + 1], buffers.rows[P], buffers.rows[Q]
    if activation == SOFTMAX:
        _softmax(
            x, p, q, buffers.row[TOP], buffers.row[SCALE], buffers.row[REST], buffers.row[SCRATCH_A : SCRATCH_A + 2]
        )
    elif activation == SIGMOID:
        _sigmoid(x, p, q)
    else:
        one = p.dtype.type(1)
        for c in range(p.shape[0]):
            logits, probability, complement = x[0, c], p[c], q[c]
            for i in range(logits.size):
                probability[i] = logits[i]
                complement[i] = one - logits[i]


# --- the whole tile --------------------------------------------------------------------------------------------------


@stage
def volume(tp, fn, y, c):
    """Return how many voxels are of class c, given the sums of their p and 1 - p.

    Each voxel adds 1 to the total of the two sums, so that the rounded total is the number of voxels, at no cost. If a
    logit is NaN, so is the total, and the labels are counted instead.
    """
    total = tp + fn
    if total == total:
        return np.rint(total)
    zero, one = type(total)(0), type(total)(1)
    count = zero
    for i in range(y.size):
        count += one if y[i] == c else zero
    return count


@stage
def tile_width(classes, voxels):
    """Return the number of voxels of a tile: `voxels`, or fewer if the caches do not hold as many.

    If it is fewer, it is an even number.
    """
    return min(max(4 * TILE // max(classes, 4), BLOCK) // 2 * 2, voxels)


@njit
def scratch(classes, width, real):
    """Allocate the arrays for one tile."""
    return Buffers(np.empty((5, classes, width), real), np.empty((8, width), real), np.empty(width, np.int32))


@stage
def read_labels(raw, item, classes, ignore, lo, voxels, y):
    """Read the labels from voxel `lo` on from the bytes of all labels, and return how many are not a class."""
    size = raw.size // voxels
    return _labels(raw[lo * size : (lo + y.size) * size], item, classes, ignore, y)


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
        kept[start + i] = np.uint8((y[i] & _LACKING) | ((y[half + i] & _LACKING) << np.int32(4)))
    if y.size % 2 > 0:
        kept[start + half - np.uintp(1)] = np.uint8(y[half - np.uintp(1)] & _LACKING)


@stage
def _read_kept(kept, lo, y):
    start, half = np.uintp(lo // 2), np.uintp((y.size + 1) // 2)
    for i in range(half):
        label = np.int32(kept[start + i]) & _LACKING
        y[i] = EXCLUDED if label == _LACKING else label
    for i in range(np.uintp(y.size) - half):
        label = np.int32(kept[start + i]) >> np.int32(4)
        y[half + i] = EXCLUDED if label == _LACKING else label


@stage
def read_counted(raw, item, classes, ignore, mask, b, lo, voxels, y):
    """Read labels, or EXCLUDED where the mask is 0, and return a status; `mask=None` excludes nothing."""
    if item == KEPT:
        _read_kept(raw, lo, y)
        return VALID
    bad = read_labels(raw, item, classes, ignore, lo, voxels, y)
    if mask is not None:
        row = mask[min(b, mask.shape[0] - 1)]
        if _exclude(row[lo : lo + y.size], y) > 0:
            return NOT_BINARY
    return INVALID if bad > 0 else VALID


@stage
def read_weighted(x, target, item, dense, mask, activation, ignore, b, lo, buffers):
    """Fill all arrays except the slopes, and return a status; excluded voxels get weight 0 and logits 0."""
    g, w, y = buffers.rows[G], buffers.row[W], buffers.y
    classes, width = g.shape
    one, zero = w.dtype.type(1), w.dtype.type(0)
    ignoring, masked = not np.isnan(ignore), mask.shape[0] > 0
    bad = 0
    w[:] = one
    for c in range(classes):
        _read(x[b, c, lo : lo + width], buffers.rows[X, c])
    if dense:
        size = target.shape[2] // x.shape[2]
        for c in range(classes):
            _values(target[b, c, lo * size : (lo + width) * size], item, g[c])
        if ignoring:
            channel, value = (int(ignore), one) if classes > 1 else (0, w.dtype.type(ignore))
            for i in range(width):
                w[i] = zero if g[channel, i] == value else one
    else:
        bad = read_labels(target[b, 0], item, classes, ignore, lo, x.shape[2], y)
        _one_hot(y, g)
        if ignoring:
            for i in range(width):
                w[i] = zero if y[i] < 0 else one
    if masked:
        row = mask[min(b, mask.shape[0] - 1), lo : lo + width]
        bad += _weigh(row, w)
    if ignoring or masked:
        _clear_excluded(buffers.rows[X], w)
        _clear_excluded(g, w)
    _probabilities(activation, buffers)
    return INVALID if bad > 0 else VALID
