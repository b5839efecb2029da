"""The moments of two images in windows, and the correlations that they make.

Everything is computed in float64. Between the launches, the means are stored in float64, and all else in float32, or in
float64 if the images are. The module `correlation.py` of the CPU's kernels says why.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.window import found_at, in_range, numbers_at, read, voxels_at


class Moments(NamedTuple):
    """The moments of t and p in a window: the means, and the sums of squares and products relative to these."""

    mean_t: Any
    mean_p: Any
    tt: Any
    pp: Any
    tp: Any


class _Sums(NamedTuple):
    """What moments are computed from, summed over numbers.

    Attributes:
        t: the deviations of t from a number.
        p: those of p.
        tt: their squares and products; likewise `pp` and `tp`.
        kept_tt: the sums that each number stands for already; likewise `kept_pp` and `kept_tp`. They are float32 if the
            images are, because many numbers are converted to float64 more slowly than they are added.
    """

    t: Any
    p: Any
    tt: Any
    pp: Any
    tp: Any
    kept_tt: Any
    kept_pp: Any
    kept_tp: Any


class Score(NamedTuple):
    """The correlation of a window, and the terms of its gradients.

    Attributes:
        value: the correlation.
        a: A.
        by_p: B for the gradient in p.
        of_p: A and B times the deviations, for the gradient in p.
        by_t: B for the gradient in t.
        of_t: A and B times the deviations, for the gradient in t.
    """

    value: Any
    a: Any
    by_p: Any
    of_p: Any
    by_t: Any
    of_t: Any


@triton.jit
def pair(p, t, m, j_a, j_x, there, REAL: tl.constexpr):
    """Return the voxels of t and p."""
    return read(voxels_at(t, m, j_a, j_x), there, REAL), read(voxels_at(p, m, j_a, j_x), there, REAL)


@triton.jit
def _means(p, t, means, m, j_a, j_x, there, lanes, DEEP: tl.constexpr):
    if means is None:
        return pair(p, t, m, j_a, j_x, there, tl.float64)
    else:
        pointers = numbers_at(means, m, j_a, j_x, lanes, DEEP)
        return tl.load(pointers, there, 0.0), tl.load(pointers + means.step, there, 0.0)


@triton.jit
def _kept(sums, m, j_a, j_x, there, lanes, DEEP: tl.constexpr):
    pointers = numbers_at(sums, m, j_a, j_x, lanes, DEEP)
    return (
        tl.load(pointers, there, 0.0),
        tl.load(pointers + sums.step, there, 0.0),
        tl.load(pointers + 2 * sums.step, there, 0.0),
    )


@triton.jit
def _nothing(zero, REAL: tl.constexpr):
    none = zero.to(REAL)
    return _Sums(zero, zero, zero, zero, zero, none, none, none)


@triton.jit
def _added(sums, t, p, kept, weights, place):
    """Add deviations, and the sums that they stand for or None, with a weight or None."""
    sum_t, sum_p, tt, pp, tp, kept_tt, kept_pp, kept_tp = sums
    of_t, of_p = t, p
    if weights is not None:
        weight = tl.load(weights + place)
        of_t, of_p = weight * t, weight * p
    sum_t += of_t
    sum_p += of_p
    tt += of_t * t
    pp += of_p * p
    tp += of_t * p
    if kept is not None:
        if weights is not None:
            of_kept = weight.to(kept_tt.dtype)
            kept_tt += of_kept * kept[0]
            kept_pp += of_kept * kept[1]
            kept_tp += of_kept * kept[2]
        else:
            kept_tt += kept[0]
            kept_pp += kept[1]
            kept_tp += kept[2]
    return _Sums(sum_t, sum_p, tt, pp, tp, kept_tt, kept_pp, kept_tp)


@triton.jit
def _central(mean_t, mean_p, sums, total, count):
    """Return moments, given the numbers from which the deviations were taken.

    If all deviations are from the number in the middle, and this is an outlier, a sum of squares is up to `total` times
    that about the mean. Float64 has digits enough for this if the images are float32.
    """
    shift_t, shift_p = sums.t / total, sums.p / total
    return Moments(
        mean_t + shift_t,
        mean_p + shift_p,
        sums.kept_tt.to(tl.float64) + count * (sums.tt - sums.t * shift_t),
        sums.kept_pp.to(tl.float64) + count * (sums.pp - sums.p * shift_p),
        sums.kept_tp.to(tl.float64) + count * (sums.tp - sums.t * shift_p),
    )


@triton.jit
def moments_of(p, t, means, sums, lanes, m, weights, total, count, STEP: tl.constexpr, EXACT: tl.constexpr):
    """Return the moments in the windows around the lanes, which have `total` as sum of weights.

    Deviations are taken from the number in the middle. `EXACT` takes them from the mean, in a second loop.
    """
    here = in_range(m, lanes.march)
    mean_t, mean_p = _means(p, t, means, m, 0, 0, here, lanes, STEP.deep)
    zero = tl.zeros_like(mean_t)
    made = Moments(mean_t, mean_p, zero, zero, zero)
    if STEP.along * STEP.across * STEP.row == 1:
        if means is not None:
            tt, pp, tp = _kept(sums, m, 0, 0, here, lanes, STEP.deep)
            made = Moments(mean_t, mean_p, tt.to(tl.float64), pp.to(tl.float64), tp.to(tl.float64))
        return made
    else:
        for last in tl.static_range(0 if EXACT else 1, 2):
            # The sums that numbers stand for are needed once.
            kept = sums if last == 1 else None
            made = _moments_about(
                made.mean_t, made.mean_p, p, t, means, kept, lanes, m, weights, total, count, STEP, EXACT
            )
        return made


@triton.jit
def _moments_about(
    mean_t, mean_p, p, t, means, sums, lanes, m, weights, total, count, STEP: tl.constexpr, EXACT: tl.constexpr
):
    """Return the moments in windows, from the deviations from two numbers; `sums` may be None."""
    added = _nothing(tl.zeros_like(mean_t), tl.float64 if EXACT else tl.float32)
    for k_m in range(STEP.along):
        for k_a in range(STEP.across):
            for k_x in range(STEP.row):
                there, j_a, j_x = m + (k_m - STEP.along // 2), k_a - STEP.across // 2, k_x - STEP.row // 2
                found = found_at(lanes, there, j_a, j_x, STEP)
                of_t, of_p = _means(p, t, means, there, j_a, j_x, found, lanes, STEP.deep)
                kept = None
                if sums is not None:
                    kept = _kept(sums, there, j_a, j_x, found, lanes, STEP.deep)
                place = (k_m * STEP.across + k_a) * STEP.row + k_x
                added = _added(added, of_t - mean_t, of_p - mean_p, kept, weights, place)
    return _central(mean_t, mean_p, added, total, count)


@triton.jit
def merged(ring, weights, total, count, RING: tl.constexpr, EXACT: tl.constexpr):
    """Merge the moments of the steps in a ring."""
    mean_t, mean_p, tt, pp, tp = ring[RING // 2]
    zero = tl.zeros_like(mean_t)
    made = Moments(mean_t, mean_p, zero, zero, zero)
    for _ in tl.static_range(0 if EXACT else 1, 2):
        added = _nothing(zero, tt.dtype)
        for j in tl.static_range(RING):
            mean_t, mean_p, tt, pp, tp = ring[j]
            added = _added(added, mean_t - made.mean_t, mean_p - made.mean_p, (tt, pp, tp), weights, j)
        made = _central(made.mean_t, made.mean_p, added, total, count)
    return made


@triton.jit
def narrowed(moments, REAL: tl.constexpr):
    """Return moments whose sums are converted to the type in which a ring holds them."""
    mean_t, mean_p, tt, pp, tp = moments
    return Moments(mean_t, mean_p, tt.to(REAL), pp.to(REAL), tp.to(REAL))


@triton.jit
def score_of(moments, p, t, m, here, nu, delta, CLAMPED: tl.constexpr):
    """Return the correlation of the window around each lane, with the terms of its gradients."""
    of_t, of_p = pair(p, t, m, 0, 0, here, tl.float64)
    mean_t, mean_p, s, r, c = moments
    c += 0.0 * (mean_t + mean_p)  # a window of one voxel has no deviations, but may be NaN
    if CLAMPED:
        s_up, r_up = tl.maximum(s, delta), tl.maximum(r, delta)
        denominator = s_up * r_up
        slope_p, slope_t = tl.where(r > delta, s_up, 0.0), tl.where(s > delta, r_up, 0.0)
    else:
        denominator, slope_p, slope_t = s * r + delta, s, r
    inverse = 1.0 / denominator
    value = (c * c + nu) * inverse
    a = 2.0 * c * inverse
    by_p, by_t = -value * (slope_p * inverse), -value * (slope_t * inverse)
    dt, dp = mean_t - of_t, mean_p - of_p
    return Score(value, a, by_p, a * dt + 2.0 * by_p * dp, by_t, a * dp + 2.0 * by_t * dt)
