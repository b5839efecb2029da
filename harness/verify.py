"""`twinloss verify`: hunts on generated cases and trials on real images, loss by loss and type by type."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from twinloss.harness import real
from twinloss.harness.catalogue import catalogue
from twinloss.harness.hunt import Counterexample, Hunt, hunt
from twinloss.harness.twin import Twin

EXAMPLES = 150


@dataclass
class Verification:
    """All that was seen; rows are there from the moment they begin, so an interruption loses nothing."""

    seed: int
    rows: list[Hunt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(row.verdict == "fail" for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 if all passed, 1 if any failed, 130 if it was interrupted."""
        return 130 if self.interrupted else int(self.failed)


def verify(
    twins: Sequence[Twin],
    dtypes: Sequence[str],
    seed: int,
    examples: int = EXAMPLES,
    with_real: bool = True,
    tick: Callable[[str], None] = lambda what: None,
) -> Verification:
    """Hunt each twin in each type; `tick` is told what is being looked at, case by case."""
    seen = Verification(seed)
    if with_real:
        real.keep_memory()
    try:
        with _hunts_ahead(twins, dtypes, examples, seed, with_real) as hunts:
            for twin in twins:
                for dtype in dtypes:
                    _generated(seen, twin, dtype, examples, tick, hunts.get((twin.name, dtype)))
                    if seen.interrupted:
                        return seen
                if with_real and twin.real:
                    _real(seen, twin, dtypes, tick)
    except KeyboardInterrupt:
        seen.interrupted = True
    return seen


Hunted = Future[dict[str, Any]]


@contextmanager
def _hunts_ahead(
    twins: Sequence[Twin], dtypes: Sequence[str], examples: int, seed: int, with_real: bool
) -> Iterator[dict[tuple[str, str], Hunted]]:
    """Hunts in a process beside this one, which has real images to look at; none if there is little to do."""
    known = catalogue()
    if not with_real or len(twins) < 2 or any(known.get(twin.name) is not twin for twin in twins):
        yield {}
        return
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    try:
        yield {
            (twin.name, dtype): pool.submit(_hunted, twin.name, dtype, examples, seed)
            for twin in twins
            for dtype in dtypes
        }
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # the parent has the others; results are the same for any number


def _hunted(name: str, dtype: str, examples: int, seed: int) -> dict[str, Any]:
    """What a hunt saw, but for what no other process can take over."""
    row = Hunt(catalogue()[name], dtype)
    with _timed(row):
        hunt(row.twin, dtype, examples, seed, into=row)
    return {each.name: getattr(row, each.name) for each in fields(row) if each.name not in ("twin", "kept")}


@contextmanager
def _timed(row: Hunt) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        row.seconds += time.perf_counter() - start


def _generated(
    seen: Verification, twin: Twin, dtype: str, examples: int, tick: Callable[[str], None], ahead: Hunted | None
) -> None:
    if ahead is not None:
        tick(f"{twin.name} {dtype}")
        seen.rows.append(Hunt(twin, **ahead.result()))
        return
    row = Hunt(twin, dtype)
    seen.rows.append(row)
    with _timed(row):
        hunt(twin, dtype, examples, seen.seed, lambda: tick(f"{twin.name} {dtype}"), row)
    seen.interrupted |= row.interrupted


def _real(seen: Verification, twin: Twin, dtypes: Sequence[str], tick: Callable[[str], None]) -> None:
    rows = {dtype: Hunt(twin, dtype, "real") for dtype in dtypes}
    tick(f"{twin.name} real images")
    try:
        real.brain()
    except ImportError as error:
        note = f"real images left out: {error}"
        seen.notes += [note] if note not in seen.notes else []
        return
    trials = real.trials(twin, dtypes)
    while True:
        start = time.perf_counter()
        trial = next(trials, None)
        if trial is None:
            return
        row = rows[trial.case.dtype]
        if row not in seen.rows:
            seen.rows.append(row)
        row.seconds += time.perf_counter() - start
        row.note(trial)
        if trial.kind is not None:
            row.counterexample = Counterexample(trial.kind, trial.message, real.script(twin, trial))
        tick(f"{twin.name} {row.dtype} {trial.case.traits['image']}")
