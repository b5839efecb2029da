"""Laws: what must hold between the fast twin's own answers to related questions, whatever the reference says.

A law turns a case into claims that two arrays are equal. They may differ by the judge's bound on each of the two, which
is worked out, from the reference, only if they differ by more than the roundoff of their own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twinloss.harness.answers import ask_fast, expected_warnings_silent
from twinloss.harness.judgement import Precision, bound
from twinloss.harness.truth import Truth
from twinloss.harness.twin import DTYPES, HALVES, Array, Case, Twin
from twinloss.harness.verdict import gradient_bounds, value_bounds


@dataclass(frozen=True)
class Claim:
    """That `got` is `want`, both being parts ("value" or "gradient") of answers to cases like `base`.

    `scale` is the size of the terms they are made of, their own if it is not given; with `exact` nothing is allowed.
    """

    part: str
    got: Array
    want: Array
    base: Case
    scale: float | None = None
    exact: bool = False


@dataclass(frozen=True)
class Law:
    """A law, the options that it needs, and the cases and types that it says something about."""

    name: str
    claims: Callable[[Twin, Case], Iterator[Claim]]
    needs: Mapping[str, Any] = field(default_factory=dict)
    applies: Callable[[Case], bool] = lambda case: True
    dtypes: tuple[str, ...] = DTYPES


class UnsupportedError(Exception):
    """A question that a loss was never said to answer, such as one about an option that it does not have."""


def breach(law: Law, twin: Twin, case: Case) -> str | None:
    """What the law objects to, if anything.

    Raises:
        UnsupportedError: if the law asks for more than the fast twin was made for.
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
    """Why a claim does not hold, or None.

    A claim about numbers that the type cannot hold says nothing. But if the case itself holds a NaN or an infinity,
    both sides must be finite in the same places, unless the type is a half, whose range ordinary numbers pass.
    """
    if claim.part == "gradient" and not twin.differentiable:
        return None
    got, want = np.asarray(claim.got, np.float64), np.asarray(claim.want, np.float64)
    if got.shape != want.shape:
        return f"{claim.part} has shape {got.shape}, expected {want.shape}"
    if not (np.abs(want) <= Precision.of(claim.base.tolerance).largest).all():
        given = not all(np.isfinite(operand.values).all() for operand in claim.base.operands.values())
        unlike = given and claim.base.dtype not in HALVES and (np.isfinite(got) != np.isfinite(want)).any()
        return f"{claim.part} is not finite where it was expected to be, or the other way round" if unlike else None
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
    # As if the error were infinite: the full bound.
    truth = Truth(twin, claim.base)
    infinite = np.full(truth.value.shape if claim.part == "value" else truth.gradient.shape[:2], np.inf)
    full = value_bounds(truth, infinite) if claim.part == "value" else gradient_bounds(truth, infinite)
    return near + 2 * float(np.max(full))


def both(twin: Twin, case: Case, other: Case, back: Callable[[Array], Array] = lambda g: g) -> Iterator[Claim]:
    """That two cases have one value, and gradients that `back` leads from the other to the first."""
    here, there = ask_fast(twin, case), ask_fast(twin, other)
    yield Claim("value", there.value, here.value, case)
    yield Claim("gradient", back(there.gradient), here.gradient, case)
