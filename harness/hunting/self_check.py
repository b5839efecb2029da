"""Checks of the hunt itself: the hunt fails if the judge accepts wrong answers, or if an option never had an effect."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np

from twinloss.harness.hunting.sabotage import wrong_answers
from twinloss.harness.judging.judgement import Finding
from twinloss.harness.judging.trial import Trial
from twinloss.harness.judging.truth import Truth
from twinloss.harness.judging.verdict import judge_gradient, judge_value
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array, label
from twinloss.harness.model.twin import Case, Twin


@np.errstate(all="ignore")
def survivors(trials: Iterable[Trial]) -> list[str]:
    """Return the wrong answers that the judge accepted in all trials; none if the judge works.

    An answer that is the right one in all trials, such as a shuffled gradient of equal numbers, is not wrong.
    """
    accepted: set[str] = set()
    rejected: set[str] = set()
    for trial in trials:
        if trial.truth is None or trial.answer is None:
            continue
        for name, part, make, is_right in wrong_answers(trial):
            if name in rejected:
                continue
            spoilt = make()
            if spoilt is None or _is_right(trial, spoilt, part):
                continue
            if judged(trial.truth, spoilt, part).verdict == "fail":
                rejected.add(name)
            elif not is_right():
                accepted.add(name)
    return sorted(accepted - rejected)


def judged(truth: Truth, answer: Answer, part: str) -> Finding:
    """Judge the value or the gradient of an answer."""
    return judge_value(truth, *answer.all_outputs) if part == "value" else judge_gradient(truth, *answer.all_gradients)


def _is_right(trial: Trial, spoilt: Answer, part: str) -> bool:
    """Return whether a spoilt answer is the right one after all, as far as rounding allows to say."""
    assert trial.answer is not None
    got, right = getattr(spoilt, part), getattr(trial.answer, part)
    return got.shape == right.shape and bool(np.array_equal(got, right, equal_nan=True))


@np.errstate(all="ignore")
def changes_result(twin: Twin, case: Case, option: str) -> bool:
    """Return whether the reference's answer changes when an option is set to its default."""
    with_it, without = (Truth(twin, each, np.float64) for each in (case, case.having(**{option: None})))
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
    tuning = twin.pair.tuning if twin.pair else ()
    return {(name, label(value)) for name, tried in twin.options.items() if name not in tuning for value in tried[1:]}


def given_values(case: Case) -> Iterable[tuple[str, str]]:
    """Return the option values of a case that are not defaults."""
    return [(name, case.traits[name]) for name in case.options if name in case.traits]
