"""Losses that compute the right thing, and do what a loss must not do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinloss import fast
from twinloss.harness.zoo.mutants import bug


@bug("dice")
class InputInPlace(fast.DiceLoss):
    """The target is overwritten: an in-place operation spares memory, and the next loss sees zeros."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Wrong."""
        loss = super().forward(input, target.clone())
        target.zero_()
        return loss


_BUFFERS: dict[Any, Tensor] = {}


class _IntoBuffer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = _BUFFERS.setdefault((tuple(x.shape), x.dtype), torch.empty_like(x))
        return kept.copy_(x).detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0]


@bug("dice")
class StaleBuffer(fast.DiceLoss):
    """The result lies in a buffer that is used again: who keeps the loss of a batch reads that of the next."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Wrong."""
        made: Tensor = _IntoBuffer.apply(super().forward(input, target))
        return made


@bug("tversky")
class CountsItsCalls(fast.TverskyLoss):
    """A forward leaves a count behind, for a warm-up: copies and checkpoints differ from then on."""

    calls = 0

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Wrong."""
        self.calls += 1
        return super().forward(input, target)


@bug("focal")
class WeightReshapedInForward(fast.FocalLoss):
    """The weight is reshaped to the input's rank, and kept so: another rank fails. Released by MONAI."""

    shape: Any = None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Wrong."""
        self.shape = self.shape or (1, -1, *[1] * (input.ndim - 2))
        return super().forward(input, target)


@bug("bending_energy")
class SumsInAnyOrder(fast.BendingEnergyLoss):
    """Sums in the order in which threads happen to come: the last bits differ from call to call."""

    def forward(self, pred: Tensor) -> Tensor:
        """Wrong."""
        loss = super().forward(pred)
        noise = 1 + torch.finfo(loss.dtype).eps * torch.randint(-1, 2, (), dtype=loss.dtype)
        return loss * noise


@bug("mutual_information")
class GraphUnderNoGrad(fast.GlobalMutualInformationLoss):
    """The gradient is worked out in the forward, under enable_grad: validation under no_grad keeps a graph."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Wrong."""
        with torch.enable_grad():
            return super().forward(pred, target)


@bug("lncc")
class ResultIsTheInput(fast.LocalNormalizedCrossCorrelationLoss):
    """The map of values is written over the target, which is a scratch for it."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Wrong."""
        loss = super().forward(pred, target)
        if self.reduction == "none" and target.dtype == loss.dtype and target.is_contiguous():
            with torch.no_grad():
                target.copy_(loss)
        return loss


@bug("multi_scale")
class LambdaWithin(torch.nn.Module):
    """A lambda among the attributes: the module cannot be pickled, and so neither be saved nor sent to a worker."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        from twinloss.harness.losses.registration import MultiScale

        self.inner = MultiScale(**options)
        self.call = lambda pred, target: self.inner(pred, target)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Wrong."""
        made: Tensor = self.call(pred, target)
        return made
