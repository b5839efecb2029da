"""The statistics of a segmentation on a GPU, their gradient, and losses that are a fraction of them."""

from __future__ import annotations

import math
from dataclasses import astuple
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    ROWS,
    TP,
    VOLUME,
    ClassWeights,
    CompoundPlan,
    FractionPlan,
    Plan,
    Terms,
    UpstreamSlopes,
    VoxelInputs,
    flat,
    unweighted,
)
from twinloss.fast.kernels.gpu.compiled import fraction, voxel, voxel_many
from twinloss.fast.kernels.gpu.compiled.rows import SLOPES
from twinloss.fast.kernels.gpu.compiled.voxel_chunk import Kind
from twinloss.fast.kernels.gpu.launch import interpreted, launch, power_of_2, real_type, share
from twinloss.fast.runtime.constants import on_device

_ACTIVATIONS = ("identity", "sigmoid", "softmax")
_OVERLAPS = ("none", "product", "minimum", "squared")
_SURPRISALS = ("none", "target", "all")

# The largest number of classes that a program holds in registers.
_HELD = 32
# With more, the number of classes that it takes at a time.
_LOOPED = 8
# Chunks of voxels whose parts the kernel of the fraction adds up by itself.
_FEW_CHUNKS = 256
# The largest distance between voxels in memory, so that offsets within a program fit into an int32.
_FARTHEST = 2**14
_WARPS = 4
# The fields of `ClassWeights`, as the kernel names them.
_KIND = ("POWER", "OFFSET", "NORMALIZED", "FOREGROUND")
# Rows and classes that a program adds up.
_COLUMNS = 32


class _Setup(NamedTuple):
    """The arguments that both passes share, except the tensors; see `compiled/voxel.py`.

    Attributes:
        kernels: for the sums and for the gradient.
        grid: the numbers of programs.
        numbers: N, the number of voxels of a program, and the focal exponent.
        strides: of x, target and mask, in the order of the parameters.
        kind: what the kernels are compiled for.
        used: a bit for each row of the statistics that the plan includes.
    """

    kernels: tuple[Any, Any]
    grid: tuple[int, int, int]
    numbers: tuple[int, int, float]
    strides: tuple[int, ...]
    kind: Kind
    used: int


class _Call(NamedTuple):
    """The tensors of a call, and its setup.

    Attributes:
        x: (B, C, N), a view of the logits if their layout allows it.
        tensors: x, target, mask or None, and matrix or None.
        setup: the other arguments.
    """

    x: Tensor
    tensors: tuple[Tensor | None, ...]
    setup: _Setup


class _Layout(NamedTuple):
    """The shape, the strides and the type of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def sums(inputs: VoxelInputs, plan: Plan, ahead: bool, slopes: UpstreamSlopes | None) -> tuple[Tensor, None]:
    """Return the statistics, (ROWS, B, C) float64; nothing is kept for the gradient."""
    call = _call(inputs, plan, inputs.matrix)
    return _added(call, _parts(call)), None


def gradient(upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: None) -> Tensor:
    """Return dL/dx, given dL/d(statistics), (ROWS, B, C)."""
    call = _call(inputs, plan, inputs.matrix)
    slopes = _slopes(call)
    launch(
        fraction.prepare, slopes.shape[1:2], upstream.contiguous(), slopes, SQUARED=plan.overlap == "squared",
        **_classes(slopes.shape[2]),
    )  # fmt: skip
    return _gradient(slopes, None, inputs.x, call)


def loss(inputs: VoxelInputs, asked: FractionPlan, ahead: bool) -> tuple[Tensor, Tensor]:
    """Return a scalar loss, and the slopes for its gradient."""
    call, terms, weigh = _call(inputs, asked.plan, _matrix(asked, inputs.x)), asked.terms, asked.weigh
    items, classes = call.x.shape[:2]
    declared, weights = weigh if isinstance(weigh, ClassWeights) else None, (None, None)
    undeclared = declared is None and weigh is not unweighted
    parts, *steps = _parts_or_sums(call, undeclared)
    if undeclared:
        volumes = parts[VOLUME, :, terms.first :]
        given = weigh(volumes.sum(0, keepdim=True) if terms.batch else volumes)
        weights = given[0].contiguous(), given[-1].contiguous()
    slopes = _slopes(call)
    value = torch.empty((), dtype=asked.dtype, device=call.x.device)
    numbers, constants = _terms(terms, declared, asked.mean, classes)
    rows_of_weights = (1 if each is None else len(each) for each in weights)
    launch(
        fraction.fraction, (1,), parts, *weights, slopes, value, items, *steps, *rows_of_weights, *numbers,
        warps=8, **constants,
    )  # fmt: skip
    return value, slopes


def compound(inputs: VoxelInputs, asked: CompoundPlan, ahead: bool) -> tuple[Tensor, Tensor]:
    """Return a scalar loss of two terms, and the slopes for its gradient."""
    call = _call(inputs, asked.plan, None)
    items, classes = call.x.shape[:2]
    parts, *steps = _parts_or_sums(call, False)
    slopes = _slopes(call)
    value = torch.empty((), dtype=asked.dtype, device=call.x.device)
    factors, numbers, constants = _compound_terms(asked)
    launch(
        fraction.compound, (1,), parts, on_device(factors, value.device), slopes, value, items, *steps, *numbers,
        warps=8, **constants, **_classes(classes),
    )  # fmt: skip
    return value, slopes


def compound_gradient(upstream: Tensor, inputs: VoxelInputs, asked: CompoundPlan, kept: Tensor | None) -> Tensor:
    """Return the gradient of such a loss, times the upstream gradient."""
    slopes = compound(inputs, asked, ahead=False)[1] if kept is None else kept
    return _gradient(slopes, upstream, inputs.x, _call(inputs, asked.plan, None))


def loss_gradient(upstream: Tensor, inputs: VoxelInputs, asked: FractionPlan, kept: Tensor | None) -> Tensor:
    """Return the gradient of such a loss, times the upstream gradient."""
    slopes = loss(inputs, asked, ahead=False)[1] if kept is None else kept
    return _gradient(slopes, upstream, inputs.x, _call(inputs, asked.plan, _matrix(asked, inputs.x)))


def _matrix(asked: FractionPlan, x: Tensor) -> Tensor | None:
    return None if asked.distances is None else on_device(np.array(asked.distances), x.device)


def _classes(classes: int) -> dict[str, int]:
    padded = power_of_2(classes)
    return {"CLASSES": classes, "PADDED": padded, "TOGETHER": max(1024 // padded, 1)}


def _read(tensor: Tensor) -> Tensor:
    """Return (B, C, *S) as (B, C, N), copied if the voxels lie so far apart that their offsets could exceed int32."""
    voxels = flat(tensor)
    return voxels if voxels.stride(2) <= _FARTHEST else voxels.contiguous()


def _call(inputs: VoxelInputs, plan: Plan, matrix: Tensor | None) -> _Call:
    x, y = _read(inputs.x), _read(inputs.target)
    mask = None if inputs.mask is None else _read(inputs.mask)
    if y.dtype == torch.bool:
        y = y.view(torch.uint8)
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    of_mask = None if mask is None else _Layout(mask.shape, mask.stride(), mask.dtype)
    layouts = _Layout(x.shape, x.stride(), x.dtype), _Layout(y.shape, y.stride(), y.dtype), of_mask
    return _Call(x, (x, y, mask, matrix), _setup(plan, *layouts, matrix is not None, x.device, interpreted()))


@lru_cache(maxsize=256)
def _setup(
    plan: Plan, x: _Layout, y: _Layout, mask: _Layout | None, distant: bool, device: torch.device, interpreter: bool
) -> _Setup:
    items, classes, voxels = x.shape
    if plan.labels and plan.overlap == "minimum" and plan.activation == "softmax" and mask is None:
        plan = plan._replace(overlap="product")  # of hard targets, they are the same
    many = plan.activation == "softmax" and classes > _HELD
    padded = _LOOPED if many else min(power_of_2(classes), _HELD)
    each, block = _tile(padded, x.dtype.itemsize)
    if interpreter:
        block = 1024
    per_program = block if many else min(share(voxels * items, block, device), voxel.MOST_TILES * block)
    rows = [VOLUME]
    rows += [TP, FP, FN] if plan.overlap != "none" else []
    rows += [HITS, MISSES] if plan.surprisal != "none" else []
    rows += [DISTANCE, NEARNESS] if distant else []
    return _Setup(
        kernels=(voxel_many.sums_of_many, voxel_many.slopes_of_many) if many else (voxel.sums, voxel.slopes),
        grid=(-(-voxels // per_program), items, 1 if many else -(-classes // padded)),
        numbers=(voxels, per_program, plan.gamma),
        strides=(*x.stride[:2], *y.stride[:2], 0 if mask is None or mask.shape[0] == 1 else mask.stride[0]),
        kind=Kind(
            x_step=x.stride[2], y_step=y.stride[2], mask_step=1 if mask is None else mask.stride[2],
            classes=classes, padded=padded, block=block, each=each, real=real_type(x.dtype),
            labels=plan.labels, ignore=_ignore(plan, y.dtype), masked=mask is not None, distant=distant,
            activation=_ACTIVATIONS.index(plan.activation), overlap=_OVERLAPS.index(plan.overlap),
            surprisal=_SURPRISALS.index(plan.surprisal),
            by_class=plan.surprisal != "none" and not (plan.labels and plan.surprisal == "target"),
            focus=int(plan.gamma) if plan.gamma in (0, 1, 2) else 3,
        ),
        used=sum(1 << row for row in rows),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _compound_terms(asked: CompoundPlan) -> tuple[np.ndarray[Any, Any], tuple[float, ...], dict[str, Any]]:
    """Return the factors, the numbers and the constants that the kernel of compound losses takes."""
    nothing = (None,) * len(asked.hits)
    rows = asked.fractions or nothing, asked.hits, asked.misses, asked.volumes or nothing
    factors = np.array([[math.nan if each is None else each for each in row] for row in rows])
    numbers: tuple[float, ...] = (0.0,) * 5
    constants = {
        "FRACTION": asked.terms is not None, "BATCH": False, "COMPLEMENTARY": False,
        "COUNTED": bool(asked.volumes), "BY_ITEM": asked.by_item,
        "FIRST": 0, "POWER": None, "OFFSET": 0, "NORMALIZED": False,
    }  # fmt: skip
    if asked.terms is not None:
        terms = asked.terms
        ((_, in_overlap),), ((_, in_errors), (_, in_others)) = terms.overlap, terms.errors
        numbers = in_overlap, in_errors, in_others, terms.smooth_nr, terms.smooth_dr
        constants |= {"BATCH": terms.batch, "COMPLEMENTARY": terms.complementary, "FIRST": terms.first}
    if asked.weigh is not None:
        weigh = asked.weigh
        constants |= {"POWER": weigh.power, "OFFSET": weigh.offset, "NORMALIZED": weigh.normalized}
    return factors, numbers, constants


@lru_cache(maxsize=256)
def _terms(
    terms: Terms, weights: ClassWeights | None, mean: bool, classes: int
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Return the numbers and the constants that the kernel of the fraction takes."""
    ((overlap, in_overlap),) = terms.overlap
    (errors, in_errors), *others = terms.errors
    other, in_others = others[0] if others else (None, 0.0)
    kind = (None, 0, False, False) if weights is None else astuple(weights)
    constants = {
        "OVERLAP": overlap, "ERRORS": errors, "OTHERS": other, "FIRST": terms.first, "BATCH": terms.batch,
        "COMPLEMENTARY": terms.complementary, "MEAN": mean, **dict(zip(_KIND, kind, strict=True)), **_classes(classes),
    }  # fmt: skip
    return (in_overlap, in_errors, in_others, terms.smooth_nr, terms.smooth_dr), constants


def _tile(classes: int, size: int) -> tuple[int, int]:
    """Return how many voxels a thread loads at once, and how many a program takes at once, for numbers of some bytes.

    If few, all classes of a voxel lie in one thread, where sums over them cost least.
    """
    few = classes * max(size, 4) <= 64
    each = max(min(16 // size, 16 // classes), 1) if few else 16 // max(size, 4)
    return each, 32 * _WARPS * each if few else 64


def _ignore(plan: Plan, dtype: torch.dtype) -> int | float | None:
    """Return ignore_index as a number of the target's type, or None if no target of this type holds it."""
    number = plan.ignore_index
    if number is None or not plan.labels:
        return number
    if dtype.is_floating_point:
        return float(number)
    limits = torch.iinfo(dtype)
    return number if limits.min <= number <= limits.max else None


def _parts(call: _Call) -> Tensor:
    """Return the statistics of each chunk of voxels, (B, chunks, ROWS, C); rows that are not used are undefined."""
    setup, classes = call.setup, call.x.shape[1]
    real = torch.float32 if classes > _HELD and call.x.dtype != torch.float64 else torch.float64  # for many chunks
    shape = setup.grid[1], setup.grid[0], len(ROWS), classes
    parts = torch.empty(shape, dtype=real, device=call.x.device)
    launch(
        setup.kernels[0], setup.grid, *call.tensors, parts, *setup.numbers, *setup.strides, warps=_WARPS,
        KIND=setup.kind,
    )  # fmt: skip
    return parts


def _parts_or_sums(call: _Call, summed: bool) -> tuple[Tensor, int, int, int]:
    """Return the parts of few chunks, or their sums; and the number of chunks, and the steps between items and rows."""
    parts = _parts(call)
    items, chunks, rows, classes = parts.shape
    if summed or chunks > _FEW_CHUNKS:
        return _added(call, parts), 1, classes, items * classes
    return parts, chunks, chunks * rows * classes, classes


def _added(call: _Call, parts: Tensor) -> Tensor:
    items, chunks, rows, classes = parts.shape
    added = torch.empty((rows, items, classes), dtype=torch.float64, device=parts.device)
    launch(
        fraction.add, (items, -(-rows * classes // _COLUMNS)), parts, added, chunks,
        warps=8, USED=call.setup.used, CLASSES=classes, WIDTH=_COLUMNS, TOGETHER=4096 // _COLUMNS,
    )  # fmt: skip
    return added


def _slopes(call: _Call) -> Tensor:
    """Return memory for the slopes of `compiled/rows.py`, (SLOPES, B, C)."""
    real = torch.float64 if call.x.dtype == torch.float64 else torch.float32
    return torch.empty((SLOPES, *call.x.shape[:2]), dtype=real, device=call.x.device)


def _gradient(slopes: Tensor, factor: Tensor | None, x: Tensor, call: _Call) -> Tensor:
    """Return dL/dx times a factor, in the memory layout of x."""
    setup, made = call.setup, torch.empty_like(call.x)
    launch(
        setup.kernels[1], setup.grid, *call.tensors, slopes, factor, made, *setup.numbers, *setup.strides,
        made.stride(0), made.stride(1), out_step=made.stride(2), warps=_WARPS, KIND=setup.kind,
    )  # fmt: skip
    return made.view(x.shape)
