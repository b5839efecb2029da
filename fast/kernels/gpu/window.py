"""Launches that move a window over images (N, D, H, W): the part of the window that each takes, and its programs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twinloss.fast.kernels.gpu.launch import interpreted, power_of_2, processors, warp_size

# The lanes of a program, which has one thread for each.
_LANES = 128


class Step(NamedTuple):
    """The part of a window that one launch takes, for which kernels are compiled; see `compiled/window.py`.

    Attributes:
        deep: whether programs march along z, or else along y.
        along: how many numbers are read along the march, around each step.
        across: how many are read across the march, along y.
        row: how many are read along x.
        ring: the steps of the march whose results are combined.
    """

    deep: bool
    along: int = 1
    across: int = 1
    row: int = 1
    ring: int = 1

    def strides(self, image: Tensor) -> tuple[int, int, int, int]:
        """Return the strides along N, the march, across it, and x."""
        n, z, y, x = image.stride()
        return (n, z, y, x) if self.deep else (n, y, z, x)


class Programs(NamedTuple):
    """The programs of a launch.

    Attributes:
        grid: their numbers.
        geometry: the sizes and ranges that all kernels take.
        block: the lanes of a program.
        warps: the warps of a program.
    """

    grid: tuple[int, int]
    geometry: tuple[int, ...]
    block: int
    warps: int


def programs(step: Step, shape: tuple[int, ...], low: int, high: int, device: torch.device) -> Programs:
    """Return the programs that do the planes low:high of images (N, D, H, W)."""
    count, depth, height, width = shape
    lanes, march = (height * width, high - low) if step.deep else ((high - low) * width, height)
    block = min(power_of_2(lanes), 4096) if interpreted() else _LANES
    blocks, chunk = -(-lanes // block), march
    if not interpreted():
        # A chunk also does the steps that its ring reaches beyond it, so that shorter chunks would be a waste.
        chunks = min(processors(device) * 8 // (blocks * count), march // max(step.ring, 4))
        chunk = -(-march // max(chunks, 1))
    if step.deep:
        geometry = (depth, height, width, height * width, low, high - low, chunk, 0, height, blocks)
    else:
        geometry = (height, depth, width, height * width, 0, height, chunk, low, high - low, blocks)
    return Programs((count * blocks, -(-march // chunk)), geometry, block, _LANES // warp_size(device))


def far(*images: Tensor) -> bool:
    """Return whether the offsets of lanes need int64."""
    return max(map(_extent, images)) >= 2**31


def near(image: Tensor, size: int) -> Tensor:
    """Return an image in which the offsets of neighbours within a plane are int32, which it nearly always has."""
    return image.contiguous() if max(image.stride()[2:]) * size >= 2**31 else image


def _extent(image: Tensor) -> int:
    return sum((size - 1) * stride for size, stride in zip(image.shape, image.stride(), strict=True)) + 1
