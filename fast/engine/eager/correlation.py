"""The correlations of float32 images in windows of equal weights, in operators of torch.

A variance is a difference of moments, n Σ p² - (Σ p)², which would lose all digits of a faint contrast. Therefore, each
number is split into a high and a low half of 12 bits. In float64, all sums of products of the halves are exact, and so
are these differences, unless the numbers of a window differ so much in size that their variance is large.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twinloss.fast.engine.eager.windows import summed
from twinloss.fast.kernels.contract import CorrelationPlan
from twinloss.fast.runtime.constants import constant

# The bits of a float32 without the lower half of its digits.
_HIGH = ~0xFFF


class _Scores(NamedTuple):
    """The correlations of all windows, and what their gradients need.

    With n voxels in a window, the moments are n times as large, so that n² ν and n² δ stand for ν and δ.

    Attributes:
        score: (c² + ν) / M with the covariance c and the denominator M, (N, D, H, W).
        fields: (N, 3, D, H, W): c / M, the score times the variance of t over M, and the first times the sum of t less
            the second times the sum of p.
        of_t: the last two fields for the other image, if its gradient is needed, (N, 2, D, H, W).
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
    return made, fields if gradients else nothing, nothing.clone() if of_t is None else of_t


def slopes(upstream: Tensor, p: Tensor, t: Tensor, of_both: Tensor, of_p: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return dL/dp, given dL/d(scores), see `CorrelationKernels.slopes`."""
    each = upstream.unsqueeze(1) if upstream.ndim == 4 else upstream.view(-1, 1, 1, 1, 1)
    return _gradient(p, t, torch.cat([of_both[:, :1], of_p], 1).mul_(each), plan, 1)


def _scores(p: Tensor, t: Tensor, plan: CorrelationPlan, gradients: int) -> _Scores:
    count = plan.size**plan.rank
    sums_p, sums_t = _sums(p, plan), _sums(t, plan)
    pp, found_tt = _variance(p, plan, count, sums_p), _variance(t, plan, count, sums_t)
    found_tp = _covariance(p, t, plan, count, (sums_p, sums_t))
    fields = p.new_empty((len(p), 3, *p.shape[1:]), dtype=torch.float64)
    tp, tt, sum_t = fields.unbind(1)
    tp.copy_(found_tp)
    tt.copy_(found_tt)
    torch.sum(sums_t, 1, out=sum_t)
    sum_p = sums_p.sum(1)
    del sums_p, sums_t, found_tp, found_tt
    nu, delta = (constant(count**2 * smooth, tp) for smooth in (plan.nu, plan.delta))
    clamped = (pp >= count * plan.delta, tt >= count * plan.delta) if plan.clamped else None
    if clamped is None:
        denominator = torch.addcmul(delta, pp, tt)
    else:
        denominator = pp.clamp_(min=count * plan.delta) * tt.clamp_(min=count * plan.delta)
    score = torch.addcmul(nu, tp, tp).div_(denominator)
    if gradients == 0:
        return _Scores(score, fields, None)
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
        of_t = torch.stack([in_t, (sum_p * tp).addcmul_(sum_t, in_t, value=-1)], 1)
    sum_t.mul_(tp).addcmul_(sum_p, in_p, value=-1)
    return _Scores(score, fields, of_t)


def _split(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the halves of an image, whose sum is the image."""
    high = image.view(torch.int32).bitwise_and(_HIGH).view(torch.float32)
    return high, image - high


def _sums(image: Tensor, plan: CorrelationPlan) -> Tensor:
    """Return the sums of the halves of an image in all windows, (N, 2, D, H, W) float64."""
    return summed(_halves(image), plan.size, plan.rank)


def _halves(image: Tensor) -> Tensor:
    made = image.new_empty((len(image), 2, *image.shape[1:]), dtype=torch.float64)
    for field, half in zip(made.unbind(1), _split(image), strict=True):
        field.copy_(half)
    return made


def _variance(image: Tensor, plan: CorrelationPlan, count: int, sums: Tensor) -> Tensor:
    """Return n Σ p² - (Σ p)², given the sums of the halves."""
    hh, hl, ll = summed(_squares(image, count), plan.size, plan.rank).unbind(1)
    high, low = sums.unbind(1)
    hh.addcmul_(high, high, value=-1)
    hl.addcmul_(high, low, value=-1)
    ll.addcmul_(low, low, value=-1 / count)  # so small that its rounding errors do not matter
    return torch.add(hh, hl, alpha=2).add_(ll, alpha=count)


def _squares(image: Tensor, count: int) -> Tensor:
    """Return the products of the halves of an image; all but that of the low halves are multiplied by n."""
    high, low = _split(image)
    made = image.new_empty((len(image), 3, *image.shape[1:]), dtype=torch.float64)
    hh, hl, ll = made.unbind(1)
    hh.copy_(high).mul_(count)
    torch.mul(hh, low, out=hl)
    hh.mul_(high)
    ll.copy_(low).mul_(low)
    return made


def _covariance(p: Tensor, t: Tensor, plan: CorrelationPlan, count: int, sums: tuple[Tensor, Tensor]) -> Tensor:
    """Return n Σ p t - Σ p Σ t, given the sums of the halves of both images."""
    hh, hl, ll = summed(_products(p, t, count), plan.size, plan.rank).unbind(1)
    (p_high, p_low), (t_high, t_low) = (each.unbind(1) for each in sums)
    hh.addcmul_(p_high, t_high, value=-1)
    hl.addcmul_(p_high, t_low, value=-1).addcmul_(p_low, t_high, value=-1)
    ll.addcmul_(p_low, t_low, value=-1)
    return torch.add(hh, hl).add_(ll)


def _products(p: Tensor, t: Tensor, count: int) -> Tensor:
    """Return the products of the halves of two images, multiplied by n."""
    (p_high, p_low), (t_high, t_low) = _split(p), _split(t)
    made = p.new_empty((len(p), 3, *p.shape[1:]), dtype=torch.float64)
    hh, hl, ll = made.unbind(1)
    ll.copy_(p_low).mul_(count)
    torch.mul(ll, t_high, out=hl)
    ll.mul_(t_low)
    hh.copy_(p_high).mul_(count)
    hl.add_(hh * t_low)
    hh.mul_(t_high)
    return made


def _gradient(p: Tensor, t: Tensor, fields: Tensor, plan: CorrelationPlan, factor: float) -> Tensor:
    """Return the gradient in p, given the three fields of `_Scores` for p."""
    count = plan.size**plan.rank
    in_c, in_variance, means = summed(fields, plan.size, plan.rank).unbind(1)
    made = in_c.mul_(t).sub_(in_variance.mul_(p)).sub_(means, alpha=1 / count)
    return torch.mul(made, 2 * factor * count, out=torch.empty_like(p, memory_format=torch.contiguous_format))
