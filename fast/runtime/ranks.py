"""Sums over the ranks of a process group, so that a loss of sums is that of all data, wherever they lie."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from twinloss.fast.runtime.warn import warn

ProcessGroup = Any  # torch.distributed.ProcessGroup, which a build of torch without it lacks


def is_group(value: Any) -> bool:
    """Whether a value is a process group."""
    return dist.is_available() and isinstance(value, dist.ProcessGroup)


def checked_group(group: ProcessGroup | None, name: str = "process_group") -> ProcessGroup | None:
    """A process group, or None."""
    if group is None or is_group(group):
        return group
    raise TypeError(
        f"{name} must be None or a torch.distributed.ProcessGroup, got {type(group).__name__}: after "
        "torch.distributed.init_process_group() the one of all ranks is torch.distributed.group.WORLD"
    )


# A process group belongs to the processes that made it. Copies of a loss share the group. A pickle of it cannot hold
# the group, and stands for it by its name, which only the default group of all ranks has.


class _Named(Enum):
    """What stands for a process group in a pickle."""

    DEFAULT = "default"


def to_be_pickled(value: Any) -> Any:
    """Return what stands for a value in a pickle: for the default process group its name, for all else the value.

    Raises:
        TypeError: for another process group.
    """
    if not is_group(value):
        return value
    if value is dist.group.WORLD:
        return _Named.DEFAULT
    raise TypeError(
        "a loss with a process group other than torch.distributed.group.WORLD cannot be pickled or saved, as the group "
        "belongs to its processes: save the loss without process_group, and assign the group after loading"
    )


def restored(value: Any) -> Any:
    """Return what a value in a pickle stands for: of the name of the default process group that of this process."""
    if value is not _Named.DEFAULT:
        return value
    if dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    warn(
        "the loss was saved with the default process group, and this process has none: it now sees the data of this "
        "process alone. Call torch.distributed.init_process_group before loading, or assign process_group"
    )
    return None


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
    if group is None:
        return local
    total: Tensor = _SumOverRanks.apply(local, group)  # type: ignore[no-untyped-call]
    return total
