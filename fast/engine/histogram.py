"""The statistic of mutual information: the joint histogram of two images under Parzen windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.memory import empty
from twinloss.fast.runtime.threads import for_each_chunk
from twinloss.fast.runtime.torch_operator import operator, slopes_by_torch

# Voxels of a chunk, at least, and for each bin of its histogram, which then takes less room than they do; and chunks of
# an item, at most.
_CHUNK, _PER_CELL, _MOST = 2**15, 4, 32

# How many numbers of a softmax take as long as a voxel's windows.
_NUMBERS = 32
# Weights that plain torch holds at a time.
_BLOCK = 2**19


def joint_histogram(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """The joint histogram of the images (B, N) of each item, (B, K, K) float64, adding up to 1."""
    sigma = min(max(sigma, 1e-150), 1e150)  # beyond, the weights stay as they are, but sigma^2 is no number
    if dispatch.choose(x) == "kernel":
        return _joint_histogram(x, y, bins, sigma, kernel)
    return _plain(x, y, bins, sigma, kernel)


# --- plain torch: other devices, double backward ----------------------------------------------------------------------


def _plain(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """As the operator below; a block of voxels at a time, whose weights are computed again for the gradient."""
    z, of_y = (_places(image.double(), bins, kernel) for image in (x, y))
    joint = z.new_zeros(len(x), bins, bins)
    step = max(_BLOCK // (len(x) * bins), 1)
    for start in range(0, x.shape[1], step):
        block = slice(start, start + step)
        arguments = z[:, block], of_y[:, block], bins, sigma, kernel
        if dispatch.transformed():  # torch.func keeps all that it computes
            joint = joint + _block(*arguments)
        else:
            joint = joint + checkpoint(_block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return joint / x.shape[1]


def _places(x: Tensor, bins: int, kernel: str) -> Tensor:
    """Where intensities lie among the bins."""
    if kernel == "gaussian":
        return torch.where(x.isnan(), x, x.clamp(0, 1)) * (bins - 1)  # of NaN, the clamp has a slope of 0
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
        # NaN is in no bin: it has to reach the sum by itself.
        second = (k == of_y.floor().clamp(max=bins - 3)) + 0 * of_y.detach()
    return first.mT @ second


# --- the kernels as torch operators -----------------------------------------------------------------------------------


def _reach(bins: int, sigma: float, dtype: torch.dtype) -> int:
    """How many bins to either side of the nearest one a voxel's weights are kept.

    With f = z - k its distance from the nearest bin, |f| <= 1/2, the weight j bins further off is exp(-(j^2 - 2 j f) /
    2 sigma^2) times the largest, which is at most exp(-(j^2 - j) / 2 sigma^2); call that t at j = r + 1. From there on
    each is at most exp(-(r + 1) / sigma^2) times the one before, so that those dropped on a side sum to no more than
    t (1 + sigma^2 / (r + 1)). With t below an eighth of the dtype's roundoff u, r > 6 sigma: that is t (1 + sigma / 6),
    where the weights that are kept sum to 1 and to sigma at least. So the fraction dropped is less than u / 2: by way
    of the division by the sum, too, it changes no weight by as much as its rounding.
    """
    needed = -2 * sigma**2 * math.log(torch.finfo(dtype).eps / 16)
    return min(math.ceil((math.sqrt(1 + 4 * needed) - 1) / 2), bins - 1)


class _Histogram:
    """How the kernels are called for a pair of images (B, N)."""

    def __init__(self, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> None:
        self.kernels = kernels = dispatch.kernels("mutual_information")
        self.bins = bins
        self.images = x.contiguous().numpy(), y.contiguous().numpy()
        gaussian = kernel == "gaussian"
        self.windows = (kernels.GAUSSIAN, kernels.GAUSSIAN) if gaussian else (kernels.CUBIC, kernels.BOX)
        self.reach = _reach(bins, sigma, x.dtype) if gaussian else 0
        self.exponent = 1 / (2 * sigma**2)
        self.ranges = np.zeros((len(x), 2, 2)) if gaussian else _ranges(self.images)
        voxels = x.shape[1]
        self.chunk = max(_CHUNK, _PER_CELL * bins**2, -(-voxels // _MOST))
        self.parts = -(-voxels // self.chunk)

    def each_chunk(self, work: Any) -> None:
        """Call work(item, part, images of the chunk) for all chunks."""

        def chunk(index: int) -> None:
            item, part = divmod(index, self.parts)
            voxels = slice(part * self.chunk, (part + 1) * self.chunk)
            work(item, part, voxels, *(image[item, voxels] for image in self.images))

        for_each_chunk(chunk, len(self.images[0]) * self.parts, _NUMBERS * self.images[0].size)

    def options(self, item: int) -> tuple[Any, ...]:
        """The kernels' arguments after the images."""
        return self.windows, self.bins, self.reach, self.exponent, self.ranges[item]


def _ranges(images: tuple[Any, Any]) -> Any:
    """The smallest intensity of each item and the width of its range, (B, 2 images, 2)."""
    low, high = (np.stack([end(image, 1) for image in images], 1).astype(np.float64) for end in (np.min, np.max))
    with np.errstate(all="ignore"):  # infinity less infinity
        return np.stack([low, high - low], 2)


@operator("joint_histogram")
def _joint_histogram(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    histogram = _Histogram(x, y, bins, sigma, kernel)
    parts = np.zeros((len(x), histogram.parts, bins, bins))
    missing = np.zeros((len(x), histogram.parts), np.int64)

    def work(item: int, part: int, voxels: slice, first: Any, second: Any) -> None:
        missing[item, part] = histogram.kernels.forward(first, second, *histogram.options(item), parts[item, part])

    histogram.each_chunk(work)
    joint = parts.sum(1) / x.shape[1]
    joint[missing.any(1)] = np.nan
    return torch.from_numpy(joint)


@operator("joint_histogram_backward")
def _joint_histogram_backward(gamma: Tensor, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """The gradient in x."""
    histogram = _Histogram(x, y, bins, sigma, kernel)
    kernels, windows, reach = histogram.kernels, histogram.windows, histogram.reach
    before = [kernels.before(window, reach) for window in windows]
    # Beyond the last bin, what the windows reach and a wide register more.
    after = [kernels.reached(window, reach) + kernels.LANES for window in windows]
    padded = np.pad(gamma.numpy() / x.shape[1], ((0, 0), (before[0], after[0]), (before[1], after[1])))
    gradient = empty(x.shape, x.dtype)
    out = gradient.numpy()
    sums = np.zeros((len(x), histogram.parts, 2))

    def work(item: int, part: int, voxels: slice, first: Any, second: Any) -> None:
        sums[item, part] = kernels.backward(first, second, *histogram.options(item), padded[item], out[item, voxels])

    histogram.each_chunk(work)
    if kernel == "b-spline":
        _through_the_range(out, histogram, sums.sum(1))
    return gradient


def _through_the_range(out: Any, histogram: _Histogram, sums: Any) -> None:
    """From dL/dz to dL/dx: z also depends on the extremes of x, which all voxels that attain one share."""
    for item, image in enumerate(histogram.images[0]):
        width = histogram.ranges[item, 0, 1]
        total, moment = sums[item, 0], sums[item, 1] / (histogram.bins - 4)
        if width == 0:
            out[item] = 0
            continue
        bins = histogram.bins - 4
        # Divided first: of a range as small as numbers get, the inverse is infinite, and what it meets may be 0.
        with np.errstate(over="ignore", invalid="ignore"):
            out[item] = out[item] / width * bins
            for extreme, part in ((image.min(), total - moment), (image.max(), moment)):
                attained = image == extreme
                out[item][attained] -= part / width * bins / np.count_nonzero(attained)


@_joint_histogram.fake
def _(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    return x.new_empty((x.shape[0], bins, bins), dtype=torch.float64)


@_joint_histogram_backward.fake
def _(gamma: Tensor, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, *ctx.plan = inputs
    ctx.save_for_backward(x, y)


def _backward(ctx: Any, gamma: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    kernel = ctx.plan[2]
    of_x, of_y = ctx.needs_input_grad[:2]
    by_x, by_y = None, None
    if dispatch.by_torch(gamma):
        asked = [image for image, needed in ((x, of_x), (y, of_y)) if needed]
        made = slopes_by_torch(lambda: _plain(x, y, *ctx.plan), asked, gamma)
        by_x, by_y = (made[0] if of_x else None), (made[-1] if of_y else None)
    else:
        if of_x:
            by_x = _joint_histogram_backward(gamma, x, y, *ctx.plan)
        if of_y and kernel == "gaussian":
            by_y = _joint_histogram_backward(gamma.mT.contiguous(), y, x, *ctx.plan)
        elif of_y:
            by_y = torch.zeros_like(y)
    return by_x, by_y, None, None, None


_joint_histogram.differentiable(_setup_context, _backward)
