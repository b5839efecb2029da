"""Sums over the ranks of a process group.

A loss that is a function of sums over voxels then returns the loss of the data of all ranks.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from twinloss.fast.runtime.warn import warn

ProcessGroup = Any  # torch.distributed.ProcessGroup, which is missing in some builds of torch


def is_group(value: Any) -> bool:
    """Return whether a value is a process group."""
    return dist.is_available() and isinstance(value, dist.ProcessGroup)


def checked_group(group: ProcessGroup | None, name: str = "process_group") -> ProcessGroup | None:
    """Check that an option is a process group or None, and return it."""
    if group is None or is_group(group):
        return group
    raise TypeError(
        f"{name} must be None or a torch.distributed.ProcessGroup, got {type(group).__name__}: the group of all ranks "
        "is torch.distributed.group.WORLD, after torch.distributed.init_process_group()"
    )


# A process group belongs to the processes that made it. Copies of a loss share the group. A pickle cannot contain a
# group. It stores the name of the default group of all ranks, which is the only group that has a name.


class _Named(Enum):
    """The name that a pickle contains in place of a process group."""

    DEFAULT = "default"


def to_be_pickled(value: Any) -> Any:
    """Return the form of a value that is pickled: the name of the default process group, or else the value itself.

    Raises:
        TypeError: for another process group.
    """
    if not is_group(value):
        return value
    if value is dist.group.WORLD:
        return _Named.DEFAULT
    raise TypeError(
        "a loss with a process group other than torch.distributed.group.WORLD cannot be pickled or saved, because the "
        "group belongs to its processes: save the loss without process_group, and assign the group after loading"
    )


def restored(value: Any) -> Any:
    """Return the value that a pickled form stands for.

    The name of the default group becomes the default group of this process, or None with a warning if there is none.
    """
    if value is not _Named.DEFAULT:
        return value
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    warn(
        "the loss was saved with the default process group, but this process has none: the loss now uses only the data "
        "of this process. Call torch.distributed.init_process_group before loading, or assign process_group"
    )
    return None


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks. Its backward multiplies by the number of ranks, and needs no communication.

    Each rank computes the same loss from the same sums. So dL/d(sum) is the same on all ranks, and each rank computes
    the gradient of its own part. DistributedDataParallel divides the sum of the gradients by the number of ranks. The
    factor cancels this division, so that training gets the gradient of the loss of all data.
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
    """Return the sum of a tensor over the ranks of a group, or the tensor itself without a group."""
    if group is None:
        return local
    total: Tensor = _SumOverRanks.apply(local, group)  # type: ignore[no-untyped-call]
    return total
