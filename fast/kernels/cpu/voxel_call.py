"""The choice of kernels for a segmentation, their arguments, and the division of voxels into chunks.

Kernels for common cases need hard targets and binary masks. They check this while reading. If it does not hold, the
general kernels take over. The voxels of an item are cut into chunks, each of which has its own place in the sums, so
that the result does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import Plan
from twinloss.fast.kernels.cpu.arrays import Array, as_array
from twinloss.fast.kernels.cpu.compiled import tile, voxel
from twinloss.fast.kernels.cpu.compiled.status import INVALID, NOT_BINARY
from twinloss.fast.runtime.dispatch import HALVES
from twinloss.fast.runtime.memory import empty
from twinloss.fast.runtime.threads import for_each_range

_ACTIVATIONS = ("identity", "sigmoid", "softmax")
_OVERLAPS = ("none", "product", "minimum", "squared")
_SURPRISALS = ("none", "target", "all")

# The number of half-precision values to convert to float32 at a time, in whole tiles: 1 MiB of float32. With smaller
# batches, threads contend for the GIL.
_WIDENED_AT_ONCE = 2**18

# The dtypes of targets that the kernels read directly, with their codes. Other dtypes are converted first.
_NATIVE = {
    torch.bool: 0, torch.uint8: 0, torch.int32: 1, torch.int64: 2, torch.float32: 3, torch.float64: 4,
}  # fmt: skip
_WIDENED = {
    torch.int8: torch.int32, torch.int16: torch.int32, torch.float16: torch.float32, torch.bfloat16: torch.float32,
}  # fmt: skip

# Arguments of kernels that stand for no kept labels and for no mask.
_NOTHING_KEPT = np.empty((0, 0, 0), np.uint8)
_NO_MASK = {real: np.empty((0, 0), real) for real in (np.float32, np.float64)}


class Part(NamedTuple):
    """Voxels in the form that the kernels take."""

    x: Array
    target: Array
    mask: Array


class _Layout(NamedTuple):
    """All that a call takes from the shapes and types of its tensors, and not from their values.

    Attributes:
        forward: the kernel that sums the statistics.
        backward: the kernel that writes the gradient.
        statistics: the arguments of both for the type of the target and the statistics.
        options: their arguments after the matrix and before the mask.
        real: the type in which they compute.
        chunk: the number of voxels of a chunk.
        chunks: the number of chunks of an item.
        writes_in_place: whether `backward` may overwrite x.
        keeps_target: whether `forward` can keep a compressed target.
    """

    forward: Callable[..., int]
    backward: Callable[..., int]
    statistics: tuple[int, int | None, int | None]
    options: tuple[Any, ...]
    real: Any
    chunk: int
    chunks: int
    writes_in_place: bool
    keeps_target: bool


@lru_cache
def _layout(
    kernels: ModuleType, plan: Plan, classes: int, voxels: int, dtype: torch.dtype, item: int, excluding: bool,
    distances: bool, general: bool,
) -> _Layout:  # fmt: skip
    """Choose the kernels; the general ones support everything, and alone support soft targets and soft masks."""
    alone = not distances or (plan.overlap, plan.surprisal) == ("none", "none")
    common = plan.overlap != "squared" and plan.surprisal != "all" and alone
    # In a dense target of several channels, the channel ignore_index excludes voxels from all channels.
    by_channel = plan.labels or plan.ignore_index is None or classes == 1
    pair = plan.activation == "softmax" and classes == 2
    if not general and common and plan.activation == "softmax" and plan.labels and not pair:
        forward, backward, in_place = kernels.forward_labels, kernels.backward_labels, True
    elif not general and common and (plan.labels if pair else plan.activation == "sigmoid" and by_channel):
        forward, backward, in_place = kernels.forward_channels, kernels.backward_channels, False
    else:
        forward, backward, in_place, general = kernels.forward, kernels.backward, True, True
    real = np.float64 if dtype == torch.float64 else np.float32
    ignoring = plan.ignore_index is not None and item != tile.KEPT
    chunk = tile.TILES * tile.tile_width.py_func(classes, voxels)
    return _Layout(
        forward,
        backward,
        (
            item,
            None if plan.overlap == "none" else _OVERLAPS.index(plan.overlap),
            None if plan.surprisal == "none" else _SURPRISALS.index(plan.surprisal),
        ),
        (
            real(plan.gamma),
            _ACTIVATIONS.index(plan.activation),
            not plan.labels,
            ignoring,
            plan.ignore_index if ignoring else 0,
            excluding,
        ),
        real,
        chunk,
        -(-voxels // chunk),
        in_place,
        (plan.labels or classes == 1) and not general and classes <= tile.MOST_KEPT and dtype not in HALVES,
    )


class VoxelCall:
    """The kernels for some tensors and a plan, and their arguments.

    Args:
        x: (B, C, *S), of any supported dtype.
        target: the target that the user passed.
        mask: (B or 1, 1, *S), or None.
        plan: which statistics to compute.
        distances: whether there are distances between classes.
        kept: the compressed target that an earlier call has kept; if given, it is read in place of target and mask.
    """

    def __init__(
        self, x: Tensor, target: Tensor, mask: Tensor | None, plan: Plan, distances: bool, kept: Tensor | None = None
    ) -> None:
        self.places = places(x, target, mask)
        excluding = mask is not None or plan.ignore_index is not None
        if kept is not None:
            target, mask = kept, None
        elif target.dtype not in _NATIVE:
            target = target.to(_WIDENED.get(target.dtype, torch.int64))
        self.items, classes, *space = x.shape
        voxels = math.prod(space)
        self.shape = self.items, classes, voxels
        item = _NATIVE[target.dtype] if kept is None else tile.KEPT
        self._choice = plan, classes, voxels, x.dtype, item, excluding, distances
        self.layout = _layout(voxel, *self._choice, False)
        self.room = _NOTHING_KEPT
        self.target: Array = as_array(target).reshape(self.items, target.shape[1], -1).view(np.uint8)
        self.mask = None if mask is None else mask.detach().reshape(len(mask), voxels)
        self.x, self.whole = x, None
        if x.dtype in HALVES:
            self.x = x.detach().reshape(self.shape)
        else:
            weights = _NO_MASK[self.layout.real]
            if self.mask is not None:
                weights = self.mask.to(x.dtype).contiguous().numpy()
            self.whole = Part(as_array(x).reshape(self.shape), self.target, weights)

    @property
    def chunks(self) -> int:
        """The number of chunks of all items."""
        return self.items * self.layout.chunks

    def use_general_kernels(self) -> None:
        """Switch to the general kernels: only these support soft targets, and masks with fractional weights."""
        self.layout, self.room = _layout(voxel, *self._choice, True), _NOTHING_KEPT

    def keep_target(self) -> Tensor:
        """Return an array for the compressed target and mask, which forward fills for backward."""
        items, _, voxels = self.shape
        kept = empty((items, 1, (voxels + 1) // 2), torch.uint8)
        self.room = kept.numpy()
        return kept

    def forward(self, part: Part, first: int, end: int, matrix: Array | None, sums: Array) -> int:
        """Add the statistics of chunks of a part to `sums`, (chunks, 2, ROWS, C); return a status."""
        layout, (x, target, mask) = self.layout, part
        return layout.forward(
            x, target, *layout.statistics, matrix, *layout.options, mask, first, end, sums, self.room
        )  # fmt: skip

    def backward(self, part: Part, first: int, end: int, matrix: Array | None, slopes: Array, out: Array) -> int:
        """Write dL/dx of chunks of a part, given dL/d(statistics), and dL/dp by true class; return a status."""
        layout, (x, target, mask) = self.layout, part
        return layout.backward(x, target, *layout.statistics, matrix, *layout.options, mask, first, end, slopes, out)

    def widened_parts(self, first: int, end: int) -> Iterator[tuple[Part, int, tuple[int, int, int]]]:
        """Yield half-precision values, converted to float32 a few tiles at a time.

        Yields parts of a single chunk, the chunk, and the position (item, start, stop) in x. To save memory, the caller
        must delete a part before it requests the next.
        """
        _, classes, voxels = self.shape
        size, width = self.layout.chunk, self.layout.chunk // tile.TILES
        step = width * max(_WIDENED_AT_ONCE // (width * classes), 1)
        for chunk in range(first, end):
            item, k = divmod(chunk, self.layout.chunks)
            stop = min((k + 1) * size, voxels)
            for lo in range(k * size, stop, step):
                hi = min(lo + step, stop)
                yield self.widened(item, lo, hi), chunk, (item, lo, hi)

    def widened(self, item: int, lo: int, hi: int) -> Part:
        """Return a range of voxels of an item, converted to float32."""
        size = self.target.shape[2] // self.shape[2]
        x = self.x[item : item + 1, :, lo:hi].to(torch.float32, memory_format=torch.contiguous_format).numpy()
        target = np.ascontiguousarray(self.target[item : item + 1, :, lo * size : hi * size])
        mask = _NO_MASK[np.float32]
        if self.mask is not None:
            row = min(item, len(self.mask) - 1)
            mask = self.mask[row : row + 1, lo:hi].float().numpy()
        return Part(x, target, mask)

    def run(self, work: Callable[[int, int], int]) -> bool:
        """Call `work` with ranges of all chunks, and again with the general kernels if mask or target is soft.

        Returns whether a label or a mask value is invalid.
        """
        found = self._run(work)
        if found == NOT_BINARY:
            self.use_general_kernels()
            found = self._run(work)
        return found == INVALID

    def _run(self, work: Callable[[int, int], int]) -> int:
        """Call `work` with ranges of all chunks, and return the largest status."""
        found: list[int] = []
        for_each_range(lambda first, end: found.append(work(first, end)), self.chunks, math.prod(self.shape))
        return max(found)


def places(*tensors: Tensor | None) -> list[int | None]:
    """Return the addresses of the data, because a hook for saved tensors may have replaced tensors by copies."""
    return [None if each is None else each.data_ptr() for each in tensors]
