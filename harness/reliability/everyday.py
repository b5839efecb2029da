"""The losses as they are used in training: each loss once, with usual options, on images of a given size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinloss.harness.judging.answers import expected_warnings_silent
from twinloss.harness.losses.catalogue import catalogue
from twinloss.harness.model.twin import Twin


@dataclass(frozen=True)
class Everyday:
    """A loss with usual options."""

    twin: Twin

    @property
    def name(self) -> str:
        """The name of the loss in the catalogue."""
        return self.twin.name

    @property
    def options(self) -> dict[str, Any]:
        """The options of the loss."""
        return {name: v for name, v in self.twin.usual.options.items() if name in self.twin.options}

    def module(self) -> torch.nn.Module:
        """Create the fast loss."""
        made: torch.nn.Module = self.twin.fast(**self.options)
        return made

    def arguments(self, size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Create the arguments on a cube; `dtype` applies to the floating-point ones."""
        return [x.to(dtype) if x.is_floating_point() else x for x in self.twin.usual.operands(size)]


def everyday() -> Iterator[Everyday]:
    """Yield all losses."""
    return map(Everyday, catalogue().values())


def step(loss: torch.nn.Module, arguments: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the value, and the gradient with respect to the first argument."""
    x = arguments[0].detach().clone().requires_grad_()
    with expected_warnings_silent():
        value = loss(x, *arguments[1:])
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def fingerprint(*tensors: Tensor) -> str:
    """Return a hash of the bits of tensors."""
    bits = hashlib.sha256()
    for tensor in tensors:
        bits.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()


def all_fingerprints(size: int = 40) -> dict[str, str]:
    """Return the fingerprint of value and gradient of every loss."""
    return {each.name: fingerprint(*step(each.module(), each.arguments(size))) for each in everyday()}
