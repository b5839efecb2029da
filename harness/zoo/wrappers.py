"""Mutants of the losses that wrap a segmentation loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinloss.harness.losses.wrappers import DeepSupervision, Masked
from twinloss.harness.zoo.mutants import bug


@bug("deep_supervision")
class ZeroTimesNan(DeepSupervision):
    """A level of weight 0 is computed and then multiplied by 0, as in every MONAI release: its NaN spreads."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        weights = self.deep.weights
        if weights is None or 0 not in weights:
            return super().forward(input, target)
        levels = self.levels(input)
        self.deep.weights = [float(weight == 0) for weight in weights]
        lost = 0 * self.deep(levels, target)
        self.deep.weights = weights
        return super().forward(input, target) + lost.to(input.dtype)


@bug("deep_supervision")
class CornerOfTheCoarseVoxel(DeepSupervision):
    """Labels are taken at the lower corner of a coarse voxel, half a coarse voxel off, as by mode="nearest"."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        levels = self.levels(input)
        mode, self.deep.interp_mode = self.deep.interp_mode, "nearest"
        loss: Tensor = self.deep(levels, target)
        self.deep.interp_mode = mode
        return loss


@bug("deep_supervision")
class CoarsestLevelFirst(DeepSupervision):
    """The weights belong to the levels in reverse order, as of a network that returns its coarsest output first."""

    def levels(self, input: Tensor) -> Tensor | list[Tensor]:
        """Return the levels in reverse order."""
        levels = super().levels(input)
        return levels.flip(1) if isinstance(levels, Tensor) else levels[::-1]


@bug("deep_supervision")
class WeightsThatSumToOne(DeepSupervision):
    """The weights are divided by their sum, as in nnU-Net, although they are given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.deep.weights is not None:
            self.deep.weights = [weight / sum(self.deep.weights) for weight in self.deep.weights]


@bug("deep_supervision")
class GradientOfTheFinestLevel(DeepSupervision):
    """Only the finest level has a gradient: the others are detached, as for logging."""

    def levels(self, input: Tensor) -> Tensor | list[Tensor]:
        """Return the levels, detached except for the first."""
        levels = super().levels(input)
        if isinstance(levels, Tensor):
            levels = list(levels.unbind(1))
            self.deep.stacked = False
        return [levels[0], *(level.detach() for level in levels[1:])]


@bug("masked")
class LogitsTimesMask(Masked):
    """Logits and target are multiplied by the mask before the activation, as in every MONAI release."""

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the wrong loss."""
        loss: Any = self.masked.loss
        if mask is None:
            return super().forward(input, target)
        weight = mask.to(input.dtype)
        made: Tensor = loss(torch.where(mask != 0, input * weight, 0), torch.where(mask != 0, target * weight, 0))
        return made


@bug("masked")
class MaskOfTheFirstItem(Masked):
    """All items get the mask of the first one."""

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(input, target, None if mask is None else mask[:1])


@bug("masked")
class SoftMaskAsFlags(Masked):
    """A soft mask is converted to booleans: each voxel with a weight above 0 counts fully."""

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(input, target, None if mask is None else mask != 0)
