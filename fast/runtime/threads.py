"""Distribution of the chunks of a kernel over `torch.get_num_threads()` threads; the kernels release the GIL.

If the OpenMP runtime of torch can be called, its threads do the work. After an operator of torch, these threads spin
for some milliseconds to wait for the next one, and the threads of another pool would compete with them for the cores.
Otherwise, and after a `fork`, which OpenMP threads do not survive, a pool of Python threads does the work. Numba's own
parallel loops would have both problems, and their threading layers may abort if two Python threads enter them at the
same time. The result does not depend on which thread takes a chunk, because each chunk writes to its own memory.
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
    """Reset the pool in a child process, because threads do not survive a fork.

    If this module has started OpenMP threads, torch in the child would wait for them forever. It is then set to one
    thread, as in the workers of a DataLoader.
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


# The type of the function that each OpenMP thread calls, with the `data` pointer as argument.
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _parallel_region() -> Callable[..., Any] | None:
    """Return `GOMP_parallel(body, data, threads, flags)` of the OpenMP runtime of torch, or None if it has none."""
    try:
        region = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    region.argtypes, region.restype = (_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return region


# Up to this many numbers, one thread is as fast as several: it is done when the others have woken up.
_FEW = 2**18


def for_each_chunk(work: Callable[[int], None], chunks: int, numbers: int) -> None:
    """Call work(0) … work(chunks - 1) in several threads, including the calling thread.

    Args:
        work: processes a chunk, given its index.
        chunks: the number of chunks.
        numbers: the total amount of work, as the number of elements of a softmax that takes as long.
    """
    run_ranges(lambda first, _: work(first), [(chunk, chunk + 1) for chunk in range(chunks)], _threads(chunks, numbers))


def for_each_range(work: Callable[[int, int], None], chunks: int, numbers: int) -> None:
    """Call work(first, end) for ranges that together cover the chunks 0 … chunks - 1; see `for_each_chunk`.

    The Python code between two calls takes longer than a kernel needs for a chunk of a few classes, and threads contend
    for the GIL. Therefore a range has half of a thread's share of the remaining chunks. The ranges get shorter towards
    the end, so that all threads finish at about the same time.
    """
    threads, ranges, first = _threads(chunks, numbers), [], 0
    while first < chunks:
        count = chunks if threads < 2 else max((chunks - first) // (2 * threads), 1)
        ranges.append((first, first + count))
        first += count
    run_ranges(work, ranges, threads)


def _threads(chunks: int, numbers: int) -> int:
    return 1 if numbers <= _FEW else min(torch.get_num_threads(), chunks)


def run_ranges(work: Callable[[int, int], None], ranges: Sequence[tuple[int, int]], threads: int) -> None:
    """Call work(first, end) for each range, in so many threads; all kernels run through this function."""
    remaining = iter(ranges)  # threads can share it, because next() is atomic

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
        except BaseException as error:  # an exception cannot pass through C code
            errors.append(error)

    region(_Body(body), None, threads, 0)
    if errors:
        raise errors[0]


def _drain_in_pool(drain: Callable[[], None], threads: int) -> None:
    pool = _shared_pool()
    futures = [pool.submit(drain) for _ in range(threads - 1)]
    drain()
    for future in futures:
        # A future that has not begun has nothing left to do. Waiting for it would mean waiting for other callers.
        if not future.cancel():
            future.result()


# Voxels of an image in one part, of tiles or of columns across the planes, that a thread processes at a time.
_VOXELS = 2**15
# The work for the window of a voxel takes as long as this many elements of a softmax.
_WINDOW = 4


def for_each_tile(work: Callable[[int, int, int], None], shape: Sequence[int], rows: int, columns: int) -> None:
    """Call work(image, first tile, end) for ranges of tiles of the planes of images (N, D, H, W)."""
    images, depth, height, width = shape
    tiles = depth * -(-height // rows) * -(-width // columns)
    _for_each_part(work, images, depth * height * width, tiles, max(_VOXELS // (rows * columns), 1))


def for_each_bundle(work: Callable[[int, int, int], None], shape: Sequence[int]) -> None:
    """Call work(image, first column, end) for ranges of columns of images (N, D, H, W).

    A column runs along the depth: an image has H * W of them.
    """
    images, depth, height, width = shape
    _for_each_part(work, images, depth * height * width, height * width, max(_VOXELS // depth, 1))


def _for_each_part(work: Callable[[int, int, int], None], images: int, voxels: int, count: int, step: int) -> None:
    parts = -(-count // step)

    def chunk(index: int) -> None:
        image, part = divmod(index, parts)
        work(image, part * step, min((part + 1) * step, count))

    for_each_chunk(chunk, images * parts, _WINDOW * images * voxels)
