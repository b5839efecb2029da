"""The relation between a wrong loss and ours: off by a constant, by a factor, or neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from twinloss.harness.drawing import coverage
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.hunting.conventions import of_one_type
from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Twin

# The number of cases to compare, and the least number of them that must have finite results.
CASES, LEAST = 16, 5
# The tolerance of a relation, relative to the largest number, and the share of the cases in which it must hold: in a
# few cases, rounding may spoil it. A relation explains a failure that is already known, so the tolerance need not be
# strict.
CLOSE, SHARE = 1e-4, 0.9

# Our result and that of the target.
Pair = tuple[Array, Array]


@np.errstate(all="ignore")
def relation(twin: Twin, dtype: str, seed: int) -> str | None:
    """Describe a simple relation of a target's values and gradients to ours, at default options.

    The value is fitted by a * ours + b, and the gradient by a' * ours.

    Returns:
        A sentence, or None if nothing differs, or no a, b and a' explain it.
    """
    answers = list(_answers(twin, dtype, seed))
    if len(answers) < LEAST:
        return None
    slope = _slope([(ours.gradient, theirs.gradient) for ours, theirs in answers]) if twin.differentiable else None
    fit = _fit([(ours.value, theirs.value) for ours, theirs in answers], slope)
    sentence = None if fit is None else _sentence(*fit, slope, twin.differentiable)
    return sentence.replace("ours", "that of the reference") if sentence and twin.pair else sentence


def _sentence(factor: float, constant: float, slope: float | None, judged: bool) -> str | None:
    """Describe the relation; `slope` is the factor between the gradients, `judged` says whether there are gradients."""
    gradient = f"the gradient is {slope:.6g} times ours" if slope else "the gradient is not a multiple of ours"
    gradient = "the gradient agrees" if slope == 1 else gradient if judged else "the gradient was not judged"
    shift = f" {'+' if constant > 0 else '-'} {abs(constant):.6g}" if constant else ""
    if constant and factor == 1:
        return f"off by a constant {abs(constant):.6g}; {gradient}: the value is ours{shift}"
    if factor == 1:
        return f"the value agrees; {gradient}" if slope not in (None, 1) else None
    if factor == slope and not constant:
        return f"{factor:.6g} times ours, in value and gradient"
    return f"the value is {factor:.6g} times ours{shift}; {gradient}"


def _answers(twin: Twin, dtype: str, seed: int) -> Iterator[tuple[Answer, Answer]]:
    """Yield our answers and those of the target in ordinary cases whose results are all finite."""
    ordinary = {name: values[0] for name, values in coverage.shapes(twin).items()}
    wanted = {name: value for name, value in ordinary.items() if name in (coverage.CHANNELS, coverage.TARGET)}
    narrowed = coverage.narrowed(replace(twin, ranks=tuple(filter(None, twin.ranks)) or twin.ranks), wanted)
    for case in drawn(narrowed, dtype, twin.defaults(), None, CASES, seed):
        case = case if twin.pair else of_one_type(twin, case)
        truth = Truth(twin, case)
        try:
            theirs = ask_fast(twin, case)
        except Exception:
            continue
        ours = Answer(truth.value.astype(np.float64), truth.gradient.astype(np.float64))
        pairs = ((ours.value, theirs.value), (ours.gradient, theirs.gradient))
        if all(a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs):
            yield ours, theirs


def _slope(pairs: Sequence[Pair]) -> float | None:
    """Return the factor between the gradients, or None."""
    ratios = [float(np.sum(a * b) / np.sum(a * a)) for a, b in pairs if a.any()]
    if not ratios:
        return None
    factor = _rounded(float(np.median(ratios)))
    return factor if _share(pairs, factor, 0.0) >= SHARE else None


def _fit(pairs: Sequence[Pair], slope: float | None) -> tuple[float, float] | None:
    """Return the simplest factor and constant that map our values to those of the target, or None."""
    ours, theirs = (np.concatenate([np.ravel(pair[side]) for pair in pairs]) for side in (0, 1))
    size = max(float(np.abs(theirs).max()), float(np.abs(ours).max()))
    spread = ours - ours.mean()
    if not size or not np.abs(spread).max() > CLOSE * size:
        return None
    fitted = float(np.sum(spread * theirs) / np.sum(spread * spread))
    through_zero = float(np.sum(ours * theirs) / np.sum(ours * ours))
    for factor in (1.0, *([] if slope is None else [slope]), _rounded(through_zero), _rounded(fitted)):
        constant = _rounded(float(np.median(theirs - factor * ours)))
        if abs(constant) <= CLOSE * size:
            constant = 0.0
        if abs(factor) > CLOSE and _share(pairs, factor, constant) >= SHARE:
            return factor, constant
    return None


def _rounded(number: float) -> float:
    """Round a number to five digits, about as many as remain after rounding errors."""
    return float(f"{number:.5g}")


def _share(pairs: Sequence[Pair], factor: float, constant: float) -> float:
    """Return the share of pairs that a factor and a constant explain."""
    held = 0
    for ours, theirs in pairs:
        want = factor * ours + constant
        size = max(np.abs(want).max(initial=0), np.abs(theirs).max(initial=0), abs(constant))
        held += bool(np.abs(theirs - want).max(initial=0) <= CLOSE * size)
    return held / len(pairs)
