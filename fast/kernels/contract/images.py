"""The kernels of images: squared correlations in moving windows, joint histograms, and smoothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from twinloss.fast.runtime.dispatch import Statistic


class CorrelationPlan(NamedTuple):
    """The settings of a correlation of two images.

    Attributes:
        size: the number of voxels of a window along each axis.
        kind: "rectangular", "triangular" or "gaussian".
        rank: the number of axes that windows extend along; these are the last ones.
        nu: ν.
        delta: δ.
        clamped: whether each variance is clamped to at least δ; otherwise, δ is added to the denominator.
    """

    size: int
    kind: str
    rank: int
    nu: float
    delta: float
    clamped: bool

    def window(self) -> list[float]:
        """Return the weights along an axis, without NumPy: torch.compile would turn its numbers into tensors."""
        middle = self.size // 2 + 1
        far = [abs(j - self.size // 2) for j in range(self.size)]
        if self.kind == "rectangular":
            return [1.0] * self.size
        if self.kind == "triangular":
            return [(middle - j) / middle**2 for j in far]
        return [math.exp(-(j**2) / (2 * (self.size / 3) ** 2)) for j in far]


class CorrelationKernels(Protocol):
    """The correlations of images p and t, (N, D, H, W), in a window around each voxel.

    Correlations and intermediate results are in the type of the images, or in float32 if that is half precision.
    """

    def value(self, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
        """Return a factor times the sum of all correlations, as a scalar tensor."""

    def value_and_gradient(
        self, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the value and dL/dp, for an upstream gradient of 1.

        The gradient in a half-precision image is in float32, because it is still to be scaled.
        """

    def gradient(self, upstream: Tensor, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
        """Return dL/dp, given dL/d(value)."""

    def scores(
        self, p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool, gradients: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the correlations of all windows, or their sums (N,) float64, and two tensors for the gradients.

        The first, (N, 3, D, H, W), is for the gradient with respect to p. The second, (N, 2, D, H, W), is also needed
        for the gradient with respect to t. `gradients` is the number of gradients that will be needed, 0 to 2; tensors
        that are not needed are empty. Both have the dtype of p; kernels in operators of torch return float64.
        """

    def slopes(
        self, upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, plan: CorrelationPlan
    ) -> Tensor:
        """Return dL/dp, given dL/d(scores).

        `of_both` and `of_p` were kept by `scores`: `of_both` is for both gradients, `of_p` only for dL/dp. To get
        dL/dt, the engine exchanges the images.
        """


CORRELATION: Statistic[CorrelationKernels] = Statistic("correlation")


class HistogramPlan(NamedTuple):
    """The settings of a joint histogram.

    Attributes:
        bins: K, the number of bins.
        sigma: the standard deviation of the gaussian, in bins.
        kernel: "gaussian", or "b-spline" for a cubic b-spline on x and a box on y.
    """

    bins: int
    sigma: float
    kernel: str


class HistogramKernels(Protocol):
    """The joint histogram of images x and y, (B, N)."""

    def histogram(self, x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
        """Return the histogram of each item, (B, K, K) float64, which sums to 1."""

    def gradient(self, upstream: Tensor, x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
        """Return dL/dx, given dL/d(histogram)."""


HISTOGRAM: Statistic[HistogramKernels] = Statistic("histogram")


class SmoothingKernels(Protocol):
    """Images (N, D, H, W) smoothed along their last axes, with zeros beyond the borders."""

    def smooth(self, images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
        """Return the images, correlated with the taps along the last `rank` axes."""


SMOOTHING: Statistic[SmoothingKernels] = Statistic("smoothing")
