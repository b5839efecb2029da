"""The interface between the engine and a set of kernels: the statistics, and the functions that kernels offer for each.

A set of kernels implements one or more of the protocols below and registers its implementations:

    VOXELS.register("cuda", (torch.float32,), load)

The losses then call them for such tensors; no loss has to change. Rules for all sets:

* Tensors are passed as the user has them: in any memory layout, with labels in any dtype. Results are tensors on the
  device of `x` that the caller may modify. A set must not read values if that synchronises the device.
* A value may keep any object for its gradient. The engine passes it back unchanged, or passes None if nothing was kept.
  A large object is kept in a `Once`, so that it does not live as long as the loss. The tensors that the gradient gets
  may be copies of those that the value got. After double backward, nothing is kept any more.
* Constants, such as weights of differences, are NumPy arrays or Python numbers.
* If numbers can be read (`runtime/checks.py`), invalid labels and masks raise `InvalidVoxelsError`, which need not say
  which voxel is wrong: the engine finds it. Otherwise, they make the statistics of the call NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    "BENDING_ENERGY", "COMPOUND", "CORRELATION", "DIFFUSION", "DISTANCE", "FN", "FP", "HISTOGRAM", "HITS", "MISSES",
    "NEARNESS", "ROWS", "SMOOTHING", "TP", "TP_LESS_FN", "VOLUME", "VOXELS", "ClassWeights", "CompoundKernels",
    "CompoundPlan", "CorrelationKernels", "CorrelationPlan", "Differences", "Distances", "EnergyKernels",
    "FractionPlan", "HistogramKernels", "HistogramPlan", "InvalidVoxelsError", "Plan", "SmoothingKernels", "Terms",
    "UpstreamSlopes", "VoxelInputs", "VoxelKernels", "Weigh", "unweighted",
]  # fmt: skip

# --- segmentation: sums over voxels, by item and class ----------------------------------------------------------------

# A function that returns dL/d(hits), (B, C), of a loss that is linear in the hits and depends on nothing else.
UpstreamSlopes = Callable[[], Tensor]
# A function that computes the class weights that `fraction` takes from the volumes, as arrays or tensors.
Weigh = Callable[[Any], Sequence[Any]]
# The distances between classes, (C, C), as Python numbers.
Distances = tuple[tuple[float, ...], ...]


def unweighted(volume: Any) -> tuple[Any, ...]:
    """Return no weights: classes are not pooled."""
    return ()


@dataclass(frozen=True)
class ClassWeights:
    """Class weights 1 / (V + a)^k, given the volumes V, so that kernels can compute them on the device.

    A class without a finite weight, which is absent, gets the largest weight of the others.

    Attributes:
        power: k, at least 0 and at most 2.
        offset: a.
        normalized: whether the weights are divided by their sum.
        foreground: whether the overlap, but not the errors, leaves out class 0.
    """

    power: int
    offset: int = 0
    normalized: bool = False
    foreground: bool = False

    def __call__(self, volume: Any) -> tuple[Any, ...]:
        """Return the weights of overlap and errors, or one for both, given volumes, (B or 1, C'), of NumPy or torch."""
        xp: Any = np if isinstance(volume, np.ndarray) else torch
        if self.power == 0:
            weight = (volume[:1] if self.foreground else volume) ** 0  # ones, also for a volume of 0
        else:
            weight = 1 / (volume + self.offset if self.offset else volume) ** self.power
            present = xp.isfinite(weight)
            # NumPy skips the rule for absent classes where it has no effect: the check is cheaper. A tensor may be
            # traced, where no branch may depend on its values.
            if xp is torch or not present.all():
                weight = xp.where(present, weight, xp.amax(xp.where(present, weight, 0), axis=1, keepdims=True))
        if self.normalized:
            total = weight.sum(axis=1, keepdims=True)
            weight = xp.where(total > 0, weight / total, 0)
        if not self.foreground:
            return (weight,)
        of_overlap = weight + 0
        of_overlap[:, 0] = 0
        return of_overlap, weight


class InvalidVoxelsError(Exception):
    """A label is not a class, or a mask value lies outside [0, 1]."""


def flat(tensor: Tensor) -> Tensor:
    """Return (B, C, *S) as (B, C, N), without a copy if the voxels lie at equal distances in memory."""
    return tensor.flatten(2) if tensor.ndim > 2 else tensor.unsqueeze(-1)


class VoxelInputs(NamedTuple):
    """The tensors that the statistics of a segmentation are computed from.

    Attributes:
        x: logits or probabilities, (B, C, *S).
        target: labels (B, 1, *S), or one-hot or soft (B, C, *S), of any dtype.
        mask: voxel weights in [0, 1], (B or 1, 1, *S), or None.
        matrix: distances between classes, (C, C) float64, or None.
    """

    x: Tensor
    target: Tensor
    mask: Tensor | None = None
    matrix: Tensor | None = None


class Plan(NamedTuple):
    """The choice of statistics, in types that a torch schema supports.

    Attributes:
        activation: the function that turns x into the prediction p; softmax or sigmoid if there is a surprisal.
        overlap: a row of the table in `engine/segmentation/statistics.py`.
        surprisal: "none"; "target" for hits, and for misses under a sigmoid; "all" also for misses under a softmax.
        gamma: the focal exponent.
        labels: whether the target holds labels.
        ignore_index: the label of voxels to exclude; in a target of C > 1 channels, the channel that is 1 there.
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
        overlap: the rows of the statistics that add up to the overlap, and the factor of each.
        errors: the rows that add up to the errors, and the factor of each.
        smooth_nr: ν.
        smooth_dr: δ.
        first: the first class that is included.
        batch: whether the items are pooled.
        complementary: whether TP + FN is the volume, so that FN falls by as much as TP rises.
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
        weigh: a function that returns the class weights; `unweighted` if classes are not pooled. If it is a
            `ClassWeights`, kernels may compute the weights themselves.
        distances: the distances between classes, or None.
        mean: whether the result is the mean over items and classes, or else the sum.
        dtype: the dtype of the result.
    """

    plan: Plan
    terms: Terms
    weigh: Weigh
    distances: Distances | None
    mean: bool
    dtype: torch.dtype


class CompoundPlan(NamedTuple):
    """A loss of two terms: a weighted sum of fractions, or none, and a weighted sum of surprisals divided by a count.

    A factor of None leaves a class out, whatever its statistics are.

    Attributes:
        plan: the statistics.
        terms: the fraction, or None.
        fractions: the factor of the fraction of each class, (C).
        hits: the factor of the hits of each class.
        misses: the factor of the misses of each class.
        volumes: the factor of the volume of each class in the count; empty if the count is 1.
        by_item: whether each item is divided by its own count; otherwise the sum is divided by that of all items. If
            the count is 0, it is 1.
        dtype: the dtype of the result.
    """

    plan: Plan
    terms: Terms | None
    fractions: tuple[float | None, ...]
    hits: tuple[float | None, ...]
    misses: tuple[float | None, ...]
    volumes: tuple[float, ...]
    by_item: bool
    dtype: torch.dtype


class VoxelKernels(Protocol):
    """The sums of a segmentation, and losses that are a fraction of these sums."""

    def sums(
        self, inputs: VoxelInputs, plan: Plan, ahead: bool, slopes: UpstreamSlopes | None
    ) -> tuple[Tensor, object]:
        """Return the statistics, (ROWS, B, C) float64, and the object that is kept for the gradient.

        Args:
            inputs: the tensors.
            plan: which statistics to compute; all other rows are 0.
            ahead: whether a gradient will be needed.
            slopes: a function that returns dL/d(hits), if it is known in advance; the gradient may then be computed in
                the same pass.
        """

    def gradient(self, upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: Any) -> Tensor:
        """Return dL/dx, given dL/d(statistics), (ROWS, B, C)."""

    def loss(self, inputs: VoxelInputs, fraction: FractionPlan, ahead: bool) -> tuple[Tensor, object]:
        """Return a scalar loss, and the object that is kept for its gradient."""

    def loss_gradient(self, upstream: Tensor, inputs: VoxelInputs, fraction: FractionPlan, kept: Any) -> Tensor:
        """Return the gradient of such a loss, times the upstream gradient."""


VOXELS: Statistic[VoxelKernels] = Statistic("voxels")


class CompoundKernels(Protocol):
    """Losses of two terms as a whole, for devices on which operators of torch cost more than the voxels."""

    def compound(self, inputs: VoxelInputs, asked: CompoundPlan, ahead: bool) -> tuple[Tensor, object]:
        """Return a scalar loss, and the object that is kept for its gradient."""

    def compound_gradient(self, upstream: Tensor, inputs: VoxelInputs, asked: CompoundPlan, kept: Any) -> Tensor:
        """Return the gradient of such a loss, times the upstream gradient."""


COMPOUND: Statistic[CompoundKernels] = Statistic("compound")

# --- displacement fields: sums of squared differences -----------------------------------------------------------------


class Differences(NamedTuple):
    """The squared differences whose sum is an energy.

    Attributes:
        weights: the weight of each difference, (C, differences) float64, along the axes that the field has.
        margin: the number of voxels at each border that have no energy.
        rank: the number of spatial axes of the field; the others have size 1.
    """

    weights: np.ndarray[Any, Any]
    margin: int
    rank: int

    def interior(self, fields: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the energies by voxel, given the shape of the fields (N, D, H, W)."""
        return (fields[0], *(n - 2 * self.margin * (3 - d <= self.rank) for d, n in enumerate(fields[1:])))


class EnergyKernels(Protocol):
    """The energy of fields u, (N, D, H, W), where field n is component n modulo C."""

    def value(self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype) -> Tensor:
        """Return the sum of all energies divided by a count, as a scalar tensor."""

    def value_and_gradient(
        self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the value and dL/du, for an upstream gradient of 1."""

    def gradient(self, upstream: Tensor, u: Tensor, differences: Differences, count: float) -> Tensor:
        """Return dL/du, given dL/d(value), or, by voxel and with a count of 1, dL/d(energies)."""

    def energies(self, u: Tensor, differences: Differences) -> Tensor:
        """Return the energy of each interior voxel, float32 for a half."""


BENDING_ENERGY: Statistic[EnergyKernels] = Statistic("bending_energy")
DIFFUSION: Statistic[EnergyKernels] = Statistic("diffusion")

# --- images: squared correlations in moving windows -------------------------------------------------------------------


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

# --- images: joint histograms -----------------------------------------------------------------------------------------


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

# --- images: smoothing ------------------------------------------------------------------------------------------------


class SmoothingKernels(Protocol):
    """Images (N, D, H, W) smoothed along their last axes, with zeros beyond the borders."""

    def smooth(self, images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
        """Return the images, correlated with the taps along the last `rank` axes."""


SMOOTHING: Statistic[SmoothingKernels] = Statistic("smoothing")
