"""Smoothing of images along their axes, computed in float64; only the stored result is rounded."""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import store
from twinloss.fast.kernels.gpu.compiled.window import in_range, lanes_of, offset_of, places_of, pushed, range_of, read


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
    ALONG: tl.constexpr, ROW: tl.constexpr, RING: tl.constexpr, DEEP: tl.constexpr, BLOCK: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """Correlate images with the taps along x if `ROW` > 1, and along the march if `ALONG` > 1 or `RING` > 1."""
    n, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lanes, inside = lanes_of(block, a_first, a_count, M, A, X, BLOCK, FAR)
    x, march = lanes[1], lanes[2]
    images += n * n_stride + (lanes[0] * a_stride + x * x_stride)
    D = M if DEEP else A
    out += n * (M * A * (n * 0 + X)) + places_of(lanes, D, plane, DEEP)
    zero = tl.zeros((BLOCK,), tl.float64)
    ring = (zero,) * RING
    first = m_first + tl.program_id(1) * chunk
    written = range_of(inside, first, tl.minimum(first + chunk, m_first + m_count))
    for k in range(0, chunk + RING - 1):
        m = first + k - RING // 2
        total = zero
        for k_m in range(ALONG):
            there = m + (k_m - ALONG // 2)
            steps = in_range(there, march)
            for k_x in range(ROW):
                j_x = k_x - ROW // 2
                found = steps
                if ROW > 1:
                    found = steps & ((x + j_x >= 0) & (x + j_x < X))
                here = read(images + (there.to(tl.int64) * m_stride + j_x * x_stride), found, tl.float64)
                if ROW > 1:
                    here = tl.load(taps + k_x) * here
                if ALONG > 1:
                    here = tl.load(taps + k_m) * here
                total += here
        ring = pushed(ring, total)
        m -= RING // 2
        if RING > 1:
            total = zero
            for j in tl.static_range(RING):
                total += tl.load(taps + j) * ring[j]
        store(out + offset_of(m, D, X, plane, DEEP), total, in_range(m, written))
