"""Losses of two terms, a fraction and surprisals, for devices whose kernels compute such a loss as a whole.

Elsewhere, operators of torch compute these losses from the statistics. On a GPU, the 60 operators of a step would take
longer than the voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from twinloss.fast.engine.segmentation.plain import plain_sums
from twinloss.fast.engine.segmentation.statistics import Statistics
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import COMPOUND, CompoundPlan, VoxelInputs
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.torch_operator import Computation, InputsAndValue, is_traced, one_node

# The package whose methods the kernels replace.
_PACKAGE = "twinloss.fast."


def is_served(voxels: Voxels, loss: object = None, methods: Sequence[str] = ()) -> bool:
    """Return whether kernels compute a loss of these voxels as a whole.

    They do not call the methods of the loss that are named, so that a subclass must not have its own.
    """
    x, target = voxels.input, voxels.target
    if not COMPOUND.serves(x) or voxels.process_group is not None or voxels.mask is not None:
        return False
    if not all(getattr(loss, name).__module__.startswith(_PACKAGE) for name in methods):
        return False
    return dispatch.choose(COMPOUND, x, target) == "kernel" and not is_traced((x, target))


def compound(voxels: Voxels, asked: CompoundPlan, formula: Callable[[Statistics], Tensor]) -> Tensor:
    """Return a loss that kernels compute, as one node of the autograd graph; `formula` is the same in torch."""
    kernels = COMPOUND.kernels(voxels.input)

    def value(tensors: tuple[Any, ...], ahead: bool) -> tuple[Tensor, object]:
        return kernels.compound(VoxelInputs(*tensors), asked, ahead)

    def gradient(upstream: Tensor, kept: object, *tensors: Any) -> Tensor:
        return kernels.compound_gradient(upstream, VoxelInputs(*tensors), asked, kept)

    def plain(*tensors: Any) -> InputsAndValue:
        return tensors[:1], formula(Statistics(plain_sums(VoxelInputs(*tensors), asked.plan), fixed=True))

    return one_node(Computation(value, gradient, plain), voxels.input, voxels.target)
