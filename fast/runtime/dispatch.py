"""Which form computes a statistic: the Numba kernel or plain torch. The choice is made here and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
from torch.autograd import forward_ad

Backend = Literal["kernel", "plain"]

HALVES = (torch.float16, torch.bfloat16)

_forced: Backend | None = None


def widened(x: torch.Tensor) -> torch.Tensor:
    """A half as float32, anything else as it is."""
    return x.float() if x.dtype in HALVES else x


def result_type(input: torch.Tensor, image: torch.Tensor | None = None) -> torch.dtype:
    """Return the type of a loss: that of its input, as that of torch's losses.

    It is float64 if another image is, float32 for integers and, under autocast, float32 for a half, so that a scaled
    loss does not overflow.
    """
    if image is not None and image.dtype == torch.float64:
        return image.dtype
    dtype = input.dtype if input.is_floating_point() else torch.float32
    return torch.float32 if dtype in HALVES and _autocast(input.device.type) else dtype


def full_precision(x: torch.Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does not lower the precision of products of matrices on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _autocast(kind) else nullcontext()


def _autocast(device_type: str) -> bool:
    if not torch._C._is_any_autocast_enabled():
        return False
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def transformed() -> bool:
    """Whether no branch may hang on numbers, as torch.func or a tracer is at work."""
    return bool(torch._C._are_functorch_transforms_active()) or _recorded_here()


def observed() -> bool:
    """Whether operators of torch are needed, which torch.func, forward-mode derivatives and tracers see."""
    return transformed() or forward_ad._current_level >= 0


def by_torch(upstream: torch.Tensor) -> bool:
    """Whether a backward needs operators of torch: for a graph of the gradient, or for the slopes of a batch.

    For `torch.autograd.grad(…, is_grads_batched=True)` an older vmap than that of torch.func batches the slopes.
    """
    return torch.is_grad_enabled() or observed() or torch._C._functorch.is_legacy_batchedtensor(upstream)


# The thread whose losses are recorded as operators of torch.
_recorder: int | None = None


def _recorded_here() -> bool:
    return _recorder is not None and _recorder == threading.get_ident()


@contextmanager
def recording() -> Iterator[None]:
    """Compute losses of this thread with operators of torch and without branches on numbers, as a tracer needs it."""
    global _recorder
    before, _recorder = _recorder, threading.get_ident()
    try:
        yield
    finally:
        _recorder = before


def choose(x: torch.Tensor, *constants: torch.Tensor | None, halves: bool = False) -> Backend:
    """The kernel for float32 and float64 on the CPU; plain torch elsewhere, or when a constant asks for a gradient.

    With `halves` the caller's kernel takes these as well.
    """
    if _forced is not None:
        return _forced
    served = x.is_cpu and (x.dtype in (torch.float32, torch.float64) or (halves and x.dtype in HALVES))
    if observed() or not served or any(t is not None and t.requires_grad for t in constants):
        return "plain"
    return "kernel"


@cache
def kernels(module: str) -> Any:
    """A module of kernels, imported when it is asked for: with it comes Numba, which takes longer than all the rest."""
    return import_module(f"twinloss.fast.kernels.cpu.compiled.{module}")


@contextmanager
def forced(backend: Backend) -> Iterator[None]:
    """Compute every statistic within the block with `backend`, in all threads. For tests and benchmarks."""
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before
