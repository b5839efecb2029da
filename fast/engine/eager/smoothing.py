"""Smoothing of images in operators of torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from twinloss.fast.engine.eager.windows import filtered
from twinloss.fast.runtime.constants import accumulator


def smooth(images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
    """Return images (N, D, H, W), correlated with the taps along the last `rank` axes.

    Products of float32 matrices may have less than float32 precision on a GPU, those of float64 do not.
    """
    wide = images.to(accumulator(images.device), copy=True).unsqueeze(1)
    return filtered(wide, tuple(taps), rank).squeeze(1).to(images.dtype)
