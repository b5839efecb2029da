"""Benchmark cases: base cases, and a sweep of cases that vary one parameter of a base case.

The sweep also contains some corner cases. The full product of sizes, classes, batch sizes, thread counts and dtypes
would take days.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.benchmark_spec import BenchmarkSpec
from twinloss.harness.model.twin import Twin

BASE = 96
SIZES = (32, 64, 128, 192, 256)
# Pairs of (number of classes, edge length of the cube).
CLASSES = ((1, BASE), (2, BASE), (32, 64), (128, 32))
# Pairs of (number of items, edge length of the cube).
ITEMS = ((1, BASE), (16, 48))


@dataclass(frozen=True)
class BenchmarkCase:
    """A benchmark of one loss with a given input size, dtype and number of threads.

    `kind` names the parameter in which the case differs from its base case.
    """

    loss: str
    name: str
    size: int
    batch: int
    classes: int | None
    threads: int
    dtype: str = "float32"
    device: str = "cpu"
    kind: str = "base"

    @property
    def title(self) -> str:
        """The loss, and the name of the benchmark if the loss has several."""
        return f"{self.loss}, {self.name}" if self.name else self.loss

    @property
    def shape(self) -> str:
        """The shape of the input: items × classes × voxels."""
        classes = "" if self.classes is None else f"{self.classes}×"
        return f"{self.batch}×{classes}{self.size}³"

    def __str__(self) -> str:
        """Return a description that is unique to this case."""
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        threads = "" if self.device != "cpu" else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.title}, {self.shape}{dtype}{threads}"

    @property
    def twin(self) -> Twin:
        """The record of the loss in the catalogue."""
        return find(self.loss)

    @property
    def line(self) -> BenchmarkSpec:
        """The benchmark specification, adapted to the number of classes."""
        line = next(line for line in self.twin.benches if line.name == self.name)
        return line if self.classes is None or line.of_classes is None else line.of_classes(self.classes)

    @property
    def dtype_of_torch(self) -> torch.dtype:
        """The torch dtype of the floating-point arguments."""
        made: torch.dtype = getattr(torch, self.dtype)
        return made

    def operands(self) -> list[torch.Tensor]:
        """Create the arguments of the loss on the device of this case."""
        made = self.line.operands(self.size, self.batch)
        kind = self.dtype_of_torch
        return [x.to(self.device, kind) if x.is_floating_point() else x.to(self.device) for x in made]

    @property
    def voxels(self) -> int:
        """The number of voxels in all items together."""
        return int(self.batch * self.size**3)


def base_cases(
    twins: Sequence[Twin], threads: int, size: int = BASE, device: str = "cpu", kind: str = "base"
) -> list[BenchmarkCase]:
    """Return one base case for each timed benchmark of each loss.

    Pass `kind="custom"` if the size or the number of threads is not that of the report.
    """
    return [
        BenchmarkCase(twin.name, line.name, size, line.batch, line.classes, threads, device=device, kind=kind)
        for twin in twins
        for line in twin.benches
        if line.timed
    ]


def counted_cases(twins: Sequence[Twin], size: int) -> list[BenchmarkCase]:
    """Return the cases whose memory traffic is counted: one for each benchmark, whether it is timed or not."""
    return [
        BenchmarkCase(twin.name, line.name, size, line.batch, line.classes, 1)
        for twin in twins
        for line in twin.benches
    ]


def sweep(
    twins: Sequence[Twin], threads: int, size: int = BASE, device: str = "cpu", kind: str = "base"
) -> list[BenchmarkCase]:
    """Return the base cases, followed by the cases that vary them.

    The varied cases are sorted by size: results of smaller cases predict whether a larger one is worth running.
    """
    cases = base_cases(twins, threads, size, device, kind)
    varied = [case for first in cases if first.line.swept for case in _varied(first)]
    return cases + sorted(varied, key=lambda case: case.voxels * (case.classes or 1))


def _varied(first: BenchmarkCase) -> Iterator[BenchmarkCase]:
    """Yield the variants of a base case, each once."""

    def having(kind: str, **changes: Any) -> BenchmarkCase:
        return replace(first, kind=kind, **changes)

    for size in SIZES:
        yield having("size", size=size)
    for batch, size in ITEMS:
        if (batch, size) != (first.batch, first.size):
            yield having("items", batch=batch, size=size)
    yield having("type", dtype="bfloat16")
    small: dict[str, Any] = {"size": 32, "batch": 1, "classes": first.classes and 2}
    if first.batch > 1:
        yield having("small", **small)
    if first.threads > 1 and first.device == "cpu":
        yield having("threads", threads=1)
        yield having("small", threads=1, **small)
    for classes, size in CLASSES if first.classes else ():
        if classes >= first.twin.channels:
            yield having("classes", classes=classes, size=size)
