"""Energies of displacement fields on a GPU: each program sums a tile of some planes, and writes its gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twinloss.fast.kernels.contract import Differences
from twinloss.fast.kernels.gpu.compiled import bending_energy, diffusion
from twinloss.fast.kernels.gpu.compiled.field import add_parts
from twinloss.fast.kernels.gpu.launch import (
    index_type,
    interpreted,
    launch,
    power_of_2,
    processors,
    real_type,
    warp_size,
)
from twinloss.fast.runtime.constants import on_device

# The number of voxels of a tile, one for each thread, and the number of its columns if it has several rows.
_TILE, _COLUMNS = 256, 32

# The minimum number of planes of a program, which also reads up to 4 planes on either side.
_PLANES = 8

# The number of programs for each multiprocessor.
_PROGRAMS = 8

# The number of parts that are added at once.
_PARTS = 1024


class _Tiles(NamedTuple):
    """How fields (N, D, H, W) are divided among programs.

    Attributes:
        rows: the number of rows of a tile.
        columns: the number of its columns.
        planes: the number of planes of a program.
        programs: the number of programs.
        index: the type of offsets in a plane.
    """

    rows: int
    columns: int
    planes: int
    programs: int
    index: Any

    @classmethod
    def of(cls, u: Tensor) -> _Tiles:
        fields, depth, height, width = u.shape
        columns = min(power_of_2(width), _COLUMNS if height > 1 else _TILE)
        rows = min(power_of_2(height), _TILE // columns)
        if interpreted():  # few large tiles
            columns, rows = (min(power_of_2(n), 64) for n in (width, height))
        tiles = fields * -(-height // rows) * -(-width // columns)
        chunks = max(min(processors(u.device) * _PROGRAMS // tiles, depth // _PLANES), 1)
        planes = -(-depth // chunks)
        # The last rows and columns of a tile may lie beyond the plane.
        extent = (height + _TILE) * abs(u.stride(2)) + (width + _TILE) * abs(u.stride(3))
        return cls(rows, columns, planes, tiles * -(-depth // planes), index_type(max(extent, height + _TILE)))


class Energy:
    """An energy of fields, computed by a module of compiled kernels; see `EnergyKernels`."""

    def __init__(self, kernels: ModuleType) -> None:
        self.kernels = kernels

    def value(self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype) -> Tensor:
        """Return the sum of all energies divided by a count, as a scalar tensor."""
        return self._sum(u, differences, count, dtype, None)

    def value_and_gradient(
        self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the results of `value` and of `gradient` for an upstream gradient of 1."""
        gradient = _like(u)
        return self._sum(u, differences, count, dtype, gradient), gradient

    def gradient(self, upstream: Tensor, u: Tensor, differences: Differences, count: float) -> Tensor:
        """Return dL/du, given dL/d(value) or, by voxel, dL/d(energies)."""
        made = _like(u)
        if upstream.ndim == 0:
            self._march(u, _Tiles.of(u), differences, count, upstream, None, made)
        else:
            self._by_voxel(self.kernels.gradient_by_voxel, u, differences, upstream.contiguous(), made)
        return made

    def energies(self, u: Tensor, differences: Differences) -> Tensor:
        """Return the energy of each interior voxel, float32 for a half."""
        made = u.new_empty(differences.interior(u.shape), dtype=torch.promote_types(u.dtype, torch.float32))
        self._by_voxel(self.kernels.energies, u, differences, made)
        return made

    def _sum(
        self, u: Tensor, differences: Differences, count: float, dtype: torch.dtype, gradient: Tensor | None
    ) -> Tensor:
        value, tiles = u.new_empty((), dtype=dtype), _Tiles.of(u)
        parts = u.new_empty(tiles.programs, dtype=torch.float64)
        self._march(u, tiles, differences, count, None, parts, gradient)
        launch(add_parts, (1,), parts, value, tiles.programs, float(count), BLOCK=_PARTS)
        return value

    def _march(
        self,
        u: Tensor,
        tiles: _Tiles,
        differences: Differences,
        count: float,
        upstream: Tensor | None,
        parts: Tensor | None,
        gradient: Tensor | None,
    ) -> None:
        launch(
            self.kernels.march, (tiles.programs,), u, _weights(differences, u), upstream, parts, gradient,
            *_sizes(u, differences), tiles.planes, 2 / count, MARGIN=differences.margin, RANK=differences.rank,
            VALUE=parts is not None, GRADIENT=gradient is not None, ROWS=tiles.rows, COLUMNS=tiles.columns,
            INDEX=tiles.index, REAL=real_type(u.dtype), warps=_TILE // warp_size(u.device),
        )  # fmt: skip

    def _by_voxel(self, kernel: Any, u: Tensor, differences: Differences, *tensors: Tensor) -> None:
        voxels = u[0].numel()
        block = min(power_of_2(voxels), 4096) if interpreted() else _TILE
        launch(
            kernel, (u.shape[0] * -(-voxels // block),), u, _weights(differences, u), *tensors, *_sizes(u, differences),
            MARGIN=differences.margin, RANK=differences.rank, BLOCK=block, INDEX=index_type(voxels + block),
            REAL=real_type(u.dtype), warps=_TILE // warp_size(u.device),
        )  # fmt: skip


def _sizes(u: Tensor, differences: Differences) -> tuple[int, ...]:
    """Return the arguments of all kernels that say how a field lies in memory."""
    return u.shape[0], differences.weights.shape[0], *u.shape[1:], *u.stride()


def _weights(differences: Differences, u: Tensor) -> Tensor:
    weights = differences.weights
    return weights if isinstance(weights, Tensor) else on_device(weights, u.device)


def _like(u: Tensor) -> Tensor:
    return u.new_empty(u.shape)


BENDING_ENERGY: Energy = Energy(bending_energy)
DIFFUSION: Energy = Energy(diffusion)
