"""Sums over the chunks of a segmentation, and the fraction of `engine/segmentation/fraction.py` with its slopes."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.class_weights import pooled, weights, weights_of
from twinloss.fast.kernels.gpu.compiled.elementary import compensated, store
from twinloss.fast.kernels.gpu.compiled.rows import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    OF_DISTANCE,
    OF_FP,
    OF_HIT,
    OF_HITS,
    OF_MISSES,
    OF_TP,
    ROWS,
    STRETCH,
    TP,
    TP_LESS_FN,
    VOLUME,
)

INFINITY = tl.constexpr(float("inf"))
# Slopes up to this size stay finite in float32 when a few of them are added.
LARGE = tl.constexpr(2.0**110)


class _Parts(NamedTuple):
    """The statistics of each chunk of voxels, or their sums as one chunk.

    Attributes:
        first: pointer to the first part.
        chunks: the number of chunks of an item.
        item_step: the distance of items in memory.
        row_step: that of rows.
    """

    first: Any
    chunks: Any
    item_step: Any
    row_step: Any


class _Terms(NamedTuple):
    """The factors of the statistics in a fraction, its ν and its δ, all float64.

    Attributes:
        overlap: the factor of the overlap.
        errors: that of the errors.
        others: that of further errors.
        nu: ν.
        delta: δ.
    """

    overlap: Any
    errors: Any
    others: Any
    nu: Any
    delta: Any


@triton.jit
def _terms(overlap, errors, others, nu, delta):
    return _Terms(
        tl.full((), overlap, tl.float64),
        tl.full((), errors, tl.float64),
        tl.full((), others, tl.float64),
        tl.full((), nu, tl.float64),
        tl.full((), delta, tl.float64),
    )


@triton.jit
def _summed(parts, item, row, c, CLASSES: tl.constexpr, TOGETHER: tl.constexpr):
    """Return a statistic of an item, given the part of each chunk of voxels, which are added in order."""
    total, lost = tl.zeros(c.shape, tl.float64), tl.zeros(c.shape, tl.float64)
    part_ptr = parts.first
    part_ptr += tl.full((), parts.item_step, tl.int64) * item + tl.full((), parts.row_step, tl.int64) * row
    for first in range(0, parts.chunks, TOGETHER):
        k = first + tl.arange(0, TOGETHER)
        there = (k < parts.chunks)[:, None] & (c < CLASSES)[None, :]
        at = k.to(tl.int64)[:, None] * (ROWS * CLASSES) + c[None, :]
        total, lost = compensated(total, lost, tl.sum(tl.load(part_ptr + at, there, 0.0).to(tl.float64), 0))
    return total


@triton.jit
def _overlap_and_errors(
    parts, terms, first, stop, c, OVERLAP: tl.constexpr, ERRORS: tl.constexpr, OTHERS: tl.constexpr,
    CLASSES: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Return the overlap and the errors of the items from `first` to `stop`, times their factors."""
    overlap, errors = tl.zeros(c.shape, tl.float64), tl.zeros(c.shape, tl.float64)
    for item in range(first, stop):
        overlap += terms.overlap * _summed(parts, item, OVERLAP, c, CLASSES, TOGETHER)
        errors += terms.errors * _summed(parts, item, ERRORS, c, CLASSES, TOGETHER)
        if OTHERS is not None:
            errors += terms.others * _summed(parts, item, OTHERS, c, CLASSES, TOGETHER)
    return overlap, errors


@triton.jit
def _volume(parts, first, stop, c, CLASSES: tl.constexpr, TOGETHER: tl.constexpr):
    """Return the volume of the items from `first` to `stop`."""
    volume = tl.zeros(c.shape, tl.float64)
    for item in range(first, stop):
        volume += _summed(parts, item, VOLUME, c, CLASSES, TOGETHER)
    return volume


@triton.jit
def add(
    part_ptr, sums_ptr, chunks, USED: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr, TOGETHER: tl.constexpr
):
    """Write the statistics, (ROWS, B, C), given their parts, (B, chunks, ROWS, C), which are added in order.

    USED has a bit for each row that the parts have; the others become 0. Grid: items, groups of rows and classes.
    """
    item, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    row = column // CLASSES
    there = column < ROWS * CLASSES
    part_ptr += item * chunks * (ROWS * CLASSES)
    total, lost = tl.zeros((WIDTH,), tl.float64), tl.zeros((WIDTH,), tl.float64)
    for first in range(0, chunks, TOGETHER):
        k = first + tl.arange(0, TOGETHER)
        used = (k < chunks)[:, None] & (there & (((USED >> row) & 1) != 0))[None, :]
        at = k.to(tl.int64)[:, None] * (ROWS * CLASSES) + column[None, :]
        total, lost = compensated(total, lost, tl.sum(tl.load(part_ptr + at, used, 0.0).to(tl.float64), 0))
    tl.store(sums_ptr + (row * tl.num_programs(0) + item) * CLASSES + column % CLASSES, total, there)


@triton.jit
def _larger(size, slope):
    """Return the larger of `size` and of the largest finite slope."""
    slope = tl.abs(slope)
    return tl.maximum(size, tl.max(tl.where(slope < INFINITY, slope, 0.0), 0))


@triton.jit
def _put(slopes_ptr, row, there, tp, fp, hit, hits, misses, far):
    """Write the slopes of an item, (SLOPES, B, C), in the type of the pointer; `row` is the distance between rows.

    If a class is almost absent, and there is no smoothing, they may overflow float32, but the gradient does not.
    """
    stretch = tl.full((), 1.0, tl.float64)
    if slopes_ptr.dtype.element_ty != tl.float64:
        size = _larger(_larger(_larger(stretch, tp), fp), hit)
        size = _larger(_larger(_larger(size, hits), misses), far)
        stretch = tl.maximum(size / LARGE, 1.0)
    scale = 1.0 / stretch
    store(slopes_ptr + OF_TP * row, tp * scale, there)
    store(slopes_ptr + OF_FP * row, fp * scale, there)
    store(slopes_ptr + OF_HIT * row, hit * scale, there)
    store(slopes_ptr + OF_HITS * row, hits * scale, there)
    store(slopes_ptr + OF_MISSES * row, misses * scale, there)
    store(slopes_ptr + OF_DISTANCE * row, far * scale, there)
    store(slopes_ptr + STRETCH * row, stretch + tl.zeros_like(tp), there)


@triton.jit
def prepare(
    upstream_ptr, slopes_ptr, SQUARED: tl.constexpr, CLASSES: tl.constexpr, PADDED: tl.constexpr, TOGETHER: tl.constexpr
):
    """Write the slopes that the gradient takes, given dL/d(statistics), (ROWS, B, C) float64. Grid: items."""
    c = tl.arange(0, PADDED)
    there = c < CLASSES
    row = tl.num_programs(0).to(tl.int64) * CLASSES
    at = tl.program_id(0).to(tl.int64) * CLASSES + c
    upstream_ptr += at
    tp, fp = tl.load(upstream_ptr + TP * row, there, 0.0), tl.load(upstream_ptr + FP * row, there, 0.0)
    fn, lost = tl.load(upstream_ptr + FN * row, there, 0.0), tl.load(upstream_ptr + TP_LESS_FN * row, there, 0.0)
    hits, misses = tl.load(upstream_ptr + HITS * row, there, 0.0), tl.load(upstream_ptr + MISSES * row, there, 0.0)
    far, near = tl.load(upstream_ptr + DISTANCE * row, there, 0.0), tl.load(upstream_ptr + NEARNESS * row, there, 0.0)
    hit = tp - (2.0 if SQUARED else 1.0) * fn
    hit += tl.where(tl.abs(lost) < INFINITY, lost, 0.0)  # it is not finite where a slope is infinite
    _put(slopes_ptr + at, row, there, tp, fp, hit, hits, misses, far - near)


@triton.jit
def _loss_and_slopes(overlap, errors, share, w_overlap, w_errors, terms, COMPLEMENTARY: tl.constexpr):
    """Return the fraction, and its slopes in TP, in FP and in TP less FN, times a share.

    The slopes in TP and FN may cancel, so that their difference is a formula of its own.
    """
    a, b, nu, delta = terms.overlap, terms.errors, terms.nu, terms.delta
    denominator = overlap + errors + delta
    loss = (errors + (delta - nu)) / denominator
    by_denominator = share / denominator
    d = terms.others if COMPLEMENTARY else 2.0 * terms.others
    both = (a * (errors + delta) + d * overlap + (d - a) * nu) / denominator
    tp = w_overlap * (a * (-by_denominator * loss))
    fp = w_errors * (b * (by_denominator * ((overlap + nu) / denominator)))
    return loss, tp, fp, w_overlap * (-by_denominator * both)


@triton.jit
def fraction(
    part_ptr, w_overlap_ptr, w_errors_ptr, slopes_ptr, loss_ptr, items, chunks, item_step, row_step,
    rows_overlap, rows_errors,
    in_overlap: tl.float64, in_errors: tl.float64, in_others: tl.float64, nu: tl.float64, delta: tl.float64,
    OVERLAP: tl.constexpr, ERRORS: tl.constexpr, OTHERS: tl.constexpr, FIRST: tl.constexpr, BATCH: tl.constexpr,
    COMPLEMENTARY: tl.constexpr, MEAN: tl.constexpr, POWER: tl.constexpr, OFFSET: tl.constexpr,
    NORMALIZED: tl.constexpr, FOREGROUND: tl.constexpr, CLASSES: tl.constexpr, PADDED: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Write the mean or the sum of the fraction, and the slopes that its gradient takes.

    The parts are as for `add`, or their sums, with one chunk. OVERLAP, ERRORS and OTHERS are rows: TP, FP and FN; or
    the nearness, the distance and None. Each has a factor. The class weights of overlap and errors, (1 or B, C')
    float64, may be None. If POWER is not None, they are those of `ClassWeights` of the contract.
    """
    POOLED: tl.constexpr = w_overlap_ptr is not None or POWER is not None
    parts = _Parts(part_ptr, chunks, item_step, row_step)
    terms = _terms(in_overlap, in_errors, in_others, nu, delta)
    c = tl.arange(0, PADDED)
    there, included = c < CLASSES, (c >= FIRST) & (c < CLASSES)
    groups, together = (1, items) if BATCH else (items, 1)
    count = tl.full((), groups, tl.float64) * (1 if POOLED else CLASSES - FIRST)
    share = 1.0 / (count if MEAN else tl.full((), 1.0, tl.float64))
    row = tl.full((), items, tl.int64) * CLASSES
    zero = tl.zeros((PADDED,), tl.float64)
    total = tl.full((), 0.0, tl.float64)
    for group in range(0, groups):
        start, stop = group * together, (group + 1) * together
        overlap, errors = _overlap_and_errors(parts, terms, start, stop, c, OVERLAP, ERRORS, OTHERS, CLASSES, TOGETHER)
        w_overlap, w_errors = zero + 1.0, zero + 1.0
        if POWER is not None:
            volume = _volume(parts, start, stop, c, CLASSES, TOGETHER)
            w_errors = weights_of(volume, included, POWER, OFFSET, NORMALIZED)
            w_overlap = tl.where(c == 0, 0.0, w_errors) if FOREGROUND else w_errors
        elif POOLED:
            w_overlap = weights(w_overlap_ptr, rows_overlap, group, c, FIRST, CLASSES)
            w_errors = weights(w_errors_ptr, rows_errors, group, c, FIRST, CLASSES)
        if POOLED:
            overlap, errors = pooled(overlap, errors, w_overlap, w_errors, included)
        loss, tp, fp, hit = _loss_and_slopes(overlap, errors, share, w_overlap, w_errors, terms, COMPLEMENTARY)
        # One of the classes stands for all that are pooled.
        total += tl.sum(tl.where((c == FIRST) if POOLED else included, loss, 0.0), 0)
        tp, fp, hit = tl.where(included, tp, 0.0), tl.where(included, fp, 0.0), tl.where(included, hit, 0.0)
        far = zero
        if OVERLAP != TP:  # the overlap is the nearness, and the errors are the distance
            tp, fp, hit, far = zero, zero, zero, fp - tp
        for item in range(start, stop):
            _put(slopes_ptr + tl.full((), CLASSES, tl.int64) * item + c, row, there, tp, fp, hit, zero, zero, far)
    store(loss_ptr, total / count if MEAN else total)


@triton.jit
def _factors(factors_ptr, row: tl.constexpr, c, CLASSES: tl.constexpr):
    """Return the factor of each class, and which classes have one."""
    factor = tl.load(factors_ptr + row * CLASSES + c, c < CLASSES, float("nan"))
    return tl.where(factor == factor, factor, 0.0), factor == factor


@triton.jit
def _counted(parts, first, stop, factor, c, CLASSES: tl.constexpr, TOGETHER: tl.constexpr):
    """Return the weighted volume of the items from `first` to `stop`, or 1 if there is none."""
    count = tl.full((), 0.0, tl.float64)
    for item in range(first, stop):
        count += tl.sum(factor * _summed(parts, item, VOLUME, c, CLASSES, TOGETHER), 0)
    return tl.where(count > 0, count, 1.0)


@triton.jit
def compound(
    part_ptr, factors_ptr, slopes_ptr, loss_ptr, items, chunks, item_step, row_step,
    in_overlap: tl.float64, in_errors: tl.float64, in_others: tl.float64, nu: tl.float64, delta: tl.float64,
    FRACTION: tl.constexpr, BATCH: tl.constexpr, COMPLEMENTARY: tl.constexpr, COUNTED: tl.constexpr,
    BY_ITEM: tl.constexpr, FIRST: tl.constexpr, POWER: tl.constexpr, OFFSET: tl.constexpr, NORMALIZED: tl.constexpr,
    CLASSES: tl.constexpr, PADDED: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Write a loss of two terms, and the slopes that its gradient takes: see `CompoundPlan` of the contract.

    The parts are as for `fraction`. The factors, (4, C) float64, are those of fractions, hits, misses and volumes; NaN
    leaves a class out.
    """
    parts = _Parts(part_ptr, chunks, item_step, row_step)
    terms = _terms(in_overlap, in_errors, in_others, nu, delta)
    c = tl.arange(0, PADDED)
    there = c < CLASSES
    of_fraction, included = _factors(factors_ptr, 0, c, CLASSES)
    of_hits, with_hits = _factors(factors_ptr, 1, c, CLASSES)
    of_misses, with_misses = _factors(factors_ptr, 2, c, CLASSES)
    of_volume, _ = _factors(factors_ptr, 3, c, CLASSES)
    groups, together = (1, items) if BATCH else (items, 1)
    row = tl.full((), items, tl.int64) * CLASSES
    zero = tl.zeros((PADDED,), tl.float64)
    total, count = tl.full((), 0.0, tl.float64), tl.full((), 1.0, tl.float64)
    if COUNTED and not BY_ITEM:
        count = _counted(parts, 0, items, of_volume, c, CLASSES, TOGETHER)
    for group in range(0, groups):
        tp, fp, hit = zero, zero, zero
        start, stop = group * together, (group + 1) * together
        if FRACTION:
            overlap, errors = _overlap_and_errors(parts, terms, start, stop, c, TP, FP, FN, CLASSES, TOGETHER)
            weight, counted = zero + 1.0, included
            if POWER is not None:
                volume = _volume(parts, start, stop, c, CLASSES, TOGETHER)
                weight = weights_of(volume, included, POWER, OFFSET, NORMALIZED)
                overlap, errors = pooled(overlap, errors, weight, weight, included)
                counted = c == FIRST  # one of the classes stands for all, which are pooled
            loss, tp, fp, hit = _loss_and_slopes(overlap, errors, of_fraction, weight, weight, terms, COMPLEMENTARY)
            tp, fp, hit = tl.where(included, tp, 0.0), tl.where(included, fp, 0.0), tl.where(included, hit, 0.0)
            total += tl.sum(tl.where(counted, of_fraction * loss, 0.0), 0)
        for item in range(start, stop):
            hits = _summed(parts, item, HITS, c, CLASSES, TOGETHER)
            misses = _summed(parts, item, MISSES, c, CLASSES, TOGETHER)
            of_item = tl.where(with_hits, of_hits * hits, 0.0) + tl.where(with_misses, of_misses * misses, 0.0)
            if BY_ITEM:
                count = _counted(parts, item, item + 1, of_volume, c, CLASSES, TOGETHER)
            share = 1.0 / count
            total += tl.sum(of_item, 0) * share
            at = slopes_ptr + tl.full((), CLASSES, tl.int64) * item + c
            _put(at, row, there, tp, fp, hit, of_hits * share, of_misses * share, zero)
    store(loss_ptr, total)
