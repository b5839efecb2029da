"""What the engine asks of a set of kernels: the statistics, and what each offers on a device.

A set of kernels fulfils one or more of the protocols below with functions or objects of its own, and registers them:

    VOXELS.register("cuda", (torch.float32,), load)

Then a loss of such tensors calls them, and no loss is changed. Rules for all sets:

* Tensors come as the user has them: in any memory layout, labels in any type. Results are tensors on the device of
  `x`, new or at least owned by the caller. A set may look at numbers only where that does not make it wait.
* What a value keeps for its gradient is the set's own affair: the engine hands it back unseen, or None where nothing
  was kept. Whatever is large lies in a `Once`, so that it does not live as long as the loss. Tensors that the gradient
  is given may be copies of those that the value was given. After a graph of the gradient nothing is kept any more.
* Constants, such as weights of differences, are NumPy arrays or Python numbers.
* An offer that raises `InvalidVoxelsError` need not say which voxel is wrong: the engine looks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.statistic_rows import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    ROWS,
    TP,
    TP_LESS_FN,
    VOLUME,
)
from twinloss.fast.runtime.dispatch import Statistic

__all__ = [
    "BENDING_ENERGY", "CORRELATION", "DIFFUSION", "DISTANCE", "FN", "FP", "HISTOGRAM", "HITS", "MISSES", "NEARNESS",
    "ROWS", "SMOOTHING", "TP", "TP_LESS_FN", "VOLUME", "VOXELS", "CorrelationKernels", "CorrelationPlan", "Differences",
    "Distances", "EnergyKernels", "FractionPlan", "HistogramKernels", "HistogramPlan", "InvalidVoxelsError", "Plan",
    "SmoothingKernels", "Terms", "UpstreamSlopes", "VoxelInputs", "VoxelKernels", "Weigh",
]  # fmt: skip

# --- segmentation: sums over voxels, by item and class ----------------------------------------------------------------

# Called for the slopes in the hits of a loss that is linear in them and depends on nothing else, (B, C).
UpstreamSlopes = Callable[[], Tensor]
# Makes the weights of classes, as many as `fraction` takes, of their volumes, in an array or a tensor.
Weigh = Callable[[Any], Sequence[Any]]
# Between classes, (C, C), as Python numbers.
Distances = tuple[tuple[float, ...], ...]


class InvalidVoxelsError(Exception):
    """A label names no class, or a mask value lies outside [0, 1]."""


class VoxelInputs(NamedTuple):
    """The tensors that the statistics of a segmentation are computed from.

    Attributes:
        x: logits or probabilities, (B, C, *S).
        target: labels (B, 1, *S), or one-hot or soft (B, C, *S), of any type.
        mask: voxel weights in [0, 1], (B or 1, 1, *S), or None.
        matrix: distances between classes, (C, C) float64, or None.
    """

    x: Tensor
    target: Tensor
    mask: Tensor | None = None
    matrix: Tensor | None = None


class Plan(NamedTuple):
    """Which statistics to compute, in types that a torch schema knows.

    Attributes:
        activation: what turns x into the prediction p; softmax or sigmoid if the surprisal is asked for.
        overlap: a row of the table in `engine/segmentation/statistics.py`.
        surprisal: "target" for the terms of the target; "all" also for those of every class under softmax.
        gamma: the focal exponent.
        labels: whether the target holds labels.
        ignore_index: voxels with this label take no part; in a target of C > 1 channels those with a 1 in this channel.
    """

    activation: str
    overlap: str = "none"
    surprisal: str = "none"
    gamma: float = 0.0
    labels: bool = False
    ignore_index: int | None = None


class Terms(NamedTuple):
    """The terms of a fraction of statistics, see `engine/segmentation/fraction.py`.

    Attributes:
        overlap: rows of the statistics, and the factor of each.
        errors: likewise.
        smooth_nr: ν.
        smooth_dr: δ.
        first: the first class that takes part.
        batch: whether the items are pooled.
        complementary: whether TP + FN is the volume: what moves TP then moves FN the other way.
    """

    overlap: tuple[tuple[int, float], ...]
    errors: tuple[tuple[int, float], ...]
    smooth_nr: float
    smooth_dr: float
    first: int = 0
    batch: bool = False
    complementary: bool = False


class FractionPlan(NamedTuple):
    """A whole loss: the mean or the sum of a fraction of statistics.

    Attributes:
        plan: the statistics.
        terms: the fraction.
        weigh: the weights of classes; an empty tuple where they are not pooled.
        distances: between classes, or None.
        mean: whether the result is the mean over items and classes, or else the sum.
        dtype: the type of the result.
    """

    plan: Plan
    terms: Terms
    weigh: Weigh
    distances: Distances | None
    mean: bool
    dtype: torch.dtype


class VoxelKernels(Protocol):
    """The sums of a segmentation, and the losses that are a fraction of them."""

    def sums(
        self, inputs: VoxelInputs, plan: Plan, ahead: bool, slopes: UpstreamSlopes | None
    ) -> tuple[Tensor, object]:
        """Return the statistics, (ROWS, B, C) float64, and whatever is kept for the gradient.

        Args:
            inputs: the tensors.
            plan: which statistics; rows that nobody asks for are 0.
            ahead: whether a gradient will be asked for.
            slopes: where they can be foreseen, so that the gradient may be made in the same pass.
        """

    def gradient(self, upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: Any) -> Tensor:
        """Return dL/dx, given the slopes in the statistics, (ROWS, B, C)."""

    def loss(self, inputs: VoxelInputs, fraction: FractionPlan, ahead: bool) -> tuple[Tensor, object]:
        """Return a loss without axes, and whatever is kept for its gradient."""

    def loss_gradient(self, upstream: Tensor, inputs: VoxelInputs, fraction: FractionPlan, kept: Any) -> Tensor:
        """Return dL/dx of such a loss, times the slope in it."""


VOXELS: Statistic[VoxelKernels] = Statistic("voxels")

# --- displacement fields: sums of squared differences -----------------------------------------------------------------


class Differences(NamedTuple):
    """The squared differences that an energy is the sum of.

    Attributes:
        weights: of each difference, (C, differences) float64, along the axes that the field has.
        margin: how many voxels at each border have no energy.
        rank: how many axes of space the field has; the others have size 1.
    """

    weights: np.ndarray[Any, Any]
    margin: int
    rank: int

    def interior(self, fields: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the energies of voxels, given that of the fields (N, D, H, W)."""
        return (fields[0], *(n - 2 * self.margin * (3 - d <= self.rank) for d, n in enumerate(fields[1:])))


class EnergyKernels(Protocol):
    """The energy of fields u, (N, D, H, W), where field n is component n modulo C."""

    def value(self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype) -> Tensor:
        """Return the sum of all energies over a count, without axes."""

    def value_and_gradient(
        self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the same with its gradient in u, for a slope of 1 in it."""

    def gradient(self, upstream: Tensor, u: Tensor, differences: Differences, count: float) -> Tensor:
        """Return dL/du, given the slope in the value; or those in the energies of voxels, for a count of 1."""

    def energies(self, u: Tensor, differences: Differences) -> Tensor:
        """Return the energy of each voxel off the border."""


BENDING_ENERGY: Statistic[EnergyKernels] = Statistic("bending_energy")
DIFFUSION: Statistic[EnergyKernels] = Statistic("diffusion")

# --- images: squared correlations in moving windows -------------------------------------------------------------------


class CorrelationPlan(NamedTuple):
    """How two images are correlated.

    Attributes:
        size: voxels of a window along each axis.
        kind: "rectangular", "triangular" or "gaussian".
        rank: how many axes, the last ones, windows extend along.
        nu: ν.
        delta: δ.
        clamped: whether δ is the least of each variance, or else a term of the denominator.
    """

    size: int
    kind: str
    rank: int
    nu: float
    delta: float
    clamped: bool

    def window(self) -> list[float]:
        """Return the weights along an axis; without NumPy, whose numbers torch.compile takes for tensors."""
        middle = self.size // 2 + 1
        far = [abs(j - self.size // 2) for j in range(self.size)]
        if self.kind == "rectangular":
            return [1.0] * self.size
        if self.kind == "triangular":
            return [(middle - j) / middle**2 for j in far]
        return [math.exp(-(j**2) / (2 * (self.size / 3) ** 2)) for j in far]


class CorrelationKernels(Protocol):
    """The correlations of images p and t, (N, D, H, W), in a window around each voxel."""

    def value(self, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
        """Return a factor times the sum of all correlations, without axes."""

    def value_and_gradient(
        self, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the same with its gradient in p, for a slope of 1 in it."""

    def gradient(self, upstream: Tensor, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
        """Return the gradient in p, given the slope in the value."""

    def scores(
        self, p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool, gradients: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the correlations of all windows, or their sums (N,) float64, and what is kept for the gradients.

        What is kept for the gradient in p is (N, 3, D, H, W), and for that in t as well (N, 2, D, H, W); of as many
        `gradients` as are not asked for it is empty.
        """

    def slopes(
        self, upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, plan: CorrelationPlan
    ) -> Tensor:
        """Return the gradient in p, given the slopes in the scores.

        Of what `scores` kept, `of_both` serves the gradients in p and t, and `of_p` is that of p alone. The engine
        exchanges the images for the gradient in t.
        """


CORRELATION: Statistic[CorrelationKernels] = Statistic("correlation")

# --- images: joint histograms -----------------------------------------------------------------------------------------


class HistogramPlan(NamedTuple):
    """How intensities are put into bins.

    Attributes:
        bins: K, how many there are.
        sigma: of the gaussian, in bins.
        kernel: "gaussian", or "b-spline" for a cubic one on x and a box on y.
    """

    bins: int
    sigma: float
    kernel: str


class HistogramKernels(Protocol):
    """The joint histogram of images x and y, (B, N)."""

    def histogram(self, x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
        """Return the histogram of each item, (B, K, K) float64, which adds up to 1."""

    def gradient(self, upstream: Tensor, x: Tensor, y: Tensor, plan: HistogramPlan) -> Tensor:
        """Return the gradient in x, given the slopes in the histogram."""


HISTOGRAM: Statistic[HistogramKernels] = Statistic("histogram")

# --- images: smoothing ------------------------------------------------------------------------------------------------


class SmoothingKernels(Protocol):
    """Images (N, D, H, W) smoothed along their last axes, with zeros beyond the borders."""

    def smooth(self, images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
        """Return the images weighted by the taps along the last `rank` axes."""


SMOOTHING: Statistic[SmoothingKernels] = Statistic("smoothing")
