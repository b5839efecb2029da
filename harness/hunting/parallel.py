"""Run jobs one by one, in several processes, or on a Dask cluster.

Each job draws its cases from its seed alone, so the result does not depend on how the jobs are distributed.
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
from twinloss.harness.hunting.jobs import Job, Key, Tick, Work, do_job
from twinloss.harness.losses.catalogue import catalogue
from twinloss.harness.model import device

# The reference uses one core; real images take up to 1.7 GB in each process.
PROCESSES = min(2, os.cpu_count() or 1)

# Time, in seconds, that an interrupted process gets to return its results.
PATIENCE = 20.0

# The number of attempts for a job whose process dies, for example for lack of memory, or with a machine of a cluster.
TRIES = 3

# The interval, in seconds, at which the parent process polls for kernels that other processes compile.
HEARTBEAT = 0.5


def run_jobs(work: Work, jobs: Sequence[Job], tick: Tick, processes: int = 1, cluster: str | None = None) -> None:
    """Run all jobs.

    Args:
        work: the record for the results.
        jobs: the jobs.
        tick: called with the name of the current step and the number of new cases.
        processes: the number of jobs that run at a time, each in a process of its own.
        cluster: the address of a Dask scheduler whose workers run the jobs.

    Raises:
        KeyboardInterrupt: after an interruption, once all results so far are in `work`.
        ImportError: if `cluster` is given, but dask.distributed is missing.
    """
    remote = all(job.key is not None for job in jobs)
    if cluster and remote:
        with on_cluster(cluster) as executor:
            _run_with(work, jobs, tick, executor, len(jobs))
    elif processes > 1 and len(jobs) > 1 and remote:
        _in_processes(work, jobs, tick, processes)
    else:
        _one_by_one(work, jobs, tick)


@contextmanager
def on_cluster(address: str) -> Iterator[Executor]:
    """Yield an executor whose processes are the workers of a Dask cluster.

    Raises:
        ImportError: if dask.distributed is missing.
    """
    from dask.distributed import Client

    with Client(address) as client:  # type: ignore[no-untyped-call]
        # If a worker is lost, Dask itself retries the job.
        yield client.get_executor(retries=TRIES - 1)


def _one_by_one(work: Work, jobs: Sequence[Job], tick: Tick) -> None:
    compiled = _compilation_reporter(tick)
    with compiling.reported(compiled):
        for job in jobs:
            before = len(work.rows)
            do_job(work, job, tick)
            for row in work.rows[before:]:
                row.kept.clear()  # the trials hold arrays, and are needed only during the hunt
            work.tell(work.rows[before:])
            if work.rows and work.rows[-1].interrupted:
                raise KeyboardInterrupt


def _compilation_reporter(tick: Tick) -> Callable[[str], None]:
    """Return a callback that reports each kernel that is compiled, with a running number."""
    count = 0

    def compiled(name: str) -> None:
        nonlocal count
        count += 1
        tick(f"compiling kernel {count}: {name}", 0)

    return compiled


def _in_processes(work: Work, jobs: Sequence[Job], tick: Tick, processes: int) -> None:
    left, compiled = list(jobs), _compilation_reporter(tick)
    context = multiprocessing.get_context("spawn")
    for _ in range(TRIES):
        names = context.SimpleQueue()
        pool = ProcessPoolExecutor(processes, context, initializer=prepare, initargs=(processes, names))

        def listen(names: Any = names) -> None:
            while not names.empty():
                compiled(names.get())

        try:
            left = _run_with(work, left, tick, pool, processes, listen)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
        if not left:
            return
    for job in left:
        work.take([Hunt(job.twin, dtype, job.data, problems=["its process died"]) for dtype in job.dtypes], [])


def _run_with(
    work: Work,
    jobs: Sequence[Job],
    tick: Tick,
    executor: Executor,
    at_a_time: int,
    listen: Callable[[], None] = lambda: None,
) -> list[Job]:
    """Run jobs on an executor, at most `at_a_time` at once; return the jobs whose process died."""
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
                    running[executor.submit(_run_job, job.key or job.twin.name, order)] = job
                except BrokenProcessPool:
                    died.append(job)
            for part in wait(running, HEARTBEAT, FIRST_COMPLETED).done:
                count += 1
                tick(f"{running[part]}: {count} of {len(jobs)} parts", _cases(part))
                collect(part)
            listen()
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGINT)  # the terminal may not have sent it to the process
        wait([part for part in running if not part.cancel()], PATIENCE)
        raise
    finally:
        for part in list(running):
            collect(part)
    return died


def _next(waiting: list[Job], running: Collection[Job]) -> Job:
    """Take the next waiting job, if possible one whose dtypes use other kernels than the running jobs.

    float64 has kernels of its own, and the other dtypes share theirs. So two processes rarely compile the same kernel
    at the same time.
    """
    busy = {dtype == "float64" for job in running for dtype in job.dtypes}
    free = (n for n, job in enumerate(waiting) if not busy & {dtype == "float64" for dtype in job.dtypes})
    return waiting.pop(next(free, 0))


def _cases(part: Part) -> int:
    failed = part.exception() is not None
    return 0 if failed else sum(row["cases"] for row in part.result()[0])


def prepare(processes: int = PROCESSES, names: Any = None) -> None:
    """Prepare a process to run beside others; it puts the names of the kernels that it compiles into a queue."""
    signal.signal(signal.SIGINT, _note_interruption)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Results do not depend on the number of threads, but more threads than cores would slow all processes down.
    threads = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    if names is not None:
        compiling.report_always(names.put)


def _end_with_parent() -> None:
    """Exit when the parent process ends, as a killed parent cannot stop its processes."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


_interrupted = _at_work = False
Part = Future[tuple[list[dict[str, Any]], list[str]]]


def _note_interruption(*_: object) -> None:
    """On Ctrl-C, make the running job return its results, and make jobs that start later return at once."""
    global _interrupted
    _interrupted = True
    if _at_work:
        raise KeyboardInterrupt


def _raise_if_interrupted(what: str = "", cases: int = 0) -> None:
    """Raise an interruption that was noted, after each case: Python drops an exception raised within a destructor.

    Raises:
        KeyboardInterrupt: if there was an interruption.
    """
    if _interrupted:
        raise KeyboardInterrupt


def _run_job(key: Key, order: Job) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a job in this process; return its rows so far, without the fields that cannot be pickled, and its notes."""
    global _at_work
    work = Work()
    _at_work = True
    try:
        _raise_if_interrupted()
        device.use(order.device)  # Triton's interpreter starts before a pair imports its kernels
        twin = catalogue()[key] if isinstance(key, str) else key.twin()
        do_job(work, replace(order, twin=twin), _raise_if_interrupted)
    except KeyboardInterrupt:
        pass  # the results so far are in `work`
    finally:
        _at_work = False
    passed_on = [each.name for each in fields(Hunt) if each.name not in ("twin", "kept", "doubtful", "silent")]
    return [{each: getattr(row, each) for each in passed_on} for row in work.rows], work.notes
