"""The statistics of a segmentation whose target is one-hot or soft, and their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from twinloss.fast.engine.eager.activations import (
    accurate,
    focused,
    product,
    slope_of_focused,
    softplus,
    through_sigmoid,
    through_softmax,
)
from twinloss.fast.engine.eager.voxel_inputs import Slopes, Voxels
from twinloss.fast.kernels.contract import FN, FP, HITS, MISSES, TP, VOLUME, Plan


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


def sums_of_dense(voxels: Voxels, plan: Plan) -> tuple[dict[int, Tensor], Tensor | None]:
    """Return the sums by class, and a softmax to keep for the gradient."""
    x, g, weight = voxels.x, voxels.target, voxels.weight
    volume = g if weight is None else g * weight
    rows = {VOLUME: volume.sum(-1)}
    if plan.surprisal != "none":
        rows |= _surprisals_of_dense(voxels, plan, volume)
    if plan.overlap == "none":
        return rows, None
    p, q = _prediction(x, plan.activation)
    rows |= _overlaps_of_dense(voxels, plan, volume, p, q)
    return rows, p if plan.activation == "softmax" else None


def _overlaps_of_dense(voxels: Voxels, plan: Plan, volume: Tensor, p: Tensor, q: Tensor) -> dict[int, Tensor]:
    """Return TP, FP and FN, given p and 1 - p, of which the second is overwritten."""
    g, weight = voxels.target, voxels.weight
    if plan.overlap == "product":
        if weight is not None:
            p, q = p * weight, q.mul_(weight).add_(1 - weight)
        hit = p * volume
        tp = hit.sum(-1)
        return {TP: tp, FP: torch.sub(p, hit, out=hit).sum(-1), FN: q.mul_(volume).sum(-1)}
    excess = _excess(p, q, g)
    if plan.overlap == "minimum":
        # min(p, g) is g where p exceeds it.
        tp = torch.where(excess > 0, g, p)
        return {
            TP: voxels.weighed(tp).sum(-1),
            FP: voxels.weighed(excess.clamp(min=0)).sum(-1),
            FN: voxels.weighed(excess.neg_().clamp_(min=0)).sum(-1),
        }
    tp = voxels.weighed(p * volume).sum(-1)
    excess = voxels.weighed(excess)
    return {
        TP: tp, FP: excess.clamp(min=0).square_().sum(-1), FN: excess.neg_().clamp_(min=0).square_().sum(-1)
    }  # fmt: skip


def _excess(p: Tensor, q: Tensor, g: Tensor) -> Tensor:
    """Return p - g, from 1 - p where p is large."""
    return torch.where(p > 0.5, (1 - g).sub_(q), p - g)


def _surprisals_of_dense(voxels: Voxels, plan: Plan, volume: Tensor) -> dict[int, Tensor]:
    x, g, gamma = voxels.x, voxels.target, plan.gamma
    if plan.activation == "softmax":
        surprisal, q = _surprisal(x, gamma)
        rows = {MISSES: voxels.weighed(surprisal.clone()).sum(-1)} if plan.surprisal == "all" else {}
        return rows | {HITS: product(volume, focused(surprisal, q, gamma)).sum(-1)}
    hit = focused(softplus(-x), (-x).sigmoid_(), gamma)
    lost = focused(softplus(x), x.sigmoid(), gamma)
    return {
        HITS: product(volume, hit).sum(-1),
        MISSES: product(voxels.weighed(1 - g), lost).sum(-1),
    }


def _surprisal(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return -log p of a softmax, and 1 - p, unless its exponent is 0.

    Only the most probable class may have a p near 1, of which 1 - p is the sum of the others.
    """
    log_p = x.log_softmax(1)
    p, top = log_p.exp(), log_p.argmax(1, keepdim=True)
    q = 1 - p if gamma > 0 else p
    rest = p.scatter_(1, top, 0).sum(1, keepdim=True)
    surprisal = log_p.scatter_(1, top, accurate(log_p.gather(1, top), rest)).neg_()
    return surprisal, q.scatter_(1, top, rest) if gamma > 0 else q


def gradient_of_dense(slopes: Slopes, voxels: Voxels, plan: Plan, kept: Tensor | None) -> Tensor:
    """Return dL/dx, given the softmax that the sums have kept, or None."""
    x, g, weight, made = voxels.x, voxels.target, voxels.weight, None
    volume = g if weight is None else g * weight
    if plan.overlap != "none":
        made = _of_dense_overlap(slopes, voxels, plan, volume)
        if plan.activation == "softmax":
            made = through_softmax(made, _prediction(x, "softmax")[0] if kept is None else kept)
            kept = None
        elif plan.activation == "sigmoid":
            made = through_sigmoid(made, x)
    if plan.surprisal == "none":
        assert made is not None
        return made
    more = _of_dense_surprisal(slopes, voxels, plan, volume)
    return more if made is None else made.add_(more)


def _of_dense_overlap(slopes: Slopes, voxels: Voxels, plan: Plan, volume: Tensor) -> Tensor:
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


def _of_dense_surprisal(slopes: Slopes, voxels: Voxels, plan: Plan, volume: Tensor) -> Tensor:
    """Return dL/dx of the surprisals."""
    x, g, gamma = voxels.x, voxels.target, plan.gamma
    assert slopes.hits is not None
    assert slopes.misses is not None
    if plan.activation != "softmax":
        p, q = x.sigmoid(), (-x).sigmoid_()
        of_hits = slope_of_focused(softplus(-x), q, gamma).mul_(q).mul_(volume).mul_(slopes.hits)
        of_misses = slope_of_focused(softplus(x), p, gamma).mul_(p).mul_(slopes.misses)
        return of_misses.mul_(voxels.weighed(1 - g)).sub_(of_hits)
    in_surprisal = volume * slopes.hits
    if gamma > 0:
        in_surprisal.mul_(slope_of_focused(*_surprisal(x, gamma), gamma))
    if plan.surprisal == "all":
        in_surprisal.add_(slopes.misses if voxels.weight is None else slopes.misses * voxels.weight)
    # dL/dx is p_k times the sum of all slopes, less the own slope. Where p is near 1, this cancels. For the most
    # probable class, it is p_k times the sum of the other slopes, less the sum of the other p times the own slope.
    p = x.softmax(1)
    top = p.argmax(1, keepdim=True)
    (p_top, other_p), (own, others) = (_apart(each, top) for each in (p, in_surprisal))
    of_top = p_top.mul_(others).addcmul_(other_p, own, value=-1)
    return p.mul_(others.add_(own)).sub_(in_surprisal).scatter_(1, top, of_top)


def _apart(values: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values at an index of the classes, which become 0, and the sum of the others."""
    return values.gather(1, top), values.scatter_(1, top, 0).sum(1, keepdim=True)
