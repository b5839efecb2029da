"""Room for results: large ones lie on pages as large as the system has.

A gradient of 256³ voxels lies on 49 152 small pages, and to be given one by one takes longer than to write it does.
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

# Bytes of a large page; where they are of another size, advice for whole ones of this size holds no less.
_PAGE = 2**21

# The largest number of float32.
_LARGEST = torch.finfo(torch.float32).max


@cache
def _madvise() -> Callable[..., Any] | None:
    """The C library's, where it knows of huge pages: on Linux."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def scalar(number: float, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Make a tensor without axes; a number beyond the range of the type is an infinity there.

    torch converts such a number to a half, but refuses to convert it to float32.
    """
    if abs(number) > _LARGEST and dtype != torch.float64:
        number = math.copysign(math.inf, number)
    return torch.scalar_tensor(number, dtype=dtype, device=device)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU, which asks for large pages for what covers any; the system may decline."""
    made = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    start = -(-made.data_ptr() // _PAGE) * _PAGE
    size = (made.data_ptr() + made.nbytes) // _PAGE * _PAGE - start
    if size > 0 and (madvise := _madvise()) is not None:
        madvise(start, size, mmap.MADV_HUGEPAGE)
    return made
