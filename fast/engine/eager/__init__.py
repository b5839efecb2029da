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

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twinloss.fast.kernels import contract
from twinloss.fast.runtime.constants import accumulator

if TYPE_CHECKING:  # each module has the functions of its protocol
    from twinloss.fast.engine.eager import correlation, fields, histogram, smoothing, voxels

    _VOXELS: contract.VoxelKernels = voxels
    _FIELDS: tuple[contract.EnergyKernels, ...] = (fields.BENDING_ENERGY, fields.DIFFUSION)
    _CORRELATION: contract.CorrelationKernels = correlation
    _SMOOTHING: contract.SmoothingKernels = smoothing
    _HISTOGRAM: contract.HistogramKernels = histogram


def _kernels(name: str) -> Callable[[], Any]:
    return partial(resolve_name, f"{__name__}.{name}")


def _has_wider_type(x: Tensor) -> bool:
    return x.dtype == torch.float32 and accumulator(x.device) == torch.float64


contract.VOXELS.fall_back(_kernels("voxels"))
contract.BENDING_ENERGY.fall_back(_kernels("fields:BENDING_ENERGY"))
contract.DIFFUSION.fall_back(_kernels("fields:DIFFUSION"))
contract.CORRELATION.fall_back(_kernels("correlation"), _has_wider_type)
contract.SMOOTHING.fall_back(_kernels("smoothing"))
contract.HISTOGRAM.fall_back(_kernels("histogram"), _has_wider_type)
