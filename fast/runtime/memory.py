"""Memory for results, on large pages if a result is large.

The float32 gradient of a displacement field of 256³ voxels occupies 49 152 small pages. Getting these from the system
one by one takes longer than writing the gradient.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Size of a large page in bytes. The advice is also valid on systems with large pages of another size.
_PAGE = 2**21

# The largest float32.
_LARGEST = torch.finfo(torch.float32).max


@cache
def _madvise() -> Callable[..., Any] | None:
    """Return `madvise` of the C library, or None if it has no advice for huge pages, as outside of Linux."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def scalar(number: float, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return a tensor without axes; a number beyond the range of its type becomes infinite.

    For half precision torch does so by itself, but for float32 it raises an error.
    """
    if abs(number) > _LARGEST and dtype != torch.float64:
        number = math.copysign(math.inf, number)
    return torch.scalar_tensor(number, dtype=dtype, device=device)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Allocate an uninitialised tensor on the CPU, as `torch.empty` does.

    It asks the system for large pages for the part that covers whole ones. The system may refuse.
    """
    made = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    start = -(-made.data_ptr() // _PAGE) * _PAGE
    size = (made.data_ptr() + made.nbytes) // _PAGE * _PAGE - start
    if size > 0 and (madvise := _madvise()) is not None:
        madvise(start, size, mmap.MADV_HUGEPAGE)
    return made


def empty_like(tensor: Tensor) -> Tensor:
    """Allocate an uninitialised contiguous tensor on the CPU with the shape and dtype of another."""
    if tensor.numel() * tensor.itemsize < _PAGE:
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return empty(tensor.shape, tensor.dtype)
