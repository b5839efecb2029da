"""Timing of a case. The implementations take turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.benchmark import Timer

from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.bench.competitors import Step, step_of

# The number of untimed steps. They let the allocator adapt, which helps implementations that allocate a lot.
WARM_UP = 3
# The budget is divided into ROUNDS rounds. Fewer are run if one step takes longer than its share.
ROUNDS, LEAST_ROUNDS = 12, 3
# An implementation is left out if one of its steps takes more than this many seconds.
TOO_SLOW = 5.0


@dataclass(frozen=True)
class Times:
    """The time of one step of an implementation, in milliseconds."""

    best_ms: float
    low_ms: float
    median_ms: float
    high_ms: float
    steps: int


class LeftOutError(Exception):
    """The reason why an implementation is left out."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of threads of torch, and thus of twinloss, within a context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of other libraries and the messages of torch.compile within a context."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def times(
    case: BenchmarkCase, names: Sequence[str], budget: float, tick: Callable[[str], None] = lambda what: None
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time each implementation within a budget of seconds, which excludes compilation.

    Returns the times by implementation, and the reason for each implementation that was left out.
    """
    torch.compiler.reset()
    ready, left_out = {}, {}
    operands = case.operands()
    with threads(case.threads), quiet():
        for name in names:
            tick(f"{case}: {name}")
            try:
                step = step_of(case, name, operands)
                _warm_up(step, case.device)
                ready[name] = Timer("step()", globals={"step": step}, num_threads=case.threads)
            except ImportError as error:
                left_out[name] = f"not installed: {error}"
            except Exception as error:  # another library may fail in any way
                left_out[name] = str(error) if isinstance(error, LeftOutError) else _short(error)
        tick(str(case))
        taken = _rounds(ready, budget)
    return {name: _summary(values) for name, values in taken.items()}, left_out


def _short(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:160]}"


def _warm_up(step: Step, device: str) -> None:
    """Run a few steps before timing; the first of them may compile.

    Raises:
        LeftOutError: if even the fastest of the other steps is too slow.
    """
    step()
    quickest = float("inf")
    for _ in range(WARM_UP - 1):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        quickest = min(quickest, time.perf_counter() - start)
    if quickest > TOO_SLOW:
        raise LeftOutError(f"a step takes {quickest:.1f} s")


def _rounds(timers: dict[str, Timer], budget: float) -> dict[str, list[float]]:
    share = budget / ROUNDS / max(len(timers), 1)
    taken: dict[str, list[float]] = {name: [] for name in timers}
    start, done = time.perf_counter(), 0
    while timers and (done < LEAST_ROUNDS or (done < ROUNDS and time.perf_counter() - start < budget)):
        for name, timer in timers.items():
            taken[name] += timer.blocked_autorange(min_run_time=share).times
        done += 1
    return taken


def _summary(seconds: Sequence[float]) -> Times:
    best, low, median, high = (float(t) * 1e3 for t in np.percentile(seconds, (0, 25, 50, 75)))
    return Times(best, low, median, high, len(seconds))
