"""The judge: it compares an answer of the fast twin with the reference, by the bounds of judgement.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from twinloss.harness.judging.judgement import Finding, finding, grade, worst
from twinloss.harness.judging.parts import Gradient, Output, Part
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array


def judge(truth: Truth, answer: Answer) -> tuple[Finding, ...]:
    """Judge the value and, if the twin is `differentiable`, the gradient."""
    value = judge_value(truth, *answer.all_outputs)
    # It takes long to differentiate a reference without a closed form.
    decided = value.verdict == "fail" and truth.twin.gradient is None
    if decided or not truth.twin.differentiable:
        return (value,)
    return value, judge_gradient(truth, *answer.all_gradients)


def judge_value(truth: Truth, *outputs: Array) -> Finding:
    """Judge every number of every output, and return the worst finding."""
    wanted = len(truth.outputs)
    if len(outputs) != wanted:
        return Finding("value", "fail", np.inf, of=f"{len(outputs)} outputs, not {wanted}")
    return worst([_judged(Output(truth, k), got) for k, got in enumerate(outputs)])


def judge_gradient(truth: Truth, *gradients: Array) -> Finding:
    """Judge the gradients of all inputs block by block, and return the worst finding."""
    return worst([_judged(Gradient(truth, name), got) for name, got in zip(truth.gradients, gradients, strict=True)])


def _judged(part: Part, got: Array) -> Finding:
    compared = part.compared(got)
    if compared.shape != part.ref.shape:
        return _wrong(part, f"of shape {got.shape}, not {part.ref.shape}")
    if not part.ref.size:
        return Finding(part.part, "pass", 0.0, of=part.of)
    if isinstance(part, Output) and part.ref.dtype.kind != "f":
        return _judged_integers(part, got)
    decided = part.decided(got, compared)
    if decided is None or (part.along and part.is_unlike(decided)):
        return _wrong(part, "has NaN or infinity in other places than the reference")
    if part.is_unlike(decided):
        return _wrong_number(part, decided, part.ref, part.unlike)
    norms, errors = part.norms(decided), part.errors(decided)
    bounds = part.bounds(norms, errors)
    if part.part == "gradient" and part.truth.kinks and (errors > bounds).any():
        errors = part.outside(decided)
    found = finding(part.part, errors, bounds, grade(errors, bounds, part.plain_errors))
    return replace(found, of=part.of, basis=part.basis(found) if part.truth.twin.pair else "")


def _wrong(part: Part, how: str, where: tuple[int, ...] = ()) -> Finding:
    """Return the finding for an answer that is wrong whatever the rounding; of our losses, it does not say how."""
    of = f"{part.of} {how}".strip() if part.truth.twin.pair is not None else ""
    return Finding(part.part, "fail", np.inf, where=where, of=of)


def _wrong_number(part: Part, got: Array, ref: Array, wrong: Callable[[Array, Array], Array]) -> Finding:
    """Return the finding for the first number that is wrong."""
    if part.truth.twin.pair is None:
        return _wrong(part, "")
    where = tuple(int(i) for i in np.argwhere(wrong(got, ref))[0])
    return _wrong(part, f"is {_text(got[where])}, not {_text(ref[where])}", where)


def _text(number: Any) -> str:
    return f"{number:.6g}" if isinstance(number, np.floating) else str(number)


def _judged_integers(part: Output, got: Array) -> Finding:
    low, high = part.range_of_integers(got)
    if ((got >= low) & (got <= high)).all():
        return Finding(part.part, "pass", 0.0, of=part.of)
    return _wrong_number(part, got, low, lambda got, low: ~((got >= low) & (got <= high)))


def value_bounds(truth: Truth, errors: Array, k: int = 0) -> Array:
    """Return the bound of each number of an output; costly allowances are computed only if the errors need them."""
    part = Output(truth, k)
    return part.bounds(part.norms(part.ref), errors)


def gradient_bounds(truth: Truth, errors: Array, name: str | None = None) -> Array:
    """Return the bound of each block of a gradient, by default the first one, as far as the errors need it."""
    part = Gradient(truth, name or truth.twin.wrt[0])
    return part.bounds(part.norms(part.ref), errors)


def full_bound(truth: Truth, part: str) -> float:
    """Return the largest bound of the value or of the gradient, with all allowances."""
    parts: list[Part] = [Output(truth, k) for k, output in enumerate(truth.outputs) if output.dtype.kind == "f"]
    if part == "gradient":
        parts = [Gradient(truth, name) for name in truth.gradients]
    return float(max((np.max(each.full_bounds() + each.noise(), initial=0) for each in parts), default=0.0))
