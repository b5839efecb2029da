"""Wrappers of losses with the arguments of MONAI 1.6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from twinloss import fast
from twinloss.fast.engine.loss import checked_loss, entry_point


class MaskedLoss(fast.MaskedLoss):
    """Loss of input and target times a mask.

    The input of a segmentation loss is multiplied before the activation, so that a logit outside of the mask becomes 0.
    `twinloss.fast.MaskedLoss` applies the mask after the activation.

    Args:
        loss: a loss, or a class, which is called with the further arguments.
        loss_args: positional arguments of the class.
        loss_kwargs: keyword arguments of the class.
    """

    option_checks: ClassVar = {**fast.MaskedLoss.option_checks, "loss": checked_loss}

    def __init__(self, loss: Callable[..., Any], *loss_args: Any, **loss_kwargs: Any) -> None:
        super().__init__(loss(*loss_args, **loss_kwargs) if isinstance(loss, type) else loss)

    @entry_point
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss; `twinloss.fast.MaskedLoss` documents shapes and errors."""
        if mask is None:
            return super().forward(input, target)
        # `partial` hides that the loss is a segmentation loss, which would apply the mask after the activation.
        products = self.remembered("products", lambda: fast.MaskedLoss(partial(self.loss)))
        loss: Tensor = products(input, target, mask)
        return loss


class DeepSupervisionLoss(fast.DeepSupervisionLoss):
    """Weighted sum of a loss over outputs at several resolutions, see `twinloss.fast.DeepSupervisionLoss`.

    For a single output, as a network returns in evaluation, it is the wrapped loss, whatever the weights are. If there
    are more weights than outputs, the first ones are used.
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
