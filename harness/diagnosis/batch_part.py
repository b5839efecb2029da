"""A part of a large batch, small enough for the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from twinloss.harness.diagnosis.batch import Batch

# Numbers of the input that are computed in some seconds, in float64; of a window of w voxels, what it reads counts.
NUMBERS, READ = 2**21, 2**26


def part(batch: Batch) -> tuple[Batch, str | None]:
    """The batch, or of a large one a part and a sentence about it.

    Losses of neighbours (fields, windows) get a block from the middle, others every n-th voxel, which keeps the shares
    of the classes.
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
        which = f"one voxel of each {_times(steps)}"
    few = max(1, limit // math.prod([x.shape[1], *sizes]))  # items, where there are no voxels to leave out
    arrays = {name: np.ascontiguousarray(v[(slice(few), slice(None), *voxels)]) for name, v in batch.arrays.items()}
    told = f"The input holds {x.size:,} numbers, so that the loss was computed on a part: {which}"
    told += f" of {few} items" if few < len(x) else ""
    told += ". NaN, ranges, labels and absent classes were looked for in all of it."
    return replace(batch, arrays=arrays), told


def _limit(batch: Batch) -> int:
    size = batch.option("kernel_size", 3 if "loss" in batch.twin.options else 1)
    window: int = size if isinstance(size, int) and size > 0 else 1
    scales = len(batch.option("scales") or [0])
    read: int = window ** (batch.input.ndim - 2)
    return min(NUMBERS, max(2**15, READ // read)) // max(1, scales)


def _sizes(shape: Sequence[int], limit: int) -> list[int]:
    """Spatial sizes with which an input has no more than `limit` numbers, the longest cut first."""
    sizes = list(shape[2:])
    while math.prod([*shape[:2], *sizes]) > limit and max(sizes, default=1) > 1:
        axis = int(np.argmax(sizes))
        sizes[axis] = max(1, sizes[axis] * 7 // 8)
    return sizes


def _times(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))
