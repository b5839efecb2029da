"""Mutants: wrong losses, and the decorator that registers one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from twinloss.harness.model.twin import Twin


@dataclass(frozen=True)
class Mutant:
    """A wrong loss.

    Attributes:
        name: what it is called.
        origin: what is wrong, and where that comes from, in a line.
        of: the name of the twin that it stands in for.
        fast: the wrong module.
        shared: what of the twin is wrong in the same way: a misconception that both its authors had.
        dtype: the type under test. In float64 what plain torch loses by rounding alone does not show.
        full_size: whether drawn cases are too small for it, and it is put to the real images.
    """

    name: str
    origin: str
    of: str
    fast: type[torch.nn.Module]
    shared: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    full_size: bool = False

    def twin(self) -> Twin:
        """Its record."""
        from twinloss.harness.losses.catalogue import find

        return replace(find(self.of), fast=self.fast, **self.shared)


ZOO: list[Mutant] = []

Module = type[torch.nn.Module]


def bug(of: str, dtype: str = "float64", full_size: bool = False, **shared: Any) -> Callable[[Module], Module]:
    """Put a class into the zoo, as a wrong form of a twin."""

    def put(cls: Module) -> Module:
        words = "".join(f" {c.lower()}" if c.isupper() else c for c in cls.__name__).strip()
        origin = (cls.__doc__ or "").partition("\n")[0]
        ZOO.append(Mutant(words, origin, of, cls, shared, dtype, full_size))
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
    """The same numbers, whose gradient is multiplied by a factor on its way back."""
    made: torch.Tensor = _Scaled.apply(x, torch.as_tensor(factor, dtype=x.dtype))
    return made
