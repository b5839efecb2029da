"""Timing of a case. The implementations take turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import io
import os
import sys
import tempfile
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

# The number of bytes of suppressed messages that are shown after an error.
_SHOWN = 10_000
# The number of untimed steps. They let the allocator adapt, which helps implementations that allocate a lot.
WARM_UP = 3
# The budget is divided into ROUNDS rounds. Fewer are run if one step takes longer than its share.
ROUNDS, LEAST_ROUNDS = 12, 3
# A case is measured again, at most this many times, if the quartiles of an implementation are further apart than this
# share of its median.
REPEATS, NOISY = 2, 0.2
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

    @property
    def spread(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        return (self.high_ms - self.low_ms) / self.median_ms


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
def stderr_kept() -> Iterator[None]:
    """Keep from the terminal what this process and those that it starts write to the standard error within a context.

    Compilers of other libraries write dozens of warnings there, from processes of their own. If an error ends the
    context, what was written last is shown.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            size = kept.seek(0, os.SEEK_END)
            kept.seek(max(size - _SHOWN, 0))
            os.write(terminal, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


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
        taken = _calmest(lambda: _rounds(ready, budget), lambda: tick(f"{case}: again, as the times vary"))
    return taken, left_out


def _calmest(measure: Callable[[], dict[str, list[float]]], again: Callable[[], None]) -> dict[str, Times]:
    """Measure until no implementation is noisy, at most `REPEATS` times more; return the least noisy measurement."""
    tries: list[dict[str, Times]] = []
    while not tries or (_noise(tries[-1]) > NOISY and len(tries) <= REPEATS):
        if tries:
            again()
        tries.append({name: _summary(seconds) for name, seconds in measure().items()})
    return min(tries, key=_noise)


def _noise(taken: dict[str, Times]) -> float:
    return max((times.spread for times in taken.values()), default=0.0)


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
