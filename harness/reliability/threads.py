"""Determinism, and losses in many threads and processes at the same time."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from twinloss.harness.reliability.everyday import all_fingerprints, everyday, fingerprint, step
from twinloss.harness.reliability.registry import Row, line

MODULE = "from twinloss.harness.reliability.everyday import all_fingerprints"


def of_another_process(size: int, threads: int) -> dict[str, str]:
    """Compute the fingerprints in a fresh process with this number of threads."""
    code = (
        f"import json, torch; torch.set_num_threads({threads}); {MODULE}; print(json.dumps(all_fingerprints({size})))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    made: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return made


@line("Determinism")
def bitwise(quick: bool) -> Iterator[Row]:
    """Results are bitwise identical on any number of threads, in any process."""
    size = 20 if quick else 70
    expected, before = all_fingerprints(size), torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            same = all(all_fingerprints(size) == expected for _ in range(3))
            yield Row(f"all losses, {size}³, 3 runs on {threads} thread{'s' * (threads > 1)}", _told(same), same)
    finally:
        torch.set_num_threads(before)
    for threads in (1,) if quick else (1, 2, 4):
        same = of_another_process(size, threads) == expected
        yield Row(f"all losses, {size}³, another process, {threads} thread{'s' * (threads > 1)}", _told(same), same)


def _told(same: bool) -> str:
    return "bitwise identical values and gradients" if same else "values or gradients differ"


def _in_child(size: int, queue: Any) -> None:
    queue.put(all_fingerprints(size))


class _Losses(torch.utils.data.Dataset[str]):
    """A data set whose items are the fingerprints of the losses, so that loader workers compute losses."""

    def __init__(self, size: int) -> None:
        self.losses = [(each.module(), each.arguments(size)) for each in everyday()]

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, index: int) -> str:
        return fingerprint(*step(*self.losses[index]))


def all_fingerprints_of(name: str, size: int) -> str:
    """Return the fingerprint of one loss."""
    each = next(each for each in everyday() if each.name == name)
    return fingerprint(*step(each.module(), each.arguments(size)))


@line("Concurrency")
def at_once(quick: bool) -> Iterator[Row]:
    """Threads, forked and spawned processes and data loaders do not crash or hang, and get the same bits."""
    size, names = (12 if quick else 48), [each.name for each in everyday()]
    expected = all_fingerprints(size)
    rounds = 2 if quick else 8
    with ThreadPoolExecutor(8) as pool:
        work = names * rounds
        made = list(pool.map(all_fingerprints_of, work, [size] * len(work)))
    same = all(bits == expected[name] for name, bits in zip(work, made, strict=True))
    yield Row(f"8 Python threads, {len(work)} concurrent calls of all losses, {size}³", _told(same), same)
    torch.randn(512, 512) @ torch.randn(512, 512)  # starts a parallel region of torch
    for method in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(method)
        queue = context.Queue()
        children = [context.Process(target=_in_child, args=(size, queue)) for _ in range(2)]
        for child in children:
            child.start()
        made_there = [queue.get(timeout=300) for _ in children]
        for child in children:
            child.join()
        same = all(made == expected for made in made_there)
        yield Row(f"2 processes by {method}, after parallel regions of twinloss and torch", _told(same), same)
    for method in ("fork",) if quick else ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            _Losses(size), batch_size=None, num_workers=2, multiprocessing_context=method
        )
        same = list(loader) == [expected[name] for name in names]
        yield Row(f"DataLoader, 2 workers by {method} that compute losses", _told(same), same)
    with ThreadPoolExecutor(4) as pool:
        context = multiprocessing.get_context("fork")
        busy = [pool.submit(all_fingerprints_of, name, size) for name in names]
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(size, queue))
        child.start()
        same = queue.get(timeout=300) == expected
        child.join()
        same &= all(future.result() == expected[name] for future, name in zip(busy, names, strict=True))
    yield Row("fork while 4 threads compute losses", _told(same), same)
