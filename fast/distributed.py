"""Sums over the ranks of a process group, so that a loss of sums is that of all data, wherever they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

ProcessGroup = Any  # torch.distributed.ProcessGroup, which a build of torch without it lacks


def checked_group(group: ProcessGroup | None, name: str = "process_group") -> ProcessGroup | None:
    """A process group, or None."""
    if group is None or (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        return group
    raise TypeError(
        f"{name} must be None or a torch.distributed.ProcessGroup, got {type(group).__name__}: after "
        "torch.distributed.init_process_group() the one of all ranks is torch.distributed.group.WORLD"
    )


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; backward times their number, without a word between them.

    Each rank computes the same loss from the same sums, so dL/d(sum) is the same on all, and the gradient of a rank's
    part is its own. DistributedDataParallel divides what the ranks add up by their number: times it, that is the
    gradient of the loss of all data.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: ProcessGroup) -> Tensor:
        ctx.ranks = dist.get_world_size(group)
        total = local.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] * ctx.ranks, None


def sum_over_ranks(local: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of a tensor over the ranks of a group; of none, the tensor itself."""
    return local if group is None else _SumOverRanks.apply(local, group)
