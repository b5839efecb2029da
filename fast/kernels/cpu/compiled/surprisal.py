"""Focal cross entropy of a class in a tile: sums of (1 - p)^gamma (-log p), and their adjoint.

The surprisal is -log p. With gamma = 0, the sum of the surprisals is the plain cross entropy.
"""

from __future__ import annotations

from twinloss.fast.kernels.cpu.compiled.confusion import own_term, own_terms
from twinloss.fast.kernels.cpu.compiled.elementary import exp_nonpositive, log1p_nonnegative
from twinloss.fast.kernels.cpu.compiled.tile import (
    FACTOR,
    OWN,
    REST,
    SCALE,
    SOFTMAX,
    START,
    TOP,
    G,
    H,
    P,
    Q,
    W,
    X,
    four_exponentials,
    four_rows,
    stage,
    sums_stage,
)

NONE, TARGET, ALL = 0, 1, 2


@stage
def focus(q, gamma, values):
    """Multiply the values by q^gamma."""
    if gamma == 0:
        return
    if gamma == 1:
        for i in range(q.size):
            values[i] *= q[i]
    elif gamma == 2:
        for i in range(q.size):
            values[i] *= q[i] * q[i]
    else:
        for i in range(q.size):
            values[i] *= q[i] ** gamma


@stage
def slope_of_surprisal(p, q, gamma, values):
    """Replace -log p in `values` by p d/dp of (1 - p)^gamma (-log p) = -q^gamma (1 + gamma p (-log p) / q).

    (-log p) / q tends to 1 as q tends to 0, so that the result is finite at p = 1, also for gamma < 1.
    """
    zero, one = p.dtype.type(0), p.dtype.type(1)
    for i in range(p.size):
        ratio = values[i] / q[i] if q[i] > zero else one
        values[i] = -(one + gamma * (p[i] * ratio)) if p[i] > zero else -one
    focus(q, gamma, values)


# --- softmax against labels: only the logit of a voxel's true class is needed ----------------------------------------


@stage
def own_surprisal(x, b, lo, exponentials, y, top, scale, rest, gamma, p, q, values):
    """Put -log p of each voxel's true class into `values`; and p and 1 - p, unless gamma is 0 and needs neither.

    `exponentials`, (1, C, width), are those of the logits of item b from voxel `lo` on.
    """
    one = p.dtype.type(1)
    choose(x, b, lo, y, values)
    for i in range(y.size):
        values[i] = log1p_nonnegative(rest[i]) + (top[i] - values[i])
    if gamma != 0:
        choose(exponentials, START, START, y, p)
        for i in range(y.size):
            e = p[i]
            p[i] = e * scale[i]
            q[i] = rest[i] * scale[i] if e == one else one - e * scale[i]


@stage
def choose(x, b, lo, y, chosen):
    """Choose the value of each voxel's true class."""
    last, at = x.shape[1] - 1, slice(lo, lo + y.size)
    if last > 3:
        for c in range(last + 1):
            _take_over(x[b, c, at], y, c, chosen)
    else:
        two, three, label = min(1, last), min(2, last), y.dtype.type
        _choose_of_few(
            x[b, 0, at], x[b, two, at], x[b, three, at], x[b, last, at], label(two), label(three), y, chosen
        )  # fmt: skip


@stage
def _choose_of_few(a, b, c, d, two, three, y, chosen):
    for i in range(y.size):
        first, second, third, here = a[i], b[i], c[i], d[i]
        here = third if y[i] == three else here
        here = second if y[i] == two else here
        chosen[i] = first if y[i] == 0 else here


@stage
def _take_over(row, y, c, chosen):
    for i in range(y.size):
        new, old = row[i], chosen[i]
        chosen[i] = new if (y[i] == c) | (c == 0) else old


@sums_stage
def class_sum(values, y, c):
    """Return the sum of the values, and the number, of the voxels of class c."""
    zero, one = values.dtype.type(0), values.dtype.type(1)
    total, count = zero, zero
    for i in range(y.size):
        hit = y[i] == c
        total += values[i] if hit else zero
        count += one if hit else zero
    return total, count


@stage
def _choose_slope(slopes, y, chosen):
    """Choose the slope of each voxel's true class."""
    last, label = slopes.size - 1, y.dtype.type
    if last > 3:
        for c in range(last + 1):
            for i in range(y.size):
                old = chosen[i]
                chosen[i] = slopes[c] if (y[i] == c) | (c == 0) else old
        return
    two, three = label(min(1, last)), label(min(2, last))
    a, b, c, d = slopes[0], slopes[two], slopes[three], slopes[last]
    for i in range(y.size):
        here = c if y[i] == three else d
        here = b if y[i] == two else here
        chosen[i] = a if y[i] == 0 else here


@stage
def own_slope(p, q, y, gamma, slopes, values):
    """Put p dL/dp of each voxel's true class into `values`, given slopes = dL/d(sums).

    Before, `values` must be -log p, unless gamma is 0.
    """
    if gamma == 0:
        for i in range(y.size):
            values[i] = -1
    else:
        slope_of_surprisal(p, q, gamma, values)
    _choose_slope(slopes, y, p)
    for i in range(y.size):
        values[i] *= p[i]


@stage
def _few_gradients_own(a, b, c, d, scale, rest, y, own, e, f, g, h):
    for i in range(y.size):
        e[i], f[i], g[i], h[i] = own_terms((a[i], b[i], c[i], d[i]), scale[i], rest[i], own[i], y[i])


@stage
def gradient_own(e, scale, rest, y, own, room, out, b, lo):
    """Write dL/dx_c = own (1 - p_c) for the true class, with own = p dL/dp of it, and -own p_c for the others."""
    at = slice(lo, lo + y.size)
    if e.shape[0] <= 4:
        first, second, third, fourth = four_exponentials(e, room[0])
        f, g, h, i = four_rows(out[b], at, room[1])
        _few_gradients_own(first, second, third, fourth, scale, rest, y, own, f, g, h, i)
        return
    for c in range(e.shape[0]):
        row, gradient = e[c], out[b, c, at]
        for i in range(y.size):
            gradient[i] = own_term(row[i], scale[i], rest[i], own[i], y[i] == c)


# --- any target, soft or weighted ------------------------------------------------------------------------------------


@stage
def _surprisals(activation, p, x, top, rest, positive, negative):
    """Put -log p into `positive`; and -log(1 - p), or for a softmax again -log p, into `negative`."""
    zero = p.dtype.type(0)
    for i in range(p.size):
        if activation == SOFTMAX:
            value = log1p_nonnegative(rest[i]) + (top[i] - x[i])
            positive[i] = value
            negative[i] = value
        else:
            above = x[i] > zero
            tail = log1p_nonnegative(exp_nonpositive(-x[i] if above else x[i]))
            positive[i] = tail if above else tail - x[i]
            negative[i] = tail + x[i] if above else tail


@sums_stage
def _weighted_sum(values, weights, w):
    """Return the sum of w * weights * values, where a weight of 0 gives 0 even for an infinite value."""
    zero = values.dtype.type(0)
    total = zero
    for i in range(values.size):
        weight = w[i] * weights[i]
        total += zero if weight == zero else weight * values[i]
    return total


@sums_stage
def product_sum(weights, w):
    """Return the sum of w * weights."""
    total = w.dtype.type(0)
    for i in range(w.size):
        total += w[i] * weights[i]
    return total


@stage
def surprisal_soft(activation, p, q, g, x, w, top, rest, gamma, every, positive, negative):
    """Return the sums of the focal terms of a class weighted by g, and by 1 - g (softmax: by 1, if `every`)."""
    one = p.dtype.type(1)
    _surprisals(activation, p, x, top, rest, positive, negative)
    focus(q, gamma, positive)
    hits = _weighted_sum(positive, g, w)
    misses = p.dtype.type(0)
    if activation != SOFTMAX:
        focus(p, gamma, negative)
        for i in range(w.size):
            positive[i] = one - g[i]
        misses = _weighted_sum(negative, positive, w)
    elif every:
        positive[:] = one
        misses = _weighted_sum(negative, positive, w)
    return hits, misses


@stage
def add_gradient_soft(activation, buffers, gamma, hits, misses):
    """Add dL/dx to h, given dL/dhits and dL/dmisses of each class, the sums of `surprisal_soft`."""
    p, q, g, x, h, w = (
        buffers.rows[P],
        buffers.rows[Q],
        buffers.rows[G],
        buffers.rows[X],
        buffers.rows[H],
        buffers.row[W],
    )
    positive, negative = buffers.row[OWN], buffers.row[FACTOR]
    one, zero = p.dtype.type(1), p.dtype.type(0)
    width = w.size
    for c in range(p.shape[0]):
        hit, miss = hits[c], misses[c]
        _surprisals(activation, p[c], x[c], buffers.row[TOP], buffers.row[REST], positive, negative)
        slope_of_surprisal(p[c], q[c], gamma, positive)
        if activation == SOFTMAX:
            for i in range(width):  # u = p dL/dp, in place of the logits
                slope = w[i] * (g[c, i] * hit * positive[i] - miss)
                x[c, i] = zero if w[i] == zero else slope
        else:
            slope_of_surprisal(q[c], p[c], gamma, negative)
            for i in range(width):
                up, down = g[c, i] * hit * positive[i] * q[c, i], (one - g[c, i]) * miss * negative[i] * p[c, i]
                h[c, i] += zero if w[i] == zero else w[i] * (up - down)
    if activation != SOFTMAX:
        return
    # dL/dx_c = u_c - p_c sum_k u_k = q_c u_c - p_c (sum over k != c). The u of the largest logit is not subtracted from
    # a sum that contains it, so that nothing cancels.
    largest, others = positive, negative
    largest[:] = zero
    others[:] = zero
    for c in range(p.shape[0]):
        for i in range(width):
            u = x[c, i]
            largest[i] += u if p[c, i] == buffers.row[SCALE, i] else zero
            others[i] += zero if p[c, i] == buffers.row[SCALE, i] else u
    for c in range(p.shape[0]):
        for i in range(width):
            u = x[c, i]
            own = u if p[c, i] == buffers.row[SCALE, i] else zero
            kept = q[c, i] * u if p[c, i] == buffers.row[SCALE, i] else u
            h[c, i] += kept - p[c, i] * (others[i] + (largest[i] - own))
