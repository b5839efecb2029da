"""Smoothing of images along their axes: the plain form, and calls of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twinloss.fast.kernels.contract import SMOOTHING
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import total
from twinloss.fast.runtime.torch_operator import operator


def smoothed(image: Tensor, taps: list[float]) -> Tensor:
    """Return the image (B, C, *S), correlated with the taps along each spatial axis."""
    if taps == [1.0]:
        return image
    rank = image.ndim - 2
    flat = image.reshape(-1, *[1] * (3 - rank), *image.shape[2:])
    smooth = _smooth if dispatch.choose(SMOOTHING, flat) == "kernel" else _plain
    return smooth(flat, taps, rank).reshape(image.shape)


def _plain(images: Tensor, taps: list[float], rank: int) -> Tensor:
    """Smooth images (N, D, H, W) with torch operators."""
    reach = len(taps) // 2
    for axis in range(4 - rank, 4):
        around = torch.nn.functional.pad(images, [0, 0] * (3 - axis) + [reach, reach])
        shifted = (around.narrow(axis, j, images.shape[axis]) for j in range(len(taps)))
        images = total(tap * image for tap, image in zip(taps, shifted, strict=True))
    return images


@operator("smooth")
def _smooth(images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
    """Smooth images (N, D, H, W) along their last `rank` axes."""
    return SMOOTHING.kernels(images).smooth(images, taps, rank)


@_smooth.fake
def _(images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
    return torch.empty(images.shape, dtype=images.dtype, device=images.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.taps, ctx.rank = inputs


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
    # With symmetric taps, and zeros beyond the borders, smoothing is its own adjoint.
    smooth = _plain if dispatch.by_torch(upstream) else _smooth
    return smooth(upstream, ctx.taps, ctx.rank), None, None


_smooth.differentiable(_setup_context, _backward)
