"""The kernels for CPUs: Numba compiles them, and the modules of this folder call them.

Each module is registered here, and imported when it is first needed, because it imports Numba, which takes longer than
all other imports together.
"""

from __future__ import annotations

import torch

from twinloss.fast.kernels import contract

_FULL = (torch.float32, torch.float64)
_WITH_HALVES = (*_FULL, torch.float16, torch.bfloat16)


def _voxels() -> contract.VoxelKernels:
    from twinloss.fast.kernels.cpu import voxels

    return voxels


def _bending_energy() -> contract.EnergyKernels:
    from twinloss.fast.kernels.cpu import fields

    return fields.BENDING_ENERGY


def _diffusion() -> contract.EnergyKernels:
    from twinloss.fast.kernels.cpu import fields

    return fields.DIFFUSION


def _correlation() -> contract.CorrelationKernels:
    from twinloss.fast.kernels.cpu import correlation

    return correlation


def _histogram() -> contract.HistogramKernels:
    from twinloss.fast.kernels.cpu import histogram

    return histogram


def _smoothing() -> contract.SmoothingKernels:
    from twinloss.fast.kernels.cpu import smoothing

    return smoothing


def register() -> None:
    """Let these kernels serve CPUs."""
    contract.VOXELS.register("cpu", _WITH_HALVES, _voxels)
    contract.COMPOUND.unregister("cpu")  # on a CPU, the formulas of the losses take little time
    contract.BENDING_ENERGY.register("cpu", _FULL, _bending_energy)
    contract.DIFFUSION.register("cpu", _FULL, _diffusion)
    contract.CORRELATION.register("cpu", _FULL, _correlation)
    contract.HISTOGRAM.register("cpu", _FULL, _histogram)
    contract.SMOOTHING.register("cpu", _FULL, _smoothing)


register()
