"""The checked arguments of a segmentation loss, with methods for their statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from twinloss.fast.engine.segmentation.labels import ignored
from twinloss.fast.engine.segmentation.statistics import Activation, Statistics, statistics
from twinloss.fast.kernels.contract import Plan, UpstreamSlopes, VoxelInputs
from twinloss.fast.runtime.arguments import ShapeError
from twinloss.fast.runtime.dispatch import widened
from twinloss.fast.runtime.ranks import ProcessGroup, sum_over_ranks


@dataclass  # constructing a frozen one takes a microsecond longer
class Voxels:
    """The arguments of one forward call, checked.

    Attributes:
        input: (B, C, *S). In half precision, each pass rounds the gradient; if there are several passes, use `widened`.
        target: (B, C, *S), or labels (B, 1, *S).
        mask: (B or 1, 1, *S).
        labels: whether the target holds labels.
        background: whether channel 0 is included.
        ignore_index: as given to the loss.
        batch: whether items are pooled.
        process_group: the ranks whose voxels are included.
        kept: (B, 1, *S), whether a further channel of the target does not exclude a voxel, or None without such a
            channel. The mask is then 0 in excluded voxels, and `ignore_index` is None.
    """

    input: Tensor
    target: Tensor
    mask: Tensor | None
    labels: bool
    background: bool
    ignore_index: int | None
    batch: bool
    process_group: ProcessGroup | None
    kept: Tensor | None = None

    def plan(self, activation: Activation, **asked: Any) -> Plan:
        """Return the plan for the statistics in `asked`, which are fields of `Plan`."""
        return Plan(activation, labels=self.labels, ignore_index=self.ignore_index, **asked)

    def sums(
        self,
        activation: Activation | Callable[[Tensor], Tensor],
        matrix: Tensor | None = None,
        slopes: UpstreamSlopes | None = None,
        **asked: Any,
    ) -> Statistics:
        """Return the statistics in `asked`, see `Plan`, over the voxels of all ranks, in one pass."""
        x = self.input
        if callable(activation):
            x, activation = self._activated(widened(x), activation), "identity"
        inputs = VoxelInputs(x, self.target, self.mask, matrix)
        found = statistics(inputs, self.plan(activation, **asked), slopes)
        if self.process_group is None:
            return found
        # Ranks may hold different numbers of items.
        local = found.stack.sum(1, keepdim=True) if self.batch else found.stack
        return replace(found, stack=sum_over_ranks(local, self.process_group))

    def widened(self) -> Voxels:
        """Return a copy with half-precision input as float32, so that only the sum of its gradients is rounded."""
        return self.having(input=widened(self.input))

    def having(self, **changes: Any) -> Voxels:
        """Return a copy with other values. Older releases of torch.compile cannot follow `dataclasses.replace`."""
        return Voxels(**{name: changes.get(name, getattr(self, name)) for name in _NAMES})

    def cleaned(self) -> tuple[Tensor, Tensor]:
        """Return input and target, with 0 in excluded voxels; half-precision input becomes float32."""
        taken, wide = self.taking_part(), widened(self.input)
        if taken is None:
            return wide, self.target
        return torch.where(taken, wide, 0), torch.where(taken, self.target, 0)

    def weights(self) -> Tensor | None:
        """Return the weight of each voxel, (B or 1, 1, *S), which is 0 if it is ignored, or None if all count."""
        if self.ignore_index is None:
            return self.mask
        excluded = ignored(self.target, self.labels, self.ignore_index)
        return ~excluded if self.mask is None else torch.where(excluded, 0, self.mask)

    def taking_part(self) -> Tensor | None:
        """Return the voxels that are neither ignored nor masked, (B or 1, 1, *S), or None if all are included."""
        weights = self.weights()
        return weights if weights is None or weights.dtype == torch.bool else weights != 0

    def counts(self) -> Tensor:
        """Return the sum of the weights of each item's voxels, (B,) float64; (1,) if `batch` pools ranks."""
        weights, items = self.weights(), self.input.shape[0]
        if weights is None:
            voxels = self.input[0, 0].numel()
            counts = torch.full((items,), float(voxels), dtype=torch.float64, device=self.input.device)
        else:
            counts = weights.flatten(1).sum(1, dtype=torch.float64).expand(items)
        if self.process_group is None:
            return counts
        return sum_over_ranks(counts.sum(0, keepdim=True) if self.batch else counts, self.process_group)

    def _activated(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        # An excluded voxel may hold NaN. It must not enter the activation, whose backward would compute 0 * NaN.
        if (taken := self.taking_part()) is not None:
            x = torch.where(taken, x, 0)
        p = activation(x)
        if p.shape != x.shape:
            raise ShapeError(f"other_act must keep the shape {tuple(x.shape)}, it returned {tuple(p.shape)}")
        return p


_NAMES = tuple(each.name for each in fields(Voxels))
