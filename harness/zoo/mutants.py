"""Mutants: losses with deliberate bugs, and the decorator that registers one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.twin import Twin


@dataclass(frozen=True)
class Mutant:
    """A loss with a deliberate bug.

    Attributes:
        name: the name of the mutant.
        origin: what is wrong, and where the bug comes from, in one line.
        of: the name of the twin that it replaces.
        fast: the module with the bug.
        shared: fields of the twin with the same bug, as if the authors of both sides had the same misconception.
        dtype: the dtype to test in. In float64, the rounding errors of plain torch do not hide the bug.
        interpreted: whether its bug is in a kernel for GPUs, which Triton's interpreter runs.
        full_size: whether generated cases are too small to show the bug, so that real images are tried first.
    """

    name: str
    origin: str
    of: str
    fast: type[torch.nn.Module]
    shared: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    full_size: bool = False
    interpreted: bool = False

    def twin(self) -> Twin:
        """Return the twin with the mutant in place of its fast loss."""
        return replace(find(self.of), fast=self.fast, **self.shared)


ZOO: list[Mutant] = []

Module = type[torch.nn.Module]


def bug(
    of: str, dtype: str = "float64", full_size: bool = False, interpreted: bool = False, **shared: Any
) -> Callable[[Module], Module]:
    """Add a class to the zoo, as a mutant of a twin."""

    def put(cls: Module) -> Module:
        words = "".join(f" {c.lower()}" if c.isupper() else c for c in cls.__name__).strip()
        origin = (cls.__doc__ or "").partition("\n")[0]
        ZOO.append(Mutant(words, origin, of, cls, shared, dtype, full_size, interpreted))
        return cls

    return put


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        return upstream[0] * ctx.saved_tensors[0], None


def with_gradient_times(x: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    """Return the same numbers, but multiply their gradient by a factor in the backward pass."""
    made: torch.Tensor = _Scaled.apply(x, torch.as_tensor(factor, dtype=x.dtype))
    return made
