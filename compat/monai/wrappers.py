"""Wrappers of losses with the arguments of MONAI 1.6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from twinloss import fast
from twinloss.fast.engine.loss import entry_point


class DeepSupervisionLoss(fast.DeepSupervisionLoss):
    """Weighted sum of a loss over outputs at several resolutions, see `twinloss.fast.DeepSupervisionLoss`.

    A single output, as of a network in evaluation, gets the loss itself, whatever the weights are. Of a list of weights
    that is longer than the list of outputs, the first ones are taken.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        weight_mode: str = "exp",
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(loss, weight_mode, weights, **options)

    @entry_point
    def forward(
        self,
        input: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        mask: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss; `twinloss.fast.DeepSupervisionLoss` documents shapes and errors."""
        if isinstance(input, Tensor) and not self.stacked:
            return self.loss(input, target) if mask is None else self.loss(input, target, mask)
        return super().forward(input, target, mask)

    def _weights(self, count: int) -> tuple[float, ...]:
        weights: tuple[float, ...] | None = self.weights
        return super()._weights(count) if weights is None or len(weights) <= count else weights[:count]
