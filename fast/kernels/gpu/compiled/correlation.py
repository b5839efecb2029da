"""Local normalised cross-correlation: moments in windows, and the adjoint.

A program has a block of lanes, each of which is a place across the axis along which the program marches. At each step
it reads the numbers of a window around each lane, `ALONG` by `ACROSS` by `ROW` of them, and combines the results of the
last `RING` steps, which it carries in registers. A window takes one to three launches.

Images are read in their own layout. Arrays of intermediate results are (N, fields, planes, H, W), and store plane z at
z modulo their number of planes. A program marches along z if `DEEP`, and else along y.

Everything is computed in float64. Between the launches, the means are stored in float64, and all else in float32, or in
float64 if the images are. The module of the same name for CPUs says why.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twinloss.fast.kernels.gpu.compiled.elementary import store
from twinloss.fast.kernels.gpu.compiled.window import in_range, lanes_of, offset_of, places_of, pushed, range_of, read

# One compiled version serves all sizes and offsets: lanes are single numbers, so that alignment does not matter.
_SIZES = [
    "M", "A", "X", "plane", "m_first", "m_count", "chunk", "a_first", "a_count", "blocks", "planes",
    "p_n", "p_m", "p_a", "t_n", "t_m", "t_a",
]  # fmt: skip
_IMAGES = ["p", "t"]

# Helpers take tuples, see `compiled/window.py`. An image is pointers to the voxels of the lanes, and the strides along
# the march, across it and along x. `means` and `sums` are pointers to the numbers of the lanes in the first field, the
# offset from a field to the next, and the number of planes.


@triton.jit
def _pair(p, t, m, j_a, j_x, there, REAL: tl.constexpr):
    """Return the voxels of t and p."""
    step = m.to(tl.int64)
    from_t = step * t[1] + (j_a * t[2] + j_x * t[3])
    from_p = step * p[1] + (j_a * p[2] + j_x * p[3])
    return read(t[0] + from_t, there, REAL), read(p[0] + from_p, there, REAL)


@triton.jit
def _means(p, t, means, m, j_a, j_x, there, X, plane, DEEP: tl.constexpr):
    if means is None:
        return _pair(p, t, m, j_a, j_x, there, tl.float64)
    else:
        pointers = means[0] + (offset_of(m, means[2], X, plane, DEEP) + (j_a * X + j_x))
        return tl.load(pointers, there, 0.0), tl.load(pointers + means[1], there, 0.0)


@triton.jit
def _seconds(sums, m, j_a, j_x, there, X, plane, DEEP: tl.constexpr):
    pointers = sums[0] + (offset_of(m, sums[2], X, plane, DEEP) + (j_a * X + j_x))
    return (
        tl.load(pointers, there, 0.0),
        tl.load(pointers + sums[1], there, 0.0),
        tl.load(pointers + 2 * sums[1], there, 0.0),
    )


# Moments in a window are summed up in a tuple: the deviations of t and p from a number, their squares and products, and
# the sums tt, pp and tp that each number stands for. The latter are float32 if the images are, because many numbers are
# converted to float64 more slowly than they are added.


@triton.jit
def _nothing(zero, REAL: tl.constexpr):
    none = zero.to(REAL)
    return zero, zero, zero, zero, zero, none, none, none


@triton.jit
def _added(moments, t, p, kept, weights, place):
    sum_t, sum_p, tt, pp, tp, kept_tt, kept_pp, kept_tp = moments
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
    return sum_t, sum_p, tt, pp, tp, kept_tt, kept_pp, kept_tp


@triton.jit
def _central(moments, total, count):
    """Return the distances to the means, and the sums tt, pp and tp relative to these.

    If all deviations are from the number in the middle, and this is an outlier, a sum of squares is up to `total` times
    that about the mean. Float64 has digits enough for this if the images are float32.
    """
    sum_t, sum_p, tt, pp, tp, kept_tt, kept_pp, kept_tp = moments
    shift_t, shift_p = sum_t / total, sum_p / total
    return (
        shift_t,
        shift_p,
        kept_tt.to(tl.float64) + count * (tt - sum_t * shift_t),
        kept_pp.to(tl.float64) + count * (pp - sum_p * shift_p),
        kept_tp.to(tl.float64) + count * (tp - sum_t * shift_p),
    )


@triton.jit
def _moments(
    p, t, means, sums, lanes, m, plane, weights, total, count,
    ALONG: tl.constexpr, ACROSS: tl.constexpr, ROW: tl.constexpr, DEEP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Return the means of t and p in windows, and the sums tt, pp and tp.

    Deviations are taken from the number in the middle. `EXACT` takes them from the mean, in a second loop.
    """
    a, x, march, A, X = lanes
    REAL: tl.constexpr = tl.float64 if EXACT else tl.float32
    here = in_range(m, march)
    mean_t, mean_p = _means(p, t, means, m, 0, 0, here, X, plane, DEEP)
    zero = tl.zeros_like(mean_t)
    if ALONG * ACROSS * ROW == 1:
        tt, pp, tp = zero, zero, zero
        if means is not None:
            tt, pp, tp = _seconds(sums, m, 0, 0, here, X, plane, DEEP)
        return mean_t, mean_p, tt.to(tl.float64), pp.to(tl.float64), tp.to(tl.float64)
    else:
        tt, pp, tp = zero, zero, zero
        for last in tl.static_range(0 if EXACT else 1, 2):
            moments = _nothing(zero, REAL)
            for k_m in range(ALONG):
                there = m + (k_m - ALONG // 2)
                steps = in_range(there, march)
                for k_a in range(ACROSS):
                    j_a = k_a - ACROSS // 2
                    rows = steps
                    if ACROSS > 1:
                        rows = steps & ((a + j_a >= 0) & (a + j_a < A))
                    for k_x in range(ROW):
                        j_x = k_x - ROW // 2
                        found = rows
                        if ROW > 1:
                            found = rows & ((x + j_x >= 0) & (x + j_x < X))
                        one, other = _means(p, t, means, there, j_a, j_x, found, X, plane, DEEP)
                        kept = None
                        if last == 1 and means is not None:
                            kept = _seconds(sums, there, j_a, j_x, found, X, plane, DEEP)
                        place = (k_m * ACROSS + k_a) * ROW + k_x
                        moments = _added(moments, one - mean_t, other - mean_p, kept, weights, place)
            shift_t, shift_p, tt, pp, tp = _central(moments, total, count)
            mean_t += shift_t
            mean_p += shift_p
        return mean_t, mean_p, tt, pp, tp


@triton.jit
def _merged(ring, weights, total, count, RING: tl.constexpr, EXACT: tl.constexpr):
    """Merge the moments of the steps in a ring."""
    mean_t, mean_p = ring[RING // 2][0], ring[RING // 2][1]
    zero = tl.zeros_like(mean_t)
    tt, pp, tp = zero, zero, zero
    for _ in tl.static_range(0 if EXACT else 1, 2):
        moments = _nothing(zero, ring[0][2].dtype)
        for j in tl.static_range(RING):
            kept = ring[j][2], ring[j][3], ring[j][4]
            moments = _added(moments, ring[j][0] - mean_t, ring[j][1] - mean_p, kept, weights, j)
        shift_t, shift_p, tt, pp, tp = _central(moments, total, count)
        mean_t += shift_t
        mean_p += shift_p
    return mean_t, mean_p, tt, pp, tp


@triton.jit
def _score(moments, of_t, of_p, nu, delta, CLAMPED: tl.constexpr):
    """Return the correlation of each window, A, and for either image B and the sum of A and B times the deviations."""
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
    return value, a, by_p, a * dt + 2.0 * by_p * dp, by_t, a * dp + 2.0 * by_t * dt


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
    means, sums, means_out, sums_out, planes,
    fields, fields_planes, more, score, parts, parts_n, parts_first,
    M, A, X, plane, m_first, m_count, chunk, a_first, a_count, blocks,
    weights, ring_weights, total: tl.float64, ring_total: tl.float64, count: tl.float64, nu: tl.float64,
    delta: tl.float64,
    ALONG: tl.constexpr, ACROSS: tl.constexpr, ROW: tl.constexpr, RING: tl.constexpr, DEEP: tl.constexpr,
    EXACT: tl.constexpr, CLAMPED: tl.constexpr, BLOCK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Compute moments in windows, and, in the last launch, the correlations.

    * p: the first image, with its strides along N, the march, across the march, and x; likewise `t`.
    * means: (N, 2, planes, H, W), the means of the launch before, or None in the first; likewise `sums`, (N, 3, …).
    * means_out: the means of this launch, or None in the last one; likewise `sums_out`.
    * fields: (N, 3, fields_planes, H, W) for A, and B and the last term for p, or None.
    * more: (N, 2, D, H, W) for B and the last term for t, or None.
    * score: (N, D, H, W) for the correlations, or None.
    * parts: (N, parts_n) for the sum of the correlations of each program, from `parts_first` on, if there is no
      `score`.
    * M, A, X: the size of the image along the march, across it, and along x.
    * plane: the number of voxels of a plane, H * W.
    * m_first, m_count: the voxels of this launch along the march, of which a program takes `chunk`.
    * a_first, a_count: the voxels of this launch across the march.
    * blocks: the number of blocks of lanes of each image.
    * weights: of the window in memory; `ring_weights` those of the ring; None if all are 1.
    * total: their sum; likewise `ring_total`.
    * count: the total weight that each of the moments stands for already.
    """
    total, ring_total = tl.full((), total, tl.float64), tl.full((), ring_total, tl.float64)
    count, nu, delta = tl.full((), count, tl.float64), tl.full((), nu, tl.float64), tl.full((), delta, tl.float64)
    n, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lanes, inside = lanes_of(block, a_first, a_count, M, A, X, BLOCK, FAR)
    image_p = (p + n * p_n + (lanes[0] * p_a + lanes[1] * p_x), p_m, p_a, p_x)
    image_t = (t + n * t_n + (lanes[0] * t_a + lanes[1] * t_x), t_m, t_a, t_x)
    step, places = planes * (n * 0 + plane), places_of(lanes, planes, plane, DEEP)
    if means is not None:
        means, sums = (means + 2 * n * step + places, step, planes), (sums + 3 * n * step + places, step, planes)
    if means_out is not None:
        means_out += 2 * n * step + places
        sums_out += 3 * n * step + places
    else:
        fields_step, volume = fields_planes * (n * 0 + plane), M * A * (n * 0 + X)
        D = M if DEEP else A
        if fields is not None:
            fields += 3 * n * fields_step + places_of(lanes, fields_planes, plane, DEEP)
        if more is not None:
            more += 2 * n * volume + places_of(lanes, D, plane, DEEP)
        if score is not None:
            score += n * volume + places_of(lanes, D, plane, DEEP)
    zero = tl.zeros((BLOCK,), tl.float64)
    REAL: tl.constexpr = tl.float64 if EXACT else tl.float32
    none = zero.to(REAL)
    ring = ((zero, zero, none, none, none),) * RING
    correlations = zero
    first = m_first + tl.program_id(1) * chunk
    written = range_of(inside, first, tl.minimum(first + chunk, m_first + m_count))
    for k in range(0, chunk + RING - 1):
        m = first + k - RING // 2
        moments = _moments(
            image_p, image_t, means, sums, lanes, m, plane, weights, total, count, ALONG, ACROSS, ROW, DEEP, EXACT
        )
        if RING > 1:
            mean_t, mean_p, tt, pp, tp = moments
            ring = pushed(ring, (mean_t, mean_p, tt.to(REAL), pp.to(REAL), tp.to(REAL)))
            moments = _merged(ring, ring_weights, ring_total, count * total, RING, EXACT)
        m -= RING // 2
        here = in_range(m, written)
        if means_out is not None:
            at = offset_of(m, planes, X, plane, DEEP)
            tl.store(means_out + at, moments[0], here)
            tl.store(means_out + (at + step), moments[1], here)
            store(sums_out + at, moments[2], here)
            store(sums_out + (at + step), moments[3], here)
            store(sums_out + (at + 2 * step), moments[4], here)
        else:
            of_t, of_p = _pair(image_p, image_t, m, 0, 0, here, tl.float64)
            value, a, by_p, of_p, by_t, of_t = _score(moments, of_t, of_p, nu, delta, CLAMPED)
            if fields is not None:
                at = offset_of(m, fields_planes, X, plane, DEEP)
                store(fields + at, a, here)
                store(fields + (at + fields_step), by_p, here)
                store(fields + (at + 2 * fields_step), of_p, here)
            if more is not None:
                at = offset_of(m, D, X, plane, DEEP)
                store(more + at, by_t, here)
                store(more + (at + volume), of_t, here)
            if score is not None:
                store(score + offset_of(m, D, X, plane, DEEP), value, here)
            else:
                correlations += tl.where(here, value, 0.0)
    if parts is not None:
        program = n * parts_n + parts_first + block * tl.num_programs(1) + tl.program_id(1)
        tl.store(parts + program, tl.sum(correlations, 0))


@triton.jit(
    do_not_specialize=[*_SIZES, "a_n", "b_n", "out_planes", "u_n", "u_m", "u_a", "u_x", "slope_n"],
    do_not_specialize_on_alignment=[*_IMAGES, "a", "b", "of", "out", "gradient", "upstream", "slope"],
)
def backward(
    p, t, p_n, p_m, p_a, p_x, t_n, t_m, t_a, t_x,
    a, b, of, a_n, b_n, planes, out, out_planes, gradient,
    upstream, u_n, u_m, u_a, u_x, slope, slope_n, factor: tl.float64,
    M, A, X, plane, m_first, m_count, chunk, a_first, a_count, blocks, weights, ring_weights,
    ALONG: tl.constexpr, ACROSS: tl.constexpr, ROW: tl.constexpr, RING: tl.constexpr, DEEP: tl.constexpr,
    EXACT: tl.constexpr, BLOCK: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Sum A, B, and A (t - …) + 2 B (p - …) over windows, and in the last launch write the gradient in p.

    The third field is relative to the voxel in the middle: rounding A and B then costs no more than it does of the
    contrast of the images, whatever their offset.

    * p: as in `forward`, as are `t`, the sizes and the weights.
    * a: A, with the offset from an image to the next; likewise B and the third field, which share one.
    * planes: the number of planes of these arrays.
    * out: (N, 3, out_planes, H, W) for the sums, or None in the last launch.
    * gradient: (N, D, H, W), or None in all launches before.
    * upstream: dL/d(score) of each voxel with its strides, or None.
    * slope: dL/d(sum) of each image, with its stride, which may be 0, or None.
    * factor: a factor of the gradient.
    """
    n, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lanes, inside = lanes_of(block, a_first, a_count, M, A, X, BLOCK, FAR)
    march, x_of_lane = lanes[2], lanes[1]
    image_p = (p + n * p_n + (lanes[0] * p_a + lanes[1] * p_x), p_m, p_a, p_x)
    image_t = (t + n * t_n + (lanes[0] * t_a + lanes[1] * t_x), t_m, t_a, t_x)
    if upstream is not None:
        upstream += n * u_n + (lanes[0] * u_a + lanes[1] * u_x)
    places = places_of(lanes, planes, plane, DEEP)
    a += n * a_n + places
    b += n * b_n + places
    of += n * b_n + places
    if gradient is not None:
        D = M if DEEP else A
        gradient += n * (M * A * (n * 0 + X)) + places_of(lanes, D, plane, DEEP)
        scale = tl.full((), factor, tl.float64)
        if slope is not None:
            scale *= tl.load(slope + n * slope_n).to(tl.float64)
    else:
        step = out_planes * (n * 0 + plane)
        out += 3 * n * step + places_of(lanes, out_planes, plane, DEEP)
    REAL: tl.constexpr = tl.float64 if EXACT else tl.float32
    zero = tl.zeros((BLOCK,), REAL)
    ring = ((zero, zero, zero, zero, zero),) * RING
    first = m_first + tl.program_id(1) * chunk
    written = range_of(inside, first, tl.minimum(first + chunk, m_first + m_count))
    for k in range(0, chunk + RING - 1):
        m = first + k - RING // 2
        of_t, of_p = _pair(image_p, image_t, m, 0, 0, in_range(m, march), REAL)
        sum_a, sum_b, total = zero, zero, zero
        for k_m in range(ALONG):
            there = m + (k_m - ALONG // 2)
            steps = in_range(there, march)
            for k_a in range(ACROSS):
                j_a = k_a - ACROSS // 2
                rows = steps
                if ACROSS > 1:
                    rows = steps & ((lanes[0] + j_a >= 0) & (lanes[0] + j_a < A))
                for k_x in range(ROW):
                    j_x = k_x - ROW // 2
                    found = rows
                    if ROW > 1:
                        found = rows & ((x_of_lane + j_x >= 0) & (x_of_lane + j_x < X))
                    at = offset_of(there, planes, X, plane, DEEP) + (j_a * X + j_x)
                    here_a, here_b = tl.load(a + at, found, 0.0), tl.load(b + at, found, 0.0)
                    here_of = tl.load(of + at, found, 0.0)
                    dt, dp = _pair(image_p, image_t, there, j_a, j_x, found, REAL)
                    here_of += here_a * (dt - of_t) + 2.0 * here_b * (dp - of_p)
                    if upstream is not None:
                        here_up = upstream + (there.to(tl.int64) * u_m + (j_a * u_a + j_x * u_x))
                        up = tl.load(here_up, found, 0.0).to(REAL)
                        here_a, here_b, here_of = up * here_a, up * here_b, up * here_of
                    if weights is not None:
                        weight = tl.load(weights + ((k_m * ACROSS + k_a) * ROW + k_x)).to(REAL)
                        here_a, here_b, here_of = weight * here_a, weight * here_b, weight * here_of
                    sum_a += here_a
                    sum_b += here_b
                    total += here_of
        ring = pushed(ring, (sum_a, sum_b, total, of_t, of_p))
        m -= RING // 2
        here = in_range(m, written)
        if RING > 1:
            sum_a, sum_b, total, of_t, of_p = zero, zero, zero, ring[RING // 2][3], ring[RING // 2][4]
            for j in tl.static_range(RING):
                here_a, here_b, here_of = ring[j][0], ring[j][1], ring[j][2]
                here_of += here_a * (ring[j][3] - of_t) + 2.0 * here_b * (ring[j][4] - of_p)
                if ring_weights is not None:
                    weight = tl.load(ring_weights + j).to(REAL)
                    here_a, here_b, here_of = weight * here_a, weight * here_b, weight * here_of
                sum_a += here_a
                sum_b += here_b
                total += here_of
        if gradient is not None:
            store(gradient + offset_of(m, D, X, plane, DEEP), -scale * total.to(tl.float64), here)
        else:
            at = offset_of(m, out_planes, X, plane, DEEP)
            store(out + at, sum_a, here)
            store(out + (at + step), sum_b, here)
            store(out + (at + 2 * step), total, here)


@triton.jit(do_not_specialize=["length"], do_not_specialize_on_alignment=["parts", "out"])
def add(parts, out, length, factor: tl.float64, BLOCK: tl.constexpr):
    """Write the sum of each row of `parts`, (N, length), times a factor."""
    n = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    for k in range(0, length, BLOCK):
        at = k + tl.arange(0, BLOCK)
        total += tl.load(parts + n * length + at, at < length, 0.0)
    store(out + n, tl.full((), factor, tl.float64) * tl.sum(total, 0))
