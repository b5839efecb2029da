"""The statistics of a softmax of any number of classes, and their gradient.

A program takes one tile of voxels, and loops over a few classes at a time. It reads the logits once for the largest one
and the sum of the exponentials, and again for what depends on these; the caches hold them in between. Grid: chunks,
items.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import log1p
from twinloss.fast.kernels.gpu.compiled.rows import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    OF_DISTANCE,
    OF_HITS,
    TP,
    VOLUME,
)
from twinloss.fast.kernels.gpu.compiled.voxel_chunk import (
    ALL,
    EXCLUDED,
    INVALID,
    LOWEST,
    NONE,
    Tile,
    chunk_of,
    distances_of,
    gradient_of,
    logits_of,
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
    slope_of,
    slopes_of,
    surprisal_slope,
    weighed,
)


class _Softmax(NamedTuple):
    """What the probabilities of a voxel are computed from.

    Attributes:
        top: the largest logit.
        first: its class, the first one if there are several.
        rest: the sum of the exponentials of the others.
        scale: 1 / (1 + rest), or 0 in excluded voxels.
        own: the logit of the true class.
    """

    top: Any
    first: Any
    rest: Any
    scale: Any
    own: Any


# --- probabilities ----------------------------------------------------------------------------------------------------


@triton.jit
def _softmax(chunk, voxels, KIND: tl.constexpr):
    """Return the softmax of some voxels."""
    zero = tl.zeros_like(voxels.weight)
    top, first, rest, own = zero + LOWEST, tl.zeros_like(voxels.y), zero, zero
    for lowest in range(0, KIND.classes, KIND.padded):
        c = lowest + tl.arange(0, KIND.padded)
        x = logits_of(chunk, voxels, c, KIND)
        here = tl.max(x, 0)
        number = tl.min(tl.where(x == here[None, :], c[:, None], 2147483647), 0)
        newer = here > top
        higher = tl.where(newer, here, top)
        excluded = (x == LOWEST) | (newer[None, :] & (c[:, None] == number[None, :]))
        added = tl.sum(tl.where(excluded, 0.0, tl.exp(x - higher[None, :])), 0)
        # The exponential of the largest logit so far was 1, and becomes one of the others.
        rest = tl.where(newer, (1.0 + rest) * tl.exp(top - higher), rest) + added
        top, first = higher, tl.where(newer, number, first)
        own += tl.sum(tl.where(c[:, None] == voxels.y[None, :], x, 0.0), 0)
    # The last difference is 0, or NaN where the largest logit is infinite, so that the softmax is NaN.
    rest = rest + (top - top)
    return _Softmax(top, first, rest, tl.where(voxels.y == EXCLUDED, 0.0, 1.0 / (1.0 + rest)), own)


@triton.jit
def _probabilities(x, c, softmax):
    """Return the probabilities of the classes c, whose logits are x, and which of them is the largest."""
    largest = c == softmax.first[None, :]
    p = tl.exp(x - softmax.top[None, :]) * softmax.scale[None, :]
    q = tl.where(largest, (softmax.rest * softmax.scale)[None, :], 1.0 - p)
    return Probabilities(p, q, log1p(softmax.rest)[None, :] + (softmax.top[None, :] - x)), largest


@triton.jit
def _of_own(y, softmax):
    """Return the probabilities of the true class."""
    p = tl.exp(softmax.own - softmax.top) * softmax.scale
    q = tl.where(softmax.first == y, softmax.rest * softmax.scale, 1.0 - p)
    return Probabilities(p, q, log1p(softmax.rest) + (softmax.top - softmax.own))


# --- sums -------------------------------------------------------------------------------------------------------------


@triton.jit
def sums_of_many(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, part_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item, KIND: tl.constexpr,
):  # fmt: skip
    """Do what `sums` does, a few classes at a time."""
    chunk = chunk_of(x_ptr, y_ptr, N, per_program, x_item, x_class, y_item, y_class, mask_item, KIND)
    voxels = voxels_of(chunk, mask_ptr, 0, KIND)
    softmax = _softmax(chunk, voxels, KIND)
    gamma = tl.full((), gamma, tl.float64).to(KIND.real)
    true, w = _of_own(voxels.y, softmax), voxels.weight[None, :]
    hit = weighed(voxels.weight, focused(true.surprisal, true.q, gamma, KIND.focus))
    far, near = tl.zeros_like(voxels.weight), tl.zeros_like(voxels.weight)
    nan = tl.where(voxels.y == INVALID, float("nan"), 0.0)[None, :]  # in all classes
    part_ptr = part_of(part_ptr, KIND)
    for lowest in range(0, KIND.classes, KIND.padded):
        c = lowest + tl.arange(0, KIND.padded)
        tile = tile_of(chunk, voxels, c, KIND)
        of, _ = _probabilities(tile.x, c[:, None], softmax)
        if KIND.overlap != NONE:
            tp, fp, fn = confusion(of, tile.g, voxels.weight, KIND)
            put(part_ptr, TP, tp + nan, c, KIND)
            put(part_ptr, FP, fp + nan, c, KIND)
            put(part_ptr, FN, fn + nan, c, KIND)
        if KIND.surprisal != NONE:
            if KIND.labels:
                put(part_ptr, HITS, tl.where(tile.own, hit[None, :], 0.0) + nan, c, KIND)
            else:
                put(part_ptr, HITS, weighed(w * tile.g, focused(of.surprisal, of.q, gamma, KIND.focus)), c, KIND)
            put(part_ptr, MISSES, weighed(w if KIND.surprisal == ALL else w * 0.0, of.surprisal), c, KIND)
        if KIND.distant:
            m = distances_of(matrix_ptr, voxels, c[:, None], KIND)
            far += tl.sum(m * of.p, 0)
            near += tl.sum((1.0 - m) * of.p, 0)
        put(part_ptr, VOLUME, w * tile.g, c, KIND)
    if KIND.distant:
        for lowest in range(0, KIND.classes, KIND.padded):
            c = lowest + tl.arange(0, KIND.padded)
            own = c[:, None] == voxels.y[None, :]
            put(part_ptr, DISTANCE, tl.where(own, (far * voxels.weight)[None, :], 0.0) + nan, c, KIND)
            put(part_ptr, NEARNESS, tl.where(own, (near * voxels.weight)[None, :], 0.0) + nan, c, KIND)


# --- gradient ---------------------------------------------------------------------------------------------------------


@triton.jit
def slopes_of_many(
    x_ptr, y_ptr, mask_ptr, matrix_ptr, slopes_ptr, factor_ptr, out_ptr, N, per_program, gamma: tl.float64,
    x_item, x_class, y_item, y_class, mask_item, out_item, out_class, out_step: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Do what `slopes` does, a few classes at a time."""
    OF_CLASSES: tl.constexpr = KIND.overlap != NONE or KIND.distant
    chunk = chunk_of(x_ptr, y_ptr, N, per_program, x_item, x_class, y_item, y_class, mask_item, KIND)
    gradient = gradient_of(out_ptr, slopes_ptr, factor_ptr, per_program, out_item, out_class, out_step, KIND)
    voxels = voxels_of(chunk, mask_ptr, 0, KIND)
    softmax = _softmax(chunk, voxels, KIND)
    gamma = tl.full((), gamma, tl.float64).to(KIND.real)
    true_class = tl.maximum(voxels.y, 0)
    far, u_own = tl.zeros_like(voxels.weight), tl.zeros_like(voxels.weight)
    if KIND.distant:
        far = weighed(voxels.weight, slope_of(slopes_ptr, OF_DISTANCE, true_class, KIND))
    if KIND.surprisal != NONE and not KIND.by_class:
        true, hits = _of_own(voxels.y, softmax), slope_of(slopes_ptr, OF_HITS, true_class, KIND)
        u_own = weighed(voxels.weight, hits * focused_slope(true.surprisal, true.p, true.q, gamma, KIND.focus))
    h_first, u_first, mean, others = far[None, :], far[None, :], far, far
    if OF_CLASSES or KIND.by_class:
        h_first, u_first, mean, others = _over_classes(slopes_ptr, matrix_ptr, chunk, voxels, softmax, far, gamma, KIND)
    for lowest in range(0, KIND.classes, KIND.padded):
        c = lowest + tl.arange(0, KIND.padded)
        tile = tile_of(chunk, voxels, c, KIND)
        of, largest = _probabilities(tile.x, c[:, None], softmax)
        h, u = _slopes_in_p(slopes_ptr, matrix_ptr, c[:, None], tile, voxels, of, far, gamma, KIND)
        out = tl.zeros_like(of.p)
        if OF_CLASSES:
            out = of.p * (tl.where(largest, 0.0, h - h_first) - mean[None, :])
        if KIND.by_class:
            out += tl.where(largest, of.q * u - of.p * others[None, :], u - of.p * (others[None, :] + u_first))
        elif KIND.surprisal != NONE:
            out += u_own[None, :] * tl.where(tile.own, of.q, -of.p)
        put_gradient(gradient, out, voxels, c, tile.there, out_step, KIND)


@triton.jit
def _slopes_in_p(slopes_ptr, matrix_ptr, c, tile, voxels, of, far, gamma, KIND: tl.constexpr):
    """Return dL/dp of some classes from overlaps and distances, and p dL/dp from their surprisals if all have one.

    c has the shape (classes, 1), or (1, voxels) for one class of each voxel. `far` is the slope in the distance.
    """
    h, u = 0.0 * of.p, 0.0 * of.p
    by_class = slopes_of(slopes_ptr, c, KIND)
    if KIND.overlap != NONE:
        h = confusion_slope(by_class, of, tile, voxels.weight, KIND)
    if KIND.distant:
        h += distances_of(matrix_ptr, voxels, c, KIND) * far[None, :]
    if KIND.by_class:
        u = surprisal_slope(by_class, of, tile.g, voxels.weight, gamma, KIND.focus)
    return h, u


@triton.jit
def _over_classes(slopes_ptr, matrix_ptr, chunk, voxels, softmax, far, gamma, KIND: tl.constexpr):
    """Return both slopes of the largest class, the mean of the first over classes, and the sum of the second.

    The mean is relative to the slope of the largest class, and the sum is over all other classes: so both hold small p
    alone, and nothing cancels.
    """
    first = softmax.first
    own = first == voxels.y
    g = own.to(KIND.real)
    if not KIND.labels:
        offsets = first.to(tl.int64) * chunk.y_class + voxels.k * KIND.y_step
        g = tl.where(voxels.y >= 0, tl.load(chunk.y + offsets, voxels.inside, 0).to(KIND.real), 0.0)
    tile_of_first = Tile(softmax.top[None, :], g[None, :], own[None, :], voxels.inside[None, :])
    of_first, _ = _probabilities(tile_of_first.x, first[None, :], softmax)
    h_first, u_first = _slopes_in_p(
        slopes_ptr, matrix_ptr, first[None, :], tile_of_first, voxels, of_first, far, gamma, KIND
    )
    mean, others = tl.zeros_like(voxels.weight), tl.zeros_like(voxels.weight)
    for lowest in range(0, KIND.classes, KIND.padded):
        c = lowest + tl.arange(0, KIND.padded)
        tile = tile_of(chunk, voxels, c, KIND)
        of, largest = _probabilities(tile.x, c[:, None], softmax)
        h, u = _slopes_in_p(slopes_ptr, matrix_ptr, c[:, None], tile, voxels, of, far, gamma, KIND)
        counted = (c < KIND.classes)[:, None] & ~largest
        mean += tl.sum(tl.where(counted, of.p * (h - h_first), 0.0), 0)
        others += tl.sum(tl.where(counted, u, 0.0), 0)
    return h_first, u_first, mean, others
