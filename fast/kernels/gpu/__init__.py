"""The kernels for GPUs: Triton compiles them, and the modules of this folder call them.

They are registered for "cuda", which is torch's name for the GPUs of NVIDIA and of AMD. Each module is imported when it
is first needed, because it imports Triton. The packages of torch for GPUs include Triton; without it, the plain forms
compute the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch

from twinloss.fast.kernels import contract

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


if TYPE_CHECKING:  # each module has the functions of its protocol
    from twinloss.fast.kernels.gpu import correlation, fields, histogram, smoothing, voxels

    _VOXELS: contract.VoxelKernels = voxels
    _COMPOUND: contract.CompoundKernels = voxels
    _FIELDS: tuple[contract.EnergyKernels, ...] = (fields.BENDING_ENERGY, fields.DIFFUSION)
    _CORRELATION: contract.CorrelationKernels = correlation
    _SMOOTHING: contract.SmoothingKernels = smoothing
    _HISTOGRAM: contract.HistogramKernels = histogram


def _kernels(name: str) -> Callable[[], Any]:
    """Return a function that imports a module of this folder, or what it has by the name after a colon."""
    return partial(resolve_name, f"{__name__}.{name}")


def register(device: str) -> None:
    """Let these kernels serve a type of device."""
    contract.VOXELS.register(device, DTYPES, _kernels("voxels"))
    contract.COMPOUND.register(device, DTYPES, _kernels("voxels"))
    contract.BENDING_ENERGY.register(device, DTYPES, _kernels("fields:BENDING_ENERGY"))
    contract.DIFFUSION.register(device, DTYPES, _kernels("fields:DIFFUSION"))
    contract.CORRELATION.register(device, DTYPES, _kernels("correlation"))
    contract.SMOOTHING.register(device, DTYPES, _kernels("smoothing"))
    contract.HISTOGRAM.register(device, DTYPES, _kernels("histogram"))


if find_spec("triton") is not None:
    register("cuda")
