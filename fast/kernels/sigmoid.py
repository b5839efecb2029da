"""A sigmoid against targets of 0 and 1, of which each channel stands for itself: sums of a channel, and its gradient.

The softmax of two classes is one, too: the sigmoid of their logits' difference.

All is counted from the truth: with s = x where the target is 1 and s = -x where it is 0, sigmoid(s) is what a voxel
grants the truth, and sigmoid(-s) what it withholds.
"""

from __future__ import annotations

from numba import njit

from twinloss.fast.kernels.elementary import exp_nonpositive, log1p_nonnegative
from twinloss.fast.kernels.tile import stage, sums_stage, taken


@njit(inline="always")
def _truth(logit, hit):
    """What a voxel grants the truth, and withholds; s, and exp(-|s|)."""
    zero, one = type(logit)(0), type(logit)(1)
    s = logit if hit else -logit
    right = s > zero
    e = exp_nonpositive(-s if right else s)
    large = one / (one + e)
    small = e * large
    return large if right else small, small if right else large, s, e


@stage
def difference(one, other, out):
    """Put one less the other into `out`."""
    for i in range(out.size):
        out[i] = one[i] - other[i]


@stage
def negate(values, out):
    """Put what is opposite into `out`."""
    for i in range(out.size):
        out[i] = -values[i]


@sums_stage
def overlap_sums(logits, y, number):
    """True and false positives, false and true negatives, where y == number is a target of 1; and voxels of 1, of 0."""
    zero, one = logits.dtype.type(0), logits.dtype.type(1)
    tp, fp, fn, tn, ones, zeros = zero, zero, zero, zero, zero, zero
    for i in range(y.size):
        hit, miss = y[i] == number, (y[i] != number) & (y[i] >= 0)
        granted, withheld, _, _ = _truth(logits[i], hit)
        tp += granted if hit else zero
        fp += withheld if miss else zero
        fn += withheld if hit else zero
        tn += granted if miss else zero
        ones += one if hit else zero
        zeros += one if miss else zero
    return tp, fp, fn, tn, ones, zeros


@stage
def overlap_gradient(logits, y, number, hits, misses, out):
    """dL/dx, given the slopes in p where the target is 1, and where it is 0."""
    for i in range(out.size):
        hit = y[i] == number
        granted, withheld, _, _ = _truth(logits[i], hit)
        out[i] = taken((hits if hit else misses) * granted * withheld, y, i)


@stage
def surprise(logits, y, number, granted, withheld, surprisals):
    """What voxels grant the truth and withhold from it; and -log of the first."""
    zero = granted.dtype.type(0)
    for i in range(y.size):
        granted[i], withheld[i], s, e = _truth(logits[i], y[i] == number)
        tail = log1p_nonnegative(e)
        surprisals[i] = tail if s > zero else tail - s


@sums_stage
def surprisal_sums(granted, withheld, values, y, number):
    """`overlap_sums`, and the values where the target is 1, and where it is 0."""
    zero, one = granted.dtype.type(0), granted.dtype.type(1)
    tp, fp, fn, tn, ones, zeros, hits, misses = zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(y.size):
        hit, miss = y[i] == number, (y[i] != number) & (y[i] >= 0)
        tp += granted[i] if hit else zero
        fp += withheld[i] if miss else zero
        fn += withheld[i] if hit else zero
        tn += granted[i] if miss else zero
        ones += one if hit else zero
        zeros += one if miss else zero
        hits += values[i] if hit else zero
        misses += values[i] if miss else zero
    return tp, fp, fn, tn, ones, zeros, hits, misses


@stage
def surprisal_gradient(granted, withheld, values, y, number, overlap, hits, misses, out):
    """dL/dx, given the slopes of `overlap_gradient`, if there are any (overlap is not None), and in the surprisals.

    Each slope comes as a pair of both. `values` are, of the surprisals of `surprise`, p dL/dp of the truth.
    """
    for i in range(out.size):
        hit = y[i] == number
        slope = (hits[1] if hit else -misses[1]) * values[i]
        if overlap is not None:
            slope += (hits[0] if hit else misses[0]) * granted[i]
        out[i] = taken(slope * withheld[i], y, i)
