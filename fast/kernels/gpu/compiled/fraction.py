"""Sums over the chunks of a segmentation, and the fraction of `engine/segmentation/fraction.py` with its slopes."""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels import statistic_rows
from twinloss.fast.kernels.gpu.compiled.elementary import store

ROWS = tl.constexpr(len(statistic_rows.ROWS))
TP, FN, VOLUME = (tl.constexpr(row) for row in (statistic_rows.TP, statistic_rows.FN, statistic_rows.VOLUME))
TP_LESS_FN = tl.constexpr(statistic_rows.TP_LESS_FN)


@triton.jit
def _summed(part_ptr, row, chunks, c, CLASSES: tl.constexpr, TOGETHER: tl.constexpr):
    """Return a statistic of an item, given the part of each chunk, (chunks, ROWS, C), which are added in order."""
    total = tl.zeros(c.shape, tl.float64)
    for first in range(0, chunks, TOGETHER):
        k = first + tl.arange(0, TOGETHER)
        at = (k.to(tl.int64)[:, None] * ROWS + row) * CLASSES + c[None, :]
        total += tl.sum(tl.load(part_ptr + at, (k < chunks)[:, None] & (c < CLASSES)[None, :], 0.0).to(tl.float64), 0)
    return total


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
    total = tl.zeros((WIDTH,), tl.float64)
    for first in range(0, chunks, TOGETHER):
        k = first + tl.arange(0, TOGETHER)
        used = (k < chunks)[:, None] & (there & (((USED >> row) & 1) != 0))[None, :]
        at = k.to(tl.int64)[:, None] * (ROWS * CLASSES) + column[None, :]
        total += tl.sum(tl.load(part_ptr + at, used, 0.0).to(tl.float64), 0)
    tl.store(sums_ptr + (row * tl.num_programs(0) + item) * CLASSES + column % CLASSES, total, there)


@triton.jit
def _weights(weights_ptr, rows, group, c, first, CLASSES: tl.constexpr):
    """Return the weights of a group, given those of the included classes, (rows, C'), where rows may be 1."""
    at = tl.minimum(group, rows - 1) * (CLASSES - first) + c - first
    return tl.load(weights_ptr + at, (c >= first) & (c < CLASSES), 0.0)


@triton.jit
def fraction(
    part_ptr, w_overlap_ptr, w_errors_ptr, slopes_ptr, loss_ptr, items, chunks, rows_overlap, rows_errors,
    in_overlap: tl.float64, in_errors: tl.float64, in_others: tl.float64, nu: tl.float64, delta: tl.float64,
    OVERLAP: tl.constexpr, ERRORS: tl.constexpr, OTHERS: tl.constexpr, FIRST: tl.constexpr, BATCH: tl.constexpr,
    COMPLEMENTARY: tl.constexpr, MEAN: tl.constexpr, CLASSES: tl.constexpr, PADDED: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Write the mean or the sum of the fraction, and its slopes in the statistics, (ROWS, B, C) float64.

    The parts are as for `add`. OVERLAP, ERRORS and OTHERS are rows: the overlap, the errors, and further errors or
    None; each has a factor. The class weights of overlap and errors are (1 or B, C') float64, or None.
    """
    a, b = tl.full((), in_overlap, tl.float64), tl.full((), in_errors, tl.float64)
    further = tl.full((), in_others, tl.float64)
    nu, delta = tl.full((), nu, tl.float64), tl.full((), delta, tl.float64)
    POOLED: tl.constexpr = w_overlap_ptr is not None
    c = tl.arange(0, PADDED)
    there, included = c < CLASSES, (c >= FIRST) & (c < CLASSES)
    groups, together = (1, items) if BATCH else (items, 1)
    count = tl.full((), groups, tl.float64) * (1 if POOLED else CLASSES - FIRST)
    share = 1.0 / (count if MEAN else tl.full((), 1.0, tl.float64))
    step = tl.full((), chunks, tl.int64) * (ROWS * CLASSES)
    row = tl.full((), items, tl.int64) * CLASSES
    zero = tl.zeros((PADDED,), tl.float64)
    total = tl.full((), 0.0, tl.float64)
    for group in range(0, groups):
        overlap, errors = zero, zero
        for item in range(group * together, (group + 1) * together):
            overlap += a * _summed(part_ptr + item * step, OVERLAP, chunks, c, CLASSES, TOGETHER)
            errors += b * _summed(part_ptr + item * step, ERRORS, chunks, c, CLASSES, TOGETHER)
            if OTHERS is not None:
                errors += further * _summed(part_ptr + item * step, OTHERS, chunks, c, CLASSES, TOGETHER)
        w_overlap, w_errors = zero + 1.0, zero + 1.0
        if POOLED:
            w_overlap = _weights(w_overlap_ptr, rows_overlap, group, c, FIRST, CLASSES)
            w_errors = _weights(w_errors_ptr, rows_errors, group, c, FIRST, CLASSES)
            overlap = tl.sum(tl.where(included, w_overlap * overlap, 0.0), 0) + zero
            errors = tl.sum(tl.where(included, w_errors * errors, 0.0), 0) + zero
        denominator = overlap + errors + delta
        loss = (errors + (delta - nu)) / denominator
        by_denominator = share / denominator
        of_overlap = -by_denominator * loss
        of_errors = by_denominator * ((overlap + nu) / denominator)
        # One of the classes stands for all that are pooled.
        counted = (c == FIRST) if POOLED else included
        total += tl.sum(tl.where(counted, loss, 0.0), 0)

        for item in range(group * together, (group + 1) * together):
            of_item = slopes_ptr + tl.full((), CLASSES, tl.int64) * item + c
            tl.store(of_item + ERRORS * row, tl.where(included, w_errors * (b * of_errors), 0.0), there)
            if OVERLAP != TP:
                tl.store(of_item + OVERLAP * row, tl.where(included, w_overlap * (a * of_overlap), 0.0), there)
            else:
                # The slopes in TP and FN may cancel. `statistic_rows.py` says where their difference stands.
                d = further if COMPLEMENTARY else 2.0 * further
                both = -by_denominator * ((a * (errors + delta) + d * overlap + (d - a) * nu) / denominator)
                of_tp, of_fn, lost = w_overlap * both, zero, zero
                if not COMPLEMENTARY:
                    lost = of_tp
                    of_tp, of_fn = w_overlap * (a * of_overlap), w_errors * (further * of_errors)
                    lost -= of_tp - 2.0 * of_fn
                tl.store(of_item + TP * row, tl.where(included, of_tp, 0.0), there)
                tl.store(of_item + FN * row, tl.where(included, of_fn, 0.0), there)
                tl.store(of_item + TP_LESS_FN * row, tl.where(included, lost, 0.0), there)
    store(loss_ptr, total / count if MEAN else total)
