"""Kernels in operators of torch, for every device and dtype that has no compiled kernels.

They implement the protocols of `kernels/contract/`: each has a closed formula for its gradient, keeps its arguments
instead of intermediate results, and computes in place. Derivatives of higher order, forward mode and `torch.func` use
the plain forms instead, which autograd can differentiate.

Rules for this folder:

* Never wait for the device: no branch depends on a number in a tensor, and constants come from `constants.py`.
* Invalid labels and masks make the loss NaN on devices other than the CPU, see `runtime/checks.py`.
* Sums have a fixed order: no `scatter_add`, `index_add` or `bincount`. A sum of many float32 numbers stays in float32,
  in which torch adds pairwise; with another `dtype`, torch would copy the tensor first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinloss.fast.kernels import contract
from twinloss.fast.runtime.constants import accumulator


def _voxels() -> contract.VoxelKernels:
    from twinloss.fast.engine.eager import voxels

    return voxels


def _correlation() -> contract.CorrelationKernels:
    from twinloss.fast.engine.eager import correlation

    return correlation


def _bending_energy() -> contract.EnergyKernels:
    from twinloss.fast.engine.eager import fields

    return fields.BENDING_ENERGY


def _diffusion() -> contract.EnergyKernels:
    from twinloss.fast.engine.eager import fields

    return fields.DIFFUSION


def _smoothing() -> contract.SmoothingKernels:
    from twinloss.fast.engine.eager import smoothing

    return smoothing


def _histogram() -> contract.HistogramKernels:
    from twinloss.fast.engine.eager import histogram

    return histogram


def _has_wider_type(x: Tensor) -> bool:
    return x.dtype == torch.float32 and accumulator(x.device) == torch.float64


contract.VOXELS.fall_back(_voxels)
contract.BENDING_ENERGY.fall_back(_bending_energy)
contract.DIFFUSION.fall_back(_diffusion)
contract.CORRELATION.fall_back(_correlation, _has_wider_type)
contract.SMOOTHING.fall_back(_smoothing)
contract.HISTOGRAM.fall_back(_histogram, _has_wider_type)
