"""One case put to everything the harness has: the judge, a law, finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from twinloss.harness import differences, laws
from twinloss.harness.answers import Answer, ask_fast
from twinloss.harness.judgement import C, Finding, Precision
from twinloss.harness.laws import UnsupportedError
from twinloss.harness.truth import Truth
from twinloss.harness.twin import Case, Twin
from twinloss.harness.verdict import judge

# What may be left of terms of size 1 that cancel, in float64.
CANCELLED = 2.0**-46


@dataclass(frozen=True)
class Trial:
    """What came of a case.

    Attributes:
        case: the case.
        kind: what is wrong ("error", "value", "gradient", "law", "differences", "reference"), or None.
        message: the same in words.
        findings: on value and gradient, if it came to that.
        truth: the reference's account.
        answer: the fast twin's.
        beyond: whether the law asks for what the fast twin was not made for.
    """

    case: Case
    kind: str | None = None
    message: str = ""
    findings: tuple[Finding, ...] = ()
    truth: Truth | None = field(default=None, repr=False)
    answer: Answer | None = field(default=None, repr=False)
    beyond: bool = False


@np.errstate(all="ignore")  # the judge looks for NaN and infinity itself
def examine(twin: Twin, case: Case, truth: Truth | None = None) -> Trial:
    """Ask both twins, and judge; by a truth that is known already, if one is given."""
    truth = truth or Truth(twin, case)
    try:
        answer = ask_fast(twin, case)
    except Exception as error:
        return Trial(case, "error", f"the fast twin raised {type(error).__name__}: {error}")
    try:
        findings = judge(truth, answer)
    except Exception as error:
        return Trial(case, "reference", f"the reference raised {type(error).__name__}: {error}")
    for finding in findings:
        if finding.verdict == "fail":
            return _with_bounds(twin, Trial(case, finding.part, describe(finding), findings, truth, answer))
    try:
        kind, message = _second_opinions(twin, case, truth, answer)
    except UnsupportedError:
        return Trial(case, None, "", findings, truth, answer, beyond=True)
    return Trial(case, kind, message, findings, truth, answer)


def _with_bounds(twin: Twin, trial: Trial) -> Trial:
    """A failure whose message also says by which value the loss leaves its bounds, if so."""
    beyond = outside_its_bounds(twin, trial) if trial.kind == "value" else None
    return replace(trial, message=f"{trial.message}; {beyond}") if beyond else trial


def only_rounding(twin: Twin, failed: Trial) -> bool:
    """Whether a failure is one of digits: gone in float64, held to no more than float32's roundoff.

    A gradient of nearly 0 that cancels from terms of size 1 is let go, too. NaN, infinity, and values that the loss
    cannot have are not.
    """
    if failed.kind not in ("value", "gradient", "law") or any(np.isinf(found.ratio) for found in failed.findings):
        return False
    if outside_its_bounds(twin, failed):
        return False
    again = examine(twin, failed.case.in_double())
    if again.kind in ("value", "gradient") and again.truth is not None:
        size = max(twin.unit, float(np.max(np.abs(again.truth.value), initial=0)))
        size *= max(map(abs, again.case.cotangent or (1.0,)))
        return all(found.verdict != "fail" or found.error <= CANCELLED * size for found in again.findings)
    return again.kind is None


def outside_its_bounds(twin: Twin, trial: Trial) -> str | None:
    """What a value is, and what the loss can be, if no rounding of sums explains the difference."""
    case, answer = trial.case, trial.answer
    # An input that is ill-conditioned is no excuse, as bounds hold for all inputs.
    if answer is None or not answer.value.size or not twin.domain(case):
        return None
    low, high = twin.bounds(twin.defaults() | dict(case.options), case.input.values.shape)
    precision = Precision.of(case.tolerance)
    size = max([1.0, *(abs(bound) for bound in (low, high) if math.isfinite(bound))])
    slack = size * (C * precision.u * case.input.values.size + precision.u_out)
    for value in answer.value.ravel():
        if value < low - slack or value > high + slack:
            return f"{value:.6g} is outside [{low:.6g}, {high:.6g}], where the loss is for any input"
    return None


def describe(finding: Finding) -> str:
    """A finding in a sentence."""
    if np.isinf(finding.ratio):
        return f"{finding.part}: NaN, infinity or another shape, where the reference has something else"
    return (
        f"{finding.part}: off by {finding.error:.3g} at {finding.where}, {finding.ratio:.3g} times the bound of "
        f"{finding.bound:.3g} ({finding.bits:.1f} bits)"
    )


def _second_opinions(twin: Twin, case: Case, truth: Truth, answer: Answer) -> tuple[str | None, str]:
    if case.law is not None and case.law.applies(case):
        broken = laws.breach(case.law, twin, case)
        if broken:
            return "law", broken
    if differences.applies(truth):
        contradicted = differences.complaint(truth, answer)
        if contradicted:
            return "differences", contradicted
    return None, ""
