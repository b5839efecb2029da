"""Smoothing of images in operators of torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from twinloss.fast.engine.eager.windows import filtered


def smooth(images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
    """Return images (N, D, H, W), correlated with the taps along the last `rank` axes."""
    return filtered(images.unsqueeze(1), tuple(taps), rank).squeeze(1)
