"""Mutants that compute the right result, but behave in a way that a loss must not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinloss import fast
from twinloss.harness.zoo.mutants import bug


@bug("dice")
class InputInPlace(fast.DiceLoss):
    """The target is overwritten by an in-place operation that saves memory: the next loss gets zeros."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
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
    """The result is a view of a reused buffer: a stored loss changes when the next batch is computed."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        made: Tensor = _IntoBuffer.apply(super().forward(input, target))
        return made


@bug("tversky")
class CountsItsCalls(fast.TverskyLoss):
    """Forward increments a counter, as for a warm-up: afterwards, copies and checkpoints differ."""

    calls = 0

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        self.calls += 1
        return super().forward(input, target)


@bug("focal")
class WeightReshapedInForward(fast.FocalLoss):
    """Forward reshapes the weight to the input's rank and keeps it: other ranks then fail, as in a MONAI release."""

    shape: Any = None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        self.shape = self.shape or (1, -1, *[1] * (input.ndim - 2))
        return super().forward(input, target)


@bug("bending_energy")
class SumsInAnyOrder(fast.BendingEnergyLoss):
    """Sums depend on the order in which threads finish: the last bits differ from call to call."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        loss = super().forward(pred)
        noise = 1 + torch.finfo(loss.dtype).eps * torch.randint(-1, 2, (), dtype=loss.dtype)
        return loss * noise


@bug("mutual_information")
class GraphUnderNoGrad(fast.GlobalMutualInformationLoss):
    """Forward computes the gradient under enable_grad: validation under no_grad still keeps a graph."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        with torch.enable_grad():
            return super().forward(pred, target)


@bug("lncc")
class ResultIsTheInput(fast.LocalNormalizedCrossCorrelationLoss):
    """The map of values is written into the target, which is used as scratch memory."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        loss = super().forward(pred, target)
        if self.reduction == "none" and target.dtype == loss.dtype and target.is_contiguous():
            with torch.no_grad():
                target.copy_(loss)
        return loss


@bug("multi_scale")
class LambdaWithin(torch.nn.Module):
    """An attribute is a lambda: the module cannot be pickled, and thus neither saved nor sent to a worker."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        from twinloss.harness.losses.registration import MultiScale

        self.inner = MultiScale(**options)
        self.call = lambda pred, target: self.inner(pred, target)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        made: Tensor = self.call(pred, target)
        return made
