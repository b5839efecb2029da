"""The statistic of local normalised cross-correlation: the squared correlations of two images in moving windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.memory import empty, scalar
from twinloss.fast.runtime.threads import for_each_bundle, for_each_tile
from twinloss.fast.runtime.torch_operator import looked_into, operator, slopes_by_torch


def reduced_correlation(
    p: Tensor, t: Tensor, size: int, kind: str, rank: int, nu: float, delta: float, clamped: bool, factor: float,
    dtype: torch.dtype,
) -> Tensor | None:  # fmt: skip
    """A factor times the sum of `local_correlation`, as one node; None where t has a gradient or somebody looks in."""
    asked = torch.is_grad_enabled()
    if dispatch.choose(p) == "plain" or (asked and t.requires_grad) or looked_into((p, t)):
        return None
    ahead = asked and p.requires_grad
    loss: Tensor = _ReducedCorrelation.apply(p, t, (size, kind, rank, nu, delta, clamped), factor, dtype, ahead)
    return loss


def local_correlation(
    p: Tensor, t: Tensor, size: int, kind: str, rank: int, nu: float, delta: float, clamped: bool, voxelwise: bool
) -> Tensor:
    """Smoothed squared correlations of images (N, D, H, W) in windows along their last `rank` axes.

    Those of all windows if `voxelwise`; or else their sum for each image, (N,) float64.
    """
    plan = (size, kind, rank, nu, delta, clamped, voxelwise)
    if dispatch.choose(p) == "plain":
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


# --- the kernels ------------------------------------------------------------------------------------------------------


class _Windows:
    """The four passes over planes low:high of images (N, D, H, W), as arrays.

    What lies between the passes may have room for fewer planes, see `kernels/correlation.py`.
    """

    def __init__(self, shape: Sequence[int], size: int, kind: str, rank: int) -> None:
        self.kernels, tiling = dispatch.kernels("correlation"), dispatch.kernels("window")
        window, none = np.array(_window(size, kind)), np.ones(1)
        self.z, self.y, self.x = [none] * (3 - rank) + [window] * rank
        # Whether all weights are 1, and whether they are not: of what is None no code is compiled.
        self.kind = (True, None) if kind == "rectangular" else (None, True)
        self.in_plane = self.y.sum() * self.x.sum()
        _, self.depth, self.height, self.width = shape
        self.reach = self.z.size // 2
        self.slab = tiling.planes_at_once(self.depth, self.reach)
        self.tile = tiling.tile_of_plane(self.height, self.width, self.x.size // 2)

    def moments(self, p: Any, t: Any, low: int, high: int, means: Any, sums: Any) -> None:
        """Those within planes: means (N, 2, …, H, W), and sums of what deviates, (N, 3, …, H, W)."""

        def work(k: int, start: int, stop: int) -> None:
            self.kernels.planes(p[k], t[k], start, stop, *self.tile, self.y, self.x, *self.kind, means[k], sums[k])

        self._in_planes(work, len(p), low, high)

    def scores(
        self, p: Any, t: Any, low: int, high: int, means: Any, sums: Any, made: Any, more: Any, score: Any,
        rest: tuple[float, float, bool], gradients: int,
    ) -> list[list[float]]:  # fmt: skip
        """The correlations, into `score` if it has room for any; or else numbers whose sum is theirs, by image."""
        p, t, means, sums, made, more, score = map(_columns, (p, t, means, sums, made, more, score))
        totals: list[list[float]] = [[] for _ in p]

        def work(k: int, start: int, stop: int) -> None:
            total = self.kernels.depth(
                p[k], t[k], low, high, start, stop, min(self.slab, high - low), self.z, *self.kind, self.in_plane,
                *rest, score[k], means[k], sums[k], made[k], more[k], gradients,
            )  # fmt: skip
            totals[k].append(total)

        for_each_bundle(work, (len(p), high - low, self.height, self.width))
        return totals

    def sums_of_slopes(
        self, p: Any, t: Any, low: int, high: int, a: Any, b: Any, of: Any, upstream: Any, of_a: Any, fields: Any
    ) -> None:
        """Sums within planes of what `scores` has made for the gradient in p, that of A apart."""

        def work(k: int, start: int, stop: int) -> None:
            self.kernels.planes_backward(
                p[k], t[k], a[k], b[k], of[k], upstream[k], start, stop, *self.tile, self.y, self.x, *self.kind,
                of_a[k], fields[k],
            )  # fmt: skip

        self._in_planes(work, len(p), low, high)

    def slopes(self, p: Any, t: Any, low: int, high: int, of_a: Any, fields: Any, out: Any) -> None:
        """The gradient in p."""
        p, t, of_a, fields, out = map(_columns, (p, t, of_a, fields, out))

        def work(k: int, start: int, stop: int) -> None:
            self.kernels.depth_backward(
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
    """Images (…, H, W) as (…, H * W)."""
    return images.reshape(*images.shape[:-2], images.shape[-2] * images.shape[-1])


# --- the sum over all windows with its gradient, some planes after others ---------------------------------------------

# Voxels whose windows are done at a time, in whole planes or images; and how many planes that are at least, and for
# each plane that a window reaches. Between the passes there is room for these planes, and those that they reach; where
# that is more than half of an only image, it is done as a whole, each pass over what the one before has left.
_AT_ONCE, _LEAST_PLANES, _PLANES_OF_REACH = 2**18, 16, 4


def _sum_and_gradient(p: Tensor, t: Tensor, plan: tuple[Any, ...], slope: float | None) -> tuple[float, Tensor | None]:
    """The sum of the correlations of images (N, D, H, W); and the slope times its gradient in p, unless it is None."""
    *shape, nu, delta, clamped = plan
    windows, gradients = _Windows(p.shape, *shape), int(slope is not None)
    first, second = p.contiguous().numpy(), t.contiguous().numpy()
    (count, depth, *plane), margin = first.shape, windows.reach
    least = max(_AT_ONCE // math.prod(plane), _LEAST_PLANES, _PLANES_OF_REACH * margin)
    step = -(-depth // max(depth // least, 1))
    images, reached = min(max(_AT_ONCE // (depth * math.prod(plane)), 1), count), min(step + 2 * margin, depth)
    if images == count and 2 * reached > depth:
        by_image, kept, _ = _local_correlation.function(p, t, *plan, False, gradients)
        if slope is None:
            return math.fsum(by_image), None
        slopes = torch.full((count,), slope, dtype=torch.float64, device=p.device)
        return math.fsum(by_image), _local_correlation_backward.function(slopes, p, t, kept, kept[:, 1:], *shape)

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
            totals += windows.scores(
                *pair, low, high, means, sums, made, made[:, :0], none, (nu, delta, clamped), gradients
            )
            if gradients:
                a, b, of = made[:, 0], made[:, 1], made[:, 2]
                windows.sums_of_slopes(*pair, low, high, a, b, of, upstream, in_planes[:, 0], in_planes[:, 1:])
                begin, end = max(low - margin, 0), depth if high == depth else high - margin
                windows.slopes(*pair, begin, end, in_planes[:, 0], in_planes[:, 1:], gradient.numpy()[k : k + images])
    return math.fsum(total for of_image in totals for total in of_image), gradient if gradients else None


class _Origin(NamedTuple):
    """What two images were made from, and how; and what says that others are these images still."""

    sources: tuple[Tensor, Tensor]
    make: Callable[[Tensor], Tensor]
    images: tuple[Tensor, Tensor]
    versions: tuple[int, int]

    def of(self, image: Tensor) -> Tensor | None:
        """The source of an image, if it is one of the two."""
        for source, made, version in zip(self.sources, self.images, self.versions, strict=True):
            same = image.data_ptr() == made.data_ptr() and image.numel() == made.numel() and image.dtype == made.dtype
            fresh = image.is_contiguous() and made.is_contiguous() and made._version == version
            if same and fresh and not source.is_inference():  # which autograd saves not
                return source
        return None


_origin: ContextVar[_Origin | None] = ContextVar("origin", default=None)


@contextmanager
def made_from(
    sources: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor], make: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within it, a correlation of these images keeps what they were made from, and makes them again if need be.

    Its gradient is there when it returns: it looks at its images again for a graph of the gradient, or for another one.
    """
    before = _origin.set(_Origin(sources, make, images, (images[0]._version, images[1]._version)))
    try:
        yield
    finally:
        _origin.reset(before)


class _ReducedCorrelation(torch.autograd.Function):
    """The sum of the correlations times a factor, as one node, whose gradient is in p alone.

    That hangs on no sum over the image: where it will be asked for, it is made with the value, some planes at a time,
    and kept until the backward. So what lies between the passes never is there as a whole.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        p, t, plan, factor, dtype, ahead = arguments
        origin = _origin.get() if ahead else None
        ctx.makes, saved = [], []
        for image in (p, t):
            source = None if origin is None else origin.of(image)
            ctx.makes.append(None if origin is None or source is None else origin.make)
            saved.append(image if source is None else source)
        ctx.save_for_backward(*saved)
        ctx.rest, ctx.shape = (plan, factor), p.shape
        total, ctx.gradient = _sum_and_gradient(p, t, plan, factor if ahead else None)
        return scalar(factor * total, dtype, p.device)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan, factor = ctx.rest
        gradient, ctx.gradient = ctx.gradient, None  # which is the caller's from now on
        if dispatch.by_torch(upstream[0]):
            with torch.enable_grad():  # which images that are made again need
                p, t = _images(ctx)
            (gradient,) = slopes_by_torch(lambda: factor * _plain(p, t, *plan, False).sum(), (p,), upstream[0])
        elif gradient is None:
            _, gradient = _sum_and_gradient(*_images(ctx), plan, factor * upstream[0].item())
        elif upstream[0] != 1:
            gradient *= upstream[0]
        return gradient, *[None] * 5


def _images(ctx: Any) -> list[Tensor]:
    """The images p and t, as they were or made again."""
    pairs = zip(ctx.saved_tensors, ctx.makes, strict=True)
    return [saved if make is None else make(saved).reshape(ctx.shape) for saved, make in pairs]


# --- the kernels as torch operators -----------------------------------------------------------------------------------


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
    pair = p.contiguous().numpy(), t.contiguous().numpy(), 0, windows.depth
    means = empty((len(p), 2, *p.shape[1:]), torch.float64).numpy()
    kept = empty((len(p), 3, *p.shape[1:]), p.dtype)
    more = empty((len(p), 2, *p.shape[1:]) if gradients > 1 else (len(p), 2, 0, 0, 0), p.dtype)
    score = empty(p.shape if voxelwise else (len(p), 0, 0, 0), p.dtype)
    fields = kept.numpy()
    windows.moments(*pair, means, fields)
    totals = windows.scores(*pair, means, fields, fields, more.numpy(), score.numpy(), (nu, delta, clamped), gradients)
    if gradients == 0:
        kept = p.new_empty(0)
    if gradients < 2:
        more = p.new_empty(0)
    if voxelwise:
        return score, kept, more
    return torch.tensor([math.fsum(each) for each in totals], dtype=torch.float64, device=p.device), kept, more


@operator("local_correlation_backward")
def _local_correlation_backward(
    upstream: Tensor, p: Tensor, t: Tensor, kept: Tensor, more: Tensor, size: int, kind: str, rank: int
) -> Tensor:
    """The gradient in p from what was kept for it: A, the first of `kept`, and B and the rest, in `more`."""
    windows = _Windows(p.shape, size, kind, rank)
    pair = p.contiguous().numpy(), t.contiguous().numpy(), 0, windows.depth
    of_all, of_one = kept.numpy(), more.numpy()
    by_window = upstream.double().reshape(-1, 1, 1, 1) if upstream.ndim == 1 else upstream.contiguous()
    fields = empty((len(p), 2, *p.shape[1:]), p.dtype).numpy()
    gradient = empty(p.shape, p.dtype)
    out = gradient.numpy()
    windows.sums_of_slopes(*pair, of_all[:, 0], of_one[:, 0], of_one[:, 1], by_window.numpy(), out, fields)
    windows.slopes(*pair, out, fields, out)
    return gradient


@_local_correlation.fake
def _(p: Tensor, t: Tensor, *plan: Any) -> tuple[Tensor, Tensor, Tensor]:
    voxelwise, gradients = plan[-2:]
    score = p.new_empty(p.shape) if voxelwise else p.new_empty(p.shape[:1], dtype=torch.float64)
    nothing = p.new_empty(0)
    return (
        score,
        p.new_empty((p.shape[0], 3, *p.shape[1:])) if gradients > 0 else nothing,
        p.new_empty((p.shape[0], 2, *p.shape[1:])) if gradients > 1 else nothing.clone(),
    )


@_local_correlation_backward.fake
def _(upstream: Tensor, p: Tensor, *_: Any) -> Tensor:
    return p.new_empty(p.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    p, t, *ctx.plan = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # of what is kept, there would be zeros of its size
    ctx.save_for_backward(p, t, *output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    p, t, kept, more = ctx.saved_tensors
    made: list[Tensor | None] = [None, None]
    needed = [k for k in range(2) if ctx.needs_input_grad[k] and upstream is not None]
    if needed and dispatch.by_torch(upstream):
        images = [(p, t)[k] for k in needed]
        gradients = slopes_by_torch(lambda: _plain(p, t, *ctx.plan[:-1]), images, upstream)
        for k, gradient in zip(needed, gradients, strict=True):
            made[k] = gradient
    else:
        if 0 in needed:
            made[0] = _local_correlation_backward(upstream, p, t, kept, kept[:, 1:], *ctx.plan[:3])
        if 1 in needed:
            made[1] = _local_correlation_backward(upstream, t, p, kept, more, *ctx.plan[:3])
    return *made, *[None] * len(ctx.plan)


_local_correlation.differentiable(_setup_context, _backward)
