"""Mutants whose bug is in a kernel for GPUs. Triton's interpreter runs these kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twinloss import fast
from twinloss.harness.zoo.mutants import bug


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, add: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.like = x
        return add(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0].expand_as(ctx.like).contiguous(), None


def _reduced(loss: Any, add: Callable[[Tensor], Tensor], *images: Tensor) -> Tensor:
    """Return a loss whose values by voxel are added up by `add`."""
    reduction, loss.reduction = loss.reduction, "none"
    try:
        by_voxel = super(type(loss), loss).forward(*images)
    finally:
        loss.reduction = reduction
    if reduction == "none":
        return by_voxel
    total: Tensor = _Sum.apply(by_voxel, add)
    return total / by_voxel.numel() if reduction == "mean" else total


@bug("diffusion", interpreted=True)
class TailWithoutMask(fast.DiffusionLoss):
    """The last block is loaded without a mask: the sum contains what lies in memory behind the image."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        from twinloss.harness.zoo import device_kernels

        return _reduced(self, device_kernels.sum_without_mask, pred)


@bug("bending_energy", interpreted=True)
class FirstProgramStarts(fast.BendingEnergyLoss):
    """The first program sets the total and the others add to it, without a barrier: the order decides."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        from twinloss.harness.zoo import device_kernels

        return _reduced(self, device_kernels.sum_in_a_race, pred)


@bug("diffusion", dtype="float32", interpreted=True)
class SumByAtomics(fast.DiffusionLoss):
    """Programs add to the total by float atomics: the last bits differ from call to call, as in many public kernels."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        from twinloss.harness.zoo import device_kernels

        return _reduced(self, device_kernels.sum_by_atomics, pred)


@bug("generalized_dice", dtype="float32", full_size=True, interpreted=True)
class VolumesInInt32(fast.GeneralizedDiceLoss):
    """The square of a class's volume is computed in int32, and overflows: only whole images show it."""

    def _weigh(self) -> Any:
        right = super()._weigh()

        def wrong(volume: Any) -> Any:
            from twinloss.harness.zoo import device_kernels

            volumes = torch.as_tensor(volume)
            if self.w_type != "square" or not bool((volumes == volumes.round()).all()):
                return right(volume)
            squares = device_kernels.squares_in_int32(volumes).abs().sqrt()
            return right(squares if isinstance(volume, Tensor) else squares.numpy())

        return wrong
