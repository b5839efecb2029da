"""Take a part of a large batch that is small enough for the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from twinloss.harness.diagnosis.batch import Batch

# The largest number of input elements, which float64 processes in a few seconds, and the largest number of elements
# that all windows together may read.
NUMBERS, READ = 2**21, 2**26


def part(batch: Batch) -> tuple[Batch, str | None]:
    """Return a batch and None, or, for a large batch, a part of it and a sentence that says so.

    Losses that use neighbours (fields, windows) get a block from the middle. Other losses get every n-th voxel, which
    keeps the proportions of the classes.
    """
    x = batch.input
    limit = _limit(batch)
    if x.size <= limit:
        return batch, None
    by_block = not batch.has_classes and "num_bins" not in batch.twin.options
    sizes = _sizes(x.shape, limit)
    steps = [-(-old // new) for old, new in zip(x.shape[2:], sizes, strict=True)]
    if by_block:
        starts = [(old - new) // 2 for old, new in zip(x.shape[2:], sizes, strict=True)]
        voxels = [slice(start, start + new) for start, new in zip(starts, sizes, strict=True)]
        which = f"a block of {_times(sizes)} voxels from the middle"
    else:
        voxels = [slice(None, None, step) for step in steps]
        which = f"every n-th voxel along each axis, n = {_times(steps)}"
    few = max(1, limit // math.prod([x.shape[1], *sizes]))  # the number of items, if fewer voxels are not enough
    arrays = {name: np.ascontiguousarray(v[(slice(few), slice(None), *voxels)]) for name, v in batch.arrays.items()}
    note = f"The input holds {x.size:,} numbers, so the loss was computed on a part of it: {which}"
    note += f" of {few} items" if few < len(x) else ""
    note += ". The checks for NaN, ranges, labels and absent classes used all of it."
    return replace(batch, arrays=arrays), note


def _limit(batch: Batch) -> int:
    size = batch.option("kernel_size", 3 if "loss" in batch.twin.options else 1)
    window: int = size if isinstance(size, int) and size > 0 else 1
    scales = len(batch.option("scales") or [0])
    read: int = window ** (batch.input.ndim - 2)
    return min(NUMBERS, max(2**15, READ // read)) // max(1, scales)


def _sizes(shape: Sequence[int], limit: int) -> list[int]:
    """Return spatial sizes with at most `limit` numbers; the longest axis is shortened first."""
    sizes = list(shape[2:])
    while math.prod([*shape[:2], *sizes]) > limit and max(sizes, default=1) > 1:
        axis = int(np.argmax(sizes))
        sizes[axis] = max(1, sizes[axis] * 7 // 8)
    return sizes


def _times(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))
