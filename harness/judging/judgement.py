r"""The rules by which an answer is judged: pure functions from numbers to a verdict.

The rules are the same for our losses and for a user's pair. What is known about a function makes them stricter: a
closed form of the gradient, the size of the terms that cancel (`unit`, `terms`), where there are no kinks, and whether
it is `precise`, which means that it is held to the bounds of a careful implementation.

Symbols: `u` is the unit roundoff of the precision of the computation (2^-24 for float32, and for half precision,
which is computed in float32; 2^-53 for float64), `u_out` is that of the dtype of the result, and C = 8.

**Value.** Every number of every output must satisfy

    |fast - ref| <= C u kappa + u_out |ref| + tiny,      kappa = |ref| + sum_i |x_i dref/dx_i| + ...

A backward stable computation returns the exact result for an input with a relative error of about u. This error changes
the result by up to u * sum |x_i dref/dx_i|. So the bound distinguishes an unstable algorithm from an ill-conditioned
problem. The dots stand for the same terms for all other real numbers: the constants among the options (smoothing
terms; 1 - (E + nu)/(D + delta) may cancel in them alone) and further arguments such as a soft target.
If the function is not `precise`, only its values may be known, and the largest change under perturbations takes the
place of the sum:

    |fast - ref| <= C g (max_k |ref(x(1 + u d_k)) - ref(x)| + u |ref|) + u_out |ref| + own + tiny.

Integers and booleans must be equal to the reference's, here or at one of these points.

**Gradient.** It is that of the sum of all outputs times random upstream gradients. The axes of blocks are named by the
pair; for our losses, a block is one channel of one item. Each block is judged by itself, so that a large structure does
not hide errors in a small one. Its largest error must satisfy

    max |g_fast - g_ref| <= C g (max_k max |g_ref(x(1 + u d_k)) - g_ref(x)| + u max |t_ref|)
                            + u_out max |g_ref| + own + tiny,  d_k random in [-1, 1] for each number,

where all real numbers are perturbed: input, soft targets and masks, constants. One d_k is 1 everywhere, since equal
numbers are rounded alike. Another d_k is a slow wave, which perturbs sums over neighbours, since these are rounded as
well. The term t is usually the gradient. Three kinds of losses need larger terms:

* Under a softmax p, the gradient is p_c sum_k p_k (h_c - h_k) with h = dL/dp, and t is
  p_c sum_{k != c} p_k (|h_c| + |h_k|), since each h is rounded.
* The record of a loss may state the terms of its gradient. For two images that match, the derivatives of correlation
  and of variance are both large, while the gradient is 0; each window rounds its own moments, and its means to float64.
  For generalised Dice with a soft target, two terms may cancel, and a perturbation of the target also changes the
  weight of its class, in the opposite direction.
* Images that are smoothed first are rounded after the smoothing, too, which no perturbation of the input explains.

g_ref is the closed form of the gradient, or else a derivative by complex step or, where the reference is not analytic,
by differences; see `slopes.py`. The error estimate of the differences is a part of `own`. If there are many numbers and
no closed form, the derivatives along some directions are compared instead: random ones within a block, and those of
single numbers.

**Sums.** g = 1 if the function is `precise`, which sums in float64 or in blocks. Otherwise, g = max(1, sqrt(n) / C) for
n numbers in the inputs of a block, or in all if the result sums over blocks: rounding errors of a sum of n terms grow
like sqrt(n) (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis").

**Activations** are rounded as well. So logits are perturbed by u max(|x|, 1) instead, here and in kappa: a relative
error of u in exp(x) equals an absolute error of u in x, however small x is. For an activation a given by the caller, x
is perturbed by u max(|x|, |a(x) / a'(x)|), which changes a(x) by one roundoff.

A bound over several blocks is not needed, since the bounds of the blocks are stricter.

**tiny** is what gradual underflow may cost: half the distance of the subnormal numbers of the result's dtype, and a
few of the smallest normal numbers of the precision of the computation.

**Rounding of the reference.** The reference computes in longdouble if it can, else in float64 (as for our losses on
real images), with roundoff `u_ref`, which is added to `u`. Where it subtracts terms of a known size (the `unit` of a
twin) that almost cancel, as for a nearly perfect prediction, the small difference has an error of 64 u_ref. Other
errors are estimated: those of the reference in the two next lower precisions are scaled to its own. For the gradient,
the estimate is at least 10^4 u_ref^2 `unit`, or u_ref `unit` where the loss has kinks, since the reference's own
rounding may produce a tie.

**Lazy evaluation.** kappa >= |ref|, and the perturbed gradients only widen the bound. So the error is first compared
with the bound without them. If it is within, the case has passed, and the reported ratio refers to that smaller bound,
so it is never too low. The full bound is computed only if it is needed.

**Kinks.** At a tie or clamp the gradient jumps, and rounding decides on which side a fast twin is. Where options make
kinks, or it is not known that they do not, a number may also lie between the smallest and the largest value of the
reference's gradient at nearby points (widened by the bound of the block). Jumps across a kink are left out of the
spread, and a block is not judged by directions that cross kinks.

**Degraded** is an error beyond the bound that is at most twice that of the plain computation. The plain computation is
the reference in the working precision, here or at nearby points, as a single point may be right by luck. This verdict
means that the formula itself is inaccurate, not its implementation. An example is a single voxel with a soft target g
far below the prediction p: the gradient of Dice, -2 g^2 / (p + g)^2, is the difference of two terms that are p/g times
as large. Complex steps compute the plain gradient forwards, and the fast function computes it backwards, with other
rounding errors. So an error of C times that of the complex steps is degraded, too.

**Noise.** A result may be 0 by cancellation, such as the gradient of RMS norm over a single number. Perturbed inputs
then do not show how large its rounding errors may be, nor does a plain computation that is right by luck. Therefore,
unless the function is `precise`, each operation of the reference is also rounded at random by up to u (Monte Carlo
arithmetic, Parker 1997), including its derivative in a complex step. An error of at most C g times the largest change
is degraded, too. Laws may be broken by as much. A jump across a kink does not shrink with the noise, and is left out.

**NaN and infinity.** The value must be NaN, +inf or -inf exactly where the reference is. A gradient must be finite
exactly where the reference is. At a pole, where the loss itself is infinite, the one-sided derivatives are infinite
with different signs, or NaN. Which of them a twin returns depends on the order of operations.
Where the exact result overflows the dtype of the result, any non-finite result is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from twinloss.harness.model.operand import Array

C = 8.0

# The number of values of a volume that are handled at once, so that no temporary array has its size.
AT_ONCE = 2**20

Verdict = Literal["pass", "degraded", "fail"]
ORDER: tuple[Verdict, ...] = ("pass", "degraded", "fail")


@dataclass(frozen=True)
class Precision:
    """Unit roundoffs and limits for a dtype under test."""

    u: float
    u_ref: float
    u_out: float
    tiny: float
    largest: float
    plain: type[np.floating[Any]]

    @classmethod
    def of(cls, dtype: str, real: type[np.floating[Any]] = np.longdouble) -> Precision:
        """Return the precision for a dtype under test, by torch's name, with a reference that computes in `real`.

        The roundoff of the reference is added to `u`. It is negligible in longdouble, but on real images float64 is
        judged by float64, and both round.
        """
        out = torch.finfo(getattr(torch, dtype))
        double = dtype == "float64"
        work = torch.finfo(torch.float64 if double else torch.float32)
        # eps * smallest_normal is the smallest subnormal number: results are rounded to its multiples.
        tiny = out.eps * out.smallest_normal + 4 * work.smallest_normal
        u_ref = float(np.finfo(real).eps) / 2
        return cls(work.eps / 2 + u_ref, u_ref, out.eps / 2, tiny, out.max, np.float64 if double else np.float32)


@dataclass(frozen=True)
class Finding:
    """The result of comparing a value or a gradient with the reference.

    Attributes:
        part: "value" or "gradient".
        verdict: pass, degraded or fail.
        ratio: the worst error as a multiple of its bound; infinite where NaN or infinity differ.
        error: the worst error.
        bound: its bound.
        where: the index of the element or block.
        of: the output or input of a pair, or what is wrong with it.
        basis: what the bound of a pair rests on, in words.
    """

    part: str
    verdict: Verdict
    ratio: float
    error: float = 0.0
    bound: float = 0.0
    where: tuple[int, ...] = ()
    of: str = ""
    basis: str = ""

    @property
    def bits(self) -> float:
        """The number of wrong trailing bits in the precision of the result, log2(C * ratio). It is 3 at the bound."""
        return math.log2(max(1.0, C * self.ratio))


def unlike(fast: Array, ref: Array, largest: float, poles: bool = False) -> Array:
    """Return where only one is finite, or both are non-finite and differ; `poles` allows the latter."""
    overflow = np.isfinite(ref) & (np.abs(ref) > largest)
    wrong = np.isfinite(fast) != np.isfinite(ref)
    if not poles:
        wrong |= ~np.isfinite(ref) & (fast != ref) & ~(np.isnan(fast) & np.isnan(ref))
    return np.where(overflow, np.isfinite(fast) & (np.abs(fast) < 0.99 * largest), wrong)


def distance(fast: Array, ref: Array) -> Array:
    """Return |fast - ref| where both are finite, and 0 elsewhere, where `unlike` decides."""
    both = np.isfinite(fast) & np.isfinite(ref)
    with np.errstate(all="ignore"):
        return np.where(both, np.abs(fast.astype(ref.dtype) - ref), 0)


def bound(
    scale: Array, ref: Array, precision: Precision, spread: Array | float = 0.0, own: Array | float = 0.0
) -> Array:
    """Return C (spread + u scale) + u_out |ref| + own + tiny, where `scale` is kappa or a largest gradient."""
    p = precision
    known = np.where(np.isfinite(ref), np.abs(ref), 0)
    made: Array = C * (spread + p.u * np.where(np.isfinite(scale), scale, 0)) + p.u_out * known + own + p.tiny
    return made


def grade(errors: Array, bounds: Array, plain: Callable[[], Array]) -> Verdict:
    """Return the verdict for errors between finite results; `plain` computes the errors of the plain computation."""
    beyond = ~(errors <= bounds)
    if not beyond.any():
        return "pass"
    return "degraded" if (errors[beyond] <= 2 * plain()[beyond]).all() else "fail"


def finding(part: str, errors: Array, bounds: Array, verdict: Verdict) -> Finding:
    """Return the finding for the largest of the ratios of errors to bounds."""
    ratios = errors / bounds
    if not ratios.size:  # an empty batch without reduction
        return Finding(part, verdict, 0.0)
    where = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    return Finding(
        part,
        verdict,
        float(ratios[where]),
        float(errors[where]),
        float(bounds[where]),
        tuple(int(i) for i in where),
    )


def worst(findings: Sequence[Finding]) -> Finding:
    """Return the finding with the worst verdict, and of those the one with the largest ratio."""
    return max(findings, key=lambda each: (ORDER.index(each.verdict), each.ratio))


def blocks(values: Array, axes: tuple[int, ...] = (0, 1)) -> Array:
    """Return the largest |value| of each block; `axes` are those of the blocks. Non-finite values count as 0."""
    return in_blocks(lambda part: np.where(np.isfinite(part), np.abs(part), 0), axes, values)


def in_blocks(compute: Callable[..., Array], axes: tuple[int, ...], *arrays: Array) -> Array:
    """Return the largest number of compute(*arrays) in each block, or 0; a volume is computed part by part."""
    shape, size = arrays[0].shape, arrays[0].size
    if size <= AT_ONCE:
        others = tuple(i for i in range(len(shape)) if i not in axes)
        return np.asarray(np.max(compute(*arrays), axis=others, initial=0))
    if not axes:
        step = max(1, AT_ONCE * shape[0] // size)
        starts = range(0, shape[0], step)
        largest = [np.max(compute(*(a[start : start + step] for a in arrays)), initial=0) for start in starts]
        return np.asarray(max(largest))
    first, after = axes[0], tuple(axis - 1 for axis in axes[1:])
    parts = zip(*(np.moveaxis(a, first, 0) for a in arrays), strict=True)
    return np.stack([in_blocks(compute, after, *part) for part in parts])
