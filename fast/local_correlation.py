"""The statistic of local normalised cross-correlation: the squared correlations of two images in moving windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinloss.fast import backend
from twinloss.fast.memory import empty
from twinloss.fast.operators import operator
from twinloss.fast.threads import for_each_bundle, for_each_tile


def local_correlation(
    p: Tensor, t: Tensor, size: int, kind: str, rank: int, nu: float, delta: float, clamped: bool, voxelwise: bool
) -> Tensor:
    """Smoothed squared correlations of images (N, D, H, W) in windows along their last `rank` axes.

    Those of all windows if `voxelwise`; or else their sum for each image, (N,) float64.
    """
    plan = (size, kind, rank, nu, delta, clamped, voxelwise)
    if backend.choose(p) == "plain":
        return _plain(p, t, *plan)
    asked = torch.is_grad_enabled() * (p.requires_grad + t.requires_grad)
    score, _, _ = _local_correlation(p, t, *plan, asked)
    return score


def _window(size: int, kind: str) -> list[float]:
    """The weights along an axis; without NumPy, whose numbers torch.compile takes for tensors."""
    middle = size // 2 + 1
    far = [abs(j - size // 2) for j in range(size)]
    if kind == "rectangular":
        return [1.0] * size
    if kind == "triangular":
        return [(middle - j) / middle**2 for j in far]
    return [math.exp(-(j**2) / (2 * (size / 3) ** 2)) for j in far]


# --- plain torch: other devices, double backward ----------------------------------------------------------------------


def _plain(
    p: Tensor, t: Tensor, size: int, kind: str, rank: int, nu: float, delta: float, clamped: bool, voxelwise: bool
) -> Tensor:
    """As the operator below: moments in windows along one axis after the other, means first.

    Means are relative to the voxel in the middle, so that no offset of the images takes digits from their contrast.
    """
    window = _window(size, kind)
    total, count = sum(window), 1.0
    mean_t, mean_p, tt, pp, tp = (torch.zeros_like(t) for _ in range(5))
    for axis in range(4 - rank, 4):
        from_t, from_p = (
            [of_mean + (voxel - image) for of_mean, voxel in zip(*_shifted(axis, size, mean, image), strict=True)]
            for mean, image in ((mean_t, t), (mean_p, p))
        )
        mean_t, mean_p = (sum(w / total * f for w, f in zip(window, means, strict=True)) for means in (from_t, from_p))
        from_t, from_p = [f - mean_t for f in from_t], [f - mean_p for f in from_p]
        shifted = zip(_shifted(axis, size, tt, pp, tp), (from_t, from_p, from_t), (from_t, from_p, from_p), strict=True)
        tt, pp, tp = (
            sum(w * (m + count * (a * b)) for w, m, a, b in zip(window, *fields, strict=True)) for fields in shifted
        )
        count *= total
    denominator = tt.clamp(min=delta) * pp.clamp(min=delta) if clamped else tt * pp + delta
    score = (tp**2 + nu) / denominator
    return score if voxelwise else score.sum((1, 2, 3), dtype=torch.float64)


def _shifted(axis: int, size: int, *fields: Tensor) -> list[list[Tensor]]:
    """Each field as it looks from each place of a window along an axis, with zeros beyond the borders."""
    margin = [0, 0] * (3 - axis) + [size // 2, size // 2]
    around = (torch.nn.functional.pad(field, margin) for field in fields)
    return [[wide.narrow(axis, j, wide.shape[axis] - size + 1) for j in range(size)] for wide in around]


# --- the kernels as torch operators -----------------------------------------------------------------------------------


class _Windows:
    """How the kernels are called for images (N, D, H, W)."""

    def __init__(self, shape: torch.Size, size: int, kind: str, rank: int) -> None:
        self.kernels, tiling = backend.kernels("correlation"), backend.kernels("window")
        window, none = np.array(_window(size, kind)), np.ones(1)
        self.z, self.y, self.x = [none] * (3 - rank) + [window] * rank
        # Whether all weights are 1, and whether they are not: of what is None no code is compiled.
        self.kind = (True, None) if kind == "rectangular" else (None, True)
        self.in_plane = self.y.sum() * self.x.sum()
        self.depth = shape[1]
        self.slab = tiling.planes_at_once(self.depth, self.z.size // 2)
        self.tile = tiling.tile_of_plane(*shape[2:], self.x.size // 2)


@operator("local_correlation")
def _local_correlation(
    p: Tensor,
    t: Tensor,
    size: int,
    kind: str,
    rank: int,
    nu: float,
    delta: float,
    clamped: bool,
    voxelwise: bool,
    gradients: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Correlations of images (N, D, H, W): their sums (N,) float64, or those of all windows.

    And what is kept for the gradient in p, (N, 3, D, H, W), and for that in t as well, (N, 2, D, H, W).
    """
    windows = _Windows(p.shape, size, kind, rank)
    first, second = p.contiguous().numpy(), t.contiguous().numpy()
    means = empty((len(p), 2, *p.shape[1:]), torch.float64).numpy()
    kept = empty((len(p), 3, *p.shape[1:]), p.dtype)
    more = empty((len(p), 2, *p.shape[1:]) if gradients > 1 else (len(p), 2, 0, 0, 0), p.dtype)
    score = empty(p.shape if voxelwise else (len(p), 0, 0, 0), p.dtype)
    scores = score.numpy().reshape(len(first), score.shape[1], score.shape[2] * score.shape[3])
    fields = kept.numpy()
    columns = [
        array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])
        for array in (first, second, means, fields, more.numpy())
    ]
    sums: dict[tuple[int, int], float] = {}

    def within_planes(k: int, start: int, stop: int) -> None:
        windows.kernels.planes(
            first[k], second[k], start, stop, *windows.tile, windows.y, windows.x, *windows.kind, means[k], fields[k]
        )

    def across_planes(k: int, start: int, stop: int) -> None:
        sums[k, start] = windows.kernels.depth(
            columns[0][k], columns[1][k], start, stop, windows.slab, windows.z, *windows.kind, windows.in_plane, nu,
            delta, clamped, scores[k], columns[2][k], columns[3][k], columns[4][k], gradients,
        )  # fmt: skip

    for_each_tile(within_planes, p.shape, *windows.tile)
    for_each_bundle(across_planes, p.shape)
    if gradients == 0:
        kept = p.new_empty(0)
    if gradients < 2:
        more = p.new_empty(0)
    if voxelwise:
        return score, kept, more
    by_image = [math.fsum(total for (k, _), total in sums.items() if k == image) for image in range(len(first))]
    return torch.tensor(by_image, dtype=torch.float64), kept, more


@operator("local_correlation_backward")
def _local_correlation_backward(
    upstream: Tensor, p: Tensor, t: Tensor, kept: Tensor, more: Tensor, size: int, kind: str, rank: int
) -> Tensor:
    """The gradient in p from what was kept for it: A, the first of `kept`, and B and the rest, in `more`."""
    windows = _Windows(p.shape, size, kind, rank)
    first, second = p.contiguous().numpy(), t.contiguous().numpy()
    of_all, of_one = kept.numpy(), more.numpy()
    by_window = upstream.double().reshape(-1, 1, 1, 1) if upstream.ndim == 1 else upstream.contiguous()
    ups = by_window.numpy()
    fields = empty((len(p), 2, *p.shape[1:]), p.dtype).numpy()
    gradient = empty(p.shape, p.dtype)
    out = gradient.numpy()

    def within_planes(k: int, start: int, stop: int) -> None:
        windows.kernels.planes_backward(
            first[k], second[k], of_all[k, 0], of_one[k, 0], of_one[k, 1], ups[k], start, stop, *windows.tile,
            windows.y, windows.x, *windows.kind, out[k], fields[k],
        )  # fmt: skip

    def across_planes(k: int, start: int, stop: int) -> None:
        flat = (array.reshape(windows.depth, -1) for array in (first[k], second[k]))
        windows.kernels.depth_backward(
            *flat, start, stop, windows.slab, windows.z, *windows.kind, fields[k].reshape(2, windows.depth, -1),
            out[k].reshape(windows.depth, -1),
        )  # fmt: skip

    for_each_tile(within_planes, p.shape, *windows.tile)
    for_each_bundle(across_planes, p.shape)
    return gradient


@_local_correlation.fake
def _(p: Tensor, t: Tensor, *plan: Any) -> tuple[Tensor, Tensor, Tensor]:
    voxelwise, gradients = plan[-2:]
    score = torch.empty(p.shape, dtype=p.dtype) if voxelwise else p.new_empty(p.shape[:1], dtype=torch.float64)
    nothing = p.new_empty(0)
    return (
        score,
        torch.empty((p.shape[0], 3, *p.shape[1:]), dtype=p.dtype) if gradients > 0 else nothing,
        torch.empty((p.shape[0], 2, *p.shape[1:]), dtype=p.dtype) if gradients > 1 else nothing.clone(),
    )


@_local_correlation_backward.fake
def _(upstream: Tensor, p: Tensor, *_: Any) -> Tensor:
    return torch.empty(p.shape, dtype=p.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    p, t, *ctx.plan = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # of what is kept, there would be zeros of its size
    ctx.save_for_backward(p, t, *output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    p, t, kept, more = ctx.saved_tensors
    made: list[Tensor | None] = [None, None]
    needed = [k for k in range(2) if ctx.needs_input_grad[k] and upstream is not None]
    if torch.is_grad_enabled() and needed:  # a graph of the gradient is asked for: plain torch has one
        gradients = torch.autograd.grad(
            _plain(p, t, *ctx.plan[:-1]), [(p, t)[k] for k in needed], upstream, create_graph=True
        )
        for k, gradient in zip(needed, gradients, strict=True):
            made[k] = gradient
    else:
        if 0 in needed:
            made[0] = _local_correlation_backward(upstream, p, t, kept, kept[:, 1:], *ctx.plan[:3])
        if 1 in needed:
            made[1] = _local_correlation_backward(upstream, t, p, kept, more, *ctx.plan[:3])
    return *made, *[None] * len(ctx.plan)


_local_correlation.differentiable(_setup_context, _backward)
