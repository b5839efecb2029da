"""The statistics of a segmentation in one pass over the voxels, and the gradient in one more.

A program takes a chunk of voxels of an item, and holds all classes of a tile in registers. Without a softmax, classes
are independent, and a program takes a group of them. Grid: chunks, items, groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.rows import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    OF_DISTANCE,
    TP,
    VOLUME,
)
from twinloss.fast.kernels.gpu.compiled.voxel_chunk import (
    ALL,
    INVALID,
    NONE,
    SIGMOID,
    SOFTMAX,
    SQUARED,
    chunk_of,
    distances_of,
    gradient_of,
    part_of,
    put,
    put_gradient,
    tile_of,
    voxels_of,
)
from twinloss.fast.kernels.gpu.compiled.voxel_terms import (
    Probabilities,
    confusion,
    confusion_slope,
    focused,
    focused_slope,
    sigmoid,
    slope_of,
    slopes_of,
    softmax,
    softmax_of_labels,
    surprisal_slope,
    weighed,
)

# A count of voxels takes 8 bits of an int32. A program adds at most as many tiles, so that it fits.
MOST_TILES = 64


class _Sums(NamedTuple):
    """The statistics of each class at each place of a tile, added over tiles."""

    tp: Any
    fp: Any
    fn: Any
    hits: Any
    misses: Any
    distance: Any
    nearness: Any


# --- sums -------------------------------------------------------------------------------------------------------------


@triton.jit
def sums(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, part_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item, KIND: tl.constexpr,
):  # fmt: skip
    """Write the statistics of a chunk of voxels to its place in `part`, (B, chunks, ROWS, C) float64.

    Rows that are not asked for stay as they are.
    """
    PADDED: tl.constexpr = KIND.padded
    BLOCK: tl.constexpr = KIND.block
    UNMASKED: tl.constexpr = KIND.labels and not KIND.masked
    COUNTED: tl.constexpr = UNMASKED and PADDED >= 16  # to spare registers
    HARD: tl.constexpr = UNMASKED and KIND.activation == SOFTMAX and not KIND.distant and KIND.surprisal != ALL
    chunk = chunk_of(x_ptr, y_ptr, N, per_program, x_item, x_class, y_item, y_class, mask_item, KIND)
    gamma = tl.full((), gamma, tl.float64).to(KIND.real)
    first = tl.program_id(2) * PADDED
    c = first + tl.arange(0, PADDED)
    wrong, zero = tl.zeros((BLOCK,), KIND.real), tl.zeros((PADDED, BLOCK), KIND.real)
    added, volume = _Sums(zero, zero, zero, zero, zero, zero, zero), zero
    if COUNTED:
        WORDS: tl.constexpr = PADDED // 4
        count, word = tl.zeros((WORDS, BLOCK), tl.int32), first // 4 + tl.arange(0, WORDS)
    for at in range(0, tl.minimum(chunk.voxels, per_program).to(tl.int32), BLOCK):
        voxels = voxels_of(chunk, mask_ptr, at, KIND)
        tile, y = tile_of(chunk, voxels, c, KIND), voxels.y
        wrong += tl.where(y == INVALID, float("nan"), 0.0)
        if HARD:
            added = _with_labels(added, tile, y, gamma, KIND)
        else:
            added = _with_tile(added, matrix_ptr, tile, voxels, c, gamma, KIND)
        if COUNTED:
            count += tl.where(word[:, None] == (y >> 2)[None, :], (1 << ((y & 3) * 8))[None, :], 0)
        else:
            volume += tile.g if HARD else voxels.weight[None, :] * tile.g

    part_ptr = part_of(part_ptr, KIND)
    _put_sums(part_ptr, added, wrong[None, :], c, KIND)  # NaN in all classes, if a voxel is invalid
    if COUNTED:
        for place in tl.static_range(4):
            put(part_ptr, VOLUME, (count >> (8 * place)) & 255, 4 * word + place, KIND)
    else:
        put(part_ptr, VOLUME, volume, c, KIND)


@triton.jit
def _with_labels(added, tile, y, gamma, KIND: tl.constexpr):
    """Add a tile under a softmax, whose target are labels, without a mask."""
    tp, fp, fn, hits, misses, distance, nearness = added
    own = tile.own
    p, true = softmax_of_labels(tile.x, y, own)
    if KIND.overlap != NONE:
        lack = true.q * true.q if KIND.overlap == SQUARED else true.q
        tp += tl.where(own, true.p[None, :], 0.0)
        fp += p * p if KIND.overlap == SQUARED else p
        fn += tl.where(own, lack[None, :], 0.0)
    if KIND.surprisal != NONE:
        hits += tl.where(own, focused(true.surprisal, true.q, gamma, KIND.focus)[None, :], 0.0)
    return _Sums(tp, fp, fn, hits, misses, distance, nearness)


@triton.jit
def _with_tile(added, matrix_ptr, tile, voxels, c, gamma, KIND: tl.constexpr):
    """Add a tile of any kind."""
    tp, fp, fn, hits, misses, distance, nearness = added
    g, weight, w = tile.g, voxels.weight, voxels.weight[None, :]
    if KIND.activation == SOFTMAX:
        of, _ = softmax(tile.x, voxels.y, c)
    elif KIND.activation == SIGMOID:
        of, against = sigmoid(tile.x, voxels.y)
    else:
        of = Probabilities(tile.x, 1.0 - tile.x, 0.0)
    if KIND.overlap != NONE:
        of_tp, of_fp, of_fn = confusion(of, g, weight, KIND)
        tp += of_tp
        fp += of_fp
        fn += of_fn
    if KIND.surprisal != NONE:
        hits += weighed(w * g, focused(of.surprisal, of.q, gamma, KIND.focus))
        if KIND.activation == SIGMOID:
            misses += weighed(w * (1.0 - g), focused(against, of.p, gamma, KIND.focus))
        elif KIND.surprisal == ALL:
            misses += weighed(w, of.surprisal)
    if KIND.distant:
        m = distances_of(matrix_ptr, voxels, c[:, None], KIND)
        far, near = tl.sum(m * of.p, 0) * weight, tl.sum((1.0 - m) * of.p, 0) * weight
        distance += tl.where(tile.own, far[None, :], 0.0)
        nearness += tl.where(tile.own, near[None, :], 0.0)
    return _Sums(tp, fp, fn, hits, misses, distance, nearness)


@triton.jit
def _put_sums(part_ptr, added, nan, c, KIND: tl.constexpr):
    if KIND.overlap != NONE:
        put(part_ptr, TP, added.tp + nan, c, KIND)
        put(part_ptr, FP, added.fp + nan, c, KIND)
        put(part_ptr, FN, added.fn + nan, c, KIND)
    if KIND.surprisal != NONE:
        put(part_ptr, HITS, added.hits + nan, c, KIND)
        put(part_ptr, MISSES, added.misses + nan, c, KIND)
    if KIND.distant:
        put(part_ptr, DISTANCE, added.distance + nan, c, KIND)
        put(part_ptr, NEARNESS, added.nearness + nan, c, KIND)


# --- gradient ---------------------------------------------------------------------------------------------------------


@triton.jit
def slopes(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, slopes_ptr, factor_ptr, out_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item, out_item, out_class, out_step: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Write dL/dx of a chunk of voxels, times a factor unless it is None, given the slopes of `rows.py`."""
    chunk = chunk_of(x_ptr, y_ptr, N, per_program, x_item, x_class, y_item, y_class, mask_item, KIND)
    gradient = gradient_of(out_ptr, slopes_ptr, factor_ptr, per_program, out_item, out_class, out_step, KIND)
    gamma = tl.full((), gamma, tl.float64).to(KIND.real)
    c = tl.program_id(2) * KIND.padded + tl.arange(0, KIND.padded)
    by_class = slopes_of(slopes_ptr, c[:, None], KIND)
    by_distance = 0.0
    if KIND.distant:
        by_distance = slope_of(slopes_ptr, OF_DISTANCE, c[:, None], KIND)
    for at in range(0, tl.minimum(chunk.voxels, per_program).to(tl.int32), KIND.block):
        voxels = voxels_of(chunk, mask_ptr, at, KIND)
        tile = tile_of(chunk, voxels, c, KIND)
        if KIND.activation == SOFTMAX:
            slope = _softmax_slope(by_class, by_distance, matrix_ptr, tile, voxels, c, gamma, KIND)
        else:
            slope = _independent_slope(by_class, tile, voxels, gamma, KIND)
        put_gradient(gradient, slope, voxels, c, tile.there, out_step, KIND)


@triton.jit
def _softmax_slope(by_class, by_distance, matrix_ptr, tile, voxels, c, gamma, KIND: tl.constexpr):
    """Return dL/dx under a softmax, without the factors of the gradient."""
    of, largest = softmax(tile.x, voxels.y, c)
    out = tl.zeros_like(of.p)
    if KIND.overlap != NONE or KIND.distant:
        h = out
        if KIND.overlap != NONE:
            h = confusion_slope(by_class, of, tile, voxels.weight, KIND)
        if KIND.distant:
            far = weighed(voxels.weight, tl.sum(tl.where(tile.own, by_distance, 0.0), 0))
            h += distances_of(matrix_ptr, voxels, c[:, None], KIND) * far[None, :]
        # Relative to the slope of the largest class, the sum has small p only: nothing cancels as p -> 1.
        of_largest = tl.sum(tl.where(largest, h, 0.0), 0)[None, :]
        d = tl.where(largest | (c >= KIND.classes)[:, None], 0.0, h - of_largest)
        out = of.p * (d - tl.sum(of.p * d, 0)[None, :])
    if KIND.by_class:
        # dL/dx_c = q_c u_c - p_c (the sum of the other u). The u of the largest class is not subtracted from a sum
        # that contains it, so that nothing cancels.
        u = surprisal_slope(by_class, of, tile.g, voxels.weight, gamma, KIND.focus)
        others = tl.sum(tl.where(largest, 0.0, u), 0)[None, :]
        of_largest = tl.sum(tl.where(largest, u, 0.0), 0)[None, :]
        out += tl.where(largest, of.q * u - of.p * others, u - of.p * (others + of_largest))
    elif KIND.surprisal != NONE:
        out += _own_slope(by_class, of, tile, voxels, gamma, KIND)
    return out


@triton.jit
def _own_slope(by_class, of, tile, voxels, gamma, KIND: tl.constexpr):
    """Return dL/dx from the surprisal of the true class."""
    ALONE: tl.constexpr = KIND.overlap == NONE and not KIND.distant  # no softmax of all classes is needed
    own = tile.own
    if ALONE:
        p, true = softmax_of_labels(tile.x, voxels.y, own)
    else:
        p_own, q_own = tl.sum(tl.where(own, of.p, 0.0), 0), tl.sum(tl.where(own, of.q, 0.0), 0)
        true = Probabilities(p_own, q_own, tl.sum(tl.where(own, of.surprisal, 0.0), 0))
    hits = tl.sum(tl.where(own, by_class.hits, 0.0), 0)
    u = weighed(voxels.weight, hits * focused_slope(true.surprisal, true.p, true.q, gamma, KIND.focus))[None, :]
    return tl.where(own, u * true.q[None, :], -(u * p)) if ALONE else u * tl.where(own, of.q, -of.p)


@triton.jit
def _independent_slope(by_class, tile, voxels, gamma, KIND: tl.constexpr):
    """Return dL/dx of independent classes, without the factors of the gradient."""
    x, g = tile.x, tile.g
    if KIND.activation == SIGMOID:
        of, against = sigmoid(x, voxels.y)
    else:
        of = Probabilities(x, 1.0 - x, 0.0)
    out = tl.zeros_like(of.p)
    if KIND.overlap != NONE:
        out = confusion_slope(by_class, of, tile, voxels.weight, KIND)
        if KIND.activation == SIGMOID:
            out = out * of.p * of.q
    if KIND.surprisal != NONE:
        up = g * by_class.hits * focused_slope(of.surprisal, of.p, of.q, gamma, KIND.focus) * of.q
        down = (1.0 - g) * by_class.misses * focused_slope(against, of.q, of.p, gamma, KIND.focus) * of.p
        out += weighed(voxels.weight[None, :], up - down)
    return out
