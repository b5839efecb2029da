"""Constants on a device: they are uploaded once, and kept."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import dispatches


def accumulator(device: torch.device) -> torch.dtype:
    """Return the dtype in which sums are kept on a device: float64, or float32 if the device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def constant(values: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of a number or of nested tuples, on the device of another; the caller must not modify it.

    A tensor that is made while torch traces belongs to the trace, so it is not kept.
    """
    dtype = like.dtype if dtype is None else dtype
    if dispatches(like):
        return _stacked(values, like, dtype)
    if torch.compiler.is_compiling() or dispatch.transformed():
        return torch.tensor(values, dtype=dtype, device=like.device)
    if torch._C._len_torch_dispatch_stack() > 0 and not dispatch.is_watched():
        return torch.tensor(values, dtype=dtype, device=like.device)
    return _kept(values, dtype, like.device)


def _stacked(values: Any, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the constant as a tensor of the same type, for example fake."""
    if isinstance(values, tuple):
        return torch.stack([_stacked(each, like, dtype) for each in values])
    return like.new_full((), values, dtype=dtype)


class _Array(NamedTuple):
    """An array as a key of the cache."""

    content: bytes
    dtype: str
    shape: tuple[int, ...]


def on_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return an array as a tensor, for kernels; an upload in each call would stop a CUDA graph."""
    return _kept(_Array(array.tobytes(), array.dtype.str, array.shape), None, device)


@lru_cache(maxsize=256)
def _kept(values: Any, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(values, _Array):
            array = np.frombuffer(values.content, values.dtype).reshape(values.shape)
            return torch.from_numpy(array.copy()).to(device)
        return torch.tensor(values, dtype=dtype, device=device)


@cache
def _numbers(count: int) -> tuple[tuple[int], ...]:
    return tuple((number,) for number in range(count))


def classes(count: int, like: Tensor) -> Tensor:
    """Return the numbers 0 to count - 1, (count, 1), on the device of a tensor; the caller must not modify them."""
    return constant(_numbers(count), like, torch.int64)
