"""Correlations of images in moving windows on the CPU: tiles of planes, and bundles of columns across them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import CorrelationPlan
from twinloss.fast.kernels.cpu.arrays import as_array
from twinloss.fast.kernels.cpu.compiled import correlation, window
from twinloss.fast.runtime.memory import empty, scalar
from twinloss.fast.runtime.threads import for_each_bundle, for_each_tile


class _Windows:
    """The four passes over the planes low:high of images (N, D, H, W), given as arrays.

    Arrays of intermediate results may have fewer planes than the images, see `compiled/correlation.py`.
    """

    def __init__(self, shape: Sequence[int], plan: CorrelationPlan) -> None:
        weights, none = np.array(plan.window()), np.ones(1)
        self.z, self.y, self.x = [none] * (3 - plan.rank) + [weights] * plan.rank
        # Whether all weights are 1, and whether they are not; False is None, for which no code is compiled.
        self.kind = (True, None) if plan.kind == "rectangular" else (None, True)
        self.in_plane = self.y.sum() * self.x.sum()
        _, self.depth, self.height, self.width = shape
        self.reach = self.z.size // 2
        tiling: Any = window
        self.slab = tiling.planes_at_once(self.depth, self.reach)
        self.tile = tiling.tile_of_plane(self.height, self.width, self.x.size // 2)

    def moments(self, p: Any, t: Any, low: int, high: int, means: Any, sums: Any) -> None:
        """Write moments within planes: means (N, 2, …, H, W), and central second moments (N, 3, …, H, W)."""

        def work(k: int, start: int, stop: int) -> None:
            correlation.planes(p[k], t[k], start, stop, *self.tile, self.y, self.x, *self.kind, means[k], sums[k])

        self._in_planes(work, len(p), low, high)

    def scores(
        self, p: Any, t: Any, low: int, high: int, means: Any, sums: Any, made: Any, more: Any, score: Any,
        rest: tuple[float, float, bool], gradients: int,
    ) -> list[list[float]]:  # fmt: skip
        """Write the correlations into `score` if it is not empty, or else return partial sums of them by image."""
        p, t, means, sums, made, more, score = map(_columns, (p, t, means, sums, made, more, score))
        totals: list[list[float]] = [[] for _ in p]

        def work(k: int, start: int, stop: int) -> None:
            total = correlation.depth(
                p[k], t[k], low, high, start, stop, min(self.slab, high - low), self.z, *self.kind, self.in_plane,
                *rest, score[k], means[k], sums[k], made[k], more[k], gradients,
            )  # fmt: skip
            totals[k].append(total)

        for_each_bundle(work, (len(p), high - low, self.height, self.width))
        return totals

    def sums_of_slopes(
        self, p: Any, t: Any, low: int, high: int, a: Any, b: Any, of: Any, upstream: Any, of_a: Any, fields: Any
    ) -> None:
        """Sum the arrays of `scores` for dL/dp over windows within planes, with the sum of A in its own array."""

        def work(k: int, start: int, stop: int) -> None:
            correlation.planes_backward(
                p[k], t[k], a[k], b[k], of[k], upstream[k], start, stop, *self.tile, self.y, self.x, *self.kind,
                of_a[k], fields[k],
            )  # fmt: skip

        self._in_planes(work, len(p), low, high)

    def slopes(self, p: Any, t: Any, low: int, high: int, of_a: Any, fields: Any, out: Any) -> None:
        """Write dL/dp."""
        p, t, of_a, fields, out = map(_columns, (p, t, of_a, fields, out))

        def work(k: int, start: int, stop: int) -> None:
            correlation.depth_backward(
                p[k], t[k], low, high, start, stop, min(self.slab, high - low), self.z, *self.kind, of_a[k], fields[k],
                out[k],
            )  # fmt: skip

        for_each_bundle(work, (len(p), high - low, self.height, self.width))

    def _in_planes(self, work: Callable[[int, int, int], None], images: int, low: int, high: int) -> None:
        rows, columns = self.tile
        before = low * -(-self.height // rows) * -(-self.width // columns)

        def shifted(k: int, start: int, stop: int) -> None:
            work(k, before + start, before + stop)

        for_each_tile(shifted, (images, high - low, self.height, self.width), rows, columns)


def _columns(images: Any) -> Any:
    """Return images (…, H, W) as (…, H * W)."""
    return images.reshape(*images.shape[:-2], images.shape[-2] * images.shape[-1])


# --- all windows at once, with intermediate results for the gradients -------------------------------------------------


def scores(
    p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool, gradients: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the correlations, and intermediate results for their gradients; see `CorrelationKernels.scores`."""
    windows = _Windows(p.shape, plan)
    pair = as_array(p), as_array(t), 0, windows.depth
    means = empty((len(p), 2, *p.shape[1:]), torch.float64).numpy()
    kept = empty((len(p), 3, *p.shape[1:]), p.dtype)
    more = empty((len(p), 2, *p.shape[1:]) if gradients > 1 else (len(p), 2, 0, 0, 0), p.dtype)
    score = empty(p.shape if voxelwise else (len(p), 0, 0, 0), p.dtype)
    fields, rest = kept.numpy(), (plan.nu, plan.delta, plan.clamped)
    windows.moments(*pair, means, fields)
    totals = windows.scores(*pair, means, fields, fields, more.numpy(), score.numpy(), rest, gradients)
    if gradients == 0:
        kept = p.new_empty(0)
    if gradients < 2:
        more = p.new_empty(0)
    if voxelwise:
        return score, kept, more
    return torch.tensor([math.fsum(each) for each in totals], dtype=torch.float64, device=p.device), kept, more


def slopes(upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return dL/dp from the intermediate results: A, the first of `of_both`, and B and the rest, in `of_p`."""
    windows = _Windows(p.shape, plan)
    pair = as_array(p), as_array(t), 0, windows.depth
    a, b = of_both.numpy()[:, 0], of_p.numpy()
    by_window = upstream.double().reshape(-1, 1, 1, 1) if upstream.ndim == 1 else upstream.contiguous()
    fields = empty((len(p), 2, *p.shape[1:]), p.dtype).numpy()
    gradient = empty(p.shape, p.dtype)
    out = gradient.numpy()
    windows.sums_of_slopes(*pair, a, b[:, 0], b[:, 1], by_window.numpy(), out, fields)
    windows.slopes(*pair, out, fields, out)
    return gradient


# --- the sum over all windows with its gradient, a few planes at a time -----------------------------------------------


def value(p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
    """Return a factor times the sum of all correlations, as a scalar tensor."""
    return scalar(factor * _sum_and_gradient(p, t, plan, None)[0], dtype, p.device)


def value_and_gradient(
    p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the value and dL/dp, for an upstream gradient of 1."""
    total, made = _sum_and_gradient(p, t, plan, factor)
    assert made is not None
    return scalar(factor * total, dtype, p.device), made


def gradient(upstream: Tensor, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
    """Return dL/dp, given dL/d(value)."""
    _, made = _sum_and_gradient(p, t, plan, factor * upstream.item())
    assert made is not None
    return made


# The target number of voxels in a block, which consists of whole planes or images; the minimum number of planes in a
# block; and the minimum per plane that a window reaches. Intermediate results are stored for the planes of a block and
# those that its windows reach. If these are more than half of the planes, and all images fit into a block, all planes
# are processed at once.
_AT_ONCE, _LEAST_PLANES, _PLANES_OF_REACH = 2**18, 16, 4


def _sum_and_gradient(p: Tensor, t: Tensor, plan: CorrelationPlan, slope: float | None) -> tuple[float, Tensor | None]:
    """Return the sum of the correlations, and, unless the slope is None, the slope times dL/dp."""
    windows, gradients = _Windows(p.shape, plan), int(slope is not None)
    count, depth, *plane = p.shape
    least = max(_AT_ONCE // math.prod(plane), _LEAST_PLANES, _PLANES_OF_REACH * windows.reach)
    step = -(-depth // max(depth // least, 1))
    images, reached = min(max(_AT_ONCE // (depth * math.prod(plane)), 1), count), min(step + 2 * windows.reach, depth)
    if images == count and 2 * reached > depth:
        by_image, kept, _ = scores(p, t, plan, False, gradients)
        if slope is None:
            return math.fsum(by_image), None
        upstream = torch.full((count,), slope, dtype=torch.float64, device=p.device)
        return math.fsum(by_image), slopes(upstream, p, t, kept, kept[:, 1:], plan)
    return _by_planes(p, t, plan, slope, windows, images, step)


def _by_planes(
    p: Tensor, t: Tensor, plan: CorrelationPlan, slope: float | None, windows: _Windows, images: int, step: int
) -> tuple[float, Tensor | None]:
    """Return the results of `_sum_and_gradient`, computed for blocks of `images` images and `step` planes."""
    gradients, rest, margin = int(slope is not None), (plan.nu, plan.delta, plan.clamped), windows.reach
    first, second = as_array(p), as_array(t)
    (count, depth, *plane) = first.shape
    reached = min(step + 2 * margin, depth)

    def room(fields: int, planes: int, dtype: torch.dtype) -> Any:
        return empty((images, fields, planes, *plane), dtype).numpy()

    means, sums = room(2, reached, torch.float64), room(3, reached, p.dtype)
    made, in_planes = room(3, gradients * step, p.dtype), room(3, gradients * reached, p.dtype)
    none, upstream = first[:, :0], np.full((images, 1, 1, 1), slope or 0.0)
    gradient, totals = empty(p.shape if gradients else (0,), p.dtype), []
    for k in range(0, count, images):
        pair = first[k : k + images], second[k : k + images]
        done = 0
        for low in range(0, depth, step):
            high = min(low + step, depth)
            ahead = min(high + margin, depth)
            windows.moments(*pair, done, ahead, means, sums)
            done = ahead
            totals += windows.scores(*pair, low, high, means, sums, made, made[:, :0], none, rest, gradients)
            if gradients:
                a, b, of = made[:, 0], made[:, 1], made[:, 2]
                windows.sums_of_slopes(*pair, low, high, a, b, of, upstream, in_planes[:, 0], in_planes[:, 1:])
                begin, end = max(low - margin, 0), depth if high == depth else high - margin
                windows.slopes(*pair, begin, end, in_planes[:, 0], in_planes[:, 1:], gradient.numpy()[k : k + images])
    return math.fsum(total for of_image in totals for total in of_image), gradient if gradients else None
