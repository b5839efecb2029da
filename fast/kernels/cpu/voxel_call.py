"""The choice of kernels for a segmentation, their arguments, and the division of voxels into chunks.

Kernels for common cases need hard targets and binary masks. They check this while reading. If it does not hold, the
general kernels take over. The voxels of an item are cut into chunks, each of which has its own place in the sums, so
that the result does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import Plan
from twinloss.fast.kernels.cpu.compiled import tile, voxel
from twinloss.fast.kernels.cpu.compiled.status import INVALID, NOT_BINARY, VALID
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

Array = np.ndarray[Any, Any]


class Part(NamedTuple):
    """A range of voxels of an item, in the form that the kernels take."""

    x: Array
    target: Array
    mask: Array | None
    item: int
    start: int
    stop: int


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
        self.x, self.halves = _flat(x.detach()).contiguous(), x.dtype in HALVES
        real = torch.float32 if self.halves else x.dtype
        self.real = np.float32 if real == torch.float32 else np.float64
        self.target: Array = _flat(target).contiguous().numpy().view(np.uint8)
        self.mask = None if mask is None else _flat(mask)[:, 0].detach()
        self.asked = (
            _NATIVE[target.dtype] if kept is None else tile.KEPT,
            None if plan.overlap == "none" else _OVERLAPS.index(plan.overlap),
            None if plan.surprisal == "none" else _SURPRISALS.index(plan.surprisal),
            self.real(plan.gamma),
        )
        self.ignore = None if plan.ignore_index is None else float(plan.ignore_index)
        if kept is not None:
            self.ignore = math.nan if excluding else None
        self.dense, self.activation = not plan.labels, _ACTIVATIONS.index(plan.activation)
        voxels = self.x.shape[2]
        self.chunk = tile.TILES * tile.tile_width.py_func(x.shape[1], voxels)
        self.chunks_of_item = -(-voxels // self.chunk)
        self._choose_kernels(plan, distances)
        self.whole = None
        if not self.halves:
            weights = None if self.mask is None else self.mask.to(real).contiguous().numpy()
            self.whole = Part(self.x.numpy(), self.target, weights, 0, 0, 0)

    def _choose_kernels(self, plan: Plan, distances: bool) -> None:
        classes = self.x.shape[1]
        alone = not distances or (plan.overlap, plan.surprisal) == ("none", "none")
        common = plan.overlap != "squared" and plan.surprisal != "all" and alone
        # In a dense target of several channels, the channel ignore_index excludes voxels from all channels.
        by_channel = plan.labels or plan.ignore_index is None or classes == 1
        pair = plan.activation == "softmax" and classes == 2
        self.general = False
        self.options: tuple[Any, ...] = ()
        self.room: tuple[Any, ...] = (np.empty((len(self.x), 1, 0), np.uint8),)
        if common and plan.activation == "softmax" and plan.labels and not pair:
            self._forward, self._backward = voxel.forward_labels, voxel.backward_labels
            self.writes_in_place = True
        elif common and (plan.labels if pair else plan.activation == "sigmoid" and by_channel):
            self._forward, self._backward = voxel.forward_channels, voxel.backward_channels
            self.options = pair, self.dense
            self.writes_in_place = False
        else:
            self.use_general_kernels()
        single = plan.labels or classes == 1
        self.keeps_target = single and not self.general and classes <= tile.MOST_KEPT and not self.halves

    def use_general_kernels(self) -> None:
        """Switch to the general kernels: only these support soft targets, and masks with fractional weights."""
        self._forward, self._backward, self.room = voxel.forward, voxel.backward, ()
        self.general, self.writes_in_place, self.keeps_target = True, True, False

    def keep_target(self) -> Tensor:
        """Return an array for the compressed target and mask, which forward fills for backward."""
        items, _, voxels = self.x.shape
        kept = empty((items, 1, (voxels + 1) // 2), torch.uint8)
        self.room = (kept.numpy(),)
        return kept

    def forward(self, part: Part, matrix: Array | None, sums: Array) -> int:
        """Add the statistics of a part to `sums`, (chunks, ROWS, C), given the distances; return a status."""
        arguments = self._arguments(part, matrix)
        status: int = self._forward(*arguments, part.item, part.start, part.stop, sums, *self.room)
        return status

    def backward(self, part: Part, matrix: Array | None, slopes: Array, out: Array) -> int:
        """Write dL/dx of a part, given dL/d(statistics), and with distances dL/dp by true class; return a status."""
        arguments = self._arguments(part, matrix)
        status: int = self._backward(*arguments, slopes, part.item, part.start, part.stop, out)
        return status

    def _arguments(self, part: Part, matrix: Array | None) -> tuple[Any, ...]:
        if self.general:
            mask = np.empty((0, 0), self.real) if part.mask is None else part.mask
            after = self.dense, mask, self.activation, math.nan if self.ignore is None else self.ignore
        else:
            after = *self.options, self.ignore, part.mask
        return part.x, part.target, *self.asked, matrix, *after

    def spans(self, first: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield spans of chunks of one item as tuples: first chunk, item, first voxel, end.

        The chunks do not depend on the number of threads. Half-precision inputs yield one chunk per span.
        """
        while first < end:
            item, start = divmod(first, self.chunks_of_item)
            count = 1 if self.halves else min(end - first, self.chunks_of_item - start)
            yield first, item, start * self.chunk, min((start + count) * self.chunk, self.x.shape[2])
            first += count

    def parts(self, first: int, end: int) -> Iterator[tuple[Part, int, tuple[int, int, int]]]:
        """Yield the parts of a range of chunks, the first chunk of each, and its position (item, start, stop) in x.

        Half-precision values are converted to float32 a few tiles at a time. To save memory, the caller must delete a
        part before it requests the next.
        """
        for chunk, item, start, stop in self.spans(first, end):
            if self.whole is not None:
                yield self.whole._replace(item=item, start=start, stop=stop), chunk, (item, start, stop)
                continue
            width, classes = self.chunk // tile.TILES, self.x.shape[1]
            step = width * max(_WIDENED_AT_ONCE // (width * classes), 1)
            for lo in range(start, stop, step):
                hi = min(lo + step, stop)
                yield self.widened(item, lo, hi), chunk, (item, lo, hi)

    def widened(self, item: int, lo: int, hi: int) -> Part:
        """Return a range of voxels of an item, converted to float32."""
        size = self.target.shape[2] // self.x.shape[2]
        x = self.x[item : item + 1, :, lo:hi].to(torch.float32, memory_format=torch.contiguous_format).numpy()
        target = np.ascontiguousarray(self.target[item : item + 1, :, lo * size : hi * size])
        mask = None
        if self.mask is not None:
            row = min(item, len(self.mask) - 1)
            mask = self.mask[row : row + 1, lo:hi].float().numpy()
        return Part(x, target, mask, 0, 0, hi - lo)

    def run(self, work: Callable[[int, int], int]) -> bool:
        """Call `work` with ranges of all chunks, and again with the general kernels if mask or target is soft.

        Returns whether a label or a mask value is invalid.
        """
        chunks = len(self.x) * self.chunks_of_item
        found = [VALID] * chunks

        def each(first: int, end: int) -> None:
            found[first] = work(first, end)

        for_each_range(each, chunks, self.x.numel())
        if not any(found):  # the usual case, and `any` is the fastest test
            return False
        if max(found) == NOT_BINARY:
            self.use_general_kernels()
            for_each_range(each, chunks, self.x.numel())
        return max(found) == INVALID


def places(*tensors: Tensor | None) -> list[int | None]:
    """Return the addresses of the data, because a hook for saved tensors may have replaced tensors by copies."""
    return [None if each is None else each.data_ptr() for each in tensors]


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(2) if tensor.ndim > 2 else tensor.unsqueeze(-1)
