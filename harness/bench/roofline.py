"""What the machine could do: bytes and exponentials in a second, and so the least time that a case can take.

A loss takes no less than the larger of two times: that of moving its bytes, and that of computing its exponentials.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from twinloss.fast.kernels.cpu.compiled.elementary import exp_nonpositive
from twinloss.fast.runtime.threads import for_each_chunk
from twinloss.harness.bench.cases import Case
from twinloss.harness.bench.timing import threads

# Far beyond any cache; a tile that stays in the nearest one, and how often it is gone over.
_FAR = 2**27
_TILE, _OFTEN = 2048, 20000
_TRIES = 5


@dataclass(frozen=True)
class Rates:
    """Of some threads, in a second: bytes that are copied (read and written) or read; exponentials, and torch's."""

    copy: float
    read: float
    exp: float
    torch_exp: float

    @property
    def bandwidth(self) -> float:
        """The best that was seen."""
        return max(self.copy, self.read)


@njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _exponentials(x, often):  # type: ignore[no-untyped-def]
    """Each round needs the last one's results, so that no compiler leaves one out."""
    for _ in range(often):
        for i in range(x.size):
            x[i] = -exp_nonpositive(x[i])  # type: ignore[no-untyped-call]


def measured(count: int, far: int = _FAR, often: int = _OFTEN) -> Rates:
    """The rates of so many threads."""
    with threads(count):
        source = torch.ones(far)
        made = torch.zeros(far)
        copy = 2 * source.nbytes / _best(lambda: made.copy_(source))
        read = source.nbytes / _best(source.sum)
        tiles = -np.random.default_rng(0).random((count, _TILE), np.float32)
        _exponentials(tiles[0], 1)
        computed = tiles.size * often
        exp = computed / _best(lambda: for_each_chunk(lambda i: _exponentials(tiles[i], often), count, computed))
        near = -torch.rand(count * 2**16)
        result = torch.empty_like(near)
        by_torch = near.numel() * 20 / _best(lambda: [torch.exp(near, out=result) for _ in range(20)])
    return Rates(copy, read, exp, by_torch)


def _best(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


@dataclass(frozen=True)
class Floor:
    """The least a case can take, in milliseconds, and the part of it that either limit asks for."""

    bytes_ms: float
    exponentials_ms: float

    @property
    def ms(self) -> float:
        """The larger of the two."""
        return max(self.bytes_ms, self.exponentials_ms)

    @property
    def limit(self) -> str:
        """Which of the two that is."""
        return "memory" if self.bytes_ms >= self.exponentials_ms else "exp"


def needed(case: Case) -> tuple[float, float]:
    """The bytes that a case has to move, and the exponentials that it has to compute; its line must say so."""
    work = case.line.work
    assert work is not None
    moved = case.voxels * (work.reals * case.dtype_of_torch.itemsize + work.others)
    return moved, case.voxels * work.exponentials


def floor(case: Case, rates: Rates) -> Floor | None:
    """The least that a case can take, if its line says what it has to do."""
    if case.line.work is None:
        return None
    moved, exponentials = needed(case)
    return Floor(moved / rates.bandwidth * 1e3, exponentials / rates.exp * 1e3)
