"""Parts of the work that can be done by themselves: here one by one, in several processes, or on a cluster.

Each part draws its cases from the seed alone, so the result is the same however the work is shared out.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from twinloss.harness.hunting import compiling
from twinloss.harness.hunting.hunt import Hunt
from twinloss.harness.hunting.jobs import Job, Tick, Work, do_job
from twinloss.harness.hunting.target import Wiring, as_twin
from twinloss.harness.losses.catalogue import catalogue

# The reference computes on one core; real images take up to 1.7 GB in each process.
PROCESSES = min(2, os.cpu_count() or 1)

# Seconds that an interrupted process gets to hand over what it has found.
PATIENCE = 20.0

# How often a part is tried whose process died: of a lack of memory, say, or of a cluster's machine.
TRIES = 3

# Seconds after which those who wait for processes look what these are compiling.
HEARTBEAT = 0.5


def run_jobs(work: Work, jobs: Sequence[Job], tick: Tick, processes: int = 1, cluster: str | None = None) -> None:
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
            _share(work, jobs, tick, executor, len(jobs))
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
    compiled = _counted(tick)
    with compiling.reported(compiled):
        for job in jobs:
            before = len(work.rows)
            do_job(work, job, tick)
            for row in work.rows[before:]:
                row.kept.clear()  # they hold arrays, and are of use during the hunt only
            work.tell(work.rows[before:])
            if work.rows and work.rows[-1].interrupted:
                raise KeyboardInterrupt


def _counted(tick: Tick) -> Callable[[str], None]:
    """Say of kernels that are being compiled how many they are."""
    count = 0

    def compiled(name: str) -> None:
        nonlocal count
        count += 1
        tick(f"compiling kernel {count}: {name}", 0)

    return compiled


def _in_processes(work: Work, jobs: Sequence[Job], tick: Tick, processes: int) -> None:
    left, compiled = list(jobs), _counted(tick)
    context = multiprocessing.get_context("spawn")
    for _ in range(TRIES):
        names = context.SimpleQueue()
        pool = ProcessPoolExecutor(processes, context, initializer=prepare, initargs=(processes, names))

        def listen(names: Any = names) -> None:
            while not names.empty():
                compiled(names.get())

        try:
            left = _share(work, left, tick, pool, processes, listen)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
        if not left:
            return
    for job in left:
        work.take([Hunt(job.twin, dtype, job.data, problems=["its process died"]) for dtype in job.dtypes], [])


def _share(
    work: Work,
    jobs: Sequence[Job],
    tick: Tick,
    executor: Executor,
    at_a_time: int,
    listen: Callable[[], None] = lambda: None,
) -> list[Job]:
    """Have an executor do jobs, so many at a time; returns those whose process died."""
    waiting, running, died, count = list(jobs), dict[Part, Job](), list[Job](), 0

    def collect(part: Part) -> None:
        job = running.pop(part)
        try:
            rows, notes = part.result(0)
        except BrokenProcessPool:
            died.append(job)
        except (CancelledError, TimeoutError):
            pass
        else:
            work.take([Hunt(job.twin, **row) for row in rows], notes)

    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = _next(waiting, running.values())
                try:
                    order = replace(job, twin=None)  # type: ignore[arg-type]
                    running[executor.submit(_part, job.key or job.twin.name, order)] = job
                except BrokenProcessPool:
                    died.append(job)
            for part in wait(running, HEARTBEAT, FIRST_COMPLETED).done:
                count += 1
                tick(f"{running[part]}: {count} of {len(jobs)} parts", _cases(part))
                collect(part)
            listen()
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGINT)  # the terminal may have told it, or not
        wait([part for part in running if not part.cancel()], PATIENCE)
        raise
    finally:
        for part in list(running):
            collect(part)
    return died


def _next(waiting: list[Job], running: Collection[Job]) -> Job:
    """Take the next job out of those that wait, of a type that no other is at: losses share kernels, types do not.

    So two processes hardly ever compile the same kernel at the same time.
    """
    busy = {dtype == "float64" for job in running for dtype in job.dtypes}
    free = (n for n, job in enumerate(waiting) if not busy & {dtype == "float64" for dtype in job.dtypes})
    return waiting.pop(next(free, 0))


def _cases(part: Part) -> int:
    failed = part.exception() is not None
    return 0 if failed else sum(row["cases"] for row in part.result()[0])


def prepare(processes: int = PROCESSES, names: Any = None) -> None:
    """Make a process ready to work beside others; it puts the names of the kernels that it compiles into a queue."""
    signal.signal(signal.SIGINT, _note_interruption)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Results are the same for any number of threads; those of several processes would wait for each other.
    threads = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    if names is not None:
        compiling.report_always(names.put)


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
        do_job(work, replace(order, twin=twin), _go_on)
    except KeyboardInterrupt:
        pass  # what there is stands in `work`
    finally:
        _at_work = False
    passed_on = [each.name for each in fields(Hunt) if each.name not in ("twin", "kept", "doubtful", "silent")]
    return [{each: getattr(row, each) for each in passed_on} for row in work.rows], work.notes
