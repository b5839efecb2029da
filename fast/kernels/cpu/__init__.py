"""The kernels for CPUs: Numba compiles them, and the modules of this folder call them.

Each module is registered here, and imported when it is first needed, because it imports Numba, which takes longer than
all other imports together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch

from twinloss.fast.kernels import contract

_FULL = (torch.float32, torch.float64)
_WITH_HALVES = (*_FULL, torch.float16, torch.bfloat16)


if TYPE_CHECKING:  # each module has the functions of its protocol
    from twinloss.fast.kernels.cpu import correlation, fields, histogram, smoothing, voxels

    _VOXELS: contract.VoxelKernels = voxels
    _FIELDS: tuple[contract.EnergyKernels, ...] = (fields.BENDING_ENERGY, fields.DIFFUSION)
    _CORRELATION: contract.CorrelationKernels = correlation
    _SMOOTHING: contract.SmoothingKernels = smoothing
    _HISTOGRAM: contract.HistogramKernels = histogram


def _kernels(name: str) -> Callable[[], Any]:
    """Return a function that imports a module of this folder, or what it has by the name after a colon."""
    return partial(resolve_name, f"{__name__}.{name}")


def register() -> None:
    """Let these kernels serve CPUs."""
    contract.VOXELS.register("cpu", _WITH_HALVES, _kernels("voxels"))
    contract.COMPOUND.unregister("cpu")  # on a CPU, the formulas of the losses take little time
    contract.BENDING_ENERGY.register("cpu", _FULL, _kernels("fields:BENDING_ENERGY"))
    contract.DIFFUSION.register("cpu", _FULL, _kernels("fields:DIFFUSION"))
    contract.CORRELATION.register("cpu", _FULL, _kernels("correlation"))
    contract.HISTOGRAM.register("cpu", _FULL, _kernels("histogram"))
    contract.SMOOTHING.register("cpu", _FULL, _kernels("smoothing"))


register()
