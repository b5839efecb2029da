"""The statistics in torch operators, for all devices and derivatives of any order."""

from __future__ import annotations

import torch
from torch import Tensor

from twinloss.fast.engine.segmentation.labels import (
    checked_labels,
    checked_mask,
    comparable,
    ignored,
    wrong_labels,
)
from twinloss.fast.engine.segmentation.stable_functions import (
    complement_of,
    focused,
    softplus,
    surprisal_of,
    weighted,
)
from twinloss.fast.kernels.contract import Plan, VoxelInputs, flat
from twinloss.fast.runtime.checks import is_readable
from twinloss.fast.runtime.constants import accumulator, classes
from twinloss.fast.runtime.dispatch import widened


def plain_sums(inputs: VoxelInputs, plan: Plan) -> Tensor:
    """Return the statistics, (ROWS, B, C) float64."""
    x, target, mask = widened(flat(inputs.x)), flat(inputs.target), inputs.mask
    weight = torch.ones_like(x[:, :1]) if mask is None else checked_mask(flat(mask), x)
    if plan.ignore_index is not None:
        weight = weight.masked_fill(ignored(target, plan.labels, plan.ignore_index), 0)
    taken = weight != 0
    # In an excluded voxel, the mask has no gradient either, because the logit, which may be NaN, is replaced.
    weight, x = torch.where(taken, weight, 0), torch.where(taken, x, 0)
    if not plan.labels:
        return _sums_of_dense(x, torch.where(taken, target.to(x.dtype), 0), weight, plan)
    if not is_readable(target):
        x = torch.where(wrong_labels(comparable(target), x.shape[1], plan.ignore_index), torch.nan, x)
    return _sums_of_labels(x, target, weight, inputs.matrix, plan)


def _sums_of_dense(x: Tensor, g: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    surprisal, p, q = _probabilities(x, plan.activation)
    nothing = (0 * p).detach()
    return torch.stack([_total(term) for term in (*_terms(x, surprisal, p, q, g, weight, plan), *[nothing] * 3)])


def _sums_of_labels(x: Tensor, target: Tensor, weight: Tensor, matrix: Tensor | None, plan: Plan) -> Tensor:
    """Sum the terms of each voxel, with g = 1 for its own class and g = 0 for all others, without a one-hot tensor."""
    surprisal, p, q = _probabilities(x, plan.activation)
    y = checked_labels(target, x.shape[1], plan.ignore_index)
    one, zero = torch.ones_like(weight), torch.zeros_like(weight)
    own_surprisal = None if surprisal is None else surprisal.gather(1, y)
    own_x, own_p, own_q = (values.gather(1, y) for values in (x, p, q))
    own = _terms(own_x, own_surprisal, own_p, own_q, one, weight, plan)
    others = _terms(x, surprisal, p, q, zero, weight, plan)
    sums = [
        _by_class(of_own, y, _total(of_others.expand_as(p).scatter(1, y, 0)))
        for of_own, of_others in zip(own, others, strict=True)
    ]
    distance, nearness, nothing = zero, zero, _total(0 * p).detach()
    if matrix is not None:
        rows = matrix.to(x.dtype)[y[:, 0]].movedim(-1, 1)
        distance, nearness = (weight * (m * p).sum(1, keepdim=True) for m in (rows, 1 - rows))
    return torch.stack([*sums, *(_by_class(values, y, nothing) for values in (distance, nearness)), nothing])


def focal_terms(x: Tensor, target: Tensor, activation: str, gamma: float, labels: bool) -> tuple[Tensor, Tensor]:
    """Return the terms of hits and misses, (B, C, *S), for a loss without reduction."""
    if labels:
        y = checked_labels(target, x.shape[1], None)
        if not is_readable(target):
            x = torch.where(wrong_labels(comparable(target), x.shape[1], None), torch.nan, x)
        g = torch.zeros_like(x).scatter(1, y, 1)
    else:
        g = target.to(x.dtype)
    surprisal, p, q = _probabilities(x, activation)
    plan = Plan(activation, "none", "target", gamma, labels, None)
    _, _, _, hits, misses, _ = _terms(x, surprisal, p, q, g, torch.ones_like(x[:, :1]), plan)
    return hits, misses


def _total(term: Tensor) -> Tensor:
    return term.sum(-1, dtype=accumulator(term.device))


def _by_class(values: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Return `start`, (B, C), plus the values (B, 1, N) summed by class, in a fixed order."""
    return start + _total(torch.where(y == classes(start.shape[1], y), values, 0))


def _probabilities(x: Tensor, activation: str) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return -log p of a softmax, p and 1 - p, each with a gradient that does not cancel where p saturates."""
    if activation == "softmax":
        surprisal = surprisal_of(x)
        return surprisal, torch.exp(-surprisal), complement_of(surprisal)
    if activation == "sigmoid":
        return None, torch.exp(-softplus(-x)), torch.exp(-softplus(x))
    return None, x, 1 - x


def _terms(
    x: Tensor, surprisal: Tensor | None, p: Tensor, q: Tensor, g: Tensor, weight: Tensor, plan: Plan
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the terms of all sums but the distance, (B, C, N) or a shape that broadcasts to it."""
    nothing = 0 * p
    tp, fp, fn, hits, misses = nothing, nothing, nothing, nothing, nothing
    target = weight * g
    if plan.overlap != "none":
        prediction, complement = weight * p, (1 - weight) + weight * q
        d = weight * torch.where(p > 0.5, (1 - g) - q, p - g)
        excess, lack = (d.abs() + d) / 2, (d.abs() - d) / 2
        if plan.overlap == "product":
            tp, fp, fn = prediction * target, prediction * (1 - target), target * complement
        elif plan.overlap == "minimum":
            tp, fp, fn = target - lack, excess, lack
        else:
            tp, fp, fn = prediction * target, excess**2, lack**2
    if plan.surprisal != "none" and plan.activation == "softmax":
        hits = weighted(target, focused(surprisal, plan.gamma))
        if plan.surprisal == "all":
            misses = weight * surprisal  # type: ignore[operator]  # with softmax it is not None
    elif plan.surprisal != "none":
        hits = weighted(target, focused(softplus(-x), plan.gamma))
        misses = weighted(weight * (1 - g), focused(softplus(x), plan.gamma))
    return tp, fp, fn, hits, misses, target
