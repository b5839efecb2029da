"""What is timed: a base case of each line, and those of the sweep, which differ from it in one thing or are corners.

The full product of sizes, classes, items, threads and types would take days.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from twinloss.harness.catalogue import find
from twinloss.harness.line import Bench
from twinloss.harness.twin import Twin

BASE = 96
SIZES = (32, 64, 128, 192, 256)
# How many classes, on a cube of what size.
CLASSES = ((1, BASE), (2, BASE), (32, 64), (128, 32))
ITEMS = ((1, BASE), (16, 48))


@dataclass(frozen=True)
class Case:
    """A line of a loss on arguments of some size, type and number of threads; `kind` is what of it varies."""

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
        """How the line is called."""
        return f"{self.loss}, {self.name}" if self.name else self.loss

    @property
    def shape(self) -> str:
        """Items × classes × voxels."""
        classes = "" if self.classes is None else f"{self.classes}×"
        return f"{self.batch}×{classes}{self.size}³"

    def __str__(self) -> str:
        """What tells it from all others."""
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        threads = "" if self.device != "cpu" else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.title}, {self.shape}{dtype}{threads}"

    @property
    def twin(self) -> Twin:
        """The loss."""
        return find(self.loss)

    @property
    def line(self) -> Bench:
        """The line, for that many classes."""
        line = next(line for line in self.twin.benches if line.name == self.name)
        return line if self.classes is None or line.of_classes is None else line.of_classes(self.classes)

    @property
    def dtype_of_torch(self) -> torch.dtype:
        """The type of the real arguments."""
        made: torch.dtype = getattr(torch, self.dtype)
        return made

    def operands(self) -> list[torch.Tensor]:
        """The arguments."""
        made = self.line.operands(self.size, self.batch)
        kind = self.dtype_of_torch
        return [x.to(self.device, kind) if x.is_floating_point() else x.to(self.device) for x in made]

    @property
    def voxels(self) -> int:
        """Of all items."""
        return int(self.batch * self.size**3)


def base_cases(
    twins: Sequence[Twin], threads: int, size: int = BASE, device: str = "cpu", kind: str = "base"
) -> list[Case]:
    """Each line of each loss once; of the kind "custom" if size or threads are not those of the report."""
    return [
        Case(twin.name, line.name, size, line.batch, line.classes, threads, device=device, kind=kind)
        for twin in twins
        for line in twin.benches
    ]


def sweep(twins: Sequence[Twin], threads: int, size: int = BASE, device: str = "cpu", kind: str = "base") -> list[Case]:
    """The base cases, then those that differ from them; the largest last, as what came before foretells them."""
    cases = base_cases(twins, threads, size, device, kind)
    varied = [case for first in cases if first.line.swept for case in _varied(first)]
    return cases + sorted(varied, key=lambda case: case.voxels * (case.classes or 1))


def _varied(first: Case) -> Iterator[Case]:
    """Those of a base case, each once."""

    def having(kind: str, **changes: Any) -> Case:
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
