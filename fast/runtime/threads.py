"""Chunks of work spread over `torch.get_num_threads()` threads; the kernels release the GIL.

It serves kernels alone, knows of no loss, and has no twin: the reference computes on one thread. The threads are
torch's own where its OpenMP runtime can be reached. After an operator of torch they spin for some
milliseconds in wait of the next, and threads of another pool would share the cores with them for so long. Elsewhere,
and after a `fork`, which threads of OpenMP do not survive, a pool of Python threads does the work. Numba's own parallel
loops have both faults, and their threading layers may abort when two Python threads enter them at once. Which thread
takes a chunk never matters to the result: each chunk writes its own place.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()
_forked, _in_openmp = False, False


def _after_fork() -> None:
    """Threads do not survive a fork: the child starts a pool of its own.

    But torch in the child would wait forever for those that OpenMP once had: so there it takes to one thread, as in the
    workers of a DataLoader, if it is we who had them started.
    """
    global _pool, _pool_lock, _forked
    _pool, _pool_lock, _forked = None, threading.Lock(), True
    if _in_openmp:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="twinloss")
        return _pool


# What OpenMP has each of its threads call, with the pointer that it was given.
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _parallel_region() -> Callable[..., Any] | None:
    """`GOMP_parallel(body, data, threads, flags)` of the OpenMP runtime that torch is linked with, if it has one."""
    try:
        region = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    region.argtypes, region.restype = (_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return region


# Numbers below which one thread is as fast: what it does in the time that others take to wake up.
_FEW = 2**18


def for_each_chunk(work: Callable[[int], None], chunks: int, numbers: int) -> None:
    """Call work(0) … work(chunks - 1), the calling thread taking part.

    Args:
        work: what to do.
        chunks: how often.
        numbers: how much that is in all, in numbers of which each takes as long as one of a softmax.
    """
    _share(lambda first, _: work(first), [(chunk, chunk + 1) for chunk in range(chunks)], _threads(chunks, numbers))


def for_each_range(work: Callable[[int, int], None], chunks: int, numbers: int) -> None:
    """Call work(first, end) for ranges of chunks that make up 0 … chunks - 1; see `for_each_chunk`.

    Between two calls a thread takes longer than the kernel that it calls takes for a chunk of a few classes, and waits
    for the interpreter if others are there. So it is given half of its share of what is left: the fewer are left, the
    fewer, so that all threads end at once.
    """
    threads, ranges, first = _threads(chunks, numbers), [], 0
    while first < chunks:
        count = chunks if threads < 2 else max((chunks - first) // (2 * threads), 1)
        ranges.append((first, first + count))
        first += count
    _share(work, ranges, threads)


def _threads(chunks: int, numbers: int) -> int:
    return 1 if numbers <= _FEW else min(torch.get_num_threads(), chunks)


def _share(work: Callable[[int, int], None], ranges: list[tuple[int, int]], threads: int) -> None:
    remaining = iter(ranges)  # next() on it is atomic

    def drain() -> None:
        for first, end in remaining:
            work(first, end)

    if threads < 2:
        drain()
        return
    region = None if _forked else _parallel_region()
    if region is None:
        _drain_in_pool(drain, threads)
    else:
        _drain_in_region(region, drain, threads)


def _drain_in_region(region: Callable[..., Any], drain: Callable[[], None], threads: int) -> None:
    global _in_openmp
    _in_openmp = True
    errors: list[BaseException] = []

    def body(_: int | None) -> None:
        try:
            drain()
        except BaseException as error:  # C code cannot pass it on
            errors.append(error)

    region(_Body(body), None, threads, 0)
    if errors:
        raise errors[0]


def _drain_in_pool(drain: Callable[[], None], threads: int) -> None:
    pool = _shared_pool()
    futures = [pool.submit(drain) for _ in range(threads - 1)]
    drain()
    for future in futures:
        # One that has not begun has nothing left to do; waiting for it would wait for other callers' work.
        if not future.cancel():
            future.result()


# Voxels that are done at a time of an image whose tiles, or columns across the planes, are shared out; and how many
# numbers of a softmax take as long as a voxel's window.
_VOXELS, _WINDOW = 2**15, 4


def for_each_tile(work: Callable[[int, int, int], None], shape: Sequence[int], rows: int, columns: int) -> None:
    """Call work(image, first tile, end) for some tiles at a time of the planes of images (N, D, H, W)."""
    images, depth, height, width = shape
    tiles = depth * -(-height // rows) * -(-width // columns)
    _for_each_part(work, images, depth * height * width, tiles, max(_VOXELS // (rows * columns), 1))


def for_each_bundle(work: Callable[[int, int, int], None], shape: Sequence[int]) -> None:
    """Call work(image, first column, end) for some columns at a time of images (N, D, H, W), (N, D, H * W) likewise."""
    images, depth, height, width = shape
    _for_each_part(work, images, depth * height * width, height * width, max(_VOXELS // depth, 1))


def _for_each_part(work: Callable[[int, int, int], None], images: int, voxels: int, count: int, step: int) -> None:
    parts = -(-count // step)

    def chunk(index: int) -> None:
        image, part = divmod(index, parts)
        work(image, part * step, min((part + 1) * step, count))

    for_each_chunk(chunk, images * parts, _WINDOW * images * voxels)
