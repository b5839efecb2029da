"""The statistics of a segmentation whose target holds labels, and their gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twinloss.fast.engine.eager.activations import (
    accurate,
    focused,
    slope_of_focused,
    softplus,
    through_sigmoid,
    through_softmax,
)
from twinloss.fast.engine.eager.voxel_inputs import Slopes, Voxels, only, without
from twinloss.fast.kernels.contract import DISTANCE, FN, FP, HITS, MISSES, NEARNESS, TP, VOLUME, Plan
from twinloss.fast.runtime.constants import constant


class Softmax(NamedTuple):
    """What the sums of labels under a softmax have computed that the gradient needs, too.

    Attributes:
        p: the softmax, (B, C, N).
        own: whether a class is that of the label, (B, C, N).
        labels: the labels as an index of the classes, (B, 1, N); None without surprisals, like all that follow.
        q: one minus the prediction of the class of the label, (B, 1, N).
        surprisal: that of the class of the label, (B, 1, N); None if its exponent is 0.
    """

    p: Tensor
    own: Tensor | None = None
    labels: Tensor | None = None
    q: Tensor | None = None
    surprisal: Tensor | None = None


def sums_of_labels(
    voxels: Voxels, own: Tensor, plan: Plan, matrix: Tensor | None, volume: bool
) -> tuple[dict[int, Tensor], Softmax | None]:
    """Return the sums by class, and what to keep; `own` is `voxels.own()`, `volume` whether to sum the weight."""
    kept = None
    if plan.activation != "softmax":
        rows = _sums_of_channels(voxels, own, plan)
    elif plan.surprisal != "none":
        rows, kept = _sums_of_surprisal(voxels, own, plan)
    else:
        kept = Softmax(voxels.x.softmax(1))
        if matrix is None:
            p = kept.p
            if voxels.weight is not None:  # x, from which excluded voxels were removed, is a copy
                p = torch.mul(p, voxels.weight, out=voxels.x)
            rows = _overlaps(voxels, plan, own, p, without(own, p))
        else:
            rows = _distances(voxels, own, kept.p, matrix)
    if volume and voxels.weight is not None:
        rows[VOLUME] = _by_class(own, voxels.weight)
    return rows, kept


def _sums_of_surprisal(voxels: Voxels, own: Tensor, plan: Plan) -> tuple[dict[int, Tensor], Softmax]:
    """Return the sums under a softmax, with those of the surprisals."""
    log_p, index, rows = voxels.x.log_softmax(1), voxels.index(), dict[int, Tensor]()
    p, log_own = log_p.exp(), log_p.gather(1, index)
    if plan.surprisal == "all":
        rows[MISSES] = voxels.weighed(log_p).sum(-1).neg_()
    others = torch.where(own, constant(0.0, p), p, out=log_p)
    q = others.sum(1, keepdim=True)
    surprisal = accurate(log_own, q).neg_()
    if plan.overlap != "none":
        p_own, lack = voxels.weighed((-surprisal).exp_()), voxels.weighed(q.clone())
        rows |= _overlaps(voxels, plan, own, p_own, voxels.weighed(others), lack)
    kept = Softmax(p, own, index, q, surprisal if plan.gamma > 0 else None)
    hit = voxels.weighed(surprisal if plan.gamma == 0 else surprisal * q**plan.gamma)
    return rows | {HITS: _by_class(own, hit, others)}, kept


def _sums_of_channels(voxels: Voxels, own: Tensor, plan: Plan) -> dict[int, Tensor]:
    """Return sums of binary problems, one for each class."""
    x, rows = voxels.x, dict[int, Tensor]()
    if plan.surprisal != "none":
        x_own = x.gather(1, voxels.index())
        hit = focused(softplus(-x_own), (-x_own).sigmoid_(), plan.gamma)
        lost = focused(softplus(x), x.sigmoid(), plan.gamma).masked_fill_(own, 0)
        rows[MISSES] = voxels.weighed(lost).sum(-1)
        rows[HITS] = _by_class(own, voxels.weighed(hit), lost)
        del lost
    if plan.overlap == "none":
        return rows
    if plan.activation == "sigmoid":
        p = x.sigmoid()
        q = (-x.gather(1, voxels.index())).sigmoid_()
        p = voxels.weighed(p)
        return rows | _overlaps(voxels, plan, own, p, without(own, p), voxels.weighed(q))
    p = only(own, x).sum(1, keepdim=True)
    q, others = voxels.weighed(1 - p), voxels.weighed(without(own, x))
    return rows | _overlaps(voxels, plan, own, voxels.weighed(p), others, q)


def _overlaps(
    voxels: Voxels, plan: Plan, own: Tensor, p: Tensor, others: Tensor, lack: Tensor | None = None
) -> dict[int, Tensor]:
    """Return TP, FP and FN.

    Args:
        voxels: the voxels.
        plan: the statistics.
        own: whether a class is that of the label, (B, C, N).
        p: the prediction of the class of the label, (B, 1, N), or of all classes, (B, C, N), times the weight.
        others: the prediction of other classes, and 0 for that of the label, times the weight, (B, C, N); overwritten.
        lack: one minus the prediction of the class of the label, times the weight, (B, 1, N); overwritten. None if
            that is the sum of the others.
    """
    weight, squared, extra = voxels.weight, plan.overlap == "squared", None
    if lack is None:
        lack = others.sum(1, keepdim=True)
    fp, hit = (others.square_() if squared else others).sum(-1), only(own, p, others)
    if voxels.soft and plan.overlap != "minimum" and weight is not None:
        if plan.overlap == "product":
            extra, lack = hit.sum(-1), lack.add_(1 - weight).mul_(weight)
        hit.mul_(weight)
    tp = hit.sum(-1)
    if extra is not None:  # if the weights are 0 and 1, the two sums are the same, so that their difference is 0
        fp += extra - tp
    return {TP: tp, FP: fp, FN: _by_class(own, lack.square_() if squared else lack, others)}


def _by_class(own: Tensor, values: Tensor, room: Tensor | None = None) -> Tensor:
    """Return values of the voxels, (B, 1, N), summed by the class of the label; `room`, (B, C, N), is overwritten."""
    return only(own, values, room).sum(-1)


def _distances(voxels: Voxels, own: Tensor, p: Tensor, matrix: Tensor) -> dict[int, Tensor]:
    far = _of_label(matrix.to(p.dtype).expand(len(p), -1, -1), voxels).mul_(p)
    distance = voxels.weighed(far.sum(1, keepdim=True))
    nearness = voxels.weighed(torch.sub(p, far, out=far).sum(1, keepdim=True))
    return {DISTANCE: _by_class(own, distance, far), NEARNESS: _by_class(own, nearness, far)}


def _of_own(by_class: Tensor, index: Tensor) -> Tensor:
    """Return, for each voxel, the number (B or 1, C, 1) of the class that its label names, (B, 1, N)."""
    return by_class[:, :, 0].expand(len(index), -1).gather(1, index[:, 0]).unsqueeze(1)


def _of_label(table: Tensor, voxels: Voxels) -> Tensor:
    """Return, for each voxel, the row of a table (B, C, C) that its label names, (B, C, N)."""
    return table.mT.gather(2, voxels.index().expand(-1, table.shape[1], -1))


def gradient_of_labels(
    slopes: Slopes, voxels: Voxels, plan: Plan, matrix: Tensor | None, kept: Softmax | None
) -> Tensor:
    """Return dL/dx; what was kept is overwritten."""
    if plan.activation != "softmax":
        return _gradient_of_channels(slopes, voxels, plan)
    kept = _softmax(voxels, plan) if kept is None else kept
    if matrix is not None:
        assert slopes.distance is not None
        return through_softmax(voxels.weighed(_of_label(matrix.to(kept.p.dtype) * slopes.distance, voxels)), kept.p)
    added = None
    if plan.overlap != "none":
        added = through_softmax(_in_prediction(slopes, voxels, plan, kept), kept.p)
    return added if plan.surprisal == "none" and added is not None else _of_surprisal(slopes, voxels, plan, kept, added)


def _softmax(voxels: Voxels, plan: Plan) -> Softmax:
    """Return the same numbers as the sums kept, to the bit, for a second backward."""
    if plan.surprisal == "none":
        return Softmax(voxels.x.softmax(1))
    log_p, own, labels, surprisal = voxels.x.log_softmax(1), voxels.own(), voxels.index(), None
    p = log_p.exp()
    q = without(own, p).sum(1, keepdim=True)
    if plan.gamma > 0:
        surprisal = accurate(log_p.gather(1, labels), q).neg_()
    return Softmax(p, own, labels, q, surprisal)


def _in_prediction(slopes: Slopes, voxels: Voxels, plan: Plan, given: Softmax) -> Tensor:
    """Return dL/dp of the overlap for labels, given at least p; under a softmax, up to a constant for each voxel."""
    p, own = given.p, voxels.own() if given.own is None else given.own
    assert slopes.hit is not None
    assert slopes.fp is not None
    assert slopes.fn is not None
    assert slopes.tp is not None
    if plan.overlap == "squared":
        softmax = plan.activation == "softmax"
        q = without(own, p).sum(1, keepdim=True) if softmax else (-voxels.x).sigmoid_()
        # The derivative of TP minus that of FN: neither form cancels where it is taken.
        of_own = torch.where(p > 0.5, slopes.tp - 2 * slopes.fn * q, slopes.hit + 2 * slopes.fn * p)
        made = voxels.weighed(torch.where(own, of_own, 2 * slopes.fp * p))
    elif plan.overlap == "product" and voxels.soft and voxels.weight is not None:
        made = torch.where(own, torch.lerp(slopes.fp, slopes.hit, voxels.weight), slopes.fp)
    else:
        made = torch.where(own, slopes.hit, slopes.fp)
    return voxels.weighed(made)


def _of_surprisal(slopes: Slopes, voxels: Voxels, plan: Plan, kept: Softmax, added: Tensor | None) -> Tensor:
    """Return dL/dx of the surprisals: p_k for other classes, and p_k - 1 for that of the label, times dL/d(surprisal).

    It is added to `added`, if that is given, and overwrites p.
    """
    p, own, index, q, surprisal = kept
    assert own is not None
    assert index is not None
    assert q is not None
    assert slopes.hits is not None
    assert slopes.misses is not None
    slope = _of_own(slopes.hits, index)
    if surprisal is not None:
        slope.mul_(slope_of_focused(surprisal, q, plan.gamma))
    slope, made = voxels.weighed(slope), torch.where(own, -q, p, out=p)
    made = made.mul_(slope) if added is None else added.addcmul_(made, slope)
    if plan.surprisal == "all":
        share = slopes.misses if voxels.weight is None else slopes.misses * voxels.weight
        log_p = voxels.x.log_softmax(1)
        made.sub_(torch._log_softmax_backward_data(share.expand_as(p), log_p, 1, p.dtype))
    return made


def _gradient_of_channels(slopes: Slopes, voxels: Voxels, plan: Plan) -> Tensor:
    x, own, made = voxels.x, voxels.own(), None
    if plan.overlap != "none":
        p = x.sigmoid() if plan.activation == "sigmoid" and plan.overlap == "squared" else x
        made = _in_prediction(slopes, voxels, plan, Softmax(p, own))  # which needs p for squares only
        if plan.activation == "sigmoid":
            made = through_sigmoid(made, x)
    if plan.surprisal == "none":
        assert made is not None
        return made
    assert slopes.hits is not None
    assert slopes.misses is not None
    error = torch.where(own, -x, x)
    p, surprisal = error.sigmoid(), softplus(error)
    slope = slope_of_focused(surprisal, p, plan.gamma).mul_(p).mul_(torch.where(own, -slopes.hits, slopes.misses))
    slope = voxels.weighed(slope)
    return slope if made is None else made.add_(slope)
