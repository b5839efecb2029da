"""The kernels of segmentation: sums over voxels, by item and class, and losses that are computed from these sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.runtime.dispatch import Statistic

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
            powers = (volume + self.offset if self.offset else volume) ** self.power
            weight = 1 / powers
            present = xp.isfinite(weight)
            # NumPy skips the rule for absent classes where it has no effect: the check is cheaper. A tensor may be
            # traced, where no branch may depend on its values.
            if xp is torch or not present.all():
                weight = 1 / xp.where(present, powers, 1)  # the slope of 1 / 0 is NaN, also behind a `where`
                weight = xp.where(present, weight, xp.amax(xp.where(present, weight, 0), axis=1, keepdims=True))
        if self.normalized:
            total = weight.sum(axis=1, keepdims=True)
            weight = weight / xp.where(total > 0, total, 1)
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
        weigh: the class weights of a fraction in which the classes are pooled, or None. It counts once, and the factors
            of all included classes are the same.
    """

    plan: Plan
    terms: Terms | None
    fractions: tuple[float | None, ...]
    hits: tuple[float | None, ...]
    misses: tuple[float | None, ...]
    volumes: tuple[float, ...]
    by_item: bool
    dtype: torch.dtype
    weigh: ClassWeights | None = None


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
