"""One case put to everything the harness has: the judge, a law, finite differences."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from twinloss.harness import differences, laws
from twinloss.harness.answers import Answer, ask_fast
from twinloss.harness.judgement import Finding
from twinloss.harness.truth import Truth
from twinloss.harness.twin import Case, Twin
from twinloss.harness.verdict import judge


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
    """

    case: Case
    kind: str | None = None
    message: str = ""
    findings: tuple[Finding, ...] = ()
    truth: Truth | None = field(default=None, repr=False)
    answer: Answer | None = field(default=None, repr=False)


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
            return Trial(case, finding.part, describe(finding), findings, truth, answer)
    kind, message = _second_opinions(twin, case, truth, answer)
    return Trial(case, kind, message, findings, truth, answer)


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
