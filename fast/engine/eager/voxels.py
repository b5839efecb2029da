"""The statistics of a segmentation in operators of torch, their gradient, and losses that are a fraction of them.

A softmax needs 1 - p without the subtraction, see `segmentation/README.md`. For labels, it is the sum of the other
probabilities. In the gradient p_k (a_k - Σ p_j a_j), with a = dL/dp, the first term cancels the second if p_k is close
to 1. The gradient stays the same if a constant is added to all a of a voxel. Therefore a of the most probable class is
subtracted first, so that the first term is 0 where the second could cancel it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from twinloss.fast.engine.segmentation.labels import comparable, flat, ignored
from twinloss.fast.kernels.contract import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    ROWS,
    TP,
    TP_LESS_FN,
    VOLUME,
    FractionPlan,
    InvalidVoxelsError,
    Plan,
    UpstreamSlopes,
    VoxelInputs,
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
    return _sums(inputs, plan), None


def gradient(upstream: Tensor, inputs: VoxelInputs, plan: Plan, kept: object) -> Tensor:
    """Return dL/dx, see `VoxelKernels.gradient`."""
    count = 2 if plan.overlap == "squared" else 1
    rows: dict[str, Tensor] = {}
    if plan.overlap != "none":
        rows |= {"hit": upstream[TP] - count * upstream[FN] + upstream[TP_LESS_FN]}
        rows |= {"fp": upstream[FP], "fn": upstream[FN], "tp": upstream[TP]}
    if plan.surprisal != "none":
        rows |= {"hits": upstream[HITS], "misses": upstream[MISSES]}
    if inputs.matrix is not None:
        rows |= {"distance": upstream[DISTANCE] - upstream[NEARNESS]}
    made = torch.stack(list(rows.values())).to(widened(inputs.x[:0]).dtype).unsqueeze(-1)
    return _gradient(_Slopes(**dict(zip(rows, made.unbind(), strict=True))), inputs, plan)


@dataclass
class _KeptForLoss:
    """The overlap + ν, the errors + δ - ν, and the denominator, (3, B or 1, C' or 1), and the weights of classes."""

    parts: Tensor
    weights: tuple[Tensor, ...]


def loss(inputs: VoxelInputs, asked: FractionPlan, ahead: bool) -> tuple[Tensor, _KeptForLoss]:
    """Return a scalar loss, see `VoxelKernels.loss`."""
    terms, device = asked.terms, inputs.x.device
    made = _sums(_with_matrix(inputs, asked), asked.plan)[:, :, terms.first :]
    if terms.batch:
        made = made.sum(1, keepdim=True)
    weights = tuple(asked.weigh(made[VOLUME]))
    factors, offsets = _constants(asked, made.dtype, device)[:2]
    with full_precision(made):
        parts = (factors @ made.flatten(1)).unflatten(1, made.shape[1:])
    if weights:
        by_part = weights[0] if len(weights) == 1 else torch.stack(weights)
        parts = (parts * by_part).sum(2, keepdim=True)
    parts = torch.cat([parts, parts.sum(0, keepdim=True)]) + offsets
    by_class = parts[1] / parts[2]
    total = by_class.mean() if asked.mean else by_class.sum()
    return total.to(asked.dtype), _KeptForLoss(parts, weights)


def loss_gradient(upstream: Tensor, inputs: VoxelInputs, asked: FractionPlan, kept: _KeptForLoss | None) -> Tensor:
    """Return the gradient of such a loss, times the upstream gradient."""
    if kept is None:
        _, kept = loss(inputs, asked, ahead=False)
    (overlap_and_errors, denominator), terms = kept.parts.split([2, 1]), asked.terms
    if kept.weights:
        # The slope of the errors is proportional to the overlap, and that of the overlap to the errors.
        by_part = kept.weights[0] if len(kept.weights) == 1 else torch.stack(kept.weights[::-1])
        overlap_and_errors = overlap_and_errors * by_part
    count = kept.parts[0].numel() if asked.mean else 1
    by_denominator = upstream.to(denominator.dtype) / denominator
    scaled = overlap_and_errors / denominator * (by_denominator if count == 1 else by_denominator / count)
    mixed = _constants(asked, scaled.dtype, scaled.device)[2]
    with full_precision(scaled):
        rows = (mixed @ scaled.flatten(1)).unflatten(1, scaled.shape[1:])
    rows = functional.pad(rows.to(widened(inputs.x[:0]).dtype), (terms.first, 0)).unsqueeze(-1)
    slopes = _Slopes(distance=rows[0]) if asked.distances else _Slopes(*rows.unbind())
    return _gradient(slopes, _with_matrix(inputs, asked), asked.plan)


def _with_matrix(inputs: VoxelInputs, asked: FractionPlan) -> VoxelInputs:
    if asked.distances is None:
        return inputs
    return inputs._replace(matrix=constant(asked.distances, accumulator(inputs.x.device), inputs.x.device))


def _constants(asked: FractionPlan, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of overlap and errors, (2, ROWS), what is added to the parts, and how slopes mix the parts."""
    terms = asked.terms
    smooth = terms.smooth_nr, terms.smooth_dr
    return _constants_of(terms.overlap, terms.errors, smooth, terms.complementary, dtype, device)


@lru_cache(maxsize=256)
def _constants_of(
    overlap: tuple[tuple[int, float], ...],
    errors: tuple[tuple[int, float], ...],
    smooth: tuple[float, float],
    complementary: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    factors, (nu, delta) = [dict(overlap), dict(errors)], smooth
    # With the overlap A + ν, the errors B + δ - ν and the denominator M, the slopes are -(B + δ - ν)/M² in the overlap
    # and (A + ν)/M² in the errors.
    if DISTANCE in factors[1]:
        mixed = [[factors[1][DISTANCE], factors[0][NEARNESS]]]
    else:
        a, b, c = factors[0][TP], factors[1][FP], factors[1][FN]
        mixed = [[-c if complementary else -2 * c, -a], [b, 0.0], [c, 0.0], [0.0, -a]]
    by_row = tuple(tuple(each.get(row, 0.0) for row in range(len(ROWS))) for each in factors)
    return (
        constant(by_row, dtype, device),
        constant((((nu,),), ((delta - nu,),), ((delta,),)), dtype, device),
        constant(tuple(map(tuple, mixed)), dtype, device),
    )


# --- the voxels -------------------------------------------------------------------------------------------------------


@dataclass
class _Voxels:
    """The voxels of a call, flattened.

    Attributes:
        x: (B, C, N), float32 or float64, with 0 in excluded voxels.
        own: for labels, whether a class is that of the label, (B, C, N); nowhere in ignored voxels. Else None.
        target: dense target in the dtype of x, (B, C, N), with 0 in excluded voxels; or labels.
        weight: of the voxels, (B or 1, 1, N), or None if all are 1.
        soft: whether the weight may be neither 0 nor 1.
        ignored: the ignored voxels, (B, 1, N), or None.
    """

    x: Tensor
    own: Tensor | None
    target: Tensor
    weight: Tensor | None
    soft: bool
    ignored: Tensor | None

    def index(self) -> Tensor:
        """Return the labels as an index of the classes, whatever they hold."""
        return self.target.to(torch.int64).clamp(0, self.x.shape[1] - 1)

    def by_class(self, values: Tensor | None) -> Tensor:
        """Return values of the voxels, (B, 1, N), summed by the class of the label; None stands for 1."""
        assert self.own is not None
        return (self.own if values is None else torch.where(self.own, values, 0)).sum(-1)

    def weighed(self, values: Tensor) -> Tensor:
        """Multiply values, which the caller owns, by the weight."""
        return values if self.weight is None else values.mul_(self.weight)


def _voxels(inputs: VoxelInputs, plan: Plan) -> _Voxels:
    x, target = widened(flat(inputs.x)), flat(inputs.target)
    out = None if plan.ignore_index is None else ignored(target, plan.labels, plan.ignore_index)
    weight, soft = None, False
    if inputs.mask is not None:
        mask = flat(inputs.mask)
        weight, soft = mask.to(x.dtype), mask.is_floating_point()
    if out is not None:
        weight = (~out).to(x.dtype) if weight is None else torch.where(out, 0, weight)
    if weight is not None:
        x = torch.where(weight == 0, 0, x)
    if plan.labels:
        own = comparable(target) == classes(x.shape[1], x.device)
        return _Voxels(x, own if out is None else own.logical_and_(~out), target, weight, soft, out)
    target = target.to(x.dtype)
    return _Voxels(x, None, target if weight is None else torch.where(weight == 0, 0, target), weight, soft, out)


def _validated(stack: Tensor, inputs: VoxelInputs, voxels: _Voxels, labelled: Tensor | None) -> Tensor:
    """Return the statistics, with NaN if labels or mask are invalid, or raise if numbers can be read.

    Args:
        stack: the statistics.
        inputs: the arguments.
        voxels: the same, flattened.
        labelled: the number of voxels of each class, (B, C), for labels.
    """
    invalid = None
    if labelled is not None:
        total = labelled.sum() if voxels.ignored is None else labelled.sum() + voxels.ignored.sum()
        invalid = total != len(voxels.x) * voxels.x.shape[2]
    if inputs.mask is not None and inputs.mask.dtype != torch.bool:
        low, high = flat(inputs.mask).aminmax()
        outside = (low >= 0).logical_and_(high <= 1).logical_not_()
        invalid = outside if invalid is None else invalid.logical_or_(outside)
    if invalid is None:
        return stack
    if is_readable(invalid):
        if invalid:
            raise InvalidVoxelsError
        return stack
    return torch.where(invalid, torch.nan, stack)


def _sums(inputs: VoxelInputs, plan: Plan) -> Tensor:
    voxels = _voxels(inputs, plan)
    labelled = None if voxels.own is None else voxels.own.sum(-1)
    rows = _sums_of_dense(voxels, plan) if labelled is None else _sums_of_labels(voxels, plan, inputs.matrix)
    nothing = voxels.x.new_zeros(voxels.x.shape[:2])
    stack = torch.stack([rows.get(row, nothing) for row in range(len(ROWS))]).to(accumulator(voxels.x.device))
    if labelled is not None and voxels.weight is None:
        stack[VOLUME] = labelled
    return _validated(stack, inputs, voxels, labelled)


# --- labels -----------------------------------------------------------------------------------------------------------


def _sums_of_labels(voxels: _Voxels, plan: Plan, matrix: Tensor | None) -> dict[int, Tensor]:
    x, own, weight = voxels.x, voxels.own, voxels.weight
    assert own is not None
    rows: dict[int, Tensor] = {}
    surprisal = None
    if weight is not None:
        rows[VOLUME] = voxels.by_class(weight)
    if plan.activation == "softmax":
        if plan.surprisal == "none":
            p = x.softmax(1)
        else:
            log_p = x.log_softmax(1)
            p, surprisal = log_p.exp(), log_p.gather(1, voxels.index()).neg_()
            if plan.surprisal == "all":
                rows[MISSES] = voxels.weighed(log_p.neg_()).sum(-1)
            del log_p
        if matrix is not None:
            rows |= _distances(voxels, p, matrix)
        if matrix is not None and plan.overlap == "none":
            return rows
        others = torch.where(own, 0, p)
        q = others.sum(1, keepdim=True)
        if surprisal is not None:
            rows[HITS] = voxels.by_class(voxels.weighed(_focused(_accurate(surprisal, q), q, plan.gamma)))
        if plan.overlap == "none":
            return rows
        p = torch.where(own, p, 0) if p is x else p.mul_(own)
    else:
        if plan.surprisal != "none":
            x_own = x.gather(1, voxels.index())
            hit = _focused(_softplus(-x_own), (-x_own).sigmoid_(), plan.gamma)
            rows[HITS] = voxels.by_class(voxels.weighed(hit))
            lost = _focused(_softplus(x), x.sigmoid(), plan.gamma)
            rows[MISSES] = voxels.weighed(torch.where(own, 0, lost)).sum(-1)
        if plan.overlap == "none":
            return rows
        p = x.sigmoid() if plan.activation == "sigmoid" else x
        others, p = torch.where(own, 0, p), torch.where(own, p, 0)
        q = (-x.gather(1, voxels.index())).sigmoid_() if plan.activation == "sigmoid" else 1 - p.sum(1, keepdim=True)
    return rows | _overlaps(voxels, plan, p, q, others)


def _overlaps(voxels: _Voxels, plan: Plan, p: Tensor, q: Tensor, others: Tensor) -> dict[int, Tensor]:
    """Return TP, FP and FN.

    Args:
        voxels: the voxels.
        plan: the statistics.
        p: the prediction of the class of the label, and 0 for other classes, (B, C, N); overwritten.
        q: one minus the prediction of the class of the label, (B, 1, N).
        others: the prediction of other classes, (B, C, N); overwritten.
    """
    weight, squared = voxels.weight, plan.overlap == "squared"
    others = voxels.weighed(others)
    fp = (others.square_() if squared else others).sum(-1)
    if weight is None:
        return {TP: p.sum(-1), FP: fp, FN: voxels.by_class(q.square() if squared else q)}
    p.mul_(weight)
    if plan.overlap == "minimum" or not voxels.soft:
        lack = weight * q
        return {TP: p.sum(-1), FP: fp, FN: voxels.by_class(lack.square_() if squared else lack)}
    if squared:
        return {TP: p.mul_(weight).sum(-1), FP: fp, FN: voxels.by_class((weight * q).square_())}
    all_of_p = p.sum(-1)
    tp = p.mul_(weight).sum(-1)
    # If the weights are 0 and 1, the two sums are the same, so that their difference is 0.
    fn = voxels.by_class(weight * ((1 - weight) + weight * q))
    return {TP: tp, FP: fp + (all_of_p - tp), FN: fn}


def _distances(voxels: _Voxels, p: Tensor, matrix: Tensor) -> dict[int, Tensor]:
    far = _of_label(matrix.to(p.dtype).expand(len(p), -1, -1), voxels).mul_(p)
    distance = voxels.weighed(far.sum(1, keepdim=True))
    nearness = voxels.weighed(torch.sub(p, far, out=far).sum(1, keepdim=True))
    return {DISTANCE: voxels.by_class(distance), NEARNESS: voxels.by_class(nearness)}


def _of_own(by_class: Tensor, index: Tensor) -> Tensor:
    """Return, for each voxel, the number (B or 1, C, 1) of the class that its label names, (B, 1, N)."""
    return by_class[:, :, 0].expand(len(index), -1).gather(1, index[:, 0]).unsqueeze(1)


def _of_label(table: Tensor, voxels: _Voxels) -> Tensor:
    """Return, for each voxel, the row of a table (B, C, C) that its label names, (B, C, N)."""
    return table.mT.gather(2, voxels.index().expand(-1, table.shape[1], -1))


# --- surprisals -------------------------------------------------------------------------------------------------------


def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=50)  # beyond, the result is x to all digits


def _accurate(surprisal: Tensor, q: Tensor) -> Tensor:
    """Return a surprisal -log p, given q = 1 - p, which keeps the digits of a small surprisal."""
    return torch.where(q < 0.5, (-q).log1p_().neg_(), surprisal)


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
    voxels = _voxels(inputs, plan)
    if voxels.own is None:
        made = _gradient_of_dense(slopes, voxels, plan)
    elif plan.activation == "softmax":
        made = _gradient_of_softmax(slopes, voxels, plan, inputs.matrix)
    else:
        made = _gradient_of_channels(slopes, voxels, plan)
    return made.reshape(inputs.x.shape).to(inputs.x.dtype)


def _in_prediction(slopes: _Slopes, voxels: _Voxels, plan: Plan, p: Tensor) -> Tensor:
    """Return dL/dp of the overlap for labels, up to a constant for each voxel under a softmax."""
    own, weight = voxels.own, voxels.weight
    assert own is not None
    assert slopes.hit is not None
    assert slopes.fp is not None
    assert slopes.fn is not None
    if plan.overlap == "squared":
        made = torch.where(own, 2 * slopes.fn, 2 * slopes.fp).mul_(p).add_(torch.where(own, slopes.hit, 0))
        made = voxels.weighed(made)
    elif plan.overlap == "product" and voxels.soft and weight is not None:
        made = torch.where(own, torch.lerp(slopes.fp, slopes.hit, weight), slopes.fp)
    else:
        made = torch.where(own, slopes.hit, slopes.fp)
    return voxels.weighed(made)


def _through_softmax(in_p: Tensor, p: Tensor, top: Tensor) -> Tensor:
    """Return p_k (a_k - Σ p_j a_j), given a = dL/dp, which is overwritten, and the most probable class."""
    in_p.sub_(in_p.gather(1, top))
    return torch._softmax_backward_data(in_p, p, 1, p.dtype)


def _gradient_of_softmax(slopes: _Slopes, voxels: _Voxels, plan: Plan, matrix: Tensor | None) -> Tensor:
    x, own = voxels.x, voxels.own
    assert own is not None
    log_p = None if plan.surprisal == "none" else x.log_softmax(1)
    p = x.softmax(1) if log_p is None else log_p.exp()
    made = None
    if plan.overlap != "none" or matrix is not None:
        top = p.argmax(1, keepdim=True)
        if matrix is not None:
            assert slopes.distance is not None
            in_p = voxels.weighed(_of_label(matrix.to(p.dtype) * slopes.distance, voxels))
        else:
            in_p = _in_prediction(slopes, voxels, plan, p)
        made = _through_softmax(in_p, p, top)
        del in_p, top
    if log_p is None:
        assert made is not None
        return made
    assert slopes.hits is not None
    assert slopes.misses is not None
    index = voxels.index()
    surprisal = log_p.gather(1, index).neg_()
    if plan.surprisal == "all":
        share = slopes.misses if voxels.weight is None else slopes.misses * voxels.weight
        more = torch._log_softmax_backward_data(share.expand_as(x), log_p, 1, p.dtype).neg_()
        made = more if made is None else made.add_(more)
        del more
    del log_p
    others = torch.where(own, 0, p)
    q = others.sum(1, keepdim=True)
    slope = _slope_of_focused(_accurate(surprisal, q), q, plan.gamma)
    slope = voxels.weighed(slope.mul_(_of_own(slopes.hits, index)))
    if voxels.ignored is not None:
        slope = torch.where(voxels.ignored, 0, slope)
    of_surprisal = torch.where(own, -q, others)
    return of_surprisal.mul_(slope) if made is None else made.addcmul_(of_surprisal, slope)


def _gradient_of_channels(slopes: _Slopes, voxels: _Voxels, plan: Plan) -> Tensor:
    x, own, made = voxels.x, voxels.own, None
    assert own is not None
    if plan.overlap != "none":
        p = x.sigmoid() if plan.activation == "sigmoid" else x
        made = _in_prediction(slopes, voxels, plan, p)
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
    return torch.where(weight == 0, 0, term.mul_(weight))


def _surprisal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p of a softmax, and 1 - p."""
    _, q = _prediction(x, "softmax")
    return _accurate(x.log_softmax(1).neg_(), q), q


def _gradient_of_dense(slopes: _Slopes, voxels: _Voxels, plan: Plan) -> Tensor:
    x, g, weight, made = voxels.x, voxels.target, voxels.weight, None
    volume = g if weight is None else g * weight
    if plan.overlap != "none":
        made = _of_dense_overlap(slopes, voxels, plan, volume)
        if plan.activation == "softmax":
            p = x.softmax(1)
            made = _through_softmax(made, p, p.argmax(1, keepdim=True))
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
    below = (volume * slopes.hit).addcmul_(p, 2 * slopes.fn)
    above = (volume * slopes.tp).addcmul_(excess, 2 * slopes.fp)
    return voxels.weighed(torch.where(excess > 0, above, below))


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
    return others.mul_(p).sub_(in_surprisal.mul_(q))


