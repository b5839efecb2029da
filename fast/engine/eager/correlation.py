"""The correlations of float32 images in windows of equal weights, in operators of torch.

With n voxels in a window, a variance is Σ p² - (Σ p)²/n. In float64, this would lose the digits of a faint contrast far
from 0. Therefore, both terms are sums of a high part, whose difference is exact, and of a low part:

* Of p², which has 48 bits, the high part keeps so many bits that its sum is exact. The rest has few bits.
* Σ p is n m + r, where m has so few bits that n m² is exact. So (Σ p)²/n is n m² + 2 m r + r²/n.

A covariance is computed likewise. The sums of the low parts of a large window need float64, too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twinloss.fast.engine.eager.windows import sum_in_place_of, summed
from twinloss.fast.kernels.contract import CorrelationPlan
from twinloss.fast.runtime.constants import constant

# The largest low part, so that its sums do not overflow float32: that of larger numbers is cut off.
_LARGEST = 1e30


class _Scores(NamedTuple):
    """The correlations of all windows, and what their gradients need.

    With n voxels in a window, the moments are n times as large, so that n² ν and n² δ stand for ν and δ.

    Attributes:
        score: (c² + ν) / M with the covariance c and the denominator M, (N, D, H, W).
        fields: (3, N, D, H, W): c / M, the score times the variance of t over M, and the first times the sum of t less
            the second times the sum of p.
        of_t: the last two fields for the other image, if its gradient is needed, (2, N, D, H, W).
    """

    score: Tensor
    fields: Tensor
    of_t: Tensor | None


def value(p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype) -> Tensor:
    """Return a factor times the sum of all correlations, see `CorrelationKernels.value`."""
    return (_scores(p, t, plan, 0).score.sum() * factor).to(dtype)


def value_and_gradient(
    p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the value and dL/dp, for an upstream gradient of 1."""
    score, fields, _ = _scores(p, t, plan, 1)
    made = (score.sum() * factor).to(dtype)
    del score
    return made, _gradient(p, t, fields, plan, factor)


def gradient(upstream: Tensor, p: Tensor, t: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
    """Return dL/dp, given dL/d(value)."""
    return value_and_gradient(p, t, plan, factor, p.dtype)[1].mul_(upstream)


def scores(
    p: Tensor, t: Tensor, plan: CorrelationPlan, voxelwise: bool, gradients: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the correlations or their sums, and intermediate results, see `CorrelationKernels.scores`."""
    score, fields, of_t = _scores(p, t, plan, gradients)
    nothing = score.new_empty(0)
    made = score.to(p.dtype) if voxelwise else score.sum((1, 2, 3))
    kept = fields.transpose(0, 1).contiguous() if gradients else nothing
    return made, kept, nothing.clone() if of_t is None else of_t.transpose(0, 1).contiguous()


def slopes(upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return dL/dp, given dL/d(scores), see `CorrelationKernels.slopes`."""
    each = upstream if upstream.ndim == 4 else upstream.view(-1, 1, 1, 1)
    return _gradient(p, t, torch.stack([of_both[:, 0], *of_p.unbind(1)]).mul_(each), plan, 1)


def _scores(p: Tensor, t: Tensor, plan: CorrelationPlan, gradients: int) -> _Scores:
    moments = _moments(p, t, plan)
    tp, tt, sum_t, sum_p, pp = moments
    nu, delta = (constant(smooth, tp) for smooth in (plan.nu, plan.delta))
    clamped = (pp >= plan.delta, tt >= plan.delta) if plan.clamped else None
    if clamped is None:
        denominator = torch.addcmul(delta, pp, tt)
    else:
        denominator = pp.clamp_(min=plan.delta) * tt.clamp_(min=plan.delta)
    score = torch.addcmul(nu, tp, tp).div_(denominator)
    if gradients == 0:
        return _Scores(score, moments[:3], None)
    tp.div_(denominator)
    in_t = pp.mul_(score).div_(denominator) if gradients > 1 else None
    in_p = tt.mul_(score).div_(denominator)
    del denominator
    if clamped is not None:
        in_p.mul_(clamped[0])
    of_t = None
    if in_t is not None:
        if clamped is not None:
            in_t.mul_(clamped[1])
        of_t = torch.stack([in_t, (sum_p * tp).addcmul_(sum_t, in_t, value=-1)])
    sum_t.mul_(tp).addcmul_(sum_p, in_p, value=-1)
    return _Scores(score, moments[:3], of_t)


def _moments(p: Tensor, t: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return the covariance, the variance of t, Σ t, Σ p and the variance of p, (5, N, D, H, W), times the count."""
    count = plan.size**plan.rank
    parts = [*_products(p, t, count)]
    sum_in_place_of(parts, plan.size, plan.rank)
    made, low = parts
    tp, tt, sum_t, sum_p, pp = made
    (of_t, rest_t), (of_p, rest_p) = (_mean_and_rest(sums, count, low.dtype) for sums in (sum_t, sum_p))
    tp.addcmul_(of_t, of_p, value=-count)
    tp.addcmul_(of_p, rest_t, value=-1).addcmul_(sum_t, rest_p, value=-1 / count).add_(low[0])
    for variance, of, rest, added in ((tt, of_t, rest_t, low[1]), (pp, of_p, rest_p, low[2])):
        variance.addcmul_(of, of, value=-count)
        variance.addcmul_(of, rest, value=-2).addcmul_(rest, rest, value=-1 / count).add_(added)
    return made


def _products(p: Tensor, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return p t, t², t, p and p², (5, N, D, H, W) float64, and what the products lack, (3, N, D, H, W)."""
    bits = count.bit_length()
    high = p.new_empty((5, *p.shape), dtype=torch.float64)
    low = p.new_empty((3, *p.shape), dtype=torch.float32 if bits <= 14 else torch.float64)
    high[2].copy_(t)
    high[3].copy_(p)
    for k, (a, b) in enumerate(((2, 3), (2, 2), (3, 3))):
        whole, part = high[a] * high[b], high[(0, 1, 4)[k]]
        torch.bitwise_and(whole.view(torch.int64), -1 << bits, out=part.view(torch.int64))
        torch.sub(whole, part, out=low[k])
        del whole
    return high, low.clamp_(-_LARGEST, _LARGEST)


def _mean_and_rest(sums: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a number m of few bits near the mean of n numbers, and their sum less n m in another dtype."""
    bits = (53 - count.bit_length()) // 2
    mean = sums * (1 / count)
    mean.view(torch.int64).bitwise_and_(-1 << (53 - bits))
    return mean, torch.sub(sums, mean, alpha=count, out=sums.new_empty(sums.shape, dtype=dtype))


def _gradient(p: Tensor, t: Tensor, fields: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
    """Return the gradient in p, given the three fields of `_Scores` for p."""
    count = plan.size**plan.rank
    in_c, in_variance, made = summed(fields, plan.size, plan.rank)
    made.addcmul_(in_c, t, value=-count).addcmul_(in_variance, p, value=count)
    return torch.mul(made, -2 * factor / count, out=torch.empty_like(p, memory_format=torch.contiguous_format))
