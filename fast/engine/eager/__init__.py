"""Kernels in operators of torch, for every device and dtype that has no compiled kernels.

They implement the protocols of `kernels/contract.py`: each has a closed formula for its gradient, keeps its arguments
instead of intermediate results, and computes in place. Derivatives of higher order, forward mode and `torch.func` use
the plain forms instead, which autograd can differentiate.

Rules for this folder:

* Never wait for the device: no branch depends on a number in a tensor, and constants come from `constants.py`.
* Invalid labels and masks make the loss NaN on devices other than the CPU, see `runtime/checks.py`.
* Sums have a fixed order: no `scatter_add`, `index_add` or `bincount`. A sum of many float32 numbers stays in float32,
  in which torch adds pairwise; with another `dtype`, torch would copy the tensor first.
"""

from __future__ import annotations

from twinloss.fast.kernels import contract


def _voxels() -> contract.VoxelKernels:
    from twinloss.fast.engine.eager import voxels

    return voxels


contract.VOXELS.fall_back(_voxels)
