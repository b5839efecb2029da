"""Losses of data that are distributed over ranks: real processes with gloo, compared with a single process."""

from __future__ import annotations

import gc
import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from twinloss.harness.losses.catalogue import catalogue
from twinloss.harness.model.twin import Twin
from twinloss.harness.reliability.registry import Row, line

# The tolerated relative difference of float64 sums in a different order.
TOLERANCE = 1e-12
# Whether the shards of the ranks are of equal size.
SPLITS = (True, False)


@dataclass(frozen=True)
class Task:
    """A loss of a network's output, on data that are split along an axis."""

    twin: Twin
    options: Mapping[str, Any]
    axis: int

    def arguments(self) -> tuple[Tensor, ...]:
        """Create all data: the input of the network, and the other arguments of the loss."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(6, 3, 7, 4, generator=generator, dtype=torch.float64)
        if self.twin.of_images:
            return x, torch.rand(x.shape, generator=generator, dtype=torch.float64)
        target = torch.randint(3, (6, 1, 7, 4), generator=generator)
        masked = "mask" in self.twin.operands
        return (x, target, (torch.rand(6, 1, 7, 4, generator=generator) > 0.3).double()) if masked else (x, target)

    def __str__(self) -> str:
        return f"{self.twin.fast.__name__}, shards of the {'batch' if self.axis == 0 else 'volume'}"


def tasks() -> Iterator[Task]:
    """Yield every loss that takes a process group, with its data split in every way that it allows."""
    for twin in catalogue().values():
        if "process_group" not in inspect.signature(twin.fast).parameters:
            continue
        for options in twin.shards or (twin.usual.options,):
            if "batch" in twin.options:
                yield Task(twin, {**options, "batch": True}, 0)
                yield Task(twin, {**options, "batch": True}, 2)
            yield Task(twin, options, 2)


class Network(torch.nn.Module):
    """A layer whose weights have a gradient that depends on all voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.linspace(-1, 2, parameter.numel()).reshape(parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits that are small enough to serve as intensities, too."""
        made: Tensor = self.layer(x)
        return made / 10 + 0.3


def shards(size: int, ranks: int, equal: bool) -> list[int]:
    """Return how many elements of an axis each rank holds."""
    if equal:
        return [size // ranks + (rank < size % ranks) for rank in range(ranks)]
    return [size - ranks + 1] + [1] * (ranks - 1)


def _step(model: torch.nn.Module, loss: torch.nn.Module, arguments: Sequence[Tensor]) -> list[Tensor]:
    value = loss(model(arguments[0]), *arguments[1:])
    value.backward()
    return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def _rank(rank: int, ranks: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    made = []
    for equal, task in product(SPLITS, tasks()):
        loss = task.twin.fast(**task.options, process_group=distributed.group.WORLD)
        mine = [
            torch.split(argument, shards(argument.shape[task.axis], ranks, equal), task.axis)[rank].contiguous()
            for argument in task.arguments()
        ]
        made.append(_step(DistributedDataParallel(Network()), loss, mine))
    torch.save(made, os.path.join(folder, f"{rank}.pt"))
    distributed.barrier()
    gc.collect()  # DDP modules are in reference cycles; if one outlived the group, the threads of the group would abort
    distributed.destroy_process_group()


def differences(ranks: int) -> dict[bool, float]:
    """Return the largest relative difference between the ranks and a single process, for each of `SPLITS`.

    It covers the value and the gradients of all tasks, and is relative to the largest element.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (ranks, os.path.join(folder, "store"), folder), nprocs=ranks)  # type: ignore[no-untyped-call]
        made = [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=True) for rank in range(ranks)]
    worst = dict.fromkeys(SPLITS, 0.0)
    for n, (equal, task) in enumerate(product(SPLITS, tasks())):
        expected = _step(Network(), task.twin.fast(**task.options), task.arguments())
        for of_rank in made:
            for got, wanted in zip(of_rank[n], expected, strict=True):
                worst[equal] = max(worst[equal], float((got - wanted).abs().max() / wanted.abs().max()))
    return worst


@line("Distributed")
def distributed_data(quick: bool) -> Iterator[Row]:
    """With process_group, ranks get the value and, under DDP, the gradients of one process with all data."""
    for ranks in (3,) if quick else (2, 3):
        for equal, worst in differences(ranks).items():
            yield Row(
                f"{len(list(tasks()))} losses and splits, {ranks} processes (gloo, DDP), "
                f"{'equal' if equal else 'unequal'} shards",
                f"relative difference from one process at most {worst:.1e}",
                worst <= TOLERANCE,
            )
