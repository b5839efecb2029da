r"""When a fast twin is wrong: pure functions from numbers to a verdict.

Symbols: `u` the unit roundoff of the precision that is computed in (2^-24 for float32, and for
halves, which are upcast; 2^-53 for float64), `u_out` that of the type of the result, C = 8.

**Value.** Every element of the loss must satisfy

    |fast - ref| <= C u kappa + u_out |ref| + tiny,      kappa = |ref| + sum_i |x_i dref/dx_i| + ...

A computation whose every step is rounded well answers exactly for an input that is off by some u:
that moves the result by up to u * sum |x_i dref/dx_i|. So the bound separates an unstable
algorithm from an ill-conditioned question. The dots are the same for what else is real: the
constants among the options (smoothing terms; 1 - (E + nu)/(D + delta) may cancel in them alone)
and further arguments such as a soft target.

**Gradient.** In every block, that is each item and channel by itself, so that a small structure
is not hidden behind a large one, the largest error must satisfy

    max |g_fast - g_ref| <= C (max_k max |g_ref(x(1 + u d_k)) - g_ref(x)| + u max |t_ref|)
                            + u_out max |g_ref| + tiny,  d_k random in [-1, 1] for each number,

where all that is real is moved: input, soft targets and masks, constants. One of the d_k is 1
everywhere: equal numbers are rounded alike; and one is a slow wave, which moves what neighbours add
up to, as that is rounded as well. t is g; but under a softmax p, whose gradient is
p_c sum_k p_k (h_c - h_k) with h = dL/dp, it is p_c sum_{k != c} p_k (|h_c| + |h_k|), as each h is
rounded. Likewise a twin may say what its gradient is a sum of: for two images that match, both the
slope of their correlation and that of their variances are large, and the gradient is 0, and each window
rounds its own moments, and its means to float64; of
generalised Dice the slopes in hits and in misses, whose difference a soft target may take, while what
moves the target moves the weight of its class the other way. Images that
are smoothed first are rounded after that, too, which no roundoff of the input makes up for.

**Activations** are rounded as well. So logits move by u max(|x|, 1) instead, here and in kappa:
exp(x) rounded is the exponential of a logit that is off by u, however small the logit. And for an
activation a of the caller's, x moves by u max(|x|, |a(x) / a'(x)|), which moves a(x) by a roundoff.

No bound over several blocks is needed beside it: the blocks' bounds are the stricter ones.

**tiny** is what gradual underflow may cost: half the distance of subnormal numbers of the
result's type, and a few of the smallest normal numbers of the precision that is computed in.

**The reference's own rounding** is allowed for. It computes in longdouble (float64 on real
images) with roundoff `u_ref`, which is added to `u`. Where it subtracts terms of size 1 (a twin's
`unit`) that all but cancel, a nearly perfect prediction for one, the small rest is known to 64
u_ref only. For the gradient the rest's error is taken from how far the reference in the two next
lower precisions is off, scaled to its own, and never below 10^4 u_ref^2, or u_ref
where a tie that only its own rounding made may put it on a kink.

**Lazily.** kappa >= |ref|, and the perturbed gradients only add. So the error is first held
against the bound without them; when it is within, the case has passed, and the ratio that is
reported is against that smaller bound: never too good. Only otherwise the full bound is worked
out.

**Kinks.** At a tie or clamp the gradient jumps, and rounding decides on which side a fast twin
stands. Where a twin says that its options make kinks, an element may also lie between the
smallest and the largest that the reference gives at nearby points (widened by the block's bound).

**Degraded** is an error beyond the bound that is at most twice that of the plain computation: the
reference itself run in the working precision, here or at nearby points, as at a single one it
may be right by luck. It says that the formula, not the twin, loses the digits: of a lone voxel
with a soft target g far below the prediction p, the gradient of Dice, -2 g^2 / (p + g)^2, is all
that is left of two terms p/g times as large.

**NaN and infinity**: the value must be NaN, +inf or -inf exactly where the reference is. A
gradient must be finite exactly where the reference is: at a pole, where the loss itself is
infinite, its slope is infinite from one side and of the other sign, or NaN, from the other, so
which of them is said there hangs on the order of operations. Where the exact result overflows
the type of the result, anything not finite will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from twinloss.harness.twin import Array

C = 8.0

# How many numbers of a volume are handled at once, so that no temporary array has its size.
AT_ONCE = 2**20

Verdict = Literal["pass", "degraded", "fail"]
ORDER: tuple[Verdict, ...] = ("pass", "degraded", "fail")


@dataclass(frozen=True)
class Precision:
    """Roundoffs and limits for a type under test."""

    u: float
    u_ref: float
    u_out: float
    tiny: float
    largest: float
    plain: type[np.floating[Any]]

    @classmethod
    def of(cls, dtype: str, real: type[np.floating[Any]] = np.longdouble) -> Precision:
        """The precision of a type under test, by torch's name, judged by a reference in `real`.

        The reference's own roundoff is added to `u`: in longdouble it is nothing, but float64 judged by
        float64, as on real images, is two computations that both round.
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
    """How one result compares with the truth.

    Attributes:
        part: "value" or "gradient".
        verdict: pass, degraded or fail.
        ratio: the worst error as a multiple of its bound; infinite where NaN or infinity differ.
        error: that error itself.
        bound: that bound.
        where: index of the element or block.
    """

    part: str
    verdict: Verdict
    ratio: float
    error: float = 0.0
    bound: float = 0.0
    where: tuple[int, ...] = ()

    @property
    def bits(self) -> float:
        """How many of the last bits of the result's precision are wrong: log2(C * ratio), 3 at the bound."""
        return math.log2(max(1.0, C * self.ratio))


def unlike(fast: Array, ref: Array, largest: float, poles: bool = False) -> Array:
    """Where one is finite and the other is not, or both are not and differ; with `poles` these may differ."""
    overflow = np.isfinite(ref) & (np.abs(ref) > largest)
    wrong = np.isfinite(fast) != np.isfinite(ref)
    if not poles:
        wrong |= ~np.isfinite(ref) & (fast != ref) & ~(np.isnan(fast) & np.isnan(ref))
    return np.where(overflow, np.isfinite(fast) & (np.abs(fast) < 0.99 * largest), wrong)


def distance(fast: Array, ref: Array) -> Array:
    """|fast - ref| where both are finite, else 0: `unlike` sees to the rest."""
    both = np.isfinite(fast) & np.isfinite(ref)
    with np.errstate(all="ignore"):
        return np.where(both, np.abs(fast.astype(ref.dtype) - ref), 0)


def bound(
    scale: Array, ref: Array, precision: Precision, spread: Array | float = 0.0, own: Array | float = 0.0
) -> Array:
    """C (spread + u scale) + u_out |ref| + own + tiny, where `scale` is kappa or a largest gradient."""
    p = precision
    known = np.where(np.isfinite(ref), np.abs(ref), 0)
    made: Array = C * (spread + p.u * np.where(np.isfinite(scale), scale, 0)) + p.u_out * known + own + p.tiny
    return made


def grade(errors: Array, bounds: Array, plain: Callable[[], Array]) -> Verdict:
    """The verdict on errors that `unlike` has nothing against; `plain` gives the plain errors."""
    beyond = ~(errors <= bounds)
    if not beyond.any():
        return "pass"
    return "degraded" if (errors[beyond] <= 2 * plain()[beyond]).all() else "fail"


def finding(part: str, errors: Array, bounds: Array, verdict: Verdict) -> Finding:
    """The worst of some errors."""
    ratios = errors / bounds
    where = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    return Finding(
        part,
        verdict,
        float(ratios[where]),
        float(errors[where]),
        float(bounds[where]),
        tuple(int(i) for i in where),
    )


def blocks(values: Array) -> Array:
    """The largest |value| of each item and channel, (B, C); values that are not finite count as 0."""
    made = np.empty(values.shape[:2], values.dtype)
    for b, c in np.ndindex(*made.shape):
        block = np.abs(values[b, c])
        made[b, c] = np.max(block, initial=0, where=np.isfinite(block))
    return made
