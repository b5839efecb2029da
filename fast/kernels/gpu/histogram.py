"""Joint histograms on a GPU: each program sums the histogram of a chunk of voxels, and a second launch adds these."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twinloss.fast.kernels.contract import HistogramPlan
from twinloss.fast.kernels.gpu.compiled import histogram as compiled
from twinloss.fast.kernels.gpu.launch import interpreted, launch, power_of_2, processors

# The most rows and columns of a tile of bins, which a program keeps in registers; the number of weights of an image
# that it computes at once; and its warps.
_TILE, _WEIGHTS, _WARPS = 64, 2**11, 8

# The number of programs for each multiprocessor, and the number of cells of all their histograms, unless there are
# eight times as many voxels.
_PROGRAMS, _CELLS = 2, 2**19

# The voxels of a block where each voxel has a thread, the parts and the cells that are added at once, and the parts of
# the sums over all voxels.
_VOXELS, _PARTS, _CELLS_AT_ONCE = 128, 32, 16


class _Plan(NamedTuple):
    """The arguments of the kernels besides the images.

    Attributes:
        bins: K.
        reach: how many bins a window reaches before and after the bin of the voxel.
        window: how many bins a window reaches altogether.
        exponent: 1 / (2 sigma^2).
        ranges: the smallest and the largest intensity of each item of x, and of y, or None for a Gaussian.
    """

    bins: int
    reach: int
    window: int
    exponent: float
    ranges: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, plan: HistogramPlan) -> _Plan:
        bins, sigma, kernel = plan
        if kernel == "b-spline":
            return cls(bins, 2, 4, 0.0, (*torch.aminmax(x, dim=1), *torch.aminmax(y, dim=1)))
        reach = _reach(bins, sigma, torch.promote_types(x.dtype, torch.float32))
        return cls(bins, reach, min(2 * reach + 1, bins), 1 / (2 * sigma**2), (None,) * 4)


def _reach(bins: int, sigma: float, dtype: torch.dtype) -> int:
    """Return r: a voxel has weights in its nearest bin and in r bins on either side; all other weights are dropped.

    With the nearest bin at most 1/2 away, the weight j bins from there is at most exp(-(j^2 - j) / 2 sigma^2) of the
    largest one. For j = r + 1, this is less than 1/8 of the roundoff of the dtype. All dropped weights then sum to less
    than half a roundoff of the sum of the others.
    """
    needed = -2 * sigma**2 * math.log(torch.finfo(dtype).eps / 16)
    # Halfway between two bins, both have the same weight, however small sigma is.
    return min(max(math.ceil((math.sqrt(1 + 4 * needed) - 1) / 2), 1), bins - 1)


def histogram(x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
    """Return the histogram of each item, (B, K, K) float64, which sums to 1."""
    x, y = _rows(x), _rows(y)
    bins, reach, window, exponent, ranges = _Plan.of(x, y, plan)
    items, voxels = x.shape
    tile = min(max(power_of_2(bins), 16), _TILE)
    block = 1024 if interpreted() else min(_WEIGHTS // tile, 64)
    chunk = _chunk(x, max(_CELLS, voxels // 8) // bins**2, block)
    chunks = -(-voxels // chunk)
    parts = x.new_empty((items * chunks, bins, bins), dtype=torch.float64)
    launch(
        compiled.histogram, (items * chunks, (-(-bins // tile)) ** 2), x, y, *ranges, parts, voxels, x.stride(0),
        y.stride(0), chunk, chunks, bins, reach, window, exponent, GAUSSIAN=plan.kernel == "gaussian",
        TILE=tile, ONE_TILE=bins <= tile, BLOCK=block, warps=_WARPS,
    )  # fmt: skip
    return _sum(parts, items, chunks, voxels).view(items, bins, bins)


def gradient(upstream: Tensor, x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
    """Return dL/dx, given dL/d(histogram)."""
    made, upstream = x.new_empty(x.shape), upstream.contiguous()
    x, y = _rows(x), _rows(y)
    bins, reach, window, exponent, ranges = _Plan.of(x, y, plan)
    items, voxels = x.shape
    block = min(power_of_2(voxels), 4096) if interpreted() else _VOXELS
    blocks = -(-voxels // block)
    if plan.kernel == "gaussian":
        launch(
            compiled.gaussian_gradient, (items * blocks,), x, y, upstream, made, voxels, x.stride(0), y.stride(0),
            blocks, bins, reach, window, exponent, (bins - 1) / voxels, BLOCK=block,
        )  # fmt: skip
        return made
    chunk = _chunk(x, voxels, block)
    chunks = -(-voxels // chunk)
    parts = x.new_empty((items * chunks, 4), dtype=torch.float64)
    launch(
        compiled.spline_sums, (items * chunks,), x, y, *ranges, upstream, parts, voxels, x.stride(0), y.stride(0),
        chunk, chunks, bins, BLOCK=block,
    )  # fmt: skip
    launch(
        compiled.spline_gradient, (items * blocks,), x, y, *ranges, upstream, _sum(parts, items, chunks, 1), made,
        voxels, x.stride(0), y.stride(0), blocks, bins, 1 / voxels, BLOCK=block,
    )  # fmt: skip
    return made


def _chunk(x: Tensor, most: int, block: int) -> int:
    """Return the number of voxels of a program, in whole blocks, for at most `most` programs for each item."""
    items, voxels = x.shape
    programs = min(max(3 if interpreted() else processors(x.device) * _PROGRAMS // items, 1), max(most, 1))
    return -(-voxels // (programs * block)) * block


def _sum(parts: Tensor, items: int, chunks: int, divisor: float) -> Tensor:
    """Return the sums of the parts of each item, (items, cells), divided by a number."""
    cells = parts[0].numel()
    at_once = min(power_of_2(cells), 2**14 if interpreted() else _CELLS_AT_ONCE)
    made = parts.new_empty((items, cells))
    launch(
        compiled.add_parts, (items * -(-cells // at_once),), parts, made, chunks, cells, float(divisor), PARTS=_PARTS,
        CELLS=at_once,
    )  # fmt: skip
    return made


def _rows(image: Tensor) -> Tensor:
    """Return an image whose voxels lie next to each other."""
    return image if image.stride(1) == 1 else image.contiguous()
