"""Chunks of work spread over `torch.get_num_threads()` Python threads; the kernels release the GIL.

A pool of Python threads, and not Numba's own parallel loops, because Numba's threading layers either abort when two
Python threads enter them at once or do not survive a `fork`. Which thread takes a chunk never matters to the result:
each chunk writes its own place.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _forget_pool() -> None:
    """Threads do not survive a fork: the child starts a pool of its own."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="twinloss")
        return _pool


def for_each_chunk(work: Callable[[int], None], chunks: int) -> None:
    """Call work(0) … work(chunks - 1), the calling thread taking part."""
    helpers = min(torch.get_num_threads(), chunks) - 1
    if helpers < 1:
        for chunk in range(chunks):
            work(chunk)
        return
    remaining = iter(range(chunks))  # next() on it is atomic

    def drain() -> None:
        for chunk in remaining:
            work(chunk)

    pool = _shared_pool()
    futures = [pool.submit(drain) for _ in range(helpers)]
    drain()
    for future in futures:
        # One that has not begun has nothing left to do; waiting for it would wait for other callers' work.
        if not future.cancel():
            future.result()


# Voxels that are done at a time of an image whose tiles, or columns across the planes, are shared out.
_VOXELS = 2**15


def for_each_tile(work: Callable[[int, int, int], None], shape: Sequence[int], rows: int, columns: int) -> None:
    """Call work(image, first tile, end) for some tiles at a time of the planes of images (N, D, H, W)."""
    images, depth, height, width = shape
    tiles = depth * -(-height // rows) * -(-width // columns)
    _for_each_part(work, images, tiles, max(_VOXELS // (rows * columns), 1))


def for_each_bundle(work: Callable[[int, int, int], None], shape: Sequence[int]) -> None:
    """Call work(image, first column, end) for some columns at a time of images (N, D, H, W), (N, D, H * W) likewise."""
    images, depth, height, width = shape
    _for_each_part(work, images, height * width, max(_VOXELS // depth, 1))


def _for_each_part(work: Callable[[int, int, int], None], images: int, count: int, step: int) -> None:
    parts = -(-count // step)

    def chunk(index: int) -> None:
        image, part = divmod(index, parts)
        work(image, part * step, min((part + 1) * step, count))

    for_each_chunk(chunk, images * parts)
