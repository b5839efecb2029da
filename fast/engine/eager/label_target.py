"""The statistics of a segmentation whose target holds labels, and their gradient."""

from __future__ import annotations

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


def sums_of_labels(voxels: Voxels, own: Tensor, plan: Plan, matrix: Tensor | None, volume: bool) -> dict[int, Tensor]:
    """Return the sums by class; `own` is `voxels.own()`, and `volume` whether to sum a soft weight."""
    rows = _statistics(voxels, own, plan, matrix)
    if voxels.soft and volume and voxels.weight is not None:
        rows[VOLUME] = _by_class(own, voxels.weight)
    return rows


def _statistics(voxels: Voxels, own: Tensor, plan: Plan, matrix: Tensor | None) -> dict[int, Tensor]:
    if plan.activation != "softmax":
        return _sums_of_channels(voxels, own, plan)
    if plan.surprisal != "none":
        return _sums_of_surprisal(voxels, own, plan)
    p = voxels.x.softmax(1)
    if matrix is not None:
        return _distances(voxels, own, p, matrix)
    others = without(own, p)
    return _overlaps(voxels, plan, own, p.mul_(own), others.sum(1, keepdim=True), others)


def _sums_of_surprisal(voxels: Voxels, own: Tensor, plan: Plan) -> dict[int, Tensor]:
    """Return the sums under a softmax, with those of the surprisals."""
    rows, log_p = dict[int, Tensor](), voxels.x.log_softmax(1)
    others, log_own = log_p.exp().masked_fill_(own, 0), log_p.gather(1, voxels.index())
    if plan.surprisal == "all":
        rows[MISSES] = voxels.weighed(log_p).sum(-1).neg_()
    q = others.sum(1, keepdim=True)
    log_own = accurate(log_own, q)
    p = log_own.exp() if plan.overlap != "none" else None
    surprisal = voxels.weighed(log_own if plan.gamma == 0 else log_own.mul_(q**plan.gamma))
    rows[HITS] = _by_class(own, surprisal, log_p).neg_()
    if p is None:
        return rows
    return rows | _overlaps(voxels, plan, own, only(own, p, log_p), q, others)


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
        others = without(own, p)
        return rows | _overlaps(voxels, plan, own, p.mul_(own), q, others)
    p = only(own, x)
    return rows | _overlaps(voxels, plan, own, p, 1 - p.sum(1, keepdim=True), without(own, x))


def _overlaps(voxels: Voxels, plan: Plan, own: Tensor, p: Tensor, q: Tensor, others: Tensor) -> dict[int, Tensor]:
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
    return only(own, values, room).sum(-1)


def _distances(voxels: Voxels, own: Tensor, p: Tensor, matrix: Tensor) -> dict[int, Tensor]:
    far = _of_label(matrix.to(p.dtype).expand(len(p), -1, -1), voxels).mul_(p)
    distance = voxels.weighed(far.sum(1, keepdim=True))
    nearness = voxels.weighed(p.sub_(far).sum(1, keepdim=True))
    return {DISTANCE: _by_class(own, distance, far), NEARNESS: _by_class(own, nearness, far)}


def _of_own(by_class: Tensor, index: Tensor) -> Tensor:
    """Return, for each voxel, the number (B or 1, C, 1) of the class that its label names, (B, 1, N)."""
    return by_class[:, :, 0].expand(len(index), -1).gather(1, index[:, 0]).unsqueeze(1)


def _of_label(table: Tensor, voxels: Voxels) -> Tensor:
    """Return, for each voxel, the row of a table (B, C, C) that its label names, (B, C, N)."""
    return table.mT.gather(2, voxels.index().expand(-1, table.shape[1], -1))


def gradient_of_labels(slopes: Slopes, voxels: Voxels, plan: Plan, matrix: Tensor | None) -> Tensor:
    """Return dL/dx."""
    if plan.activation == "softmax":
        return _gradient_of_softmax(slopes, voxels, plan, matrix)
    return _gradient_of_channels(slopes, voxels, plan)


def _in_prediction(slopes: Slopes, voxels: Voxels, plan: Plan, own: Tensor, p: Tensor) -> Tensor:
    """Return dL/dp of the overlap for labels, up to a constant for each voxel under a softmax."""
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


def _gradient_of_softmax(slopes: Slopes, voxels: Voxels, plan: Plan, matrix: Tensor | None) -> Tensor:
    p = voxels.x.softmax(1)
    if matrix is not None:
        assert slopes.distance is not None
        in_p = voxels.weighed(_of_label(matrix.to(p.dtype) * slopes.distance, voxels))
    elif plan.overlap != "none":
        own = voxels.own()
        in_p = _in_prediction(slopes, voxels, plan, own, p)
        if plan.surprisal != "none":
            return _of_surprisal(slopes, voxels, plan, own, p, through_softmax(in_p, p))
        del own
    else:
        return _of_surprisal(slopes, voxels, plan, voxels.own(), p, None)
    return through_softmax(in_p, p)


def _of_surprisal(slopes: Slopes, voxels: Voxels, plan: Plan, own: Tensor, p: Tensor, added: Tensor | None) -> Tensor:
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
        surprisal = accurate(log_p.gather(1, index), q).neg_()
        slope.mul_(slope_of_focused(surprisal, q, plan.gamma))
    slope, made = voxels.weighed(slope), torch.where(own, q.neg_(), p, out=p)
    made = made.mul_(slope) if added is None else added.addcmul_(made, slope)
    if plan.surprisal == "all" and log_p is not None:
        share = slopes.misses if voxels.weight is None else slopes.misses * voxels.weight
        made.sub_(torch._log_softmax_backward_data(share.expand_as(p), log_p, 1, p.dtype))
    return made


def _gradient_of_channels(slopes: Slopes, voxels: Voxels, plan: Plan) -> Tensor:
    x, own, made = voxels.x, voxels.own(), None
    if plan.overlap != "none":
        p = x.sigmoid() if plan.activation == "sigmoid" else x
        made = _in_prediction(slopes, voxels, plan, own, p)
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
