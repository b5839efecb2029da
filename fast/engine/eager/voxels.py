"""The statistics of a segmentation in operators of torch, their gradient, and losses that are a fraction of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from twinloss.fast.engine.eager.dense_target import gradient_of_dense, sums_of_dense
from twinloss.fast.engine.eager.label_target import Softmax, gradient_of_labels, sums_of_labels
from twinloss.fast.engine.eager.voxel_inputs import Slopes, one_hot, voxels_of
from twinloss.fast.engine.segmentation.fraction import (
    Weights,
    distance_matrix,
    parts_of,
    slopes_of_parts,
    volumes,
)
from twinloss.fast.engine.segmentation.labels import ignored
from twinloss.fast.kernels.contract import (
    DISTANCE,
    FN,
    FP,
    NEARNESS,
    ROWS,
    TP,
    VOLUME,
    FractionPlan,
    InvalidVoxelsError,
    Plan,
    Terms,
    UpstreamSlopes,
    VoxelInputs,
    flat,
)
from twinloss.fast.runtime.checks import is_readable
from twinloss.fast.runtime.constants import accumulator, constant
from twinloss.fast.runtime.dispatch import full_precision, widened
from twinloss.fast.runtime.torch_operator import Once


def sums(inputs: VoxelInputs, plan: Plan, ahead: bool, slopes: UpstreamSlopes | None) -> tuple[Tensor, object]:
    """Return the statistics, see `VoxelKernels.sums`."""
    made, valid, softmax = _sums(inputs, plan)
    return made, _Kept(valid, Once(softmax) if ahead else None)


def gradient(upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: _Kept | None) -> Tensor:
    """Return dL/dx, see `VoxelKernels.gradient`."""
    with full_precision(upstream):
        rows = constant(_FIELDS[plan.overlap == "squared"], upstream) @ upstream.flatten(1)
    rows = rows.view(-1, *upstream.shape[1:], 1).to(widened(inputs.x[:0]).dtype)
    valid = _valid(inputs, plan, None) if kept is None else kept.valid
    if valid is not None:  # the slopes may not depend on the sums, which are NaN if the labels are invalid
        rows = torch.where(valid, rows, constant(math.nan, rows))
    return _gradient(Slopes(*rows.unbind()), inputs, plan, _taken(kept))


def _row(**factors: float) -> tuple[float, ...]:
    return tuple(factors.get(name, 0.0) for name in ROWS)


# The fields of `Slopes` as sums of the slopes in all statistics, and the same for squared overlaps.
_FIELDS = tuple(
    (
        _row(tp=1, fn=-count, tp_less_fn=1), _row(fp=1), _row(fn=1), _row(tp=1), _row(hits=1), _row(misses=1),
        _row(distance=1, nearness=-1),
    )
    for count in (1, 2)
)  # fmt: skip


@dataclass
class _Kept:
    """What sums keep for their gradient: whether labels and mask are valid, see `_sums`, and the softmax, or None."""

    valid: Tensor | None
    softmax: Once[Softmax | None] | None


@dataclass
class _KeptForLoss:
    """The parts of the fraction, see `parts_of`, the weights of classes, and the softmax, or None."""

    parts: Tensor
    weights: Weights
    softmax: Once[Softmax | None] | None


def _taken(kept: _Kept | _KeptForLoss | None) -> Softmax | None:
    return None if kept is None or kept.softmax is None else kept.softmax.take()


def loss(inputs: VoxelInputs, asked: FractionPlan, ahead: bool) -> tuple[Tensor, _KeptForLoss]:
    """Return a scalar loss, see `VoxelKernels.loss`."""
    weighed = len(asked.weigh(np.ones((1, 1)))) > 0
    made, _, softmax = _sums(_with_matrix(inputs, asked), asked.plan, weighed)
    weights = tuple(asked.weigh(volumes(made[VOLUME], asked.terms)))
    pair = (*weights, None, None)[:2]
    kept = _KeptForLoss(parts_of(made, pair, asked.terms), pair, Once(softmax) if ahead else None)
    by_class = kept.parts[1] / kept.parts[2]
    return (by_class.mean() if asked.mean else by_class.sum()).to(asked.dtype), kept


def loss_gradient(upstream: Tensor, inputs: VoxelInputs, asked: FractionPlan, kept: _KeptForLoss | None) -> Tensor:
    """Return the gradient of such a loss, times the upstream gradient."""
    if kept is None:
        _, kept = loss(inputs, asked, ahead=False)
    terms, denominator = asked.terms, kept.parts[2]
    by_denominator = upstream.to(denominator.dtype) / denominator
    mixing = _mixing(terms, denominator.numel() if asked.mean else 1)
    rows = slopes_of_parts(by_denominator, kept.parts, kept.weights, mixing)
    rows = functional.pad(rows.to(widened(inputs.x[:0]).dtype), (terms.first, 0)).unsqueeze(-1)
    slopes = Slopes(distance=rows[0]) if asked.distances else Slopes(*rows.unbind())
    return _gradient(slopes, _with_matrix(inputs, asked), asked.plan, _taken(kept))


def _with_matrix(inputs: VoxelInputs, asked: FractionPlan) -> VoxelInputs:
    return inputs._replace(matrix=distance_matrix(asked.distances, inputs.x))


@cache
def _mixing(terms: Terms, count: int) -> tuple[tuple[float, float], ...]:
    """Return how the first fields of `Slopes`, divided by a count, mix the parts of a fraction."""
    overlap, errors = dict(terms.overlap), dict(terms.errors)
    if DISTANCE in errors:
        return ((errors[DISTANCE] / count, overlap[NEARNESS] / count),)
    a, b, c = overlap[TP] / count, errors[FP] / count, errors[FN] / count
    return (-c if terms.complementary else -2 * c, -a), (b, 0.0), (c, 0.0), (0.0, -a)


def _sums(inputs: VoxelInputs, plan: Plan, volume: bool = True) -> tuple[Tensor, Tensor | None, Softmax | None]:
    """Return the statistics, whether labels and mask are valid, if these can be invalid, and a softmax to keep.

    If they are invalid, the statistics are NaN, or an error is raised if numbers can be read. The volume is computed if
    it takes no operator, or if it is asked for.
    """
    voxels, labelled, softmax = voxels_of(inputs, plan), None, None
    if voxels.labels:
        own = voxels.own()
        labelled = own.sum(-1)
        masked = inputs.mask is not None
        rows, softmax = sums_of_labels(voxels, own, plan, inputs.matrix, volume and masked)
    else:
        rows, p = sums_of_dense(voxels, plan)
        softmax = None if p is None else Softmax(p)
        if plan.labels:
            labelled = one_hot(flat(inputs.target), voxels.x.shape[1], voxels.ignored).sum(-1)
    nothing = constant(0.0, voxels.x).expand(voxels.x.shape[:2])
    stack = torch.stack([rows.get(row, nothing) for row in range(len(ROWS))]).to(accumulator(voxels.x.device))
    if labelled is not None and inputs.mask is None:
        stack[VOLUME] = labelled
    valid = _valid(inputs, plan, labelled)
    if valid is None:
        return stack, None, softmax
    if is_readable(valid):
        if not valid:
            raise InvalidVoxelsError
        return stack, None, softmax
    return torch.where(valid, stack, constant(math.nan, stack)), valid, softmax


def _valid(inputs: VoxelInputs, plan: Plan, labelled: Tensor | None) -> Tensor | None:
    """Return whether labels and mask are valid, or None if they cannot be invalid.

    Labels are valid if each voxel is ignored or has a class, of which `labelled` has the number of voxels.
    """
    target, valid = flat(inputs.target), None
    if plan.labels:
        out = None if plan.ignore_index is None else ignored(target, True, plan.ignore_index)
        if labelled is None:
            labelled = one_hot(target, inputs.x.shape[1], out)
        valid = (labelled.sum() if out is None else labelled.sum() + out.sum()) == target.numel()
    if inputs.mask is not None and inputs.mask.dtype != torch.bool:
        low, high = flat(inputs.mask).aminmax()
        within = torch.logical_and(low >= 0, high <= 1)
        valid = within if valid is None else valid.logical_and_(within)
    return valid


def _gradient(slopes: Slopes, inputs: VoxelInputs, plan: Plan, softmax: Softmax | None) -> Tensor:
    voxels = voxels_of(inputs, plan, for_gradient=True)
    if voxels.labels:
        made = gradient_of_labels(slopes, voxels, plan, inputs.matrix, softmax)
    else:
        made = gradient_of_dense(slopes, voxels, plan, None if softmax is None else softmax.p)
    if voxels.excluded is not None:
        made.masked_fill_(voxels.excluded, 0)
    return made.reshape(inputs.x.shape).to(inputs.x.dtype)
