"""Checks of the hunt itself: the hunt fails if the judge accepts wrong answers, or if an option never had an effect."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import numpy as np

from twinloss.harness.judging.trial import Trial
from twinloss.harness.judging.truth import Truth
from twinloss.harness.judging.verdict import judge_gradient, judge_value
from twinloss.harness.model.operand import Array, label
from twinloss.harness.model.twin import Case, Twin


def _shuffled(values: Array) -> Array:
    return np.roll(values.ravel(), 1).reshape(values.shape)


SABOTAGE: dict[str, Callable[[Array], Array]] = {
    "zeros": np.zeros_like,
    "a constant": lambda values: np.full_like(values, 0.5),
    "sign-flipped": np.negative,
    "shuffled": _shuffled,
}


@np.errstate(all="ignore")
def survivors(trials: Iterable[Trial]) -> list[str]:
    """Return the wrong answers that the judge accepted in all trials; none if the judge works."""
    alive = {(name, part) for name in SABOTAGE for part in ("value", "gradient")} - {("shuffled", "value")}
    for trial in trials:
        if trial.truth is None or trial.answer is None:
            continue
        for name, part in sorted(alive):
            if part == "gradient" and not trial.truth.twin.differentiable:
                alive.discard((name, part))
                continue
            value, gradient = trial.answer.value, trial.answer.gradient
            spoilt = SABOTAGE[name](value if part == "value" else gradient)
            judge = judge_value if part == "value" else judge_gradient
            if judge(trial.truth, spoilt).verdict == "fail":
                alive.discard((name, part))
    return [
        f"{part} replaced by {name}" if name in ("zeros", "a constant") else f"{name} {part}"
        for name, part in sorted(alive)
    ]


@np.errstate(all="ignore")
def changes_result(twin: Twin, case: Case, option: str) -> bool:
    """Return whether the reference's answer changes when an option is set to its default."""
    with_it, without = Truth(twin, case, np.float64), Truth(twin, case.having(**{option: None}), np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _differ(with_it.value, without.value) or _differ(with_it.gradient, without.gradient)
        except Exception:
            # The default is not valid for these arguments, so the option has an effect.
            return True


def _differ(a: Array, b: Array) -> bool:
    return a.shape != b.shape or not np.allclose(a, b, rtol=1e-9, atol=0, equal_nan=True)


def option_values(twin: Twin) -> set[tuple[str, str]]:
    """Return all option values but the defaults; if the other values have an effect, the default has one, too."""
    return {(name, label(value)) for name, tried in twin.options.items() for value in tried[1:]}


def given_values(case: Case) -> Iterable[tuple[str, str]]:
    """Return the option values of a case that are not defaults."""
    return [(name, case.traits[name]) for name in case.options if name in case.traits]
