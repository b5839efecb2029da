"""Images filtered along their axes, in operators of torch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from twinloss.fast.runtime.constants import accumulator, constant
from twinloss.fast.runtime.dispatch import full_precision

# The largest number of voxels along an axis that one product with a banded matrix takes.
_PIECE = 256


def filtered(images: Tensor, taps: tuple[float, ...], rank: int) -> Tensor:
    """Return images (N, M, D, H, W), correlated with positive taps along the last `rank` axes.

    Beyond the borders, images are 0. The number of taps is odd. Along each axis, this is a product with a banded
    matrix, in float64 if the device has it: products of float32 matrices may have less than float32 precision on a GPU.
    Such a product would spread NaN far from the window, as 0 times NaN, so that numbers that are not finite are summed
    apart.
    """
    finite = images.nan_to_num(0.0, 0.0, 0.0)
    others, made = images - finite, finite.to(accumulator(images.device))
    del finite
    for axis in range(5 - rank, 5):  # each result takes the place of the last, whose memory is freed
        made = _along(made, axis, taps)
        others = _summed_along(others, axis, len(taps))
    return torch.add(made, others, out=others)


def summed(images: Tensor, size: int, rank: int) -> Tensor:
    """Return the sums of images (N, M, D, H, W) in windows of an odd number of voxels along their last `rank` axes.

    Beyond the borders, images are 0.
    """
    parts = [images]
    sum_in_place_of(parts, size, rank)
    return parts[0]


def sum_in_place_of(parts: list[Tensor], size: int, rank: int) -> None:
    """Replace each item of a list by its `summed` images.

    An item is freed after its first axis. If it were an argument, the caller could hold it until the end: Python does
    so wherever it does not inline the call, as before 3.11 and within torch.compile.
    """
    for k in range(len(parts)):
        for axis in range(5 - rank, 5):
            parts[k] = _summed_along(parts[k], axis, size)


def _along(images: Tensor, axis: int, taps: tuple[float, ...]) -> Tensor:
    """Filter along an axis, of which a banded matrix takes a piece at a time: its size is the square of the piece's."""
    length, reach = images.shape[axis], len(taps) // 2
    if length <= _PIECE:
        return _piece_along(images, axis, taps)
    made = []
    for start in range(0, length, _PIECE):
        stop = min(start + _PIECE, length)
        low, high = max(start - reach, 0), min(stop + reach, length)
        piece = _piece_along(images.narrow(axis, low, high - low), axis, taps)
        made.append(piece.narrow(axis, start - low, stop - start))
    return torch.cat(made, axis)


def _piece_along(images: Tensor, axis: int, taps: tuple[float, ...]) -> Tensor:
    bands = constant(_band(taps, images.shape[axis]), images)
    with full_precision(images):
        if axis == 4:
            return images @ bands.mT
        if axis == 3:
            return bands @ images
        return (bands @ images.flatten(3)).view(images.shape)


def _summed_along(images: Tensor, axis: int, size: int) -> Tensor:
    """Pool planes, as some devices do not pool volumes."""
    reach, last = size // 2, axis == 4
    if images.shape[axis] < size:  # torch does not pool with a window that is larger than the image
        images, pad = functional.pad(images, [0, 0] * (4 - axis) + [reach, reach]), 0
    else:
        pad = reach
    planes = images.flatten(3).flatten(0, 1) if axis == 2 else images.flatten(0, 2)
    window, padding = ((1, size), (0, pad)) if last else ((size, 1), (pad, 0))
    pooled = functional.avg_pool2d(planes, window, 1, padding, divisor_override=1)
    shape = list(images.shape)
    shape[axis] += 2 * pad - 2 * reach
    return pooled.reshape(shape)


@lru_cache(maxsize=64)
def _band(taps: tuple[float, ...], size: int) -> tuple[tuple[float, ...], ...]:
    reach = len(taps) // 2
    return tuple(tuple(taps[j - i + reach] if abs(j - i) <= reach else 0.0 for j in range(size)) for i in range(size))
