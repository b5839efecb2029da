"""The judgement of the outputs of a pair's fast function, by the rules in `pair_truth.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from twinloss.harness.judging.judgement import C, Finding, bound, distance, finding, grade, unlike, worst
from twinloss.harness.judging.pair_points import Allowed, Reference, difference
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array

# The number of perturbations for integer outputs, and the largest number for floating outputs.
ROUNDS, MORE_ROUNDS = 6, 16


class ValueJudge:
    """Judges every number of the outputs by itself."""

    def __init__(self, reference: Reference) -> None:
        """Prepare to judge answers to the case of the reference."""
        self.reference, self.real, self.precision = reference, reference.real, reference.precision
        self._allowed: dict[int, Allowed] = {}

    def judge(self, answer: Answer) -> Finding:
        """Judge all outputs, and return the worst finding."""
        wanted = len(self.reference.outputs)
        if len(answer.outputs) != wanted:
            return Finding("value", "fail", np.inf, of=f"{len(answer.outputs)} outputs, not {wanted}")
        found = [self._judge_output(k, got) for k, got in enumerate(answer.outputs)]
        return worst(found) if found else Finding("value", "pass", 0.0)

    def _judge_output(self, k: int, got: Array) -> Finding:
        ref = self.reference.outputs[k]
        of = f"output {k}" if len(self.reference.outputs) > 1 else ""
        if got.shape != ref.shape:
            return Finding("value", "fail", np.inf, of=f"{of} of shape {got.shape}, not {ref.shape}".strip())
        if not got.size:
            return Finding("value", "pass", 0.0, of=of)
        if ref.dtype.kind != "f":
            return self._judge_integers(k, got, of)
        if unlike(got, ref, self.precision.largest).any():
            return Finding("value", "fail", np.inf, of=of)
        errors = distance(got, ref)
        bounds = self.bounds(k, errors)
        found = finding("value", errors, bounds, grade(errors, bounds, lambda: self._plain_errors(k)))
        return replace(
            found,
            of=of,
            basis=self.reference.basis(found, np.abs(ref), self._allowed[k], self.reference.blocks_of_output(k)),
        )

    def _judge_integers(self, k: int, got: Array, of: str) -> Finding:
        low = high = np.asarray(self.reference.outputs[k])
        if not (got == low).all():
            for arguments, options in self.reference.perturbations(ROUNDS):
                near = self.reference.outputs_at(arguments, options)[k]
                low, high = np.minimum(low, near), np.maximum(high, near)
        wrong = ~((got >= low) & (got <= high))
        if not wrong.any():
            return Finding("value", "pass", 0.0, of=of)
        where = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        place = tuple(int(i) for i in where)
        return Finding("value", "fail", np.inf, where=place, of=f"{of} is {got[where]}, not {low[where]}".strip())

    def full_bound(self) -> float:
        """Return the largest bound of a floating number, with all allowances."""
        floating = [(k, output) for k, output in enumerate(self.reference.outputs) if output.dtype.kind == "f"]
        found = [
            np.max(self.bounds(k, np.full(output.shape, np.inf)) + self._plain_noise(k), initial=0)
            for k, output in floating
        ]
        return float(max(found, default=0.0))

    def bounds(self, k: int, errors: Array) -> Array:
        """Return the bound of each number of an output; costly allowances are computed only if the errors need them."""
        ref = self.reference.outputs[k]
        growth = self._growth(k)
        scale = growth * np.abs(ref)
        bounds = bound(scale, ref, self.precision)
        self._allowed[k] = Allowed(0, 0.0, 0.0)
        if (errors <= bounds).all():
            return bounds
        for rounds, (spread, own) in enumerate(self._allowances(k), 1):
            bounds = bound(scale, ref, self.precision, growth * spread, own)
            self._allowed[k] = Allowed(rounds, spread, own)
            if (errors <= bounds).all():
                break
        return bounds

    def _growth(self, k: int) -> float:
        return self.reference.growth(self.reference.blocks_of_output(k))

    def _allowances(self, k: int) -> Iterator[tuple[Array, Array | float]]:
        ref = self.reference.outputs[k]
        spread = np.zeros(ref.shape, self.real)
        for arguments, options in self.reference.perturbations(MORE_ROUNDS):
            near = self.reference.outputs_at(arguments, options)[k]
            spread = np.maximum(spread, difference(near, ref))
            yield spread, 0.0
        yield (
            spread,
            self.reference.own_error(lambda real: self.reference.outputs_at(self.reference.lifted(real))[k], ref),
        )

    @cached_property
    def _noise(self) -> dict[int, Array]:
        """Largest changes of each floating output if each operation of the reference rounds at random."""
        ref = {k: output for k, output in enumerate(self.reference.outputs) if output.dtype.kind == "f"}
        return self.reference.noise(lambda moved: dict(enumerate(self.reference.outputs_at(moved))), ref)

    def _plain_noise(self, k: int) -> Array:
        return C / 2 * self._growth(k) * self._noise[k]

    def _plain_errors(self, k: int) -> Array:
        """Return the largest errors of the plain computation, here and at nearby points."""
        largest = np.zeros(self.reference.outputs[k].shape, self.real)
        for plain, exact in self.reference.plain_points():
            got, want = self.reference.outputs_at(plain)[k], self.reference.outputs_at(exact)[k]
            errors = distance(got, want)
            largest = np.maximum(largest, np.where(unlike(got, want, self.precision.largest), np.inf, errors))
        return np.maximum(largest, self._plain_noise(k))
