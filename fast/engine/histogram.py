"""The joint histogram of two images under Parzen windows: the plain form, and calls of the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twinloss.fast.kernels.contract import HISTOGRAM, HistogramPlan
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.constants import accumulator
from twinloss.fast.runtime.torch_operator import InputsAndValue, gradients, operator

# The number of weights that the plain form stores at a time.
_BLOCK = 2**19


def joint_histogram(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """Return the joint histogram of the images (B, N) of each item, (B, K, K) float64, which sums to 1."""
    sigma = min(max(sigma, 1e-150), 1e150)  # beyond, the weights stay the same, but sigma^2 would be 0 or infinite
    compiled = HISTOGRAM.is_compiled(x)
    if dispatch.choose(HISTOGRAM, x) == "kernel" and (compiled or kernel == "gaussian"):
        histogram: Tensor = _joint_histogram(x, y, bins, sigma, kernel)
        return histogram
    return _plain(x, y, HistogramPlan(bins, sigma, kernel))


# --- plain torch: other devices, double backward ----------------------------------------------------------------------


def _plain(x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
    """Sum blocks of voxels; their weights are recomputed for the gradient, to save memory."""
    bins, sigma, kernel = plan
    z, of_y = (_places(image.to(accumulator(x.device)), bins, kernel) for image in (x, y))
    joint = z.new_zeros(len(x), bins, bins)
    step = max(_BLOCK // (len(x) * bins), 1)
    for start in range(0, x.shape[1], step):
        block = slice(start, start + step)
        arguments = z[:, block], of_y[:, block], bins, sigma, kernel
        if dispatch.observed():  # torch.func keeps all that it computes; forward mode needs none of it later
            joint = joint + _block(*arguments)
        else:
            joint = joint + checkpoint(_block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return joint / x.shape[1]


def _places(x: Tensor, bins: int, kernel: str) -> Tensor:
    """Return the positions of intensities in units of bins."""
    if kernel == "gaussian":
        return torch.where(x.isnan(), x, x.clamp(0, 1)) * (bins - 1)  # clamp would give NaN a gradient of 0
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    flat = high == low
    return 2 + torch.where(flat, 0, (x - low) * (bins - 4) / torch.where(flat, 1, high - low))


def _block(z: Tensor, of_y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    k = torch.arange(bins, dtype=z.dtype, device=z.device)
    distance, of_y = z.unsqueeze(2) - k, of_y.unsqueeze(2)
    if kernel == "gaussian":
        first, second = ((-(d**2) / (2 * sigma**2)).softmax(2) for d in (distance, of_y - k))
    else:
        d = distance.abs()
        inner, outer = (4 - 6 * d**2 + 3 * d**3) / 6, (2 - d).clamp(min=0) ** 3 / 6
        first = torch.where(d < 1, inner, outer)
        # NaN falls into no bin, so it is added explicitly.
        second = (k == of_y.floor().clamp(max=bins - 3)) + 0 * of_y.detach()
    return first.mT @ second


# --- torch operators --------------------------------------------------------------------------------------------------


@operator("joint_histogram")
def _joint_histogram(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    return HISTOGRAM.kernels(x).histogram(x, y, HistogramPlan(bins, sigma, kernel))


@operator("joint_histogram_backward")
def _joint_histogram_backward(upstream: Tensor, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """Return dL/dx, given dL/d(histogram)."""
    return HISTOGRAM.kernels(x).gradient(upstream, x, y, HistogramPlan(bins, sigma, kernel))


@_joint_histogram.fake
def _(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    return x.new_empty((x.shape[0], bins, bins), dtype=torch.float64)


@_joint_histogram_backward.fake
def _(upstream: Tensor, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, *plan = inputs
    ctx.plan = HistogramPlan(*plan)
    ctx.save_for_backward(x, y)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    plan, needed = ctx.plan, ctx.needs_input_grad[:2]

    def by_kernels() -> tuple[Tensor, ...]:
        made = []
        if needed[0]:
            made.append(_joint_histogram_backward(upstream, x, y, *plan))
        if needed[1]:  # the box on y has a gradient of 0
            gaussian = plan.kernel == "gaussian"
            made.append(
                _joint_histogram_backward(upstream.mT.contiguous(), y, x, *plan) if gaussian else torch.zeros_like(y)
            )
        return tuple(made)

    def plain() -> InputsAndValue:
        return [image for image, asked in zip((x, y), needed, strict=True) if asked], _plain(x, y, plan)

    made = iter(gradients(upstream, plain, by_kernels))
    return *(next(made) if asked else None for asked in needed), None, None, None


_joint_histogram.differentiable(_setup_context, _backward)
