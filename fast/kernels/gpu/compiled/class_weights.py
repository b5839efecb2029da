"""The class weights of a fraction, and sums over classes that they weight."""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def weights(weights_ptr, rows, group, c, first, CLASSES: tl.constexpr):
    """Return the weights of a group, given those of the included classes, (rows, C'), where rows may be 1."""
    at = tl.minimum(group, rows - 1) * (CLASSES - first) + c - first
    return tl.load(weights_ptr + at, (c >= first) & (c < CLASSES), 0.0)


@triton.jit
def weights_of(volume, included, POWER: tl.constexpr, OFFSET: tl.constexpr, NORMALIZED: tl.constexpr):
    """Return the weights that `ClassWeights` of the contract defines."""
    base = volume + OFFSET
    weight = tl.zeros_like(volume) + 1.0
    if POWER == 1:
        weight = 1.0 / base
    elif POWER == 2:
        weight = 1.0 / (base * base)
    present = included & (tl.abs(weight) < INFINITY)
    weight = tl.where(present, weight, tl.max(tl.where(present, weight, 0.0), 0))
    if NORMALIZED:
        total = tl.sum(tl.where(included, weight, 0.0), 0)
        weight = tl.where(total > 0, weight / total, 0.0)
    return weight


@triton.jit
def pooled(overlap, errors, w_overlap, w_errors, included):
    """Return the weighted sums over the included classes, once for each class."""
    zero = tl.zeros_like(overlap)
    overlap = tl.sum(tl.where(included, w_overlap * overlap, 0.0), 0) + zero
    return overlap, tl.sum(tl.where(included, w_errors * errors, 0.0), 0) + zero
