"""Laws: relations that must hold between answers of the fast twin to related cases, whatever the reference says.

A law turns a case into claims that two arrays are equal. They may differ by twice the judge's bound. This bound needs
the reference, so it is computed only if the arrays differ by more than the roundoff of their own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from twinloss.harness.judging.answers import ask_fast, expected_warnings_silent
from twinloss.harness.judging.judgement import Precision, bound
from twinloss.harness.judging.truth import Truth
from twinloss.harness.judging.verdict import full_bound
from twinloss.harness.model.operand import HALVES, Array
from twinloss.harness.model.twin import Case, Claim, Law, Twin, UnsupportedError


def breach(law: Law, twin: Twin, case: Case) -> str | None:
    """Return a description of how the law is broken, or None.

    Raises:
        UnsupportedError: if the law needs something that the fast twin does not support.
    """
    try:
        with expected_warnings_silent():
            complaints = (contradiction(twin, claim) for claim in law.claims(twin, case))
            complaint = next(filter(None, complaints), None)
    except UnsupportedError:
        raise
    except Exception as error:
        complaint = f"{type(error).__name__}: {error}"
    return complaint and f"law '{law.name}': {complaint}"


def contradiction(twin: Twin, claim: Claim) -> str | None:
    """Return a description of why a claim does not hold, or None if it holds.

    A claim about numbers that the dtype cannot hold is skipped. But if the case itself holds a NaN or an infinity, both
    sides must be finite in the same places. Half precision is exempt, because ordinary numbers exceed its range.
    """
    if claim.part == "gradient" and not twin.differentiable:
        return None
    got, want = np.asarray(claim.got, np.float64), np.asarray(claim.want, np.float64)
    if got.shape != want.shape:
        return f"{claim.part} has shape {got.shape}, expected {want.shape}"
    if not (np.abs(want) <= Precision.of(claim.base.tolerance).largest).all():
        given = not all(np.isfinite(operand.values).all() for operand in claim.base.operands.values())
        unlike = given and claim.base.dtype not in HALVES and (np.isfinite(got) != np.isfinite(want)).any()
        return f"{claim.part} has NaN or infinity in other places than expected" if unlike else None
    difference = float(np.max(np.abs(got - want), initial=0))
    if difference == 0:
        return None
    allowed = 0.0 if claim.exact else _allowed(twin, claim, difference)
    return None if difference <= allowed else f"{claim.part} differs by {difference:.3g}, allowed {allowed:.3g}"


def _allowed(twin: Twin, claim: Claim, difference: float) -> float:
    p = Precision.of(claim.base.tolerance)
    scale = np.max(np.abs(claim.want), initial=0) if claim.scale is None else np.asarray(claim.scale)
    near = 2 * float(bound(scale, scale, p))
    if difference <= near:
        return near
    return near + 2 * full_bound(Truth(twin, claim.base), claim.part)


def both(twin: Twin, case: Case, other: Case, back: Callable[[Array], Array] = lambda g: g) -> Iterator[Claim]:
    """Claim that two cases have equal values, and equal gradients once `back` maps the other's to the first's."""
    here, there = ask_fast(twin, case), ask_fast(twin, other)
    yield Claim("value", there.value, here.value, case)
    yield Claim("gradient", back(there.gradient), here.gradient, case)
