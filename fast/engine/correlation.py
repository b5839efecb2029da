"""The correlations of two images in moving windows: the plain form, and calls of the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twinloss.fast.kernels.contract import CORRELATION, CorrelationPlan
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import total
from twinloss.fast.runtime.torch_operator import (
    Computation,
    InputsAndValue,
    Once,
    gradients,
    is_traced,
    one_node,
    operator,
    scaled,
)


def correlation_sum(p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
    """Return a factor times the sum of the correlations of images (N, D, H, W) in all windows."""
    asked = torch.is_grad_enabled()
    if _choose(p, plan) == "plain" or (asked and t.requires_grad) or is_traced((p, t)):
        return (factor * correlations(p, t, plan, False).sum()).to(dtype)
    return _sum_as_one_node(p, t, plan, factor, dtype)


def _choose(p: Tensor, plan: CorrelationPlan) -> dispatch.Backend:
    """Choose the plain form also for windows that only compiled kernels serve."""
    if plan.kind != "rectangular" and not CORRELATION.is_compiled(p):
        return "plain"
    return dispatch.choose(CORRELATION, p)


def correlations(p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool) -> Tensor:
    """Return smoothed squared correlations of images (N, D, H, W) in windows along their last axes.

    If `voxelwise`, return those of all windows, or else their sum for each image, (N,) float64.
    """
    if _choose(p, plan) == "plain":
        return _plain(p, t, plan, voxelwise)
    asked = torch.is_grad_enabled() * (p.requires_grad + t.requires_grad)
    score: Tensor
    score, _, _ = _scores(p, t, *plan, voxelwise, asked)
    return score


# --- plain torch: other devices, double backward ----------------------------------------------------------------------


def _plain(p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool) -> Tensor:
    """Compute moments in windows along one axis after the other, means first.

    Means are relative to the voxel in the middle, so that no precision is lost if the images have a large offset.
    """
    p, t = dispatch.widened(p), dispatch.widened(t)
    window, size, count = plan.window(), plan.size, 1.0
    weight = sum(window)
    mean_t, mean_p, tt, pp, tp = (torch.zeros_like(t) for _ in range(5))
    for axis in range(4 - plan.rank, 4):
        from_t, from_p = (
            [of_mean + (voxel - image) for of_mean, voxel in zip(*_shifted(axis, size, mean, image), strict=True)]
            for mean, image in ((mean_t, t), (mean_p, p))
        )
        mean_t, mean_p = (
            total(w / weight * f for w, f in zip(window, means, strict=True)) for means in (from_t, from_p)
        )
        from_t, from_p = [f - mean_t for f in from_t], [f - mean_p for f in from_p]
        shifted = zip(_shifted(axis, size, tt, pp, tp), (from_t, from_p, from_t), (from_t, from_p, from_p), strict=True)
        tt, pp, tp = (
            total(w * (m + count * (a * b)) for w, m, a, b in zip(window, *fields, strict=True)) for fields in shifted
        )
        count *= weight
    delta = plan.delta
    denominator = tt.clamp(min=delta) * pp.clamp(min=delta) if plan.clamped else tt * pp + delta
    score = (tp**2 + plan.nu) / denominator
    return score if voxelwise else score.sum((1, 2, 3), dtype=torch.float64)


def _shifted(axis: int, size: int, *fields: Tensor) -> list[list[Tensor]]:
    """Return each field, shifted by each offset of a window along an axis, with zeros beyond the borders."""
    margin = [0, 0] * (3 - axis) + [size // 2, size // 2]
    around = (torch.nn.functional.pad(field, margin) for field in fields)
    return [[wide.narrow(axis, j, wide.shape[axis] - size + 1) for j in range(size)] for wide in around]


# --- the sum over all windows, as one node ----------------------------------------------------------------------------


class _Origin(NamedTuple):
    """The sources of two images, and the function that makes the images from them."""

    sources: tuple[Tensor, Tensor]
    make: Callable[[Tensor], Tensor]
    images: tuple[Tensor, Tensor]
    versions: tuple[int, int]

    def of(self, image: Tensor) -> Tensor | None:
        """Return the source of an image, if it is one of the two images and has not been modified since."""
        for source, made, version in zip(self.sources, self.images, self.versions, strict=True):
            same = image.data_ptr() == made.data_ptr() and image.numel() == made.numel() and image.dtype == made.dtype
            fresh = image.is_contiguous() and made.is_contiguous() and made._version == version
            if same and fresh and not source.is_inference():  # autograd cannot save inference tensors
                return source
        return None


_origin: ContextVar[_Origin | None] = ContextVar("origin", default=None)


@contextmanager
def made_from(
    sources: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor], make: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within a context, let a correlation of these images save their sources, and make the images again if necessary.

    The gradient is computed together with the value. The images are needed again only for a graph of the gradient, or
    for a second backward.
    """
    before = _origin.set(_Origin(sources, make, images, (images[0]._version, images[1]._version)))
    try:
        yield
    finally:
        _origin.reset(before)


def _sum_as_one_node(p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
    """Return the sum of the correlations times a factor, with a gradient with respect to p only.

    The gradient does not depend on a sum over the image. If it will be needed, it is computed together with the value,
    a few planes at a time, and kept until backward. Intermediate results are therefore never stored for the whole
    image.
    """
    kernels, shape, kind = CORRELATION.kernels(p), p.shape, p.dtype
    origin = _origin.get() if torch.is_grad_enabled() and p.requires_grad else None
    sources = [None if origin is None else origin.of(image) for image in (p, t)]
    makes = [None if origin is None or source is None else origin.make for source in sources]

    def images(*saved: Tensor) -> list[Tensor]:
        return [each if make is None else make(each).reshape(shape) for each, make in zip(saved, makes, strict=True)]

    def value(pair: tuple[Tensor, Tensor], ahead: bool) -> tuple[Tensor, Once[Tensor] | None]:
        p, t = pair
        if not ahead:
            return kernels.value(p, t, plan, factor, dtype), None
        made, gradient = kernels.value_and_gradient(p, t, plan, factor, dtype)
        return made, Once(gradient)

    def gradient(upstream: Tensor, kept: Once[Tensor] | None, *saved: Tensor) -> Tensor:
        made = None if kept is None else kept.take()
        if made is not None:
            return scaled(made, upstream).to(kind)
        p, t = images(*saved)
        return kernels.gradient(upstream, p, t, plan, factor)

    def plain(*saved: Tensor) -> InputsAndValue:
        p, t = images(*saved)
        return (p,), factor * _plain(p, t, plan, False).sum()

    def to_save(*pair: Tensor) -> list[Tensor]:
        return [image if source is None else source for image, source in zip(pair, sources, strict=True)]

    return one_node(Computation(value, gradient, plain, to_save), p, t)


# --- torch operators --------------------------------------------------------------------------------------------------

_PLAN = "SymInt size, str kind, SymInt rank, float nu, float delta, bool clamped"


@operator(
    "local_correlation",
    f"(Tensor p, Tensor t, {_PLAN}, bool voxelwise, SymInt gradients) -> (Tensor, Tensor, Tensor)",
)
def _scores(p: Tensor, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return correlations, and intermediate results for their gradients; see `CorrelationKernels.scores`."""
    *plan, voxelwise, asked = rest
    return CORRELATION.kernels(p).scores(p, t, CorrelationPlan(*plan), voxelwise, asked)


@operator(
    "local_correlation_backward",
    f"(Tensor upstream, Tensor p, Tensor t, Tensor of_both, Tensor of_p, {_PLAN}) -> Tensor",
)
def _slopes(upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, *plan: Any) -> Tensor:
    """Return dL/dp from the intermediate results; see `CorrelationKernels.slopes`."""
    return CORRELATION.kernels(p).slopes(upstream, p, t, of_both, of_p, CorrelationPlan(*plan))


@_scores.fake
def _(p: Tensor, t: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    voxelwise, asked = rest[-2:]
    wide = torch.promote_types(torch.promote_types(p.dtype, t.dtype), torch.float32)
    score = p.new_empty(p.shape, dtype=wide) if voxelwise else p.new_empty(p.shape[:1], dtype=torch.float64)
    kept = wide if CORRELATION.is_compiled(p) else torch.float64
    nothing = p.new_empty(0, dtype=kept)
    return (
        score,
        p.new_empty((p.shape[0], 3, *p.shape[1:]), dtype=kept) if asked > 0 else nothing,
        p.new_empty((p.shape[0], 2, *p.shape[1:]), dtype=kept) if asked > 1 else nothing.clone(),
    )


@_slopes.fake
def _(upstream: Tensor, p: Tensor, *_: Any) -> Tensor:
    return p.new_empty(p.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    p, t, *plan, ctx.voxelwise, _ = inputs
    ctx.plan = CorrelationPlan(*plan)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for the intermediate results would be as large as these
    ctx.save_for_backward(p, t, *output[1:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
    p, t, kept, more = ctx.saved_tensors
    plan, made = ctx.plan, list[Tensor | None]([None, None])
    needed = [k for k in range(2) if ctx.needs_input_grad[k] and upstream is not None]
    if needed and upstream is not None:
        pairs = ((p, t, kept[:, 1:]), (t, p, more))

        def by_kernels() -> tuple[Tensor, ...]:
            asked = (pairs[k] for k in needed)
            return tuple(_slopes(upstream, one, other, kept, of_one, *plan) for one, other, of_one in asked)

        def plain() -> InputsAndValue:
            return [(p, t)[k] for k in needed], _plain(p, t, plan, ctx.voxelwise)

        for k, gradient in zip(needed, gradients(upstream, plain, by_kernels), strict=True):
            made[k] = gradient
    return *made, *[None] * (len(plan) + 2)


_scores.differentiable(_setup_context, _backward)
