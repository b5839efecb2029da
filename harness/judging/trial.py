"""One trial: a case is judged against the reference, then checked by a law and by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from twinloss.harness.judging import finite_differences, law_check
from twinloss.harness.judging.answers import WrongDtypeError, ask_fast
from twinloss.harness.judging.judgement import C, Finding, Precision
from twinloss.harness.judging.truth import Truth
from twinloss.harness.judging.verdict import judge
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import HALVES, Array
from twinloss.harness.model.twin import Case, Twin, UnsupportedError

# The rounding error, in float64, that may remain when terms of size 1 cancel.
CANCELLED = 2.0**-46

# A larger relative error in float32 or float64 is wrong, whatever its cause.
MOST = 1e-2


@dataclass(frozen=True)
class Trial:
    """The outcome of a case.

    Attributes:
        case: the case.
        kind: the kind of failure ("error", "value", "gradient", "law", "differences", "reference"), or None.
        message: describes the failure.
        findings: the judgement of value and gradient, if both twins gave an answer.
        truth: the reference's results.
        answer: the fast twin's results.
        beyond: whether the law needs something that the fast twin does not support.
    """

    case: Case
    kind: str | None = None
    message: str = ""
    findings: tuple[Finding, ...] = ()
    truth: Truth | None = field(default=None, repr=False)
    answer: Answer | None = field(default=None, repr=False)
    beyond: bool = False


@np.errstate(all="ignore")  # the judge itself looks for NaN and infinity
def examine(twin: Twin, case: Case, truth: Truth | None = None) -> Trial:
    """Run both twins on a case and judge the result; `truth` saves the reference's work if it is known."""
    truth = truth or Truth(twin, case)
    wrong_dtype: WrongDtypeError | None = None
    try:
        answer = ask_fast(twin, case)
    except WrongDtypeError as error:
        answer, wrong_dtype = error.answer, error
    except Exception as error:
        return Trial(case, "error", f"the fast twin raised {type(error).__name__}: {error}")
    try:
        findings = judge(truth, answer)
    except Exception as error:
        return Trial(case, "reference", f"the reference raised {type(error).__name__}: {error}")
    for finding in findings:
        if finding.verdict == "fail":
            return _with_bounds(twin, Trial(case, finding.part, describe(finding), findings, truth, answer))
    if wrong_dtype is not None:
        return Trial(case, "error", f"the fast twin raised TypeError: {wrong_dtype}", findings, truth, answer)
    try:
        kind, message = _second_opinions(twin, case, truth, answer)
    except UnsupportedError:
        return Trial(case, None, "", findings, truth, answer, beyond=True)
    return Trial(case, kind, message, findings, truth, answer)


# Examines a case of a twin, like `examine` and `examine_law`.
Examine = Callable[[Twin, Case], Trial]


def examine_law(twin: Twin, case: Case) -> Trial:
    """Check only the law of a case, whether or not the value agrees; a case that raises an error breaks no law."""
    if case.law is None or not case.law.applies(case):
        return Trial(case)
    try:
        broken = law_check.breach(case.law, twin, case)
    except UnsupportedError:
        return Trial(case, beyond=True)
    return Trial(case, "law", broken) if broken and _answers(twin, case) else Trial(case)


def _answers(twin: Twin, case: Case) -> bool:
    try:
        ask_fast(twin, case)
    except WrongDtypeError:
        return True
    except Exception:
        return False
    return True


def _with_bounds(twin: Twin, trial: Trial) -> Trial:
    """Return the failed trial; if its value is outside the bounds of the loss, the message says so."""
    beyond = outside_its_bounds(twin, trial) if trial.kind == "value" else None
    return replace(trial, message=f"{trial.message}; {beyond}") if beyond else trial


def only_rounding(twin: Twin, failed: Trial, examine: Examine = examine, every: bool = False) -> bool:
    """Return whether a failure is only a loss of precision; `examine` judges the case in float64.

    It is one if the case passes in float64, judged with the tolerance of its dtype but at least that of float32. With
    `every`, all arguments become float64, otherwise only those under test. A gradient close to 0 that remains when
    terms of size 1 cancel is accepted, too. NaN, infinity, values outside the bounds of the loss, and in float32 and
    float64 a relative error of more than MOST are never a matter of precision.
    """
    if failed.kind not in ("value", "gradient", "law") or any(np.isinf(found.ratio) for found in failed.findings):
        return False
    if outside_its_bounds(twin, failed) or _is_too_far(twin, failed):
        return False
    again = examine(twin, failed.case.in_double(every))
    if again.kind in ("value", "gradient") and again.truth is not None:
        size = max(twin.unit, float(np.max(np.abs(again.truth.value), initial=0)))
        size *= max(map(abs, again.case.cotangent or (1.0,)))
        return all(found.verdict != "fail" or found.error <= CANCELLED * size for found in again.findings)
    return again.kind is None


def _is_too_far(twin: Twin, failed: Trial) -> bool:
    """Return whether a relative error is more than lost precision; half precision may lose all digits."""
    judged = failed.kind != "law" and twin.pair is None and failed.case.dtype not in HALVES
    return judged and relative_error(twin, failed) > MOST


def wrong_parts(trial: Trial) -> tuple[Array, Array]:
    """Return the wrong part of the answer, value or gradient, and the reference's."""
    assert trial.answer is not None
    assert trial.truth is not None
    part = "gradient" if trial.kind == "gradient" else "value"
    return np.asarray(getattr(trial.answer, part), np.float64), np.asarray(getattr(trial.truth, part), np.float64)


def relative_error(twin: Twin, trial: Trial) -> float:
    """Return the largest error, relative to the largest number, or to the terms that the loss subtracts."""
    got, want = wrong_parts(trial)
    if got.shape != want.shape or (np.isfinite(got) != np.isfinite(want)).any():
        return math.inf
    finite = np.isfinite(want)
    size = twin.unit if trial.kind == "value" else twin.unit / trial.case.input.values.size
    scale = max(float(np.abs(want[finite]).max(initial=0)), size * max(map(abs, trial.case.cotangent or (1.0,))))
    return float(np.abs(got - want)[finite].max(initial=0)) / (scale or 1.0)


def outside_its_bounds(twin: Twin, trial: Trial) -> str | None:
    """Describe a value that lies outside the bounds of the loss by more than rounding explains, or return None."""
    case, answer = trial.case, trial.answer
    # The bounds hold for every input, so an ill-conditioned input is no excuse.
    if answer is None or not answer.value.size or not twin.domain(case):
        return None
    low, high = twin.bounds(twin.defaults() | dict(case.options), case.input.values.shape)
    precision = Precision.of(case.tolerance)
    size = max([1.0, *(abs(bound) for bound in (low, high) if math.isfinite(bound))])
    slack = size * (C * precision.u * case.input.values.size + precision.u_out)
    for value in answer.value.ravel():
        if value < low - slack or value > high + slack:
            return f"{value:.6g} is outside [{low:.6g}, {high:.6g}], the bounds of the loss for any input"
    return None


def describe(finding: Finding) -> str:
    """Describe a finding in a sentence."""
    if np.isinf(finding.ratio) and finding.of:
        place = f" at {finding.where}" if finding.where else ""
        return f"{finding.part} {finding.of}{place}"
    if np.isinf(finding.ratio):
        return f"{finding.part}: the shape, or the places of NaN and infinity, differ from the reference"
    place = f" at {finding.where}" if finding.where else ""
    if finding.part == "gradient" and not finding.of:
        place = " in item {}, channel {}".format(*finding.where)
    part = f"{finding.part} {finding.of}".rstrip()
    return (
        f"{part}: off by {finding.error:.3g}{place}, {finding.ratio:.3g} times the bound of "
        f"{finding.bound:.3g} ({finding.bits:.1f} bits)"
    )


def _second_opinions(twin: Twin, case: Case, truth: Truth, answer: Answer) -> tuple[str | None, str]:
    if case.law is not None and case.law.applies(case):
        broken = law_check.breach(case.law, twin, case)
        if broken:
            return "law", broken
    if twin.pair is not None:
        contradicted = truth.slopes.contradiction()
        return ("differences", contradicted) if contradicted else (None, "")
    if finite_differences.applies(truth):
        contradicted = finite_differences.complaint(truth, answer)
        if contradicted:
            return "differences", contradicted
    return None, ""
