"""Peak rates of the machine in bytes and exponentials per second, and the resulting minimal time of a case.

The minimal time of a loss is the larger of two times: the time to move its bytes and the time to compute its
exponentials.
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
from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.bench.timing import threads

# The number of floats in an array that exceeds every cache; the size of a tile that stays in the L1 cache, and the
# number of passes over it.
_FAR = 2**27
_TILE, _OFTEN = 2048, 20000
_TRIES = 5


@dataclass(frozen=True)
class Rates:
    """Rates per second, for a number of threads.

    Attributes:
        copy: bytes copied, where each byte counts twice: it is read and written.
        read: bytes read.
        exp: exponentials, by our own kernel.
        torch_exp: exponentials, by torch.
    """

    copy: float
    read: float
    exp: float
    torch_exp: float

    @property
    def bandwidth(self) -> float:
        """The higher of the copy and read rates."""
        return max(self.copy, self.read)


@njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _exponentials(x, often):  # type: ignore[no-untyped-def]
    """Compute exponentials repeatedly; each round needs the last results, so no compiler can skip one."""
    for _ in range(often):
        for i in range(x.size):
            x[i] = -exp_nonpositive(x[i])  # type: ignore[no-untyped-call]


def measured(count: int, far: int = _FAR, often: int = _OFTEN) -> Rates:
    """Measure the rates of the machine with `count` threads."""
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
    """The minimal time of a case, in milliseconds, by each of the two limits."""

    bytes_ms: float
    exponentials_ms: float

    @property
    def ms(self) -> float:
        """The larger of the two times."""
        return max(self.bytes_ms, self.exponentials_ms)

    @property
    def limit(self) -> str:
        """The limit that determines the minimal time: "memory" or "exp"."""
        return "memory" if self.bytes_ms >= self.exponentials_ms else "exp"


def needed(case: BenchmarkCase) -> tuple[float, float]:
    """Return the bytes a case must move and the exponentials it must compute; its benchmark must define `work`."""
    work = case.line.work
    assert work is not None
    moved = case.voxels * (work.reals * case.dtype_of_torch.itemsize + work.others)
    return moved, case.voxels * work.exponentials


def floor(case: BenchmarkCase, rates: Rates) -> Floor | None:
    """Return the minimal time of a case, or None if its benchmark does not define `work`."""
    if case.line.work is None:
        return None
    moved, exponentials = needed(case)
    return Floor(moved / rates.bandwidth * 1e3, exponentials / rates.exp * 1e3)
