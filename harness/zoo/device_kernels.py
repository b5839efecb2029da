"""Kernels with deliberate bugs that only a GPU shows, written in Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from twinloss.fast.kernels.gpu.launch import launch

BLOCK = 16


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _without_mask(x: Any, partial: Any, BLOCK: tl.constexpr) -> None:
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial + tl.program_id(0), tl.sum(tl.load(x + i), 0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _first_program_starts(x: Any, total: Any, count: Any, BLOCK: tl.constexpr) -> None:
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.sum(tl.load(x + i, i < count, 0.0), 0)
    if tl.program_id(0) == 0:
        tl.store(total, part)
    else:
        tl.store(total, tl.load(total) + part)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _atomic(x: Any, total: Any, count: Any, BLOCK: tl.constexpr) -> None:
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(total, tl.sum(tl.load(x + i, i < count, 0.0), 0))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _squares(volumes: Any, squares: Any, count: Any, BLOCK: tl.constexpr) -> None:
    i = tl.arange(0, BLOCK)
    volume = tl.load(volumes + i, i < count, 0)
    tl.store(squares + i, volume * volume, i < count)


def sum_without_mask(x: Tensor) -> Tensor:
    """Return the sum of x, and of what lies in memory behind it, up to a whole block; here these are ones."""
    blocks = triton.cdiv(x.numel(), BLOCK)
    memory = torch.cat([x.flatten(), x.new_ones(blocks * BLOCK - x.numel())])
    partial = x.new_empty(blocks)
    launch(_without_mask, (blocks,), memory, partial, BLOCK=BLOCK)
    return partial.sum()


def sum_in_a_race(x: Tensor) -> Tensor:
    """Return the sum of x, if the first program runs first."""
    total = x.new_zeros(())
    launch(_first_program_starts, (triton.cdiv(x.numel(), BLOCK),), x.contiguous(), total, x.numel(), BLOCK=BLOCK)
    return total


def sum_by_atomics(x: Tensor) -> Tensor:
    """Return the sum of x, with rounding errors that depend on the order of the programs."""
    total = x.new_zeros(())
    launch(_atomic, (triton.cdiv(x.numel(), BLOCK),), x.contiguous(), total, x.numel(), BLOCK=BLOCK)
    return total


def squares_in_int32(volumes: Tensor) -> Tensor:
    """Return the squares of volumes, computed in int32, which overflows from 46 341 on."""
    whole = volumes.to(torch.int32).contiguous()
    squares, block = torch.empty_like(whole), triton.next_power_of_2(whole.numel())
    launch(_squares, (1,), whole, squares, whole.numel(), BLOCK=block)
    return squares.to(volumes.dtype)
