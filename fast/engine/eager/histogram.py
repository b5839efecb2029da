"""The joint histogram of float32 images under gaussian windows, in operators of torch.

The weight of bin k is a softmax of -(z - k)² / 2σ². Without -z² / 2σ², which all bins share, this is linear in z, so
that the weights take two operators. In float64, what this form cancels does not matter to float32 images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twinloss.fast.kernels.contract import HistogramPlan
from twinloss.fast.runtime.constants import constant

# The largest number of weights that exist at a time.
_WEIGHTS = 2**26


def histogram(x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
    """Return the histogram of each item, see `HistogramKernels.histogram`."""
    joint = None
    for part in _parts(x, plan):
        product = _weights(x[:, part], plan).mT @ _weights(y[:, part], plan)
        joint = product if joint is None else joint.add_(product)
    assert joint is not None
    return joint.div_(x.shape[1])


def gradient(upstream: Tensor, x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
    """Return dL/dx, given dL/d(histogram)."""
    made = torch.empty_like(x, memory_format=torch.contiguous_format)
    slope, _ = _line(x, plan)
    for part in _parts(x, plan):
        in_weights = _weights(y[:, part], plan) @ upstream.mT
        weights = _weights(x[:, part], plan)
        in_line = torch._softmax_backward_data(in_weights, weights, 2, weights.dtype)
        torch.mul(in_line @ slope, 1 / x.shape[1], out=made[:, part])
        del in_weights, weights, in_line
    return made.masked_fill_((x < 0).logical_or_(x > 1), 0)


def _parts(x: Tensor, plan: HistogramPlan) -> Iterator[slice]:
    count = -(-x.numel() * plan.bins // _WEIGHTS)
    step = -(-x.shape[1] // count)
    return (slice(start, start + step) for start in range(0, x.shape[1], step))


def _line(x: Tensor, plan: HistogramPlan) -> tuple[Tensor, Tensor]:
    """Return the slopes and the offsets of the bins, (K,), as functions of the intensity."""
    bins, variance = range(plan.bins), plan.sigma**2
    middle = (plan.bins - 1) / 2
    slope = tuple((k - middle) * (plan.bins - 1) / variance for k in bins)
    offset = tuple((middle**2 - k**2) / (2 * variance) for k in bins)
    return constant(slope, x, torch.float64), constant(offset, x, torch.float64)


def _weights(x: Tensor, plan: HistogramPlan) -> Tensor:
    """Return the weights of voxels (B, n) in the bins, (B, n, K)."""
    slope, offset = _line(x, plan)
    return torch.addcmul(offset, x.clamp(0, 1).unsqueeze(2), slope).softmax(2)
