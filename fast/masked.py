"""Wrapper that computes a loss within a mask; the twin of `reference/masked.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.deep_supervision import DeepSupervisionLoss
from twinloss.fast.engine.loss import Loss, checked_loss, entry_point
from twinloss.fast.engine.segmentation.labels import checked_mask
from twinloss.fast.engine.segmentation.loss import SegmentationLoss, check_mask_shape
from twinloss.fast.runtime.arguments import ShapeError, check_tensors
from twinloss.fast.runtime.options import fixed
from twinloss.fast.runtime.warn import warn


def _checked_loss(value: Any, name: str) -> Callable[..., Tensor]:
    loss = checked_loss(value, name)
    if isinstance(loss, (MaskedLoss, DeepSupervisionLoss)):
        other = "DeepSupervisionLoss(MaskedLoss(…))" if isinstance(loss, DeepSupervisionLoss) else "it alone"
        raise TypeError(f"{name} must not be a {type(loss).__name__}, which itself takes a mask: use {other}")
    return loss


class MaskedLoss(Loss):
    r"""Loss of the voxels within a mask.

    A segmentation loss of this package applies the mask m after the activation, as a weight in its sums over voxels.
    Overlaps and sizes are those of :math:`m_i p_i` and :math:`m_i g_i`. A mean of the values :math:`\ell_i` of voxels,
    as in focal loss and cross entropy, becomes

    .. math::
        L = \frac{\sum_i m_i\, \ell_i}{\sum_i m_i}

    A mask of zeros and ones therefore gives the loss of the voxels where it is 1. Any other loss is called with input
    and target times the mask, :math:`\ell(m x, m g)`, which suits images and fields. MONAI's MaskedLoss also does
    this with logits, so that a voxel outside of the mask counts, with equal probabilities for all classes.

    Args:
        loss: the wrapped loss: a module of this package, or a callable that takes two tensors.

    Shape:
        input (B, C, *S); target (B, C', *S) or (B, *S), as the wrapped loss takes it; mask (B, 1, *S) or (1, 1, *S),
        with values in [0, 1]. Voxels where it is 0 contribute nothing to the value or the gradient, even if they hold
        NaN. If the wrapped loss takes no mask, an integer target is set to 0 there and unchanged elsewhere. A focal
        loss with ``reduction="none"`` returns the value of each voxel times the mask.

    Raises:
        TypeError: if the loss is not callable, or takes a mask itself, as DeepSupervisionLoss does; if an argument is
            not a tensor.
        ValueError: if the shape of the mask or of the target does not match the input; on the CPU, if values of the
            mask lie outside [0, 1]. On other devices, the loss is then NaN, unless ``TWINLOSS_CHECK=1`` is set. The
            wrapped loss adds its own.

    Warns:
        UserWarning: if no mask is given; the loss is then the wrapped one.

    Example:
        >>> import torch
        >>> from twinloss.fast import FocalLoss
        >>> loss, logits = MaskedLoss(FocalLoss(to_onehot_y=True, gamma=0.0)), torch.zeros(1, 2, 3)
        >>> logits[0, 0, 2] = torch.nan
        >>> loss(logits, torch.tensor([[[0, 1, 1]]]), torch.tensor([[[1.0, 1.0, 0.0]]]))  # log(2) / 2
        tensor(0.3466)
    """

    option_checks: ClassVar = {"reduction": fixed("mean"), "loss": _checked_loss}

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    @entry_point
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        if mask is None:
            warn("no mask given: the loss is that of all voxels")
            return self.loss(input, target)
        if isinstance(self.loss, SegmentationLoss):
            return self.loss.within(input, target, mask)
        check_tensors(input=input, target=target, mask=mask)
        if input.ndim < 2:
            raise ValueError(f"input must be (batch, channels, *spatial), got shape {tuple(input.shape)}")
        check_mask_shape(mask, tuple(input.shape))
        axes = input.ndim - 2
        without_channels = target.ndim == input.ndim - 1
        on_grid = (len(target), *target.shape[target.ndim - axes :]) == (len(input), *input.shape[2:])
        if not (without_channels or target.ndim == input.ndim) or not on_grid:
            raise ShapeError(
                f"target has shape {tuple(target.shape)} and input {tuple(input.shape)}: they must have the same "
                "numbers of items and of voxels along each axis"
            )
        return self.loss(_times(mask, input), _times(mask[:, 0] if without_channels else mask, target))


def _times(mask: Tensor, values: Tensor) -> Tensor:
    """Return values times a mask, and exactly 0 where the mask is 0; other integers stay as they are."""
    cut = torch.where(mask != 0, values, False)  # a 0 would turn booleans into integers
    return checked_mask(mask, values) * cut if values.is_floating_point() else cut
