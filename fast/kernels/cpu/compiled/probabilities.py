"""Logits of a tile as probabilities p and 1 - p, neither of which is a difference that cancels."""

from __future__ import annotations

import numpy as np
from numba import njit

from twinloss.fast.kernels.cpu.compiled.elementary import LINE, exp_nonpositive, prefetch
from twinloss.fast.kernels.cpu.compiled.tile import (
    REST,
    SCALE,
    SCRATCH_A,
    SIGMOID,
    SOFTMAX,
    START,
    TOP,
    P,
    Q,
    X,
    clear_where_excluded,
    four_rows,
    stage,
    taken,
)

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
def exponentials(x, b, lo, p, top, scale, rest, room, excluding, y, raw):
    """Compute e in p, so that the softmax is e * scale, and 1 - softmax is rest * scale where e = 1.

    e is exp(logit - top) for the logits of item b from voxel `lo` on, where `top` is the largest logit. e = 1 for the
    classes that have the largest logit. `rest` is the sum of the e of the other classes, plus 1 for each further class
    with the largest logit, so that 1 - p is not a difference that cancels. With `excluding`, voxels that the labels y
    exclude have scale = rest = 0, whatever their logits. y=None, which is a type of its own, excludes none. `room` has
    two rows for intermediate values. `raw` holds the bytes of all labels, to prefetch those of the next tile, or is
    None. Labels that `keep_labels` has stored are small and are not prefetched.
    """
    last, width = p.shape[0] - 1, scale.size
    size = 0 if raw is None else raw.size // x.shape[2]
    after = (lo + width) * size
    if last > 3:
        _many_exponentials(x, b, lo, raw, after, size, p, top, scale, rest, room[0])
        if y is not None and excluding:
            clear_where_excluded(y, p)
            for i in range(width):
                scale[i], rest[i] = taken(scale[i], y, i), taken(rest[i], y, i)
        return
    # With fewer than four classes, the missing ones get the logit -inf, and their results are not used.
    if last < 3:
        room[0] = -np.inf
    first, second, third, fourth = four_rows(x[b], slice(lo, lo + width), room[0])
    e, f, g, h = four_rows(p, slice(0, width), room[1])
    if y is not None and excluding:
        _few_exponentials(first, second, third, fourth, y, raw, after, size, e, f, g, h, top, scale, rest)
    else:
        _few_exponentials(first, second, third, fourth, None, raw, after, size, e, f, g, h, top, scale, rest)


@stage
def _softmax(x, p, q, top, scale, rest, room):
    exponentials(x, START, START, p, top, scale, rest, room, False, None, None)
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
def probabilities(activation, buffers):
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
