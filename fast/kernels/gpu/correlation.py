"""Correlations of images in moving windows on a GPU: windows along one or more axes in each launch, slabs of planes.

Moments of a whole volume take seven times the memory of an image. They are therefore computed for a slab of planes at a
time, as are the fields of the gradient, unless one launch does it all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import CorrelationPlan
from twinloss.fast.kernels.gpu.compiled import correlation
from twinloss.fast.kernels.gpu.launch import interpreted, launch
from twinloss.fast.kernels.gpu.window import Programs, Step, far, near, programs
from twinloss.fast.runtime.constants import on_device

# The largest window that one launch takes along all three axes, and the largest that is carried in registers. One
# launch also takes the latter if float32 images have so few voxels that the launches of slabs would keep no GPU busy.
_WHOLE, _RING, _ONE_LAUNCH = 5, 9, 2**20

# What intermediate results may take beyond the gradient, in images; and how many voxels may take more, because many
# short launches would take longer.
_IMAGES, _SMALL = 3, 2**17

# Slabs are not so thin that there are more than these.
_SLABS = 16


def _steps(size: int, rank: int, small: bool) -> list[Step]:
    """Return the launches whose windows make a window of the last `rank` axes; if `rank` is 2, these are z and x."""
    whole = _RING if small and not interpreted() else _WHOLE
    if rank == 1:
        return [Step(True, row=size)]
    if rank == 2:
        return [Step(True, row=size, ring=size)] if size <= _RING else [Step(True, size), Step(True, row=size)]
    if size <= whole:
        return [Step(True, across=size, row=size, ring=size)]
    if size <= _RING:
        return [Step(True, size), Step(False, row=size, ring=size)]
    return [Step(True, size), Step(False, size), Step(True, row=size)]


class _Weights(NamedTuple):
    """The weights of the windows of a launch, or None if all are 1, and their sums.

    Attributes:
        window: those of the numbers that are read.
        ring: those of the steps in a ring.
        of_window: the sum of the former.
        of_ring: the sum of the latter.
    """

    window: Tensor | None
    ring: Tensor | None
    of_window: float
    of_ring: float


@lru_cache(maxsize=256)
def _weights(plan: CorrelationPlan, step: Step, device: torch.device) -> _Weights:
    sizes = [size for size in (step.along, step.across, step.row) if size > 1]
    if plan.kind == "rectangular":
        return _Weights(None, None, float(math.prod(sizes)), float(step.ring))
    along_axis, window = np.array(plan.window()), np.ones(1)
    for _ in sizes:
        window = np.multiply.outer(window, along_axis).ravel()
    ring = along_axis if step.ring > 1 else np.ones(1)
    window_there, ring_there = (None if each.size == 1 else on_device(each, device) for each in (window, ring))
    return _Weights(window_there, ring_there, window.sum().item(), ring.sum().item())


class _Results(NamedTuple):
    """Where the last launch of a pass forward writes, or None where nothing is needed.

    Attributes:
        fields: (N, 3, planes, H, W), for the gradient in p: A, and B and the last term.
        more: (N, 2, D, H, W), for the gradient in t: B and the last term.
        score: (N, 1, D, H, W), the correlations.
        parts: (N, programs), the sum of the correlations of each program.
    """

    fields: Tensor | None = None
    more: Tensor | None = None
    score: Tensor | None = None
    parts: Tensor | None = None


class _Windows:
    """The passes over images p and t, (N, D, H, W), for some planes of all images."""

    def __init__(self, p: Tensor, t: Tensor, plan: CorrelationPlan) -> None:
        if plan.rank == 2:
            p, t = p.transpose(1, 2), t.transpose(1, 2)
        self.p, self.t, self.plan = near(p, plan.size), near(t, plan.size), plan
        self.device, self.shape = p.device, tuple(p.shape)
        self.real = torch.float64 if torch.float64 in (p.dtype, t.dtype) else torch.float32
        small = p.numel() <= _ONE_LAUNCH and self.real == torch.float32
        self.steps = _steps(plan.size, plan.rank, small)
        self.reach = plan.size // 2 if plan.rank > 1 else 0
        self.far = far(self.p, self.t)

    # --- memory ---

    def empty(self, fields: int, planes: int) -> Tensor:
        """Return room for fields, (N, fields, planes, H, W)."""
        n, _, *plane = self.shape
        return torch.empty((n, fields, planes, *plane), dtype=self.real, device=self.device)

    @property
    def moments(self) -> int:
        """The numbers for each voxel, of the type of the results, that the moments between all launches take."""
        return (len(self.steps) - 1) * (2 * 8 // self.real.itemsize + 3)

    def slab(self, images: int, numbers: int, fixed: int = 0) -> int:
        """Return the planes of a slab, which takes `numbers` for each voxel, so that it takes so many images at most.

        `fixed` planes of numbers are taken besides.
        """
        n, depth, height, width = self.shape
        if len(self.steps) == 1 or n * depth * height * width <= _SMALL:
            return depth
        planes = max((images * depth - fixed) // numbers, -(-depth // _SLABS))
        return -(-depth // -(-depth // planes))

    def scratch(self, planes: int, gradients: bool) -> list[Tensor]:
        """Return room for what a launch leaves to the next: moments of a slab, and later fields of the gradient."""
        n, depth, height, width = self.shape
        size = self.real.itemsize
        fields = min(planes + self.reach, depth) * 3 * size * gradients
        numbers = n * height * width * max(planes * (2 * 8 + 3 * size), fields) // 8 + 1
        return [torch.empty(numbers, dtype=torch.float64, device=self.device) for _ in self.steps[1:]]

    def parts(self, slab: int) -> Tensor:
        """Return room for the sums of the correlations of all programs, (N, programs)."""
        n, depth = self.shape[:2]
        grids = [self.programs(self.steps[-1], k, min(k + slab, depth)).grid for k in range(0, depth, slab)]
        count = sum(blocks // n * chunks for blocks, chunks in grids)
        return torch.empty((n, count), dtype=torch.float64, device=self.device)

    def _moments_in(self, room: Tensor, planes: int) -> tuple[Tensor, Tensor]:
        n, _, height, width = self.shape
        count = n * planes * height * width
        means, sums = room[: 2 * count], room[2 * count :].view(self.real)[: 3 * count]
        return means.view(n, 2, planes, height, width), sums.view(n, 3, planes, height, width)

    def _fields_in(self, room: Tensor, planes: int) -> Tensor:
        n, _, height, width = self.shape
        return room.view(self.real)[: 3 * n * planes * height * width].view(n, 3, planes, height, width)

    # --- launches ---

    def programs(self, step: Step, low: int, high: int) -> Programs:
        """Return the programs of a launch."""
        return programs(step, self.shape, low, high, self.device)

    def forward(self, low: int, high: int, rooms: Sequence[Tensor], results: _Results, first: int = 0) -> int:
        """Compute the correlations of the planes low:high, and what their gradients need.

        The sums of correlations are written from part `first` on; returns the first part that is left.
        """
        count, source, planes = 1.0, _NO_MOMENTS, high - low
        for k, step in enumerate(self.steps):
            last = k == len(self.steps) - 1
            target, wanted = (_NO_MOMENTS, results) if last else (self._moments_in(rooms[k], planes), _Results())
            fields, more, score, parts = wanted
            weights, ready = _weights(self.plan, step, self.device), self.programs(step, low, high)
            launch(
                correlation.forward, ready.grid, self.p, self.t, *step.strides(self.p), *step.strides(self.t), *source,
                *target, planes, fields, 1 if fields is None else fields.shape[2], more, score, parts,
                0 if parts is None else parts.shape[1], first, *ready.geometry, weights.window, weights.ring,
                weights.of_window, weights.of_ring, count, float(self.plan.nu), float(self.plan.delta),
                warps=ready.warps, STEP=step, EXACT=self.real == torch.float64,
                CLAMPED=self.plan.clamped, BLOCK=ready.block, FAR=self.far,
            )  # fmt: skip
            count, source = count * weights.of_window * weights.of_ring, target
        return first + ready.grid[0] // self.shape[0] * ready.grid[1]

    def backward(
        self, low: int, high: int, fields: Sequence[Tensor], rooms: Sequence[Tensor], gradient: Tensor,
        upstream: Tensor | None, slope: Tensor | None, factor: float,
    ) -> None:  # fmt: skip
        """Write the planes low:high of a factor times the gradient in p.

        `fields` are A, B and the last term, each (N, planes, H, W); B and the last term have equal strides.
        """
        for k, step in enumerate(self.steps):
            last = k == len(self.steps) - 1
            out = None if last else self._fields_in(rooms[k], high - low)
            weights, ready = _weights(self.plan, step, self.device), self.programs(step, low, high)
            by_voxel = upstream if k == 0 else None
            launch(
                correlation.backward, ready.grid, self.p, self.t, *step.strides(self.p), *step.strides(self.t), *fields,
                fields[0].stride(0), fields[1].stride(0), fields[0].shape[1], out, high - low,
                gradient if last else None, by_voxel, *((0,) * 4 if by_voxel is None else step.strides(by_voxel)),
                slope, 0 if slope is None or slope.ndim == 0 else slope.stride(0), factor, *ready.geometry,
                weights.window, weights.ring, warps=ready.warps, STEP=step,
                EXACT=self.real == torch.float64, BLOCK=ready.block, FAR=self.far,
            )  # fmt: skip
            if out is not None:
                fields = out.unbind(1)


_NO_MOMENTS: tuple[Tensor | None, Tensor | None] = None, None


# --- all windows, with intermediate results for the gradients ---------------------------------------------------------


def scores(
    p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool, gradients: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the correlations, and intermediate results for their gradients; see `CorrelationKernels.scores`."""
    windows = _Windows(p, t, plan)
    count, depth = windows.shape[:2]
    slab = windows.slab(_IMAGES - 1, windows.moments)
    results = _Results(
        windows.empty(3, depth) if gradients else None,
        windows.empty(2, depth) if gradients > 1 else None,
        windows.empty(1, depth) if voxelwise else None,
        None if voxelwise else windows.parts(slab),
    )
    rooms, first = windows.scratch(slab, False), 0
    for low in range(0, depth, slab):
        first = windows.forward(low, min(low + slab, depth), rooms, results, first)
    kept, more = (
        torch.empty(0, dtype=windows.real, device=p.device) if each is None else each.view(count, -1, *p.shape[1:])
        for each in (results.fields, results.more)
    )
    if results.score is not None:
        return results.score.view(p.shape), kept, more
    assert results.parts is not None
    return _added(results.parts, torch.empty(count, dtype=torch.float64, device=p.device), 1.0), kept, more


def slopes(upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return dL/dp from the intermediate results: A, the first of `of_both`, and B and the rest, in `of_p`."""
    windows = _Windows(p, t, plan)
    fields = [of_both[:, 0], of_p[:, 0], of_p[:, 1]]
    by_voxel, by_image = (None, upstream) if upstream.ndim == 1 else (upstream, None)
    if plan.rank == 2:
        fields = [field.transpose(1, 2) for field in fields]
        by_voxel = None if by_voxel is None else by_voxel.transpose(1, 2)
    if by_voxel is not None and far(by_voxel):
        by_voxel = by_voxel.contiguous()
    gradient = torch.empty(p.shape, dtype=p.dtype, device=p.device)
    slab = windows.slab(1, 3 * (len(windows.steps) - 1))
    rooms = windows.scratch(slab, True)
    for low in range(0, windows.shape[1], slab):
        high = min(low + slab, windows.shape[1])
        windows.backward(low, high, fields, rooms, gradient, by_voxel, by_image, 1.0)
    return gradient


# --- the sum over all windows with its gradient -----------------------------------------------------------------------


def value(p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
    """Return a factor times the sum of all correlations, as a scalar tensor."""
    return _sum(_Windows(p, t, plan), None, None, factor, dtype)


def value_and_gradient(
    p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the value and dL/dp, for an upstream gradient of 1, in float32 if p is in half precision."""
    windows = _Windows(p, t, plan)
    gradient = torch.empty(p.shape, dtype=windows.real, device=p.device)
    return _sum(windows, gradient, None, factor, dtype), gradient


def gradient(upstream: Tensor, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
    """Return dL/dp, given dL/d(value)."""
    made = torch.empty(p.shape, dtype=p.dtype, device=p.device)
    _sum(_Windows(p, t, plan), made, upstream, factor, torch.float64)
    return made


def _sum(windows: _Windows, gradient: Tensor | None, slope: Tensor | None, factor: float, dtype: torch.dtype) -> Tensor:
    """Return a factor times the sum of all correlations, and write its gradient, times a slope, slab by slab."""
    depth, reach, gradients = windows.shape[1], windows.reach, gradient is not None
    slab = windows.slab(_IMAGES, windows.moments + 3 * gradients, 6 * reach * gradients)
    parts, rooms, first = windows.parts(slab), windows.scratch(slab, gradients), 0
    # The fields of a slab and of the planes that its windows reach: plane z is at z modulo their number.
    fields = windows.empty(3, min(slab + 2 * reach, depth)) if gradients else None
    for low in range(0, depth, slab):
        high = min(low + slab, depth)
        first = windows.forward(low, high, rooms, _Results(fields=fields, parts=parts), first)
        begin, end = max(low - reach, 0), depth if high == depth else high - reach
        if fields is not None and gradient is not None and begin < end:
            windows.backward(begin, end, fields.unbind(1), rooms, gradient, None, slope, factor)
    return _added(parts.view(1, -1), torch.empty((), dtype=dtype, device=parts.device), factor)


def _added(parts: Tensor, out: Tensor, factor: float) -> Tensor:
    """Write the sums of the rows of `parts`, times a factor, into `out`."""
    launch(correlation.add, (len(parts),), parts, out, parts.shape[1], factor, BLOCK=1024)
    return out
