"""`twinloss verify`: hunts on generated cases and trials on real images, loss by loss and type by type."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from twinloss.harness import real
from twinloss.harness.catalogue import catalogue
from twinloss.harness.hunt import Counterexample, Hunt, hunt
from twinloss.harness.twin import Twin

EXAMPLES = 150

# The reference computes on one core; real images of full size take up to 6 GB in each process.
PROCESSES = min(2, os.cpu_count() or 1)

# Seconds that an interrupted process gets to hand over what it has found.
PATIENCE = 20.0

Tick = Callable[[str, int], None]


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


@dataclass(frozen=True)
class Job:
    """A part of the work that can be done by itself: a hunt, or the trials on real images in all types."""

    twin: Twin
    dtypes: tuple[str, ...]
    data: str

    def __str__(self) -> str:
        return f"{self.twin.name} {self.dtypes[0] if self.data == 'generated' else self.data}"


def verify(
    twins: Sequence[Twin],
    dtypes: Sequence[str],
    seed: int,
    examples: int = EXAMPLES,
    with_real: bool = True,
    tick: Tick = lambda what, cases: None,
) -> Verification:
    """Hunt each twin in each type; `tick` is told what has been looked at, and how many cases more."""
    seen = Verification(seed)
    jobs = []
    for twin in twins:
        jobs += [Job(twin, (dtype,), "generated") for dtype in dtypes]
        jobs += [Job(twin, tuple(dtypes), "real")] if with_real and twin.real else []
    known = catalogue()
    several = len(twins) > 1 and with_real and all(known.get(twin.name) is twin for twin in twins)
    try:
        if several:
            _in_processes(seen, jobs, examples, tick)
        else:
            _one_by_one(seen, jobs, examples, tick)
    except KeyboardInterrupt:
        seen.interrupted = True
    return seen


def _one_by_one(seen: Verification, jobs: Sequence[Job], examples: int, tick: Tick) -> None:
    if any(job.data == "real" for job in jobs):
        real.keep_memory()
    for job in jobs:
        _do(seen, job, examples, tick)
        if seen.rows[-1].interrupted:
            raise KeyboardInterrupt


def _in_processes(seen: Verification, jobs: Sequence[Job], examples: int, tick: Tick) -> None:
    """Several jobs at a time, each in a process that imports the twins by name."""
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"), initializer=prepare)
    parts: dict[Part, Job] = {}
    for job in reversed(jobs):  # the last take longest
        parts[pool.submit(_part, job.twin.name, job.dtypes, job.data, examples, seen.seed)] = job
    try:
        for n, part in enumerate(as_completed(parts), 1):
            rows = _rows(part, parts[part])[0]
            tick(f"{parts[part]}: {n} of {len(parts)} parts", sum(row.cases for row in rows))
    except KeyboardInterrupt:
        running = [part for part in parts if not part.cancel()]
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGINT)  # the terminal may have told it, or not
        wait(running, PATIENCE)
        raise
    finally:
        for part in reversed(parts):
            if part.done() and not part.cancelled():
                rows, notes = _rows(part, parts[part])
                seen.rows += rows
                seen.notes += [note for note in notes if note not in seen.notes]
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def prepare() -> None:
    """Make a process ready to work beside others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # but for a part of the work, which hands over what it has
    # Results are the same for any number of threads; those of several processes would wait for each other.
    threads = max(1, (os.cpu_count() or 1) // PROCESSES)
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    real.keep_memory()


_interrupted = False
Part = Future[tuple[list[dict[str, Any]], list[str]]]


def _part(name: str, dtypes: tuple[str, ...], data: str, examples: int, seed: int) -> tuple[list[Any], list[str]]:
    """What came of a job until it ended or was interrupted, but for what no other process can take over."""
    global _interrupted
    seen = Verification(seed)
    if _interrupted:  # and this part was on its way already
        return [], []
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _do(seen, Job(catalogue()[name], dtypes, data), examples, lambda what, cases: None)
        _interrupted = any(row.interrupted for row in seen.rows)
    except KeyboardInterrupt:
        _interrupted = True
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    passed_on = [each.name for each in fields(Hunt) if each.name not in ("twin", "kept")]
    return [{each: getattr(row, each) for each in passed_on} for row in seen.rows], seen.notes


def _rows(part: Part, job: Job) -> tuple[list[Hunt], list[str]]:
    try:
        rows, notes = part.result()
    except BrokenProcessPool:
        return [Hunt(job.twin, dtype, job.data, problems=["its process died"]) for dtype in job.dtypes], []
    return [Hunt(job.twin, **row) for row in rows], notes


def _do(seen: Verification, job: Job, examples: int, tick: Tick) -> None:
    if job.data == "real":
        _real(seen, job, tick)
        return
    row = Hunt(job.twin, job.dtypes[0])
    seen.rows.append(row)
    with _timed(row):
        hunt(row.twin, row.dtype, examples, seen.seed, lambda: tick(str(job), 1), row)


@contextmanager
def _timed(row: Hunt) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        row.seconds += time.perf_counter() - start


def _real(seen: Verification, job: Job, tick: Tick) -> None:
    tick(str(job), 0)
    try:
        real.brain()
    except ImportError as error:
        note = f"real images left out: {error}"
        seen.notes += [note] if note not in seen.notes else []
        return
    rows = {dtype: Hunt(job.twin, dtype, job.data) for dtype in job.dtypes}
    trials = real.trials(job.twin, job.dtypes)
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
            row.counterexample = Counterexample(trial.kind, trial.message, real.script(job.twin, trial))
        tick(f"{job} {row.dtype} {trial.case.traits['image']}", 1)
