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
        """Return input and target, with 0 in ignored voxels; half-precision input becomes float32."""
        ignored, wide = self.ignored(), widened(self.input)
        if ignored is None:
            return wide, self.target
        return torch.where(ignored, 0, wide), torch.where(ignored, 0, self.target)

    def ignored(self) -> Tensor | None:
        """Return the voxels that ignore_index excludes, (B, 1, *S), or None."""
        if self.kept is not None:
            return ~self.kept
        return None if self.ignore_index is None else ignored(self.target, self.labels, self.ignore_index)

    def taking_part(self) -> Tensor | None:
        """Return the voxels that are neither ignored nor masked, (B or 1, 1, *S), or None if all are included."""
        ignored = self.ignored()
        if self.mask is None:
            return None if ignored is None else ~ignored
        return self.mask != 0 if ignored is None else (self.mask != 0) & ~ignored

    def counts(self) -> Tensor:
        """Return the number of voxels of each item that are not ignored, (B,) float64; (1,) if `batch` pools ranks."""
        ignored = self.ignored()
        if ignored is None:
            voxels = self.input[0, 0].numel()
            counts = torch.full((self.input.shape[0],), float(voxels), dtype=torch.float64, device=self.input.device)
        else:
            counts = (~ignored).flatten(1).sum(1).double()
        if self.process_group is None:
            return counts
        return sum_over_ranks(counts.sum(0, keepdim=True) if self.batch else counts, self.process_group)

    def _activated(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        # An excluded voxel may hold NaN. It must not enter the activation, whose backward would compute 0 * NaN.
        if self.mask is not None:
            x = torch.where(self.mask != 0, x, 0)
        if (ignored := self.ignored()) is not None:
            x = torch.where(ignored, 0, x)
        p = activation(x)
        if p.shape != x.shape:
            raise ShapeError(f"other_act must keep the shape {tuple(x.shape)}, it returned {tuple(p.shape)}")
        return p


_NAMES = tuple(each.name for each in fields(Voxels))
