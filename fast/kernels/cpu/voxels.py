"""The statistics of a segmentation on the CPU, their gradient, and losses that are a fraction of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import (
    HITS,
    ROWS,
    VOLUME,
    Distances,
    FractionPlan,
    InvalidVoxelsError,
    Plan,
    Terms,
    UpstreamSlopes,
    VoxelInputs,
    unweighted,
)
from twinloss.fast.kernels.cpu.arrays import Array, total_of_parts
from twinloss.fast.kernels.cpu.compiled import fraction, voxel
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.voxel_call import VoxelCall, places
from twinloss.fast.runtime.dispatch import HALVES
from twinloss.fast.runtime.memory import empty_like, scalar
from twinloss.fast.runtime.torch_operator import Once

# Up to this number of logits, which stay in the cache until backward, reading the target again is faster than keeping a
# compressed copy.
_CACHED = 2**18
# Above this number of logits, compute the gradient during the forward pass if dL/d(hits) is known in advance: a second
# pass takes longer than computing dL/d(hits).
_MANY = 2**20

# The object that forward may keep for backward. For large inputs, it is a compressed copy of target and mask, with half
# a byte per voxel. For small inputs, it is the call, because constructing it takes longer than running the kernels.
_Kept = Once[Tensor | VoxelCall]


class _Foreseen(NamedTuple):
    slopes: Array
    gradient: Once[Tensor]


class _KeptForLoss(NamedTuple):
    slopes: Array
    voxels: _Kept | None


def sums(inputs: VoxelInputs, plan: Plan, ahead: bool, slopes: UpstreamSlopes | None) -> tuple[Tensor, object]:
    """Return the statistics, (ROWS, B, C) float64, and the object that is kept for the gradient."""
    x, target, _, matrix = inputs
    if slopes is not None and _gains_by_foresight(inputs, plan):
        foreseen = np.zeros((len(ROWS), *x.shape[:2]))
        foreseen[HITS] = slopes().numpy()
        made, gradient = _sums_and_gradient(x, target, plan, foreseen)
        return torch.from_numpy(made), None if gradient is None else _Foreseen(foreseen, Once(gradient))
    made, kept = _sums(inputs, None if matrix is None else matrix.numpy(), plan, ahead)
    return torch.from_numpy(made), kept


def gradient(upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: _Foreseen | _Kept | None) -> Tensor:
    """Return dL/dx, given dL/d(statistics), (ROWS, B, C)."""
    slopes = np.ascontiguousarray(upstream.numpy())
    if isinstance(kept, _Foreseen):
        made = kept.gradient.take()
        factor = None if made is None else _multiple(slopes, kept.slopes)
        if made is not None and factor is not None:
            return made if factor == 1 else made.mul_(factor)
        kept = None
    matrix = None if inputs.matrix is None else inputs.matrix.numpy()
    return _gradient(slopes, 1.0, inputs, matrix, plan, None if kept is None else kept.take())


def loss(inputs: VoxelInputs, asked: FractionPlan, ahead: bool) -> tuple[Tensor, _KeptForLoss]:
    """Return a scalar loss, and an object for its gradient, which holds dL/d(statistics)."""
    terms = asked.terms
    made, kept = _sums(inputs, _matrix(asked.distances), asked.plan, ahead)
    weights: Sequence[Array] = ()
    if asked.weigh is not unweighted:
        volumes = made[VOLUME][:, terms.first :]
        with np.errstate(all="ignore"):
            weights = asked.weigh(volumes.sum(axis=0, keepdims=True) if terms.batch else volumes)
    w_overlap, w_errors = (weights[0], weights[-1]) if weights else (_NO_WEIGHTS, _NO_WEIGHTS)
    slopes = np.zeros(made.shape)
    total = fraction.fraction(made, *_constants(terms), w_overlap, w_errors, asked.mean, slopes)
    return scalar(total, asked.dtype, "cpu"), _KeptForLoss(slopes, kept)


def loss_gradient(upstream: Tensor, inputs: VoxelInputs, asked: FractionPlan, kept: _KeptForLoss | None) -> Tensor:
    """Return the gradient of such a loss, times the upstream gradient."""
    if kept is None:
        _, kept = loss(inputs, asked, ahead=False)
    voxels = None if kept.voxels is None else kept.voxels.take()
    return _gradient(kept.slopes, upstream.item(), inputs, _matrix(asked.distances), asked.plan, voxels)


_NO_WEIGHTS = np.zeros((0, 0))


@lru_cache
def _matrix(distances: Distances | None) -> Array | None:
    return None if distances is None else np.array(distances)


@lru_cache
def _constants(terms: Terms) -> tuple[Any, ...]:
    """Return the arguments of `fraction.fraction` that describe the terms."""
    smooth = terms.smooth_nr, terms.smooth_dr
    return _factors(terms.overlap), _factors(terms.errors), smooth, terms.first, terms.batch, terms.complementary


def _factors(part: Sequence[tuple[int, float]]) -> Array:
    """Return the factor of each row of the statistics, and NaN for unused rows. It is not 0, because 0 * NaN is NaN."""
    factors = np.full(len(ROWS), np.nan)
    for row, factor in part:
        factors[row] = factor
    return factors


# --- sums and gradient by the kernels ---------------------------------------------------------------------------------


def _sums(inputs: VoxelInputs, matrix: Array | None, plan: Plan, ahead: bool) -> tuple[Array, _Kept | None]:
    """Return the statistics, (ROWS, B, C), and, with `ahead`, an object to pass to `_gradient`."""
    x, target, mask, _ = inputs
    call = VoxelCall(x, target, mask, plan, matrix is not None)
    many = x.numel() > _CACHED
    kept = call.keep_target() if ahead and call.layout.keeps_target and many else None
    distances = None if matrix is None else matrix.astype(call.layout.real)

    def add(first: int, end: int, by_chunk: Array) -> int:
        if call.whole is not None:
            return call.forward(call.whole, first, end, distances, by_chunk)
        worst = VALID
        for part, chunk, _ in call.widened_parts(first, end):
            worst = max(worst, call.forward(part, 0, 1, distances, by_chunk[chunk : chunk + 1]))
            if worst == NOT_BINARY:
                break
            del part
        return worst

    made = _summed(call, add)
    if ahead and not many:
        return made, Once(call)
    return made, Once(kept) if kept is not None and call.layout.keeps_target else None


def _summed(call: VoxelCall, add: Callable[[int, int, Array], int]) -> Array:
    """Return the sums by item, (ROWS, B, C); `add` adds a range of chunks to an array (chunks, 2, ROWS, C)."""
    items, classes, _ = call.shape
    by_chunk = np.zeros((call.chunks, 2, len(ROWS), classes))

    def forward(first: int, end: int) -> int:
        by_chunk[first:end] = 0  # the general kernels may have to start again
        return add(first, end, by_chunk)

    if call.run(forward):
        raise InvalidVoxelsError
    made = by_chunk[:, 0].reshape(items, call.layout.chunks, len(ROWS), classes)
    return np.ascontiguousarray(total_of_parts(made.swapaxes(0, 1)).swapaxes(0, 1))


def _gradient(
    slopes: Array,
    factor: float,
    inputs: VoxelInputs,
    matrix: Array | None,
    plan: Plan,
    kept: Tensor | VoxelCall | None,
) -> Tensor:
    """Return dL/dx times a factor, given dL/d(statistics), (ROWS, B, C), and the object that `_sums` returned."""
    x, target, mask, _ = inputs
    labels = kept if isinstance(kept, Tensor) else None
    if isinstance(kept, VoxelCall) and kept.places == places(x, target, mask):
        call = kept
    else:
        call = VoxelCall(x, target, mask, plan, matrix is not None, labels)
    (items, classes, _), real = call.shape, call.layout.real
    by_row = np.empty((len(ROWS), items, classes), real)
    by_class = None if matrix is None else np.empty((items, classes, classes), real)
    fits = fraction.scaled(slopes, factor, plan.overlap == "squared", matrix, by_row, by_class)
    if not fits and real is np.float32:
        # If a class is almost absent, and there is no smoothing, dL/d(statistics) may overflow float32, but dL/dx does
        # not.
        wide = inputs._replace(x=x.double())
        return _gradient(slopes, factor, wide, matrix, plan, labels).float().to(x.dtype)
    made = empty_like(x)
    if call.whole is None:
        call.run(_put_in_halves(call, by_row, by_class, made.view(call.shape)))
    else:
        whole, out = call.whole, made.numpy().reshape(call.shape)
        call.run(lambda first, end: call.backward(whole, first, end, by_class, by_row, out))
    return made


def _put_in_halves(call: VoxelCall, slopes: Array, by_class: Array | None, made: Tensor) -> Callable[[int, int], int]:
    """Return a function that writes the half-precision gradient of ranges of chunks, and returns a status."""

    def put(first: int, end: int) -> int:
        for part, _, (item, start, stop) in call.widened_parts(first, end):
            matrix = None if by_class is None else by_class[item : item + 1]
            of_item = np.ascontiguousarray(slopes[:, item : item + 1])
            out = part.x if call.layout.writes_in_place else np.empty_like(part.x)
            if call.backward(part, 0, 1, matrix, of_item, out) == NOT_BINARY:
                return NOT_BINARY
            made[item, :, start:stop] = torch.from_numpy(out[0])
            del out, part
        return VALID

    return put


# --- value and gradient in one pass -----------------------------------------------------------------------------------


def _gains_by_foresight(inputs: VoxelInputs, plan: Plan) -> bool:
    """Return whether the gradient can be computed in the same pass, and whether this is faster.

    The kernel for this supports only surprisals, of labels of more than two classes, without excluded voxels.
    """
    x = inputs.x
    alone = (plan.overlap, plan.surprisal, plan.activation) == ("none", "target", "softmax") and plan.labels
    served = x.shape[1] > 2 and x.dtype not in HALVES and inputs.mask is None and plan.ignore_index is None
    return alone and served and x.numel() > _MANY


def _multiple(slopes: Array, foreseen: Array) -> float | None:
    """Return the ratio of the slopes to the expected ones, or None if it is not the same for all elements."""
    largest = np.abs(foreseen).argmax()
    with np.errstate(all="ignore"):
        factor = float(slopes.flat[largest] / foreseen.flat[largest])
        return factor if np.allclose(slopes, factor * foreseen, rtol=1e-14, atol=0) else None


def _sums_and_gradient(x: Tensor, target: Tensor, plan: Plan, slopes: Array) -> tuple[Array, Tensor | None]:
    """Return the statistics, and dL/dx given dL/d(statistics), (ROWS, B, C), or None if these overflow float32."""
    call = VoxelCall(x, target, None, plan, False)
    by_row, part = np.empty((len(ROWS), *x.shape[:2]), call.layout.real), call.whole
    if part is None or not fraction.scaled(slopes, 1.0, False, None, by_row, None):
        return _sums(VoxelInputs(x, target), None, plan, False)[0], None
    gradient = empty_like(x)
    out = gradient.numpy().reshape(call.shape)
    statistics, options = call.layout.statistics, call.layout.options

    def add(first: int, end: int, by_chunk: Array) -> int:
        found: int = voxel.surprisals_of_labels(
            part.x, part.target, *statistics, None, *options, part.mask, first, end, by_chunk, by_row, out
        )
        return found

    return _summed(call, add), gradient
