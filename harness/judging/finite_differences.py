"""Finite differences of the reference's value, in float64: a third computation of the gradient.

Along a direction d, the slope of t -> value(x + t d) at 0 must equal the sum of d_i g_i, both for the closed-form and
for the fast gradient g. Gradients with respect to further arguments, such as a soft target, have no closed form, and
are compared with finite differences only. The tolerance is the error estimate of the difference quotient, plus the
float64 roundoff that the estimate does not include. At a kink, the analytic derivative must lie between the
one-sided ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from scipy.differentiate import derivative

from twinloss.harness.drawing.input_kinds import IMAGES, NUMBERS
from twinloss.harness.drawing.segmentation_options import is_ignored
from twinloss.harness.judging.answers import ask_slope
from twinloss.harness.judging.truth import VALUE_ROUNDOFFS, Truth
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array, Operand
from twinloss.harness.model.twin import Case

# With more numbers than this, a random direction says little about a single one.
LARGEST = 64

# The first and longest step.
STEP = 0.125

# The displacement of a single number at a step of 1. Multiples of a step do not reach an integer such as ignore_index.
SINGLE = 0.731

# The distance to either side at which jumps are detected, and the minimum size of a jump as a share of the value.
NEAR, JUMP = 2.0**-30, 2.0**-20

# The accuracy of a float64 value that is a difference of terms of size 1.
VALUE_ACCURACY = VALUE_ROUNDOFFS * 2.0**-53

# If the error estimate is a larger share of the slope, the step was too long for this loss.
UNDECIDED = 1e-3

SMOOTH = ("moderate", "probabilities", "unit", "normal", "constant", "ties")
# Kinds of numbers that are too small or too large for a step of ordinary size, or that lose precision if it is added.
ROUGH = frozenset({*NUMBERS, *IMAGES}) - {*SMOOTH}


def applies(truth: Truth) -> bool:
    """Return whether the case is small, float64 and finite, with numbers that suit a step of ordinary size."""
    x = truth.case.input
    small = x.dtype == "float64" and x.values.size <= LARGEST
    return small and truth.case.traits.get("input") in SMOOTH and bool(np.isfinite(x.values).all())


def complaint(truth: Truth, answer: Answer) -> str | None:
    """Describe a derivative that finite differences contradict, for the input or another argument, or return None."""
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
            return f"the fast twin raised {type(error).__name__} for the gradient with respect to {name}: {error}"
        if gradient is None:
            return f"the fast twin has no gradient with respect to {name}"
        found = _contradiction(truth, case, name, movable(case, name), {f"fast gradient of {name}": gradient})
        if found is not None:
            return found
    return None


def movable(case: Case, name: str) -> Array:
    """Return a mask of the numbers of an argument that can move without including or excluding a voxel."""
    values, index = case.operands[name].values, case.options.get("ignore_index")
    if name == "mask":
        return np.asarray(values > 0)
    if index is None:
        return np.ones(values.shape, bool)
    return np.broadcast_to(~is_ignored(values, index), values.shape)


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
                    f"{account}: slope {analytic:.12g} along a direction, but finite differences of the reference "
                    f"give {low:.12g} to {high:.12g} (tolerance {tolerance:.2g})"
                )
    return None


def _directions(truth: Truth, free: Array) -> Iterator[Array]:
    """Yield a random direction and one that moves a single number; both move only the numbers that are `free`."""
    rng = np.random.default_rng(0)
    places = np.flatnonzero(free)
    if not places.size:
        return
    # If several numbers cross kinks at once in opposite directions, the one-sided slopes bound nothing.
    if not truth.twin.kinks(truth.case.options):
        yield rng.uniform(-1, 1, free.shape) * free
    one = np.zeros(free.shape)
    one.flat[rng.choice(places)] = SINGLE
    yield one


def slopes(truth: Truth, case: Case, name: str, direction: Array, gradient: Array) -> tuple[float, float, float]:
    """Return the smallest and largest slope at the point, one-sided if there are kinks, and a tolerance.

    The tolerance is infinite where the value jumps. For example, a mean over the sum of the target jumps where it is 0.
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
    with np.errstate(all="ignore"):  # a step may lead to a point where the loss is not finite
        found = [derivative(along, 0.0, initial_step=STEP, step_direction=side) for side in sides]
    estimates = [float(each.df) for each in found]
    here, size = at(0.0), float(np.sum(np.abs(direction * gradient)))
    if max(abs(at(-NEAR) - here), abs(at(NEAR) - here)) > JUMP * (size + abs(here)):
        return min(estimates), max(estimates), np.inf
    roundoff = 1e-8 * (size + abs(here))
    # At a minimum of value 0, only the values one step away have rounding errors.
    roundoff += 1e-12 * float(np.abs(along(np.array([-STEP, STEP]))).max())
    # A value that is a difference of terms of size `unit` may be 0 everywhere, but is only as accurate as these terms.
    roundoff += VALUE_ACCURACY * truth.twin.unit / STEP
    return min(estimates), max(estimates), 10 * max(float(each.error) for each in found) + roundoff
