"""Joint histograms on the CPU: chunks of voxels, each with its own histogram."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import HistogramPlan
from twinloss.fast.kernels.cpu.arrays import as_array, total_of_parts
from twinloss.fast.kernels.cpu.compiled import mutual_information as compiled
from twinloss.fast.kernels.cpu.compiled.lanes import LANES
from twinloss.fast.runtime.memory import empty
from twinloss.fast.runtime.threads import for_each_chunk

# The minimum number of voxels in a chunk; the minimum per cell of its histogram, so that the histogram takes less
# memory than the voxels; and the maximum number of chunks per item.
_CHUNK, _PER_CELL, _MOST = 2**15, 4, 32

# The time of a voxel, as a multiple of that of one element of a softmax.
_NUMBERS = 32


@lru_cache
def _reach(bins: int, sigma: float, dtype: torch.dtype) -> int:
    """Return r: a voxel has weights in its nearest bin and in r bins on either side; all other weights are dropped.

    Let f = z - k be the distance from the nearest bin, |f| <= 1/2. Relative to the largest weight, the weight j bins
    away is exp(-(j^2 - 2 j f) / 2 sigma^2), which is at most exp(-(j^2 - j) / 2 sigma^2). Let t be this bound at
    j = r + 1. From there on, each weight is at most exp(-(r + 1) / sigma^2) times the previous one, so the dropped
    weights on one side sum to at most t (1 + sigma^2 / (r + 1)). The choice of r makes t less than u / 8, with u the
    roundoff of the dtype. Then r > 6 sigma, and this sum is at most t (1 + sigma / 6). The kept weights sum to at
    least 1 and at least sigma. The dropped fraction is therefore less than u / 2, and dropping it changes no weight by
    more than its rounding, even after the division by the sum.
    """
    needed = -2 * sigma**2 * math.log(torch.finfo(dtype).eps / 16)
    return min(math.ceil((math.sqrt(1 + 4 * needed) - 1) / 2), bins - 1)


class _Histogram:
    """The arguments of the kernels for a pair of images (B, N)."""

    def __init__(self, x: Tensor, y: Tensor, plan: HistogramPlan) -> None:
        bins, sigma, kernel = plan
        self.bins = bins
        self.images = as_array(x), as_array(y)
        gaussian = kernel == "gaussian"
        self.windows = (compiled.GAUSSIAN, compiled.GAUSSIAN) if gaussian else (compiled.CUBIC, compiled.BOX)
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
        """Return the arguments of the kernels after the images."""
        return self.windows, self.bins, self.reach, self.exponent, self.ranges[item]


def _ranges(images: tuple[Any, Any]) -> Any:
    """Return the smallest intensity of each item and the width of its range, (B, 2 images, 2)."""
    low, high = (np.stack([end(image, 1) for image in images], 1).astype(np.float64) for end in (np.min, np.max))
    with np.errstate(all="ignore"):  # infinity minus infinity
        return np.stack([low, high - low], 2)


def histogram(x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
    """Return the histogram of each item, (B, K, K) float64, which sums to 1."""
    call, bins = _Histogram(x, y, plan), plan.bins
    parts = np.zeros((len(x), call.parts, bins, bins))
    missing = np.zeros((len(x), call.parts), np.int64)

    def work(item: int, part: int, voxels: slice, first: Any, second: Any) -> None:
        missing[item, part] = compiled.forward(first, second, *call.options(item), parts[item, part])

    call.each_chunk(work)
    joint = total_of_parts(parts.swapaxes(0, 1)) / x.shape[1]
    joint[missing.any(1)] = np.nan
    return torch.from_numpy(joint)


def gradient(upstream: Tensor, x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
    """Return dL/dx, given dL/d(histogram)."""
    call = _Histogram(x, y, plan)
    before = [compiled.before.py_func(window, call.reach) for window in call.windows]
    # After the last bin, there is room for the reach of the windows and for one vector register.
    after = [compiled.reached.py_func(window, call.reach) + LANES for window in call.windows]
    bins = plan.bins
    padded = np.zeros((len(x), *(low + bins + high for low, high in zip(before, after, strict=True))))
    padded[:, before[0] : before[0] + bins, before[1] : before[1] + bins] = upstream.numpy() / x.shape[1]
    made = empty(x.shape, x.dtype)
    out = made.numpy()
    sums = np.zeros((len(x), call.parts, 2))

    def work(item: int, part: int, voxels: slice, first: Any, second: Any) -> None:
        slopes = padded[item]
        sums[item, part] = compiled.backward(first, second, *call.options(item), slopes, out[item, voxels])

    call.each_chunk(work)
    if plan.kernel == "b-spline":
        _through_the_range(out, call, total_of_parts(sums.swapaxes(0, 1)))
    return made


def _through_the_range(out: Any, call: _Histogram, sums: Any) -> None:
    """Turn dL/dz into dL/dx. z also depends on the extremes of x; the voxels that attain one share its derivative."""
    for item, image in enumerate(call.images[0]):
        width = call.ranges[item, 0, 1]
        total, moment = sums[item, 0], sums[item, 1] / (call.bins - 4)
        if width == 0:
            out[item] = 0
            continue
        bins = call.bins - 4
        # Divide first: the inverse of a tiny range is infinite, and infinity times 0 would be NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            out[item] = out[item] / width * bins
            for extreme, part in ((image.min(), total - moment), (image.max(), moment)):
                attained = image == extreme
                out[item][attained] -= part / width * bins / np.count_nonzero(attained)
