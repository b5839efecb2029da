"""The third account of a gradient: finite differences of the reference's value, in float64.

Along a direction d, the slope of t -> value(x + t d) at 0 must be the sum of d_i g_i, for the closed form and for the
fast gradient alike. The fast gradient in a further argument, such as a soft target, has no closed form beside it, and
is held against the differences alone. The tolerance is the difference quotient's own error estimate, and the float64
roundoff that it cannot see. At a kink the analytic slope must lie between the one-sided ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from scipy.differentiate import derivative

from twinloss.harness.answers import Answer, ask_slope
from twinloss.harness.truth import Truth
from twinloss.harness.twin import Array, Case, Operand
from twinloss.harness.values import IMAGES, NUMBERS

# Beyond this many numbers a random direction says little about any one of them.
LARGEST = 64

# The first and longest step.
STEP = 0.125

# How far a single number is moved by a step of 1: no multiple of a step leads it to an integer, such as ignore_index.
SINGLE = 0.731

# How far to either side a jump is looked for, and the share of the value that counts as one.
NEAR, JUMP = 2.0**-30, 2.0**-20

# Where the estimate of the error is a larger share of the slope, the step was too long for the loss.
UNDECIDED = 1e-3

SMOOTH = ("moderate", "probabilities", "unit", "normal", "constant", "ties")
# Kinds of numbers that a step of ordinary size does not suit, or that keep few digits beside it.
ROUGH = frozenset({*NUMBERS, *IMAGES}) - {*SMOOTH}


def applies(truth: Truth) -> bool:
    """Whether the case is small, float64, finite and of numbers that a step of ordinary size suits."""
    x = truth.case.input
    small = x.dtype == "float64" and x.values.size <= LARGEST
    return small and truth.case.traits.get("input") in SMOOTH and bool(np.isfinite(x.values).all())


def complaint(truth: Truth, answer: Answer) -> str | None:
    """Return what the finite differences contradict: the closed form, the fast gradient, or that in an argument."""
    name, everywhere = next(iter(truth.case.operands)), np.ones(truth.gradient.shape, bool)
    accounts = {"closed form": truth.gradient}
    if truth.twin.differentiable:
        accounts["fast gradient"] = answer.gradient
    found = _contradiction(truth, truth.case, name, everywhere, accounts)
    if found is not None:
        return found
    for name in truth.twin.slopes(truth.twin, truth.case):
        if truth.case.traits.get(name, SMOOTH[0]) in ROUGH:
            continue
        operand = truth.case.operands[name]
        case = truth.case.with_operand(name, Operand(operand.values.astype(np.float64), "float64"))
        try:
            gradient = ask_slope(truth.twin, case, name)
        except Exception as error:
            return f"the fast twin raised {type(error).__name__} as {name} asked for a gradient: {error}"
        if gradient is None:
            return f"the fast twin has no gradient in {name}"
        found = _contradiction(truth, case, name, movable(case, name), {f"fast gradient in {name}": gradient})
        if found is not None:
            return found
    return None


def movable(case: Case, name: str) -> Array:
    """Return where an argument may move without letting a voxel in that took no part, or leaving one out."""
    values, index = case.operands[name].values, case.options.get("ignore_index")
    if name == "mask":
        return np.asarray(values > 0)
    if index is None:
        return np.ones(values.shape, bool)
    ignored = values == index if values.shape[1] == 1 else values[:, index : index + 1] == 1
    return np.broadcast_to(~ignored, values.shape)


def _contradiction(truth: Truth, case: Case, name: str, free: Array, accounts: dict[str, Array]) -> str | None:
    if not all(np.isfinite(gradient).all() for gradient in accounts.values()):
        return None
    gradient = next(iter(accounts.values()))
    for direction in _directions(truth, free):
        low, high, tolerance = slopes(truth, case, name, direction, gradient)
        size = float(np.sum(np.abs(direction * gradient)))
        for account, slope in accounts.items():
            analytic = float(np.sum(direction * slope))
            if tolerance <= UNDECIDED * size and not low - tolerance <= analytic <= high + tolerance:
                return (
                    f"{account}: slope {analytic:.12g} along a direction, where finite differences of the reference "
                    f"say {low:.12g} to {high:.12g} (tolerance {tolerance:.2g})"
                )
    return None


def _directions(truth: Truth, free: Array) -> Iterator[Array]:
    """Yield a random direction, and one that moves a single number; of an argument that is free to move."""
    rng = np.random.default_rng(0)
    places = np.flatnonzero(free)
    if not places.size:
        return
    # Of several kinks at once, one to one side and one to the other, the slopes to both sides say nothing.
    if not truth.twin.kinks(truth.case.options):
        yield rng.uniform(-1, 1, free.shape) * free
    one = np.zeros(free.shape)
    one.flat[rng.choice(places)] = SINGLE
    yield one


def slopes(truth: Truth, case: Case, name: str, direction: Array, gradient: Array) -> tuple[float, float, float]:
    """Return the smallest and largest slope at the point, one-sided if there are kinks, and a tolerance.

    The tolerance is infinite where the value jumps, as that of a mean over the target's sum does where the sum is 0.
    """
    weights = case.weights(truth.value.shape)
    operand = case.operands[name]

    @cache
    def at(t: float) -> float:
        moved = case.with_values(**{name: operand.values + t * direction})
        return float(np.sum(weights * truth.value_of(moved, np.float64)))

    def along(steps: Array) -> Array:
        return np.array([at(float(t)) for t in steps.ravel()]).reshape(steps.shape)

    sides = (-1, 1) if truth.twin.kinks(case.options) else (0,)
    with np.errstate(all="ignore"):  # a step may lead to where the loss is not finite
        found = [derivative(along, 0.0, initial_step=STEP, step_direction=side) for side in sides]
    estimates = [float(each.df) for each in found]
    here, size = at(0.0), float(np.sum(np.abs(direction * gradient)))
    if max(abs(at(-NEAR) - here), abs(at(NEAR) - here)) > JUMP * (size + abs(here)):
        return min(estimates), max(estimates), np.inf
    roundoff = 1e-8 * (size + abs(here))
    # At a minimum that is 0 only the values a step away are rounded.
    roundoff += 1e-12 * float(np.abs(along(np.array([-STEP, STEP]))).max())
    return min(estimates), max(estimates), 10 * max(float(each.error) for each in found) + roundoff
