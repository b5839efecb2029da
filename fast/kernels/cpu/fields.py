"""Energies of displacement fields on the CPU: slabs of planes, distributed over threads."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import Differences
from twinloss.fast.kernels.cpu.arrays import Array, as_array, total_of_parts
from twinloss.fast.kernels.cpu.compiled import bending_energy, diffusion
from twinloss.fast.runtime.memory import empty, scalar
from twinloss.fast.runtime.threads import for_each_chunk

# The number of voxels in a slab, rounded down to whole planes.
_SLAB = 2**16

# A function that processes a slab, given the indices of the field and the slab, the first plane and the end.
_Work = Callable[[int, int, int, int], None]


class _Slabs:
    """Fields (N, D, H, W), cut into slabs of a few planes."""

    def __init__(self, u: Tensor) -> None:
        self.u, self.field = u, _planes(u)
        self.fields, self.depth, height, self.width = u.shape
        self.real = self.field.dtype
        self.planes = max(_SLAB // (height * self.width), 1)
        self.count = -(-self.depth // self.planes)
        # An empty array tells a kernel that there are no values per voxel.
        self.no_voxels = np.empty((self.fields, 0, 0, 0), self.real)

    def run(self, *works: _Work) -> None:
        """Call all functions on a slab while it is in the cache, and then on the next slab."""

        def chunk(index: int) -> None:
            k, slab = divmod(index, self.count)
            for work in works:
                work(k, slab, slab * self.planes, min((slab + 1) * self.planes, self.depth))

        for_each_chunk(chunk, self.fields * self.count, self.u.numel())


class Energy:
    """An energy of fields, computed by a module of compiled kernels; see `EnergyKernels`."""

    def __init__(self, kernels: ModuleType) -> None:
        self.kernels = kernels

    def value(self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype) -> Tensor:
        """Return the sum of all energies divided by a count, as a scalar tensor."""
        slabs = _Slabs(u)
        work, totals = self._add_energies(slabs, differences, slabs.no_voxels)
        slabs.run(work)
        return scalar(float(total_of_parts(totals)) / count, dtype, u.device)

    def energies(self, u: Tensor, differences: Differences) -> Tensor:
        """Return the energy of each interior voxel."""
        made, slabs = empty(differences.interior(u.shape), u.dtype), _Slabs(u)
        work, _ = self._add_energies(slabs, differences, made.numpy())
        slabs.run(work)
        return made

    def gradient(self, upstream: Tensor, u: Tensor, differences: Differences, count: float) -> Tensor:
        """Return dL/du, given dL/d(value) or, by voxel, dL/d(energies)."""
        slabs = _Slabs(u)
        if upstream.ndim == 0:
            slopes, by_voxel = 2 * upstream.item() / count, slabs.no_voxels
        else:
            slopes, by_voxel = 2.0, upstream.contiguous().numpy()
        work, gradient = self._write_gradient(slabs, differences, slopes, by_voxel)
        slabs.run(work)
        return gradient

    def value_and_gradient(
        self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the results of `value` and of `gradient` for an upstream gradient of 1."""
        slabs = _Slabs(u)
        if self.kernels.both is not None and differences.margin == 0 and differences.rank == 3:
            total, gradient = self._in_one_kernel(slabs, differences, 2 / count)
        else:
            add, totals = self._add_energies(slabs, differences, slabs.no_voxels)
            write, gradient = self._write_gradient(slabs, differences, 2 / count, slabs.no_voxels)
            slabs.run(add, write)
            total = float(total_of_parts(totals))
        return scalar(total / count, dtype, u.device), gradient

    def _in_one_kernel(self, slabs: _Slabs, differences: Differences, slope: float) -> tuple[float, Tensor]:
        totals, gradient = np.zeros(slabs.fields * slabs.count), empty(slabs.u.shape, slabs.u.dtype)
        weights, out = differences.weights.astype(slabs.real), _planes(gradient)
        factors = _by_field(differences.weights, slope, slabs)

        def work(k: int, slab: int, start: int, stop: int) -> None:
            totals[k * slabs.count + slab] = self.kernels.both(
                slabs.field[k], slabs.width, weights[k % len(weights)], factors[k], start, stop, out[k]
            )

        slabs.run(work)
        return float(total_of_parts(totals)), gradient

    def _add_energies(self, slabs: _Slabs, differences: Differences, out: Array) -> tuple[_Work, Array]:
        """Return a function that computes the energies of a slab, and the array in which it puts their sums.

        If `out` is not empty, the function writes the energies to it instead.
        """
        totals, weights = np.zeros(slabs.fields * slabs.count), differences.weights.astype(slabs.real)
        margin, border = differences.margin, (slabs.depth - differences.interior(slabs.u.shape)[1]) // 2
        forward = self.kernels.forward

        def work(k: int, slab: int, start: int, stop: int) -> None:
            inside = max(start, border), min(stop, slabs.depth - border)
            totals[k * slabs.count + slab] = forward(
                slabs.field[k], slabs.width, weights[k % len(weights)], margin, *inside, out[k]
            )

        return work, totals

    def _write_gradient(
        self, slabs: _Slabs, differences: Differences, slope: float, by_voxel: Array
    ) -> tuple[_Work, Tensor]:
        """Return a function that writes the gradient of a slab, and the gradient."""
        backward, margin = self.kernels.backward, differences.margin
        factors, gradient = _by_field(differences.weights, slope, slabs), empty(slabs.u.shape, slabs.u.dtype)
        out = _planes(gradient)

        def work(k: int, slab: int, start: int, stop: int) -> None:
            backward(slabs.field[k], slabs.width, factors[k], margin, by_voxel[k], start, stop, out[k])

        return work, gradient


def _by_field(weights: Array, factor: float, slabs: _Slabs) -> Array:
    """Return the weights (C, differences) times a factor, with a row for each field."""
    made: Array = np.tile(weights * factor, (slabs.fields // len(weights), 1)).astype(slabs.real)
    return made


def _planes(fields: Tensor) -> Array:
    """Return fields as an array (N, D, H * W)."""
    return as_array(fields).reshape(*fields.shape[:2], -1)


BENDING_ENERGY: Energy = Energy(bending_energy)
DIFFUSION: Energy = Energy(diffusion)
