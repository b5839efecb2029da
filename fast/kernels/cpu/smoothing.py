"""Smoothing of images on the CPU: within planes, tile by tile, and then across planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from twinloss.fast.kernels.cpu.arrays import as_array
from twinloss.fast.kernels.cpu.compiled import smoothing, window
from twinloss.fast.runtime.memory import empty
from twinloss.fast.runtime.threads import for_each_tile


def smooth(images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
    """Return images (N, D, H, W), correlated with the taps along their last `rank` axes."""
    weights, none = np.array(taps), np.ones(1)
    window_z, window_y, window_x = [none] * (3 - rank) + [weights] * rank
    made = empty(images.shape, images.dtype)
    source, out = as_array(images), made.numpy()
    between = empty(images.shape, images.dtype).numpy() if rank == 3 else out
    _smooth_planes(source, window_y, window_x, between)
    if rank == 3:  # smoothing across planes is smoothing along the columns of one plane (D, H * W)
        planes = (len(images), 1, images.shape[1], -1)
        _smooth_planes(between.reshape(planes), window_z, none, out.reshape(planes))
    return made


def _smooth_planes(images: Any, window_y: Any, window_x: Any, out: Any) -> None:
    """Smooth images (N, D, H, W) along their last two axes, into `out`."""
    tiling: Any = window
    tile = tiling.tile_of_plane(*images.shape[2:], window_x.size // 2)

    def work(k: int, start: int, stop: int) -> None:
        smoothing.planes(images[k], start, stop, *tile, window_y, window_x, out[k])

    for_each_tile(work, images.shape, *tile)
