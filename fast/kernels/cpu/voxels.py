"""The statistics of a segmentation on the CPU, their gradient, and the losses that are a fraction of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.contract import (
    HITS,
    ROWS,
    VOLUME,
    FractionPlan,
    InvalidVoxelsError,
    Plan,
    UpstreamSlopes,
    VoxelInputs,
)
from twinloss.fast.kernels.cpu.compiled import fraction, voxel
from twinloss.fast.kernels.cpu.compiled.status import NOT_BINARY, VALID
from twinloss.fast.kernels.cpu.voxel_call import Array, VoxelCall, places
from twinloss.fast.runtime.dispatch import HALVES
from twinloss.fast.runtime.memory import empty, scalar
from twinloss.fast.runtime.torch_operator import Once

# Up to so many logits, which the caches hold until the backward, it takes longer to keep what was read of the target
# than to read it again.
_CACHED = 2**18
# Above this size, compute the gradient during the forward pass where its slopes can be foreseen: a second pass takes
# longer than to foresee them.
_MANY = 2**20

# What a forward may keep for the backward. For large inputs: what it has read of target and mask, half a byte for each
# voxel. For small ones, where it takes longer to find kernels than to call them: the call.
_Kept = Once[Tensor | VoxelCall]


class _Foreseen(NamedTuple):
    slopes: Array
    gradient: Once[Tensor]


class _KeptForLoss(NamedTuple):
    slopes: Array
    voxels: _Kept | None


def sums(inputs: VoxelInputs, plan: Plan, ahead: bool, slopes: UpstreamSlopes | None) -> tuple[Tensor, object]:
    """Return the statistics, (ROWS, B, C) float64, and whatever is kept for the gradient."""
    x, target, _, matrix = inputs
    if slopes is not None and _gains_by_foresight(inputs, plan):
        foreseen = np.zeros((len(ROWS), *x.shape[:2]))
        foreseen[HITS] = slopes().numpy()
        made, gradient = _sums_and_gradient(x, target, plan, foreseen)
        return torch.from_numpy(made), None if gradient is None else _Foreseen(foreseen, Once(gradient))
    made, kept = _sums(inputs, None if matrix is None else matrix.numpy(), plan, ahead)
    return torch.from_numpy(made), kept


def gradient(upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: _Foreseen | _Kept | None) -> Tensor:
    """Return dL/dx, given the slopes in the statistics, (ROWS, B, C)."""
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
    """Return a loss without axes, and the slopes in its statistics beside what is kept of these."""
    terms = asked.terms
    made, kept = _sums(inputs, _matrix(asked), asked.plan, ahead)
    volumes = made[VOLUME][:, terms.first :]
    with np.errstate(all="ignore"):
        if terms.batch:
            volumes = volumes.sum(axis=0, keepdims=True)
        weights = asked.weigh(volumes) or (_NO_WEIGHTS,)
    slopes, smooth = np.zeros(made.shape), (terms.smooth_nr, terms.smooth_dr)
    options = smooth, terms.first, terms.batch, terms.complementary, weights[0], weights[-1], asked.mean
    total = fraction.fraction(made, _factors(terms.overlap), _factors(terms.errors), *options, slopes)
    return scalar(total, asked.dtype, "cpu"), _KeptForLoss(slopes, kept)


def loss_gradient(upstream: Tensor, inputs: VoxelInputs, asked: FractionPlan, kept: _KeptForLoss | None) -> Tensor:
    """Return dL/dx of such a loss, times the slope in it."""
    if kept is None:
        _, kept = loss(inputs, asked, ahead=False)
    voxels = None if kept.voxels is None else kept.voxels.take()
    return _gradient(kept.slopes, upstream.item(), inputs, _matrix(asked), asked.plan, voxels)


_NO_WEIGHTS = np.zeros((0, 0))


def _matrix(asked: FractionPlan) -> Array | None:
    return None if asked.distances is None else np.array(asked.distances)


@lru_cache
def _factors(part: Sequence[tuple[int, float]]) -> Array:
    """Return the factor of each row of the statistics; NaN for the others, as 0 NaN is not 0."""
    factors = np.full(len(ROWS), np.nan)
    for row, factor in part:
        factors[row] = factor
    return factors


# --- sums and gradient by the kernels ---------------------------------------------------------------------------------


def _sums(inputs: VoxelInputs, matrix: Array | None, plan: Plan, ahead: bool) -> tuple[Array, _Kept | None]:
    """Return the statistics, (ROWS, B, C), and, if asked `ahead`, what `_gradient` may be given."""
    x, target, mask, _ = inputs
    call = VoxelCall(x, target, mask, plan, matrix is not None)
    many = x.numel() > _CACHED
    kept = call.keep_target() if ahead and call.keeps_target and many else None
    distances = None if matrix is None else matrix.astype(call.real)

    def add(first: int, end: int, by_chunk: Array) -> int:
        worst = VALID
        for part, chunk, _ in call.parts(first, end):
            found = call.forward(part, distances, by_chunk[chunk:end])
            if found == NOT_BINARY:
                return found
            worst = max(worst, found)
            del part
        return worst

    made = _summed(call, add)
    if ahead and not many:
        return made, Once(call)
    return made, Once(kept) if kept is not None and call.keeps_target else None


def _summed(call: VoxelCall, add: Callable[[int, int, Array], int]) -> Array:
    """Return the sums of items, (ROWS, B, C), where `add` adds ranges of chunks to their places in (N, ROWS, C)."""
    items, classes, _ = call.x.shape
    made = np.empty((items, call.chunks_of_item, len(ROWS), classes))
    by_chunk = made.reshape(-1, len(ROWS), classes)

    def forward(first: int, end: int) -> int:
        by_chunk[first:end] = 0
        return add(first, end, by_chunk)

    if call.run(forward):
        raise InvalidVoxelsError
    by_item = made[:, 0] if made.shape[1] == 1 else made.sum(1)
    return np.ascontiguousarray(by_item.transpose(1, 0, 2))


def _gradient(
    slopes: Array,
    factor: float,
    inputs: VoxelInputs,
    matrix: Array | None,
    plan: Plan,
    kept: Tensor | VoxelCall | None,
) -> Tensor:
    """Return dL/dx, given the slopes in the statistics, (ROWS, B, C), times a factor; see `_sums`."""
    x, target, mask, _ = inputs
    labels = kept if isinstance(kept, Tensor) else None
    if isinstance(kept, VoxelCall) and kept.places == places(x, target, mask):
        call = kept
    else:
        call = VoxelCall(x, target, mask, plan, matrix is not None, labels)
    items, classes, _ = call.x.shape
    by_row = np.empty((len(ROWS), items, classes), call.real)
    by_class = None if matrix is None else np.empty((items, classes, classes), call.real)
    fits = fraction.scaled(slopes, factor, plan.overlap == "squared", matrix, by_row, by_class)
    if not fits and call.real is np.float32:
        # A class that all but vanishes, with no smoothing: slopes beyond float32, but not their product with p.
        wide = inputs._replace(x=x.double())
        return _gradient(slopes, factor, wide, matrix, plan, labels).float().to(x.dtype)
    made = empty(x.shape, x.dtype)
    call.run(_put_gradient(call, by_row, by_class, made.view(call.x.shape)))
    return made


def _put_gradient(call: VoxelCall, slopes: Array, by_class: Array | None, made: Tensor) -> Callable[[int, int], int]:
    """Return a function that writes the gradient of ranges of chunks into `made`, and returns a status."""

    def put(first: int, end: int) -> int:
        for part, _, (item, start, stop) in call.parts(first, end):
            matrix = None if by_class is None else by_class[item]
            if not call.halves:
                found = call.backward(part, matrix, slopes, made.numpy())
            else:
                of_item = np.ascontiguousarray(slopes[:, item : item + 1])
                out = part.x if call.writes_in_place else np.empty_like(part.x)
                found = call.backward(part, matrix, of_item, out)
                if found != NOT_BINARY:
                    made[item, :, start:stop] = torch.from_numpy(out[0])
                del out
            if found == NOT_BINARY:
                return found
            del part
        return VALID

    return put


# --- value and gradient in one pass -----------------------------------------------------------------------------------


def _gains_by_foresight(inputs: VoxelInputs, plan: Plan) -> bool:
    """Return whether it is of use to know the slopes in the statistics ahead.

    There is a kernel for surprisals alone, of labels of more than two classes, all of which count.
    """
    x = inputs.x
    alone = (plan.overlap, plan.surprisal, plan.activation) == ("none", "target", "softmax") and plan.labels
    served = x.shape[1] > 2 and x.dtype not in HALVES and inputs.mask is None and plan.ignore_index is None
    return alone and served and x.numel() > _MANY


def _multiple(slopes: Array, foreseen: Array) -> float | None:
    """Return how many times the slopes are those that were foreseen, up to rounding; None if they are others."""
    largest = np.abs(foreseen).argmax()
    with np.errstate(all="ignore"):
        factor = float(slopes.flat[largest] / foreseen.flat[largest])
        return factor if np.allclose(slopes, factor * foreseen, rtol=1e-14, atol=0) else None


def _sums_and_gradient(x: Tensor, target: Tensor, plan: Plan, slopes: Array) -> tuple[Array, Tensor | None]:
    """Return the statistics, and dL/dx given the slopes in them, (ROWS, B, C), unless these are too large."""
    call = VoxelCall(x, target, None, plan, False)
    by_row = np.empty((len(ROWS), *x.shape[:2]), call.real)
    if not fraction.scaled(slopes, 1.0, False, None, by_row, None):
        return _sums(VoxelInputs(x, target), None, plan, False)[0], None
    gradient = empty(x.shape, x.dtype)
    item, *_, gamma = call.asked
    at = call.x.numpy(), call.target, item, gamma, by_row
    both, out = voxel.surprisals_of_labels, gradient.view(call.x.shape).numpy()

    def add(first: int, end: int, by_chunk: Array) -> int:
        worst: int = max(both(*at, *span, by_chunk[chunk:end], out) for chunk, *span in call.spans(first, end))
        return worst

    return _summed(call, add), gradient
