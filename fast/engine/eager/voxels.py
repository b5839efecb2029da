"""The statistics of a segmentation in operators of torch, their gradient, and losses that are a fraction of them.

A softmax needs 1 - p without the subtraction, see `segmentation/README.md`. For labels, it is the sum of the other
probabilities. In the gradient p_k (a_k - Σ p_j a_j), with a = dL/dp, the first term cancels the second if p_k is close
to 1. The gradient stays the same if a constant is added to all a of a voxel. Therefore a of the most probable class is
subtracted first, so that the first term is 0 where the second could cancel it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from twinloss.fast.engine.segmentation.fraction import (
    Weights,
    distance_matrix,
    parts_of,
    slopes_of_parts,
    volumes,
)
from twinloss.fast.engine.segmentation.labels import comparable, ignored
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
    FractionPlan,
    InvalidVoxelsError,
    Plan,
    Terms,
    UpstreamSlopes,
    VoxelInputs,
    flat,
)
from twinloss.fast.runtime.checks import is_readable
from twinloss.fast.runtime.constants import accumulator, classes, constant
from twinloss.fast.runtime.dispatch import full_precision, widened


class _Slopes(NamedTuple):
    """Derivatives with respect to the statistics, (B or 1, C, 1) in the dtype of the input, or None for 0.

    Attributes:
        hit: with respect to TP minus FN, or minus twice FN for squared overlaps.
        fp: with respect to FP.
        fn: with respect to FN.
        tp: with respect to TP.
        hits: with respect to the hits.
        misses: with respect to the misses.
        distance: with respect to the distance minus the nearness.
    """

    hit: Tensor | None = None
    fp: Tensor | None = None
    fn: Tensor | None = None
    tp: Tensor | None = None
    hits: Tensor | None = None
    misses: Tensor | None = None
    distance: Tensor | None = None


# --- the protocol -----------------------------------------------------------------------------------------------------


def sums(inputs: VoxelInputs, plan: Plan, ahead: bool, slopes: UpstreamSlopes | None) -> tuple[Tensor, object]:
    """Return the statistics, see `VoxelKernels.sums`."""
    return _sums(inputs, plan)


def gradient(upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: object) -> Tensor:
    """Return dL/dx, see `VoxelKernels.gradient`."""
    with full_precision(upstream):
        rows = constant(_FIELDS[plan.overlap == "squared"], upstream) @ upstream.flatten(1)
    rows = rows.view(-1, *upstream.shape[1:], 1).to(widened(inputs.x[:0]).dtype)
    valid = kept if isinstance(kept, Tensor) else _valid(inputs, plan, None)
    if valid is not None:  # the slopes may not depend on the sums, which are NaN if the labels are invalid
        rows = torch.where(valid, rows, constant(math.nan, rows))
    return _gradient(_Slopes(*rows.unbind()), inputs, plan)


def _row(**factors: float) -> tuple[float, ...]:
    return tuple(factors.get(name, 0.0) for name in ROWS)


# The fields of `_Slopes` as sums of the slopes in all statistics, and the same for squared overlaps.
_FIELDS = tuple(
    (
        _row(tp=1, fn=-count, tp_less_fn=1), _row(fp=1), _row(fn=1), _row(tp=1), _row(hits=1), _row(misses=1),
        _row(distance=1, nearness=-1),
    )
    for count in (1, 2)
)  # fmt: skip


@dataclass
class _KeptForLoss:
    """The parts of the fraction, see `parts_of`, and the weights of classes."""

    parts: Tensor
    weights: Weights


def loss(inputs: VoxelInputs, asked: FractionPlan, ahead: bool) -> tuple[Tensor, _KeptForLoss]:
    """Return a scalar loss, see `VoxelKernels.loss`."""
    weighed = len(asked.weigh(np.ones((1, 1)))) > 0
    made, _ = _sums(_with_matrix(inputs, asked), asked.plan, weighed)
    weights = tuple(asked.weigh(volumes(made[VOLUME], asked.terms)))
    kept = _KeptForLoss(parts_of(made, (*weights, None, None)[:2], asked.terms), (*weights, None, None)[:2])
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
    slopes = _Slopes(distance=rows[0]) if asked.distances else _Slopes(*rows.unbind())
    return _gradient(slopes, _with_matrix(inputs, asked), asked.plan)


def _with_matrix(inputs: VoxelInputs, asked: FractionPlan) -> VoxelInputs:
    return inputs._replace(matrix=distance_matrix(asked.distances, inputs.x))


@cache
def _mixing(terms: Terms, count: int) -> tuple[tuple[float, float], ...]:
    """Return how the first fields of `_Slopes`, divided by a count, mix the parts of a fraction."""
    overlap, errors = dict(terms.overlap), dict(terms.errors)
    if DISTANCE in errors:
        return ((errors[DISTANCE] / count, overlap[NEARNESS] / count),)
    a, b, c = overlap[TP] / count, errors[FP] / count, errors[FN] / count
    return (-c if terms.complementary else -2 * c, -a), (b, 0.0), (c, 0.0), (0.0, -a)


# --- the voxels -------------------------------------------------------------------------------------------------------


@dataclass
class _Voxels:
    """The voxels of a call, flattened.

    Attributes:
        x: (B, C, N), float32 or float64, with 0 in excluded voxels, unless for a gradient.
        target: labels, (B, 1, N); or a dense target in the dtype of x, (B, C, N), with 0 in excluded voxels.
        labels: whether the target holds labels.
        weight: of the voxels, (B or 1, 1, N), or None if all are 1.
        soft: whether the weight may be neither 0 nor 1.
        excluded: the voxels of weight 0, (B or 1, 1, N), or None.
        ignored: the voxels that `ignore_index` excludes, (B, 1, N), or None.
    """

    x: Tensor
    target: Tensor
    labels: bool
    weight: Tensor | None
    soft: bool
    excluded: Tensor | None
    ignored: Tensor | None

    def own(self) -> Tensor:
        """Return whether a class is that of the label, (B, C, N); it is not in ignored voxels."""
        return _one_hot(self.target, self.x.shape[1], self.ignored)

    def index(self) -> Tensor:
        """Return the labels as an index of the classes, whatever they hold."""
        return self.target.to(torch.int64).clamp(0, self.x.shape[1] - 1)

    def weighed(self, values: Tensor) -> Tensor:
        """Multiply values, which the caller owns, by the weight."""
        return values if self.weight is None else values.mul_(self.weight)


def _voxels(inputs: VoxelInputs, plan: Plan, for_gradient: bool = False) -> _Voxels:
    """Return the voxels of a call.

    In a gradient, what an excluded voxel holds matters to this voxel alone, whose gradient is then set to 0. So with
    `for_gradient`, it keeps its numbers, and has no weight unless others may be neither 0 nor 1.
    """
    x, target = widened(flat(inputs.x)), flat(inputs.target)
    out = None if plan.ignore_index is None else ignored(target, plan.labels, plan.ignore_index)
    excluded, weight, soft = out, None, False
    if inputs.mask is not None:
        mask = flat(inputs.mask)
        weight, soft = mask.to(x.dtype), mask.is_floating_point()
    if out is not None:
        weight = (~out).to(x.dtype) if weight is None else _without(out, weight)
    if inputs.mask is not None and weight is not None:
        excluded = weight.eq(0)
    if for_gradient:
        weight = weight if soft else None
    elif excluded is not None:
        x = _without(excluded, x)
    # Without an activation, a prediction may lie outside [0, 1], or equal the target.
    labels = plan.labels and not (plan.activation == "identity" and plan.overlap != "product")
    if not labels:
        dense = (_one_hot(target, x.shape[1], out) if plan.labels else target).to(x.dtype)
        target = dense if excluded is None or for_gradient else _without(excluded, dense)
    return _Voxels(x, target, labels, weight, soft, excluded, out)


def _one_hot(labels: Tensor, count: int, out: Tensor | None) -> Tensor:
    made = comparable(labels) == classes(count, labels)
    return made if out is None else made.logical_and_(~out)


def _only(chosen: Tensor, values: Tensor, room: Tensor | None = None) -> Tensor:
    """Return values, and 0 where they are not chosen, in `room` if it is given.

    A number in place of the constant would be written to the device in each call.
    """
    return torch.where(chosen, values, constant(0.0, values), out=room)


def _without(excluded: Tensor, values: Tensor) -> Tensor:
    """Return values, and 0 where they are excluded."""
    return torch.where(excluded, constant(0.0, values), values)


def _sums(inputs: VoxelInputs, plan: Plan, volume: bool = True) -> tuple[Tensor, Tensor | None]:
    """Return the statistics, and whether labels and mask are valid, if these can be invalid.

    If they are invalid, the statistics are NaN, or an error is raised if numbers can be read. The volume is computed if
    it takes no operator, or if it is asked for.
    """
    voxels, labelled = _voxels(inputs, plan), None
    if voxels.labels:
        own = voxels.own()
        labelled = own.sum(-1)
        rows = _sums_of_labels(voxels, own, plan, inputs.matrix)
        if inputs.mask is not None and volume and voxels.weight is not None:
            rows[VOLUME] = _by_class(own, voxels.weight)
    else:
        rows = _sums_of_dense(voxels, plan)
        if plan.labels:
            labelled = _one_hot(flat(inputs.target), voxels.x.shape[1], voxels.ignored).sum(-1)
    nothing = constant(0.0, voxels.x).expand(voxels.x.shape[:2])
    stack = torch.stack([rows.get(row, nothing) for row in range(len(ROWS))]).to(accumulator(voxels.x.device))
    if labelled is not None and inputs.mask is None:
        stack[VOLUME] = labelled
    valid = _valid(inputs, plan, labelled)
    if valid is None:
        return stack, None
    if is_readable(valid):
        if not valid:
            raise InvalidVoxelsError
        return stack, None
    return torch.where(valid, stack, constant(math.nan, stack)), valid


def _valid(inputs: VoxelInputs, plan: Plan, labelled: Tensor | None) -> Tensor | None:
    """Return whether labels and mask are valid, or None if they cannot be invalid.

    Labels are valid if each voxel is ignored or has a class, of which `labelled` has the number of voxels.
    """
    target, valid = flat(inputs.target), None
    if plan.labels:
        out = None if plan.ignore_index is None else ignored(target, True, plan.ignore_index)
        if labelled is None:
            labelled = _one_hot(target, inputs.x.shape[1], out)
        valid = (labelled.sum() if out is None else labelled.sum() + out.sum()) == target.numel()
    if inputs.mask is not None and inputs.mask.dtype != torch.bool:
        low, high = flat(inputs.mask).aminmax()
        within = torch.logical_and(low >= 0, high <= 1)
        valid = within if valid is None else valid.logical_and_(within)
    return valid


# --- labels -----------------------------------------------------------------------------------------------------------


def _sums_of_labels(voxels: _Voxels, own: Tensor, plan: Plan, matrix: Tensor | None) -> dict[int, Tensor]:
    """Return sums by class; `own` is `voxels.own()`."""
    if plan.activation != "softmax":
        return _sums_of_channels(voxels, own, plan)
    if plan.surprisal != "none":
        return _sums_of_surprisal(voxels, own, plan)
    p = voxels.x.softmax(1)
    if matrix is not None:
        return _distances(voxels, own, p, matrix)
    others = _without(own, p)
    return _overlaps(voxels, plan, own, p.mul_(own), others.sum(1, keepdim=True), others)


def _sums_of_surprisal(voxels: _Voxels, own: Tensor, plan: Plan) -> dict[int, Tensor]:
    """Return the sums under a softmax, with those of the surprisals."""
    rows, log_p = dict[int, Tensor](), voxels.x.log_softmax(1)
    others, log_own = log_p.exp().masked_fill_(own, 0), log_p.gather(1, voxels.index())
    if plan.surprisal == "all":
        rows[MISSES] = voxels.weighed(log_p).sum(-1).neg_()
    q = others.sum(1, keepdim=True)
    log_own = _accurate(log_own, q)
    p = log_own.exp() if plan.overlap != "none" else None
    surprisal = voxels.weighed(log_own if plan.gamma == 0 else log_own.mul_(q**plan.gamma))
    rows[HITS] = _by_class(own, surprisal, log_p).neg_()
    if p is None:
        return rows
    return rows | _overlaps(voxels, plan, own, _only(own, p, log_p), q, others)


def _sums_of_channels(voxels: _Voxels, own: Tensor, plan: Plan) -> dict[int, Tensor]:
    """Return sums of binary problems, one for each class."""
    x, rows = voxels.x, dict[int, Tensor]()
    if plan.surprisal != "none":
        x_own = x.gather(1, voxels.index())
        hit = _focused(_softplus(-x_own), (-x_own).sigmoid_(), plan.gamma)
        lost = _focused(_softplus(x), x.sigmoid(), plan.gamma).masked_fill_(own, 0)
        rows[MISSES] = voxels.weighed(lost).sum(-1)
        rows[HITS] = _by_class(own, voxels.weighed(hit), lost)
        del lost
    if plan.overlap == "none":
        return rows
    if plan.activation == "sigmoid":
        p = x.sigmoid()
        q = (-x.gather(1, voxels.index())).sigmoid_()
        others = _without(own, p)
        return rows | _overlaps(voxels, plan, own, p.mul_(own), q, others)
    p = _only(own, x)
    return rows | _overlaps(voxels, plan, own, p, 1 - p.sum(1, keepdim=True), _without(own, x))


def _overlaps(voxels: _Voxels, plan: Plan, own: Tensor, p: Tensor, q: Tensor, others: Tensor) -> dict[int, Tensor]:
    """Return TP, FP and FN.

    Args:
        voxels: the voxels.
        plan: the statistics.
        own: whether a class is that of the label, (B, C, N).
        p: the prediction of the class of the label, and 0 for other classes, (B, C, N); overwritten.
        q: one minus the prediction of the class of the label, (B, 1, N).
        others: the prediction of other classes, (B, C, N); overwritten.
    """
    weight, squared = voxels.weight, plan.overlap == "squared"
    others = voxels.weighed(others)
    fp = (others.square_() if squared else others).sum(-1)
    if weight is None:
        return {TP: p.sum(-1), FP: fp, FN: _by_class(own, q.square() if squared else q, others)}
    p.mul_(weight)
    if squared and voxels.soft:
        return {TP: p.mul_(weight).sum(-1), FP: fp, FN: _by_class(own, (weight * q).square_(), others)}
    if plan.overlap == "minimum" or not voxels.soft:
        lack = weight * q
        return {TP: p.sum(-1), FP: fp, FN: _by_class(own, lack.square_() if squared else lack, others)}
    all_of_p = p.sum(-1)
    tp = p.mul_(weight).sum(-1)
    # If the weights are 0 and 1, the two sums are the same, so that their difference is 0.
    fn = _by_class(own, weight * ((1 - weight) + weight * q), others)
    return {TP: tp, FP: fp + (all_of_p - tp), FN: fn}


def _by_class(own: Tensor, values: Tensor, room: Tensor | None = None) -> Tensor:
    """Return values of the voxels, (B, 1, N), summed by the class of the label; `room`, (B, C, N), is overwritten."""
    return _only(own, values, room).sum(-1)


def _distances(voxels: _Voxels, own: Tensor, p: Tensor, matrix: Tensor) -> dict[int, Tensor]:
    far = _of_label(matrix.to(p.dtype).expand(len(p), -1, -1), voxels).mul_(p)
    distance = voxels.weighed(far.sum(1, keepdim=True))
    nearness = voxels.weighed(p.sub_(far).sum(1, keepdim=True))
    return {DISTANCE: _by_class(own, distance, far), NEARNESS: _by_class(own, nearness, far)}


def _of_own(by_class: Tensor, index: Tensor) -> Tensor:
    """Return, for each voxel, the number (B or 1, C, 1) of the class that its label names, (B, 1, N)."""
    return by_class[:, :, 0].expand(len(index), -1).gather(1, index[:, 0]).unsqueeze(1)


def _of_label(table: Tensor, voxels: _Voxels) -> Tensor:
    """Return, for each voxel, the row of a table (B, C, C) that its label names, (B, C, N)."""
    return table.mT.gather(2, voxels.index().expand(-1, table.shape[1], -1))


# --- surprisals -------------------------------------------------------------------------------------------------------


def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=50)  # beyond, the result is x to all digits


def _accurate(log_p: Tensor, q: Tensor) -> Tensor:
    """Return log p, given q = 1 - p, which keeps the digits of a small logarithm."""
    return torch.where(q < 0.5, (-q).log1p_(), log_p)


def _focused(surprisal: Tensor, q: Tensor, gamma: float) -> Tensor:
    """Return q^gamma times a surprisal, which is overwritten."""
    return surprisal if gamma == 0 else surprisal.mul_(q**gamma)


def _slope_of_focused(surprisal: Tensor, q: Tensor, gamma: float) -> Tensor:
    """Return the derivative of the focal term with respect to the surprisal, q^gamma (1 + gamma p s / q)."""
    if gamma == 0:
        return torch.ones_like(q)
    limits = torch.finfo(q.dtype)
    p_times = (-surprisal).exp_().mul_(surprisal.clamp(max=limits.max))
    return p_times.div_(q.clamp(min=limits.tiny)).mul_(gamma).add_(1).mul_(q**gamma)


# --- gradients --------------------------------------------------------------------------------------------------------


def _gradient(slopes: _Slopes, inputs: VoxelInputs, plan: Plan) -> Tensor:
    voxels = _voxels(inputs, plan, for_gradient=True)
    if not voxels.labels:
        made = _gradient_of_dense(slopes, voxels, plan)
    elif plan.activation == "softmax":
        made = _gradient_of_softmax(slopes, voxels, plan, inputs.matrix)
    else:
        made = _gradient_of_channels(slopes, voxels, plan)
    if voxels.excluded is not None:
        made.masked_fill_(voxels.excluded, 0)
    return made.reshape(inputs.x.shape).to(inputs.x.dtype)


def _in_prediction(slopes: _Slopes, voxels: _Voxels, plan: Plan, own: Tensor, p: Tensor) -> Tensor:
    """Return dL/dp of the overlap for labels, up to a constant for each voxel under a softmax."""
    assert slopes.hit is not None
    assert slopes.fp is not None
    assert slopes.fn is not None
    assert slopes.tp is not None
    if plan.overlap == "squared":
        softmax = plan.activation == "softmax"
        q = _without(own, p).sum(1, keepdim=True) if softmax else (-voxels.x).sigmoid_()
        # The derivative of TP minus that of FN: neither form cancels where it is taken.
        of_own = torch.where(p > 0.5, slopes.tp - 2 * slopes.fn * q, slopes.hit + 2 * slopes.fn * p)
        made = voxels.weighed(torch.where(own, of_own, 2 * slopes.fp * p))
    elif plan.overlap == "product" and voxels.soft and voxels.weight is not None:
        made = torch.where(own, torch.lerp(slopes.fp, slopes.hit, voxels.weight), slopes.fp)
    else:
        made = torch.where(own, slopes.hit, slopes.fp)
    return voxels.weighed(made)


def _through_softmax(in_p: Tensor, p: Tensor) -> Tensor:
    """Return p_k (a_k - Σ p_j a_j), given a = dL/dp, which is overwritten."""
    in_p.sub_(in_p.gather(1, p.argmax(1, keepdim=True)))
    return torch._softmax_backward_data(in_p, p, 1, p.dtype)


def _gradient_of_softmax(slopes: _Slopes, voxels: _Voxels, plan: Plan, matrix: Tensor | None) -> Tensor:
    p = voxels.x.softmax(1)
    if matrix is not None:
        assert slopes.distance is not None
        in_p = voxels.weighed(_of_label(matrix.to(p.dtype) * slopes.distance, voxels))
    elif plan.overlap != "none":
        own = voxels.own()
        in_p = _in_prediction(slopes, voxels, plan, own, p)
        if plan.surprisal != "none":
            return _of_surprisal(slopes, voxels, plan, own, p, _through_softmax(in_p, p))
        del own
    else:
        return _of_surprisal(slopes, voxels, plan, voxels.own(), p, None)
    return _through_softmax(in_p, p)


def _of_surprisal(slopes: _Slopes, voxels: _Voxels, plan: Plan, own: Tensor, p: Tensor, added: Tensor | None) -> Tensor:
    """Return dL/dx of the surprisals: p_k for other classes, and p_k - 1 for that of the label, times dL/d(surprisal).

    It is added to `added`, if that is given, and overwrites p.
    """
    assert slopes.hits is not None
    assert slopes.misses is not None
    index, log_p = voxels.index(), None
    if plan.surprisal == "all" or plan.gamma > 0:
        log_p = voxels.x.log_softmax(1)
    p.masked_fill_(own, 0)
    q = p.sum(1, keepdim=True)
    slope = _of_own(slopes.hits, index)
    if log_p is not None:
        surprisal = _accurate(log_p.gather(1, index), q).neg_()
        slope.mul_(_slope_of_focused(surprisal, q, plan.gamma))
    slope, made = voxels.weighed(slope), torch.where(own, q.neg_(), p, out=p)
    made = made.mul_(slope) if added is None else added.addcmul_(made, slope)
    if plan.surprisal == "all" and log_p is not None:
        share = slopes.misses if voxels.weight is None else slopes.misses * voxels.weight
        made.sub_(torch._log_softmax_backward_data(share.expand_as(p), log_p, 1, p.dtype))
    return made


def _gradient_of_channels(slopes: _Slopes, voxels: _Voxels, plan: Plan) -> Tensor:
    x, own, made = voxels.x, voxels.own(), None
    if plan.overlap != "none":
        p = x.sigmoid() if plan.activation == "sigmoid" else x
        made = _in_prediction(slopes, voxels, plan, own, p)
        if plan.activation == "sigmoid":
            made = _through_sigmoid(made, x)
    if plan.surprisal == "none":
        assert made is not None
        return made
    assert slopes.hits is not None
    assert slopes.misses is not None
    error = torch.where(own, -x, x)
    p, surprisal = error.sigmoid(), _softplus(error)
    slope = _slope_of_focused(surprisal, p, plan.gamma).mul_(p).mul_(torch.where(own, -slopes.hits, slopes.misses))
    slope = voxels.weighed(slope)
    return slope if made is None else made.add_(slope)


def _through_sigmoid(in_p: Tensor, x: Tensor) -> Tensor:
    """Return p (1 - p) dL/dp, computed from the smaller of p and 1 - p."""
    return torch.ops.aten.sigmoid_backward(in_p, x.abs().neg_().sigmoid_())  # type: ignore[no-any-return]


# --- dense targets ----------------------------------------------------------------------------------------------------


def _prediction(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return p and 1 - p."""
    if activation == "identity":
        return x, 1 - x
    if activation == "sigmoid":
        return x.sigmoid(), (-x).sigmoid_()
    p = x.softmax(1)
    top = p.argmax(1, keepdim=True)
    q = 1 - p
    rest = p.scatter_(1, top, 0).sum(1, keepdim=True)
    return p.scatter_(1, top, 1 - rest), q.scatter_(1, top, rest)


def _sums_of_dense(voxels: _Voxels, plan: Plan) -> dict[int, Tensor]:
    x, g, weight = voxels.x, voxels.target, voxels.weight
    volume = g if weight is None else g * weight
    rows = {VOLUME: volume.sum(-1)}
    if plan.surprisal != "none":
        rows |= _surprisals_of_dense(voxels, plan, volume)
    if plan.overlap == "none":
        return rows
    p, q = _prediction(x, plan.activation)
    if plan.overlap == "product":
        if weight is None:
            tp, fp = p * g, (1 - g).mul_(p)
            return rows | {TP: tp.sum(-1), FP: fp.sum(-1), FN: q.mul_(g).sum(-1)}
        p = p * weight
        q = q.mul_(weight).add_(1 - weight)
        tp, fp = p * volume, (1 - volume).mul_(p)
        return rows | {TP: tp.sum(-1), FP: fp.sum(-1), FN: q.mul_(volume).sum(-1)}
    excess = _excess(p, q, g)
    if plan.overlap == "minimum":
        # min(p, g) is g where p exceeds it.
        tp = torch.where(excess > 0, g, p)
        return rows | {
            TP: voxels.weighed(tp).sum(-1),
            FP: voxels.weighed(excess.clamp(min=0)).sum(-1),
            FN: voxels.weighed(excess.neg_().clamp_(min=0)).sum(-1),
        }
    tp = voxels.weighed(p * volume).sum(-1)
    excess = voxels.weighed(excess)
    return rows | {
        TP: tp, FP: excess.clamp(min=0).square_().sum(-1), FN: excess.neg_().clamp_(min=0).square_().sum(-1)
    }  # fmt: skip


def _excess(p: Tensor, q: Tensor, g: Tensor) -> Tensor:
    """Return p - g, from 1 - p where p is large."""
    return torch.where(p > 0.5, (1 - g).sub_(q), p - g)


def _surprisals_of_dense(voxels: _Voxels, plan: Plan, volume: Tensor) -> dict[int, Tensor]:
    x, g, gamma = voxels.x, voxels.target, plan.gamma
    if plan.activation == "softmax":
        surprisal, q = _surprisal(x)
        rows = {MISSES: voxels.weighed(surprisal.clone()).sum(-1)} if plan.surprisal == "all" else {}
        return rows | {HITS: _product(volume, _focused(surprisal, q, gamma)).sum(-1)}
    hit = _focused(_softplus(-x), (-x).sigmoid_(), gamma)
    lost = _focused(_softplus(x), x.sigmoid(), gamma)
    return {
        HITS: _product(volume, hit).sum(-1),
        MISSES: _product(voxels.weighed(1 - g), lost).sum(-1),
    }


def _product(weight: Tensor, term: Tensor) -> Tensor:
    """Return a product that is 0 where the weight is 0, even if the term is infinite; the term is overwritten."""
    return _without(weight == 0, term.mul_(weight))


def _surprisal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p of a softmax, and 1 - p."""
    _, q = _prediction(x, "softmax")
    return _accurate(x.log_softmax(1), q).neg_(), q


def _gradient_of_dense(slopes: _Slopes, voxels: _Voxels, plan: Plan) -> Tensor:
    x, g, weight, made = voxels.x, voxels.target, voxels.weight, None
    volume = g if weight is None else g * weight
    if plan.overlap != "none":
        made = _of_dense_overlap(slopes, voxels, plan, volume)
        if plan.activation == "softmax":
            p = x.softmax(1)
            made = _through_softmax(made, p)
            del p
        elif plan.activation == "sigmoid":
            made = _through_sigmoid(made, x)
    if plan.surprisal == "none":
        assert made is not None
        return made
    more = _of_dense_surprisal(slopes, voxels, plan, volume)
    return more if made is None else made.add_(more)


def _of_dense_overlap(slopes: _Slopes, voxels: _Voxels, plan: Plan, volume: Tensor) -> Tensor:
    """Return dL/dp of the overlap."""
    assert slopes.hit is not None
    assert slopes.tp is not None
    assert slopes.fp is not None
    assert slopes.fn is not None
    if plan.overlap == "product":
        return voxels.weighed(torch.lerp(slopes.fp, slopes.hit, volume))
    p, q = _prediction(voxels.x, plan.activation)
    excess = _excess(p, q, voxels.target)
    if plan.overlap == "minimum":
        return voxels.weighed(torch.lerp(slopes.fp, slopes.hit, (1 - excess.sign_()).mul_(0.5)))
    # Of P G and of the squares of max(P - G, 0) and of max(G - P, 0).
    excess, p = voxels.weighed(excess), p if voxels.weight is None else p * voxels.weight
    of_product = volume * slopes.tp
    close = torch.addcmul(of_product, excess, 2 * slopes.fn)
    far = (volume * slopes.hit).addcmul_(p, 2 * slopes.fn)
    below = torch.where(p > 0.5 * volume, close, far)
    return voxels.weighed(torch.where(excess > 0, of_product.addcmul_(excess, 2 * slopes.fp), below))


def _of_dense_surprisal(slopes: _Slopes, voxels: _Voxels, plan: Plan, volume: Tensor) -> Tensor:
    """Return dL/dx of the surprisals."""
    x, g, gamma = voxels.x, voxels.target, plan.gamma
    assert slopes.hits is not None
    assert slopes.misses is not None
    if plan.activation != "softmax":
        p, q = x.sigmoid(), (-x).sigmoid_()
        of_hits = _slope_of_focused(_softplus(-x), q, gamma).mul_(q).mul_(volume).mul_(slopes.hits)
        of_misses = _slope_of_focused(_softplus(x), p, gamma).mul_(p).mul_(slopes.misses)
        return of_misses.mul_(voxels.weighed(1 - g)).sub_(of_hits)
    surprisal, q = _surprisal(x)
    in_surprisal = _slope_of_focused(surprisal, q, gamma).mul_(volume).mul_(slopes.hits)
    if plan.surprisal == "all":
        in_surprisal.add_(slopes.misses if voxels.weight is None else slopes.misses * voxels.weight)
    # p_k (sum of the other slopes) - (1 - p_k) (own slope).
    p = x.softmax(1)
    others = in_surprisal.sum(1, keepdim=True).sub(in_surprisal)
    # Where p is not small, the difference may cancel, and the own slope does not make up for it.
    top = p.argmax(1, keepdim=True)
    others.scatter_(1, top, in_surprisal.scatter(1, top, 0).sum(1, keepdim=True))
    return others.mul_(p).sub_(in_surprisal.mul_(q))
