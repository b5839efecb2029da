"""Constants on a device: they are uploaded once, and kept."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from twinloss.fast.runtime import dispatch


def accumulator(device: torch.device) -> torch.dtype:
    """Return the dtype in which sums are kept on a device: float64, or float32 if the device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def constant(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of a number or of nested tuples; the caller must not modify it.

    A tensor that is made while torch traces belongs to the trace, so it is not kept.
    """
    if torch.compiler.is_compiling() or dispatch.transformed():
        return torch.tensor(values, dtype=dtype, device=device)
    if torch._C._len_torch_dispatch_stack() > 0 and not dispatch.is_watched():
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, dtype, device)


@lru_cache(maxsize=256)
def _kept(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _classes(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.arange(count, device=device).unsqueeze(1)


def classes(count: int, device: torch.device) -> Tensor:
    """Return the numbers 0 to count - 1, (count, 1), which the caller must not modify."""
    return _classes(count, device)
