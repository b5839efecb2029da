"""The third account of a gradient: finite differences of the reference's value, in float64.

Along a direction d, the slope of t -> value(x + t d) at 0 must be the sum of d_i g_i, for the closed form and for the
fast gradient alike. The tolerance is the difference quotient's own error estimate, and the float64 roundoff that it
cannot see. At a kink the analytic slope must lie between the one-sided ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from scipy.differentiate import derivative

from twinloss.harness.answers import Answer
from twinloss.harness.truth import Truth
from twinloss.harness.twin import Array

# Beyond this many numbers a random direction says little about any one of them.
LARGEST = 64

# The first and longest step.
STEP = 0.125

# Where the estimate of the error is a larger share of the slope, the step was too long for the loss.
UNDECIDED = 1e-3

SMOOTH = ("moderate", "probabilities", "unit", "normal", "constant", "ties")


def applies(truth: Truth) -> bool:
    """Whether the case is small, float64, finite and of numbers that a step of ordinary size suits."""
    x = truth.case.input
    small = x.dtype == "float64" and x.values.size <= LARGEST
    return small and truth.case.traits.get("input") in SMOOTH and bool(np.isfinite(x.values).all())


def complaint(truth: Truth, answer: Answer) -> str | None:
    """Which of the two gradients the slopes contradict, if any."""
    rng = np.random.default_rng(0)
    shape = truth.gradient.shape
    one = np.zeros(shape)
    one.flat[rng.integers(one.size)] = 1
    # Of several kinks at once, one to one side and one to the other, the slopes to both sides say nothing.
    directions = (one,) if truth.twin.kinks(truth.case.options) else (rng.uniform(-1, 1, shape), one)
    for direction in directions:
        found: tuple[float, float, float] | None = None  # both gradients are held against the same slopes
        for name, gradient in (("closed form", truth.gradient), ("fast gradient", answer.gradient)):
            if not np.isfinite(gradient).all():
                return None
            analytic = float(np.sum(direction * gradient))
            found = found or slopes(truth, direction)
            low, high, tolerance = found
            size = float(np.sum(np.abs(direction * truth.gradient)))
            if tolerance <= UNDECIDED * size and not low - tolerance <= analytic <= high + tolerance:
                return (
                    f"{name}: slope {analytic:.12g} along a direction, where finite differences of the reference say "
                    f"{low:.12g} to {high:.12g} (tolerance {tolerance:.2g})"
                )
    return None


def slopes(truth: Truth, direction: Array) -> tuple[float, float, float]:
    """The smallest and largest slope at the point, one-sided if there are kinks, and a tolerance."""
    weights = truth.case.weights(truth.value.shape)
    operand = truth.case.input
    name = next(iter(truth.case.operands))

    @cache
    def at(t: float) -> float:
        moved = replace(operand, values=operand.values + t * direction)
        case = replace(truth.case, operands={**truth.case.operands, name: moved})
        return float(np.sum(weights * truth.value_of(case, np.float64)))

    def along(steps: Array) -> Array:
        return np.array([at(float(t)) for t in steps.ravel()]).reshape(steps.shape)

    sides = (-1, 1) if truth.twin.kinks(truth.case.options) else (0,)
    with np.errstate(all="ignore"):  # a step may lead to where the loss is not finite
        found = [derivative(along, 0.0, initial_step=STEP, step_direction=side) for side in sides]
    estimates = [float(each.df) for each in found]
    roundoff = 1e-8 * (float(np.sum(np.abs(direction * truth.gradient))) + abs(float(along(np.zeros(1))[0])))
    # At a minimum that is 0 only the values a step away are rounded.
    roundoff += 1e-12 * float(np.abs(along(np.array([-STEP, STEP]))).max())
    return min(estimates), max(estimates), 10 * max(float(each.error) for each in found) + roundoff
