"""Smoothing of images along their axes, computed in float64; only the stored result is rounded."""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.window import (
    chunk_of,
    found_at,
    image_of,
    in_range,
    lanes_of,
    pushed,
    put,
    read,
    stored_of,
    voxels_at,
)


# One compiled version serves all sizes: lanes are single numbers, so that alignment does not matter.
@triton.jit(
    do_not_specialize=[
        "n_stride",
        "m_stride",
        "a_stride",
        "M",
        "A",
        "X",
        "plane",
        "m_first",
        "m_count",
        "chunk",
        "a_first",
        "a_count",
        "blocks",
    ],
    do_not_specialize_on_alignment=["images", "out"],
)
def smooth(
    images, n_stride, m_stride, a_stride, x_stride, out,
    M, A, X, plane, m_first, m_count, chunk, a_first, a_count, blocks, taps,
    STEP: tl.constexpr, BLOCK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Correlate images with the taps along x, along the march or both, as the `Step` of `gpu/window.py` says."""
    RING: tl.constexpr = STEP.ring
    n, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lanes, inside = lanes_of(block, a_first, a_count, M, A, X, plane, BLOCK, FAR)
    image = image_of(images, n, lanes, n_stride, m_stride, a_stride, x_stride)
    out = stored_of(out, 1, n, lanes, M if STEP.deep else A, STEP.deep)
    zero = tl.zeros((BLOCK,), tl.float64)
    ring = (zero,) * RING
    first, written = chunk_of(inside, m_first, m_count, chunk)
    for k in range(0, chunk + RING - 1):
        m = first + k - RING // 2
        total = zero
        for k_m in range(STEP.along):
            for k_x in range(STEP.row):
                there, j_x = m + (k_m - STEP.along // 2), k_x - STEP.row // 2
                here = read(voxels_at(image, there, 0, j_x), found_at(lanes, there, 0, j_x, STEP), tl.float64)
                if STEP.row > 1:
                    here = tl.load(taps + k_x) * here
                if STEP.along > 1:
                    here = tl.load(taps + k_m) * here
                total += here
        ring = pushed(ring, total)
        m -= RING // 2
        if RING > 1:
            total = zero
            for j in tl.static_range(RING):
                total += tl.load(taps + j) * ring[j]
        put(out, (total,), m, in_range(m, written), lanes, STEP.deep)
