r"""The reference's results for a case of a pair, and the bounds that they give.

The rules are those of `judgement.py`, in the form for a function of which only the values may be known.

**Value.** Every number of every output must satisfy

    |fast - ref| <= C g (max_k |ref(x(1 + u d_k)) - ref(x)| + u |ref|) + u_out |ref| + own + tiny,

where the d_k are random in [-1, 1], one for each floating number of the inputs and options, and one d_k is 1
everywhere. Logits are perturbed by u max(|x|, 1) instead.
Integers and booleans must be equal to the reference's, here or at one of these points.

**Sums.** g = max(1, sqrt(n) / C) for n numbers in the inputs of a block, or in all if the result sums over blocks:
rounding errors of a sum of n terms grow like sqrt(n) (Higham and Mary 2019, "A new approach to probabilistic rounding
error analysis"). C g is C up to n = 64.

**Gradient.** It is that of the sum of all outputs times random upstream gradients. A block must satisfy

    max |g_fast - g_ref| <= C g (max_k max |g_ref(x(1 + u d_k)) - g_ref(x)| + u max |g_ref|)
                            + u_out max |g_ref| + own + tiny.

g_ref is the closed form of the pair, or else a derivative by complex step or, where the reference is not analytic, by
differences; see `slopes.py`. The error estimate of the differences is a part of `own`. If there are many numbers, the
derivatives along some directions are compared instead: random ones within a block, and those of single numbers.

**Degraded.** An error beyond the bound is degraded, not wrong, if it is at most twice that of the plain computation,
which is the reference in the working precision, here or at nearby points. For a gradient, it may be C times that error,
because complex steps compute the gradient forwards and the fast function backwards, with other rounding errors.

**Noise.** A result may be 0 by cancellation, such as the gradient of RMS norm over a single number. Perturbed inputs
then do not show how large its rounding errors may be, nor does a plain computation that is right by luck. Therefore,
each operation of the reference is also rounded at random by up to u (Monte Carlo arithmetic, Parker 1997), including
its derivative in a complex step. An error of at most C g times the largest change is degraded, too. Laws may be broken
by as much. A jump across a kink does not shrink with the noise, and is left out.

**Reference.** It computes in longdouble if it can, else in float64. `own` also holds an estimate of its rounding error,
scaled from its results in the next lower precisions.

**Kinks.** An element of the gradient that exceeds its bound may also lie between the derivatives to both sides. Jumps
across a kink are left out of the spread, and a block is not judged by directions that cross kinks.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from twinloss.harness.judging.judgement import Finding
from twinloss.harness.judging.pair_call import in_a_row
from twinloss.harness.judging.pair_gradient import GradientJudge
from twinloss.harness.judging.pair_points import Real, Reference
from twinloss.harness.judging.pair_slopes import Slopes
from twinloss.harness.judging.pair_value import ValueJudge
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Case, Twin


class PairTruth:
    """The reference's results for a case of a pair, by which answers are judged."""

    def __init__(self, twin: Twin, case: Case, real: Real | None = None) -> None:
        """Prepare the reference to compute in dtype `real`, by default the most precise one that it can."""
        self.twin, self.case = twin, case
        self.reference = Reference(twin, case, real)
        self.values = ValueJudge(self.reference)

    @cached_property
    def slopes(self) -> Slopes:
        """The derivatives of the reference."""
        return Slopes(self.reference)

    @cached_property
    def gradients(self) -> GradientJudge:
        """The judge of gradients."""
        return GradientJudge(self.reference, self.slopes)

    @property
    def value(self) -> Array:
        """All numbers of the outputs in a row."""
        return in_a_row(self.reference.outputs)

    @property
    def gradient(self) -> Array:
        """All numbers of the gradient, or its slopes along the directions, in a row."""
        if not self.reference.pair.wrt:
            return np.zeros(0)
        return in_a_row(list(self.slopes.here.values()))

    def judge_value(self, answer: Answer) -> Finding:
        """Judge all outputs, and return the worst finding."""
        return self.values.judge(answer)

    def judge_gradient(self, answer: Answer) -> Finding:
        """Judge the gradients of all inputs, and return the worst finding."""
        return self.gradients.judge(answer)

    def full_bound(self, part: str) -> float:
        """Return the largest bound of the value or the gradient, with all allowances."""
        return self.values.full_bound() if part == "value" else self.gradients.full_bound()

    def contradiction(self) -> str | None:
        """Describe how differences of the reference's value contradict the closed form of its gradient, or None."""
        return self.slopes.contradiction()
