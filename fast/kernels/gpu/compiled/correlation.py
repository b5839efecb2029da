"""Local normalised cross-correlation: the launches that sum moments in windows, and those of the adjoint.

A program has a block of lanes, each of which is a place across the axis along which the program marches. At each step
it reads the numbers of a window around each lane, and combines the results of the last steps, which it carries in
registers as a ring. A window takes one to three launches; `Step` of `gpu/window.py` says what each of them does.

These arguments are common to both passes:

* p: the first image in its own layout, with its strides along N, the march, across the march, and x; likewise `t`.
* M, A, X: the size of the image along the march, across it, and along x.
* plane: the number of voxels of a plane, H * W.
* m_first, m_count: the voxels of this launch along the march, of which a program takes `chunk`.
* a_first, a_count: the voxels of this launch across the march.
* blocks: the number of blocks of lanes of each image.
* weights: of the window in memory; `ring_weights` those of the ring; None if all are 1.
* STEP: the `Step`; EXACT: whether an image is float64; BLOCK: the number of lanes; FAR: whether these need int64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.correlation_moments import (
    Moments,
    merged,
    moments_of,
    narrowed,
    pair,
    score_of,
)
from twinloss.fast.kernels.gpu.compiled.elementary import compensated, store
from twinloss.fast.kernels.gpu.compiled.window import (
    chunk_of,
    found_at,
    image_of,
    in_range,
    lanes_of,
    offset_of,
    places_of,
    pushed,
    put,
    stored_of,
    voxels_at,
)

# One compiled version serves all sizes and offsets: lanes are single numbers, so that alignment does not matter.
_SIZES = [
    "M", "A", "X", "plane", "m_first", "m_count", "chunk", "a_first", "a_count", "blocks", "planes",
    "p_n", "p_m", "p_a", "t_n", "t_m", "t_a",
]  # fmt: skip
_IMAGES = ["p", "t"]


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit(
    do_not_specialize=[*_SIZES, "fields_planes", "parts_n", "parts_first"],
    do_not_specialize_on_alignment=[
        *_IMAGES,
        "means",
        "sums",
        "means_out",
        "sums_out",
        "fields",
        "more",
        "score",
        "parts",
    ],
)
def forward(
    p, t, p_n, p_m, p_a, p_x, t_n, t_m, t_a, t_x,
    means, sums, means_out, sums_out, planes, fields, fields_planes, more, score, parts, parts_n, parts_first,
    M, A, X, plane, m_first, m_count, chunk, a_first, a_count, blocks, weights, ring_weights,
    total: tl.float64, ring_total: tl.float64, count: tl.float64, nu: tl.float64, delta: tl.float64,
    STEP: tl.constexpr, EXACT: tl.constexpr, CLAMPED: tl.constexpr, BLOCK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Compute moments in windows, and, in the last launch, the correlations.

    * means: (N, 2, planes, H, W), the means of the launch before, or None in the first; likewise `sums`, (N, 3, …).
    * means_out: the means of this launch, or None in the last one; likewise `sums_out`.
    * fields: (N, 3, fields_planes, H, W) for A, and B and the last term for p, or None.
    * more: (N, 2, D, H, W) for B and the last term for t, or None.
    * score: (N, D, H, W) for the correlations, or None.
    * parts: (N, parts_n) for the sum of the correlations of each program, from `parts_first` on, without `score`.
    * total, ring_total: the sums of the weights; count: the total weight that each of the moments stands for already.
    """
    RING: tl.constexpr = STEP.ring
    total, ring_total = tl.full((), total, tl.float64), tl.full((), ring_total, tl.float64)
    count, nu, delta = tl.full((), count, tl.float64), tl.full((), nu, tl.float64), tl.full((), delta, tl.float64)
    n, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lanes, inside = lanes_of(block, a_first, a_count, M, A, X, plane, BLOCK, FAR)
    image_p, image_t = image_of(p, n, lanes, p_n, p_m, p_a, p_x), image_of(t, n, lanes, t_n, t_m, t_a, t_x)
    means = stored_of(means, 2, n, lanes, planes, STEP.deep) if means is not None else None
    sums = stored_of(sums, 3, n, lanes, planes, STEP.deep) if sums is not None else None
    means_out = stored_of(means_out, 2, n, lanes, planes, STEP.deep) if means_out is not None else None
    sums_out = stored_of(sums_out, 3, n, lanes, planes, STEP.deep) if sums_out is not None else None
    fields = stored_of(fields, 3, n, lanes, fields_planes, STEP.deep) if fields is not None else None
    more = stored_of(more, 2, n, lanes, M if STEP.deep else A, STEP.deep) if more is not None else None
    score = stored_of(score, 1, n, lanes, M if STEP.deep else A, STEP.deep) if score is not None else None
    correlations = tl.zeros((BLOCK,), tl.float64)
    none = correlations.to(tl.float64 if EXACT else tl.float32)
    ring = (Moments(correlations, correlations, none, none, none),) * RING
    first, written = chunk_of(inside, m_first, m_count, chunk)
    for k in range(0, chunk + RING - 1):
        m = first + k - RING // 2
        moments = moments_of(image_p, image_t, means, sums, lanes, m, weights, total, count, STEP, EXACT)
        if RING > 1:
            ring = pushed(ring, narrowed(moments, none.dtype))
            moments = merged(ring, ring_weights, ring_total, count * total, RING, EXACT)
        m -= RING // 2
        here = in_range(m, written)
        if means_out is not None:
            put(means_out, (moments.mean_t, moments.mean_p), m, here, lanes, STEP.deep)
            put(sums_out, (moments.tt, moments.pp, moments.tp), m, here, lanes, STEP.deep)
        else:
            made = score_of(moments, image_p, image_t, m, here, nu, delta, CLAMPED)
            _put_score(made, fields, more, score, m, here, lanes, STEP.deep)
            if score is None:
                correlations += tl.where(here, made.value, 0.0)
    if parts is not None:
        program = n * parts_n + parts_first + block * tl.num_programs(1) + tl.program_id(1)
        tl.store(parts + program, tl.sum(correlations, 0))


@triton.jit
def _put_score(made, fields, more, score, m, here, lanes, DEEP: tl.constexpr):
    """Write what a step of the march computes, as far as it is needed."""
    if fields is not None:
        put(fields, (made.a, made.by_p, made.of_p), m, here, lanes, DEEP)
    if more is not None:
        put(more, (made.by_t, made.of_t), m, here, lanes, DEEP)
    if score is not None:
        put(score, (made.value,), m, here, lanes, DEEP)


# --- gradient ---------------------------------------------------------------------------------------------------------


class _Adjoint(NamedTuple):
    """Sums over a window, and the voxels in its middle.

    Attributes:
        a: the sum of A.
        b: the sum of B.
        rest: the sum of A (t - …) + 2 B (p - …), which is relative to the voxels in the middle.
        t: the voxel of t in the middle.
        p: that of p.
    """

    a: Any
    b: Any
    rest: Any
    t: Any
    p: Any


@triton.jit(
    do_not_specialize=[*_SIZES, "a_n", "b_n", "out_planes", "u_n", "u_m", "u_a", "u_x", "slope_n"],
    do_not_specialize_on_alignment=[*_IMAGES, "a", "b", "of", "out", "gradient", "upstream", "slope"],
)
def backward(
    p, t, p_n, p_m, p_a, p_x, t_n, t_m, t_a, t_x, a, b, of, a_n, b_n, planes, out, out_planes, gradient,
    upstream, u_n, u_m, u_a, u_x, slope, slope_n, factor: tl.float64,
    M, A, X, plane, m_first, m_count, chunk, a_first, a_count, blocks, weights, ring_weights,
    STEP: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Sum A, B, and A (t - …) + 2 B (p - …) over windows, and in the last launch write the gradient in p.

    The third field is relative to the voxel in the middle: rounding A and B then costs no more than it does of the
    contrast of the images, whatever their offset.

    * a: A, with the offset from an image to the next; likewise B and the third field, which share one.
    * planes: the number of planes of these arrays.
    * out: (N, 3, out_planes, H, W) for the sums, or None in the last launch.
    * gradient: (N, D, H, W), or None in all launches before.
    * upstream: dL/d(score) of each voxel with its strides, or None.
    * slope: dL/d(sum) of each image, with its stride, which may be 0, or None.
    * factor: a factor of the gradient.
    """
    RING: tl.constexpr = STEP.ring
    n, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lanes, inside = lanes_of(block, a_first, a_count, M, A, X, plane, BLOCK, FAR)
    image_p, image_t = image_of(p, n, lanes, p_n, p_m, p_a, p_x), image_of(t, n, lanes, t_n, t_m, t_a, t_x)
    upstream = image_of(upstream, n, lanes, u_n, u_m, u_a, u_x) if upstream is not None else None
    places = places_of(lanes, planes, STEP.deep)
    fields = (a + (n * a_n + places), b + (n * b_n + places), of + (n * b_n + places))
    out = stored_of(out, 3, n, lanes, out_planes, STEP.deep) if out is not None else None
    gradient = stored_of(gradient, 1, n, lanes, M if STEP.deep else A, STEP.deep) if gradient is not None else None
    scale = tl.full((), factor, tl.float64)
    if slope is not None:
        scale *= tl.load(slope + n * slope_n).to(tl.float64)
    zero = tl.zeros((BLOCK,), tl.float64 if EXACT else tl.float32)
    ring = (_Adjoint(zero, zero, zero, zero, zero),) * RING
    first, written = chunk_of(inside, m_first, m_count, chunk)
    for k in range(0, chunk + RING - 1):
        m = first + k - RING // 2
        made = _adjoint_of(image_p, image_t, fields, planes, upstream, lanes, m, weights, zero, STEP)
        if RING > 1:
            ring = pushed(ring, made)
            made = _merged_adjoint(ring, ring_weights, zero, RING)
        m -= RING // 2
        here = in_range(m, written)
        if gradient is not None:
            put(gradient, (-scale * made.rest.to(tl.float64),), m, here, lanes, STEP.deep)
        else:
            put(out, (made.a, made.b, made.rest), m, here, lanes, STEP.deep)


@triton.jit
def _adjoint_of(p, t, fields, planes, upstream, lanes, m, weights, zero, STEP: tl.constexpr):
    """Return the sums over the windows around the lanes, given pointers to A, B and the rest."""
    of_t, of_p = pair(p, t, m, 0, 0, in_range(m, lanes.march), zero.dtype)
    made = _Adjoint(zero, zero, zero, of_t, of_p)
    for k_m in range(STEP.along):
        for k_a in range(STEP.across):
            for k_x in range(STEP.row):
                there, j_a, j_x = m + (k_m - STEP.along // 2), k_a - STEP.across // 2, k_x - STEP.row // 2
                found = found_at(lanes, there, j_a, j_x, STEP)
                at = offset_of(there, planes, lanes, STEP.deep) + (j_a * lanes.X + j_x)
                here_a, here_b = tl.load(fields[0] + at, found, 0.0), tl.load(fields[1] + at, found, 0.0)
                rest = tl.load(fields[2] + at, found, 0.0)
                here_t, here_p = pair(p, t, there, j_a, j_x, found, zero.dtype)
                up = None
                if upstream is not None:
                    up = tl.load(voxels_at(upstream, there, j_a, j_x), found, 0.0).to(zero.dtype)
                place = (k_m * STEP.across + k_a) * STEP.row + k_x
                made = _with(made, _Adjoint(here_a, here_b, rest, here_t, here_p), up, weights, place)
    return made


@triton.jit
def _merged_adjoint(ring, weights, zero, RING: tl.constexpr):
    """Return the sums over the steps in a ring."""
    _a, _b, _rest, of_t, of_p = ring[RING // 2]
    made = _Adjoint(zero, zero, zero, of_t, of_p)
    for j in tl.static_range(RING):
        a, b, rest, t, p = ring[j]
        made = _with(made, _Adjoint(a, b, rest, t, p), None, weights, j)
    return made


@triton.jit
def _with(sums, one, up, weights, place):
    """Add what belongs to one place of a window, times dL/d(score) or None, and times a weight or None."""
    a, b = one.a, one.b
    rest = one.rest + (a * (one.t - sums.t) + 2.0 * b * (one.p - sums.p))
    if up is not None:
        a, b, rest = up * a, up * b, up * rest
    if weights is not None:
        weight = tl.load(weights + place).to(sums.a.dtype)
        a, b, rest = weight * a, weight * b, weight * rest
    return _Adjoint(sums.a + a, sums.b + b, sums.rest + rest, sums.t, sums.p)


@triton.jit(do_not_specialize=["length"], do_not_specialize_on_alignment=["parts", "out"])
def add(parts, out, length, factor: tl.float64, BLOCK: tl.constexpr):
    """Write the sum of each row of `parts`, (N, length), times a factor."""
    n = tl.program_id(0).to(tl.int64)
    total, lost = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for k in range(0, length, BLOCK):
        at = k + tl.arange(0, BLOCK)
        total, lost = compensated(total, lost, tl.load(parts + n * length + at, at < length, 0.0))
    store(out + n, tl.full((), factor, tl.float64) * tl.sum(total, 0))
