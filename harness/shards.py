"""Parts of the work that can be done by themselves: here one by one, in several processes, or on a cluster.

Each part draws its cases from the seed alone, so the result is the same however the work is shared out.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from twinloss.harness import real
from twinloss.harness.catalogue import catalogue
from twinloss.harness.hunt import Counterexample, Hunt, hunt
from twinloss.harness.target import Wiring, as_twin
from twinloss.harness.twin import Twin

# The reference computes on one core; real images of full size take up to 6 GB in each process.
PROCESSES = min(2, os.cpu_count() or 1)

# Seconds that an interrupted process gets to hand over what it has found.
PATIENCE = 20.0

# How often a part is tried whose process died: of a lack of memory, say, or of a cluster's machine.
TRIES = 3

Tick = Callable[[str, int], None]


@dataclass(frozen=True)
class Job:
    """A part of the work: a hunt, or the trials on real images in all types.

    Attributes:
        twin: the loss.
        dtypes: the types under test, one for a hunt.
        data: "generated" or "real".
        examples: cases of a hunt.
        seed: its seed.
        hunting: what a hunt is told besides: see `Hunt`.
    """

    twin: Twin
    dtypes: tuple[str, ...]
    data: str
    examples: int
    seed: int
    hunting: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.twin.name} {self.dtypes[0] if self.data == 'generated' else self.data}"

    @property
    def key(self) -> str | Wiring | None:
        """What another process can make the twin of; None if there is no such thing."""
        return self.twin.origin or (self.twin.name if catalogue().get(self.twin.name) is self.twin else None)


@dataclass
class Work:
    """All that was seen; rows are there from the moment they begin, so an interruption loses nothing."""

    rows: list[Hunt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, rows: Sequence[Hunt], notes: Sequence[str]) -> None:
        """Take over what came of a part."""
        self.rows += rows
        self.notes += [note for note in notes if note not in self.notes]


def do(work: Work, jobs: Sequence[Job], tick: Tick, processes: int = 1, cluster: str | None = None) -> None:
    """Do all jobs.

    Args:
        work: where to put what is seen.
        jobs: what to do.
        tick: told what has been looked at, and how many cases more.
        processes: how many jobs at a time, each in a process of its own.
        cluster: the address of a Dask scheduler, whose workers do the jobs.

    Raises:
        KeyboardInterrupt: once what was seen until then is in `work`.
        ImportError: if there is a cluster, and no dask.distributed.
    """
    remote = all(job.key is not None for job in jobs)
    if cluster and remote:
        with on_cluster(cluster) as executor:
            _share(work, jobs, tick, executor)
    elif processes > 1 and len(jobs) > 1 and remote:
        _in_processes(work, jobs, tick, processes)
    else:
        _one_by_one(work, jobs, tick)


@contextmanager
def on_cluster(address: str) -> Iterator[Executor]:
    """An executor whose processes are the workers of a Dask cluster.

    Raises:
        ImportError: if there is no dask.distributed.
    """
    from dask.distributed import Client

    with Client(address) as client:  # type: ignore[no-untyped-call]
        # A worker that is lost costs its part another try; Dask sees to that.
        yield client.get_executor(retries=TRIES - 1)


def _one_by_one(work: Work, jobs: Sequence[Job], tick: Tick) -> None:
    if any(job.data == "real" for job in jobs):
        real.keep_memory()
    for job in jobs:
        _do(work, job, tick)
        if work.rows and work.rows[-1].interrupted:
            raise KeyboardInterrupt


def _in_processes(work: Work, jobs: Sequence[Job], tick: Tick, processes: int) -> None:
    left = list(jobs)
    for _ in range(TRIES):
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(processes, context, initializer=prepare, initargs=(processes,))
        try:
            left = _share(work, left, tick, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
        if not left:
            return
    for job in left:
        work.take([Hunt(job.twin, dtype, job.data, problems=["its process died"]) for dtype in job.dtypes], [])


def _share(work: Work, jobs: Sequence[Job], tick: Tick, executor: Executor) -> list[Job]:
    """Have an executor do jobs; returns those whose process died."""
    parts: dict[Part, Job] = {}
    for job in reversed(jobs):  # the last take longest
        order = replace(job, twin=None)  # type: ignore[arg-type]
        parts[executor.submit(_part, job.key or job.twin.name, order)] = job
    died = []
    try:
        for n, part in enumerate(as_completed(parts), 1):
            tick(f"{parts[part]}: {n} of {len(parts)} parts", _cases(part))
    except KeyboardInterrupt:
        running = [part for part in parts if not part.cancel()]
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGINT)  # the terminal may have told it, or not
        wait(running, PATIENCE)
        raise
    finally:
        for part in reversed(parts):
            try:
                rows, notes = part.result(0)
            except BrokenProcessPool:
                died.append(parts[part])
            except (CancelledError, TimeoutError):
                continue
            else:
                work.take([Hunt(parts[part].twin, **row) for row in rows], notes)
    return died


def _cases(part: Part) -> int:
    failed = part.exception() is not None
    return 0 if failed else sum(row["cases"] for row in part.result()[0])


def prepare(processes: int = PROCESSES) -> None:
    """Make a process ready to work beside others."""
    signal.signal(signal.SIGINT, _note_interruption)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Results are the same for any number of threads; those of several processes would wait for each other.
    threads = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    real.keep_memory()


def _end_with_parent() -> None:
    """A parent that was killed can tell its processes nothing, and they would hunt on for nobody."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


_interrupted = _at_work = False
Part = Future[tuple[list[dict[str, Any]], list[str]]]


def _note_interruption(*_: object) -> None:
    """On Ctrl-C a part hands over what it has, and those that are on their way already do nothing."""
    global _interrupted
    _interrupted = True
    if _at_work:
        raise KeyboardInterrupt


def _go_on(what: str = "", cases: int = 0) -> None:
    """Told of each case: Python drops what a signal raises inside of a destructor, say, but the part ends all the same.

    Raises:
        KeyboardInterrupt: if there was an interruption.
    """
    if _interrupted:
        raise KeyboardInterrupt


def _part(key: str | Wiring, order: Job) -> tuple[list[dict[str, Any]], list[str]]:
    """What came of a job until it ended or was interrupted, but for what no other process can take over."""
    global _at_work
    work = Work()
    _at_work = True
    try:
        _go_on()
        twin = catalogue()[key] if isinstance(key, str) else as_twin(key)
        _do(work, replace(order, twin=twin), _go_on)
    except KeyboardInterrupt:
        pass  # what there is stands in `work`
    finally:
        _at_work = False
    passed_on = [each.name for each in fields(Hunt) if each.name not in ("twin", "kept", "doubtful", "silent")]
    return [{each: getattr(row, each) for each in passed_on} for row in work.rows], work.notes


def _do(work: Work, job: Job, tick: Tick) -> None:
    if job.data == "real":
        _real(work, job, tick)
        return
    row = Hunt(job.twin, job.dtypes[0], **job.hunting)
    work.rows.append(row)
    with _timed(row):
        hunt(row.twin, row.dtype, job.examples, job.seed, lambda: tick(str(job), 1), row)


@contextmanager
def _timed(row: Hunt) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        row.seconds += time.perf_counter() - start


def _real(work: Work, job: Job, tick: Tick) -> None:
    tick(str(job), 0)
    try:
        real.brain()
    except ImportError as error:
        note = f"real images left out: {error}"
        work.notes += [note] if note not in work.notes else []
        return
    rows = {dtype: Hunt(job.twin, dtype, job.data) for dtype in job.dtypes}
    trials = real.trials(job.twin, job.dtypes)
    while True:
        start = time.perf_counter()
        trial = next(trials, None)
        if trial is None:
            return
        row = rows[trial.case.dtype]
        if row not in work.rows:
            work.rows.append(row)
        row.seconds += time.perf_counter() - start
        row.note(trial)
        if trial.kind is not None:
            row.counterexample = Counterexample(trial.kind, trial.message, real.script(job.twin, trial))
        tick(f"{job} {row.dtype} {trial.case.traits['image']}", 1)
