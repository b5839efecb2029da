"""Which form computes a statistic: the Numba kernel or plain torch. The choice is made here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch

Backend = Literal["kernel", "plain"]

HALVES = (torch.float16, torch.bfloat16)

_forced: Backend | None = None


def widened(x: torch.Tensor) -> torch.Tensor:
    """A half as float32, anything else as it is."""
    return x.float() if x.dtype in HALVES else x


def transformed() -> bool:
    """Whether torch.func is at work: kernels know nothing of its tensors, and no branch may hang on their numbers."""
    return bool(torch._C._are_functorch_transforms_active())


def choose(x: torch.Tensor, *constants: torch.Tensor | None, halves: bool = False) -> Backend:
    """The kernel for float32 and float64 on the CPU; plain torch elsewhere, or when a constant asks for a gradient.

    With `halves` the caller's kernel takes these as well.
    """
    if _forced is not None:
        return _forced
    served = x.is_cpu and (x.dtype in (torch.float32, torch.float64) or (halves and x.dtype in HALVES))
    if transformed() or not served or any(t is not None and t.requires_grad for t in constants):
        return "plain"
    return "kernel"


@cache
def kernels(module: str) -> Any:
    """A module of kernels, imported when it is asked for: with it comes Numba, which takes longer than all the rest."""
    return import_module(f"twinloss.fast.kernels.{module}")


@contextmanager
def forced(backend: Backend) -> Iterator[None]:
    """Compute every statistic within the block with `backend`, in all threads. For tests and benchmarks."""
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before
