"""The kernels of displacement fields: sums of squared differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.runtime.dispatch import Statistic


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
