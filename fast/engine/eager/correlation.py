"""The correlations of float32 images in moving windows, in operators of torch.

The moments are differences, such as Σ w p² - (Σ w p)² / Σ w. In float64, their rounding errors are far below those of
float32 images. A variance that is not larger than its rounding error is that of a flat window, and becomes 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twinloss.fast.engine.eager.windows import filtered, summed
from twinloss.fast.kernels.contract import CorrelationPlan

# A variance up to this share of (Σ w p)² / Σ w is rounding error.
_FLAT = 8 * torch.finfo(torch.float64).eps


class _Scores(NamedTuple):
    """The correlations of all windows, and what their gradients need, all (N, D, H, W) float64.

    Attributes:
        score: (c² + ν) / M with the covariance c and the denominator M.
        fields: (N, 5, D, H, W): dscore/dc / 2, dscore/d(variance of p), its product with the sum of p plus that of the
            first with the sum of t; and the last two for the variance of t.
    """

    score: Tensor
    fields: Tensor | None


def value(p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
    """Return a factor times the sum of all correlations, see `CorrelationKernels.value`."""
    return (_scores(p, t, plan, 0).score.sum() * factor).to(dtype)


def value_and_gradient(
    p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the value and dL/dp, for an upstream gradient of 1."""
    score, fields = _scores(p, t, plan, 1)
    made = (score.sum() * factor).to(dtype)
    del score
    assert fields is not None
    return made, _gradient(p, t, fields, plan, factor)


def gradient(upstream: Tensor, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
    """Return dL/dp, given dL/d(value)."""
    return value_and_gradient(p, t, plan, factor, p.dtype)[1].mul_(upstream)


def scores(
    p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool, gradients: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the correlations or their sums, and intermediate results, see `CorrelationKernels.scores`."""
    score, fields = _scores(p, t, plan, gradients)
    made = score.to(p.dtype) if voxelwise else score.sum((1, 2, 3))
    if fields is None:
        return made, score.new_empty(0), score.new_empty(0)
    return made, fields[:, :3].clone(), fields[:, 3:].clone() if gradients > 1 else score.new_empty(0)


def slopes(upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return dL/dp, given dL/d(scores), see `CorrelationKernels.slopes`."""
    each = upstream.unsqueeze(1) if upstream.ndim == 4 else upstream.view(-1, 1, 1, 1, 1)
    return _gradient(p, t, torch.cat([of_both[:, :1], of_p], 1).mul_(each), plan, 1)


def _scores(p: Tensor, t: Tensor, plan: CorrelationPlan, gradients: int) -> _Scores:
    moments = _moments(p, t, plan)
    sum_p, pp, tp, tt, sum_t = moments.unbind(1)
    weight = sum(plan.window()) ** plan.rank
    flat = _subtract_mean(pp, sum_p, weight).logical_or_(_subtract_mean(tt, sum_t, weight))
    tp.addcmul_(sum_p, sum_t, value=-1 / weight).masked_fill_(flat, 0)
    del flat
    kept = (pp >= plan.delta, tt >= plan.delta) if plan.clamped else None
    if kept is not None:
        pp.clamp_(min=plan.delta)
        tt.clamp_(min=plan.delta)
    denominator = pp * tt
    if kept is None:
        denominator.add_(plan.delta)
    score = tp.square().add_(plan.nu).div_(denominator)
    if gradients == 0:
        return _Scores(score, None)
    tp.div_(denominator)
    if gradients > 1:
        in_t = (pp * score).div_(denominator).neg_()
    in_p = tt.mul_(score).div_(denominator).neg_()
    if kept is not None:
        in_p.mul_(kept[0])
    if gradients > 1:
        if kept is not None:
            in_t.mul_(kept[1])
        torch.mul(sum_p, tp, out=pp).addcmul_(sum_t, in_t).div_(weight)
        both = torch.stack([tp, in_p, sum_t.mul_(tp).addcmul_(sum_p, in_p).div_(weight), in_t, pp], 1)
        return _Scores(score, both)
    sum_t.mul_(tp).addcmul_(sum_p, in_p).div_(weight)
    return _Scores(score, moments[:, 2:])


def _moments(p: Tensor, t: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return the weighted sums of p, p², tp, t² and t in all windows, (N, 5, D, H, W)."""
    if plan.kind == "rectangular":
        return summed(_products(p, t), plan.size, plan.rank)
    return filtered(_products(p, t), tuple(plan.window()), plan.rank, 2)


def _products(p: Tensor, t: Tensor) -> Tensor:
    """Return p, p², tp, t² and t as float64, (N, 5, D, H, W)."""
    made = p.new_empty((len(p), 5, *p.shape[1:]), dtype=torch.float64)
    first, pp, tp, tt, second = made.unbind(1)
    first.copy_(p)
    second.copy_(t)
    torch.mul(first, first, out=pp)
    torch.mul(second, second, out=tt)
    torch.mul(first, second, out=tp)
    return made


def _subtract_mean(squares: Tensor, sums: Tensor, weight: float) -> Tensor:
    """Make a sum of squares that of squared deviations from the mean, and return where a window is flat."""
    of_mean = sums.square().div_(weight)
    squares.sub_(of_mean)
    flat = squares <= of_mean.mul_(_FLAT)
    squares.masked_fill_(flat, 0)
    return flat


def _gradient(p: Tensor, t: Tensor, fields: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
    """Return the gradient in p, given the three fields of `_Scores` for p, which are overwritten."""
    if plan.kind == "rectangular":
        fields = summed(fields, plan.size, plan.rank)
    else:
        fields = filtered(fields, tuple(plan.window()), plan.rank)
    in_c, in_variance, means = fields.unbind(1)
    made = in_c.mul_(t).add_(in_variance.mul_(p)).sub_(means)
    return torch.mul(made, 2 * factor).to(p.dtype)
