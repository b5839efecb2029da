"""The kernels for GPUs: Triton compiles them, and the modules of this folder call them.

They are registered for "cuda", which is torch's name for the GPUs of NVIDIA and of AMD. Each module is imported when it
is first needed, because it imports Triton. The packages of torch for GPUs include Triton; without it, the plain forms
compute the losses.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from twinloss.fast.kernels import contract

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _voxels() -> contract.VoxelKernels:
    from twinloss.fast.kernels.gpu import voxels

    return voxels


def _compound() -> contract.CompoundKernels:
    from twinloss.fast.kernels.gpu import voxels

    return voxels


def _bending_energy() -> contract.EnergyKernels:
    from twinloss.fast.kernels.gpu import fields

    return fields.BENDING_ENERGY


def _diffusion() -> contract.EnergyKernels:
    from twinloss.fast.kernels.gpu import fields

    return fields.DIFFUSION


def _correlation() -> contract.CorrelationKernels:
    from twinloss.fast.kernels.gpu import correlation

    return correlation


def _smoothing() -> contract.SmoothingKernels:
    from twinloss.fast.kernels.gpu import smoothing

    return smoothing


def _histogram() -> contract.HistogramKernels:
    from twinloss.fast.kernels.gpu import histogram

    return histogram


def register(device: str) -> None:
    """Let these kernels serve a type of device."""
    contract.VOXELS.register(device, DTYPES, _voxels)
    contract.COMPOUND.register(device, DTYPES, _compound)
    contract.BENDING_ENERGY.register(device, DTYPES, _bending_energy)
    contract.DIFFUSION.register(device, DTYPES, _diffusion)
    contract.CORRELATION.register(device, DTYPES, _correlation)
    contract.SMOOTHING.register(device, DTYPES, _smoothing)
    contract.HISTOGRAM.register(device, DTYPES, _histogram)


if find_spec("triton") is not None:
    register("cuda")
