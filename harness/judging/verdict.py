"""The judge: it compares an answer of the fast twin with the reference, by the bounds of judgement.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from twinloss.harness.judging.judgement import AT_ONCE, Finding, blocks, bound, distance, finding, grade, unlike
from twinloss.harness.judging.pair_truth import PairTruth
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Case, Twin


def truth_of(twin: Twin, case: Case, real: type[np.floating[Any]] | None = None) -> Truth | PairTruth:
    """Return the reference's results for a case."""
    if twin.pair is not None:
        return PairTruth(twin, case, real)
    return Truth(twin, case, real or np.longdouble)


def judge(truth: Truth | PairTruth, answer: Answer) -> tuple[Finding, ...]:
    """Judge the value and, if the twin is `differentiable`, the gradient."""
    if isinstance(truth, PairTruth):
        found = truth.judge_value(answer)
        decided = found.verdict == "fail" or not truth.twin.differentiable
        return (found,) if decided else (found, truth.judge_gradient(answer))
    value = judge_value(truth, answer.value)
    return (value, judge_gradient(truth, answer.gradient)) if truth.twin.differentiable else (value,)


def judge_value(truth: Truth, fast: Array) -> Finding:
    """Judge the value element by element."""
    ref = truth.value
    if fast.shape != ref.shape or unlike(fast, ref, truth.precision.largest).any():
        return Finding("value", "fail", np.inf)
    errors = distance(fast, ref)
    bounds = value_bounds(truth, errors)
    return finding("value", errors, bounds, grade(errors, bounds, lambda: _plain_value_errors(truth)))


def judge_gradient(truth: Truth, fast: Array) -> Finding:
    """Judge the gradient block by block, a block being one channel of one item."""
    ref = truth.gradient
    largest = truth.precision.largest
    if fast.shape != ref.shape or any(
        unlike(got, want, largest, poles=True).any() for i in _blocks(ref) for got, want in _parts(fast[i], ref[i])
    ):
        return Finding("gradient", "fail", np.inf)
    errors = _block_errors(fast, ref)
    bounds = gradient_bounds(truth, errors)
    if (errors > bounds).any() and truth.twin.kinks(truth.case.options):
        errors = _outside_errors(truth, fast)
    return finding("gradient", errors, bounds, grade(errors, bounds, lambda: _plain_gradient_errors(truth)))


def value_bounds(truth: Truth, errors: Array) -> Array:
    """Return the bound of each element; kappa, which is costly, is computed only where the error exceeds the rest."""
    ref = truth.value
    scale = np.array(np.abs(ref))
    own = truth.own_value()
    bounds = bound(scale, ref, truth.precision, own=own)
    if (errors > bounds).any() and truth.twin.value_terms is not None:
        scale = np.asarray(np.maximum(scale, truth.twin.value_terms(truth)))
        bounds = bound(scale, ref, truth.precision, own=own)
    for where in zip(*np.nonzero(np.atleast_1d(errors > bounds)), strict=True):
        index = where if ref.ndim else ()
        scale[index] = max(scale[index], truth.kappa(index))
    return bound(scale, ref, truth.precision, own=own)


def gradient_bounds(truth: Truth, errors: Array) -> Array:
    """Return the bound of each block; costly allowances are computed only if the errors need them."""
    norms = blocks(truth.gradient)
    for scale, spread, own in _allowances(truth, norms):
        bounds = bound(scale, norms, truth.precision, spread, own)
        if (errors <= bounds).all():
            break
    return bounds


def _allowances(truth: Truth, norms: Array) -> Iterator[tuple[Array, Array | float, Array | float]]:
    """Yield arguments for `bound` that allow for more and more: size of the terms, nearby spread, reference's error."""
    yield norms, 0.0, 0.0
    sizes = truth.sizes()
    yield sizes, 0.0, 0.0
    spread: Array | float = 0.0
    for spread in truth.spreads():
        yield sizes, spread, 0.0
    yield sizes, spread, truth.own_gradient()


def _blocks(values: Array) -> list[tuple[int, ...]]:
    return list(np.ndindex(*values.shape[:2]))


def _block_errors(fast: Array, ref: Array) -> Array:
    """Return the largest error in each block."""
    errors = np.zeros(ref.shape[:2], ref.dtype)
    for i in _blocks(ref):
        for got, want in _parts(fast[i], ref[i]):
            errors[i] = max(errors[i], distance(got, want).max(initial=0))
    return errors


def _parts(*blocks: Array) -> Iterator[list[Array]]:
    """Yield the same part of each block, a few planes at a time: temporary arrays of a whole volume take too much."""
    whole = [np.atleast_1d(block) for block in blocks]
    length, size = len(whole[0]), whole[0].size
    step = max(1, AT_ONCE * length // size) if size else 1
    for start in range(0, length, step):
        yield [block[start : start + step] for block in whole]


def _outside_errors(truth: Truth, fast: Array) -> Array:
    """Return how far the gradient lies outside the range of the reference's gradient at nearby points."""
    low, high = truth.between()
    with np.errstate(all="ignore"):
        outside = np.maximum(np.maximum(low - fast, fast - high), 0)
    return blocks(outside)


def _plain_value_errors(truth: Truth) -> Array:
    pairs = truth.plain_points()
    return np.asarray(np.max([_plain_errors(plain.value, exact.value, truth) for plain, exact in pairs], axis=0))


def _plain_gradient_errors(truth: Truth) -> Array:
    worst = np.zeros(truth.gradient.shape[:2], truth.real)
    for plain, exact in truth.plain_points():
        for i in _blocks(worst):
            errors = _plain_errors(plain.gradient[i], exact.gradient[i], truth)
            worst[i] = max(worst[i], errors.max(initial=0))
    return worst


def _plain_errors(plain: Array, ref: Array, truth: Truth) -> Array:
    errors = distance(plain, ref)
    return np.where(unlike(plain, ref, truth.precision.largest, poles=True), np.inf, errors)
