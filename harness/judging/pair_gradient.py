"""The judgement of the gradients of a pair's fast function, by the rules in `pair_truth.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from twinloss.harness.judging.judgement import C, Finding, bound, distance, finding, grade, unlike, worst
from twinloss.harness.judging.pair_points import Allowed, Arrays, Reference, difference
from twinloss.harness.judging.pair_slopes import Slopes
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array

# The number of perturbations of the inputs.
ROUNDS = 6
# The plain gradient is computed forwards, by complex steps, and the fast one backwards, with other rounding errors.
# `grade` allows twice this factor, so an error of up to C times that of the plain computation is only degraded.
OTHER_WAY = C / 2
# A gradient has jumped if a roundoff moves it by more than this share of the largest number of its block.
JUMP = 2.0**-10
# The number of points that are tried beside a kink, and beside several kinks that meet.
SIDES, MORE_SIDES = 8, 24
# The largest error estimate of a one-sided derivative, as a share of it, unless the point is a pole.
DECIDED = 1e-2


class GradientJudge:
    """Judges the gradient of each input block by block, or along some directions."""

    def __init__(self, reference: Reference, slopes: Slopes) -> None:
        """Prepare to judge answers to the case of the reference."""
        self.reference, self.slopes = reference, slopes
        self.pair, self.real, self.precision = reference.pair, reference.real, reference.precision
        self._near: list[Arrays] = []
        self._allowed: dict[str, Allowed] = {}

    def judge(self, answer: Answer) -> Finding:
        """Judge the gradients of all inputs, and return the worst finding."""
        return worst([self._judge_input(name, answer.gradients[name]) for name in self.pair.wrt])

    def _compared(self, name: str, gradient: Array) -> Array:
        """Return the gradient of an answer, or its slopes along the directions."""
        if self.slopes.directions is None:
            return gradient
        return np.array([np.sum(gradient.astype(self.real) * d.values) for d in self.slopes.directions_in(name)])

    def _judge_input(self, name: str, gradient: Array) -> Finding:
        ref, got = self.slopes.here[name], self._compared(name, gradient)
        if got.shape != ref.shape:
            return Finding("gradient", "fail", np.inf, of=f"{name} of shape {got.shape}, not {ref.shape}")
        if not ref.size:
            return Finding("gradient", "pass", 0.0, of=name)
        undecided = ~np.isfinite(self.slopes.own_errors[name])
        if self.slopes.method == "differences" and not np.isfinite(got).all():
            undecided |= ~np.isfinite(got) & self._is_at_a_pole(name)
        if self.slopes.directions is not None and not np.isfinite(gradient).all():
            if self._is_wrongly_infinite(name, gradient):
                return Finding("gradient", "fail", np.inf, of=name)
            undecided |= ~np.isfinite(got)
        got = np.where(undecided, ref, got)
        if unlike(got, ref, self._largest(name), poles=True).any():
            return Finding("gradient", "fail", np.inf, of=name)
        norms = self._norms(name, ref, got)
        errors = self._in_blocks(name, distance(got, ref))
        bounds = self._bounds(name, errors, norms)
        if (errors > bounds).any():
            errors = self._in_blocks(name, self._outside(name, ref, got))
        found = finding("gradient", errors, bounds, grade(errors, bounds, lambda: self._plain_slope_errors(name)))
        blocks = self.reference.blocks_of_input(name)
        basis = self.reference.basis(found, norms, self._allowed[name], blocks, self.slopes.method)
        return replace(found, of=name, basis=basis)

    def _largest(self, name: str) -> Any:
        """Return the largest number of the dtype of a gradient; sums along a direction may exceed it."""
        if self.slopes.directions is None:
            return self.precision.largest
        return np.where([d.place is None for d in self.slopes.directions_in(name)], np.inf, self.precision.largest)

    def _is_wrongly_infinite(self, name: str, gradient: Array) -> bool:
        """Return whether a number of a gradient is not finite although the derivative is, and fits into the dtype."""
        places = self.slopes.some_places(~np.isfinite(gradient))
        ref = np.array([self.slopes.at_place(name, place) for place in places], self.real)
        got = np.array([gradient[place] for place in places])
        return bool(unlike(got, ref, self.precision.largest, poles=True).any())

    def _is_at_a_pole(self, name: str) -> Array:
        """Return where a one-sided derivative cannot be determined, even if the two cancel in a central difference."""
        found = [
            max(slope.error / abs(slope.value) if slope.value else 0 for slope in sides)
            for sides in zip(*(self.slopes.differences_here(side) for side in (-1, 1)), strict=True)
        ]
        return ~(self.slopes.by_input(found)[name] <= DECIDED)

    def full_bound(self) -> float:
        """Return the largest bound, with all allowances."""
        most = 0.0
        for name in self.pair.wrt:
            ref = self.slopes.here[name]
            norms = self._norms(name, ref, ref)
            bounds = self._bounds(name, np.full(norms.shape, np.inf), norms) + OTHER_WAY * self._noise_in_blocks(name)
            most = max(most, float(np.max(bounds, initial=0)))
        return most

    def _bounds(self, name: str, errors: Array, norms: Array) -> Array:
        """Return the bound of each block of the gradient of an input."""
        errors_of_slopes = self.slopes.own_errors[name]  # infinite where a slope is undecided and not judged
        own = self._in_blocks(name, np.where(np.isfinite(errors_of_slopes), errors_of_slopes, 0))
        growth = self._growth(name)
        bounds = bound(growth * norms, norms, self.precision, own=own)
        self._allowed[name] = Allowed(0, 0.0, own)
        if (errors <= bounds).all():
            return bounds
        for rounds, (spread, more) in enumerate(self._allowances(name), 1):
            bounds = bound(growth * norms, norms, self.precision, growth * spread, own + more)
            self._allowed[name] = Allowed(rounds, spread, own + more)
            if (errors <= bounds).all():
                break
        return bounds

    def _growth(self, name: str) -> float:
        return self.reference.growth(self.reference.blocks_of_input(name))

    def _allowances(self, name: str) -> Iterator[tuple[Array, Array | float]]:
        ref = self.slopes.here[name]
        spread = self._in_blocks(name, np.zeros(ref.shape, self.real))
        most = JUMP * self._norm_of_each(name, ref)
        for k in range(ROUNDS):
            moved = difference(self._slopes_near(k)[name], ref)
            # A number that jumps across a kink is judged by the derivatives to both sides instead.
            spread = np.maximum(spread, self._in_blocks(name, np.where(moved > most, 0, moved)))
            yield spread, 0.0
        if self.slopes.method != "differences":
            own = self.reference.own_error(lambda real: self.slopes.at(self.reference.lifted(real))[name], ref)
            yield spread, self._in_blocks(name, own)

    def _slopes_near(self, k: int) -> Arrays:
        """Return the slopes at a perturbed point; all inputs share the work."""
        if not self._near:
            self._perturbed = self.reference.perturbations(ROUNDS)
        while len(self._near) <= k:
            self._near.append(self.slopes.at(*next(self._perturbed)))
        return self._near[k]

    def _norm_of_each(self, name: str, ref: Array) -> Array:
        """Return for each number of a gradient the largest one of its block."""
        size = np.abs(np.where(np.isfinite(ref), ref, 0))
        if self.slopes.directions is not None or not ref.ndim:
            return size
        kept = self.pair.block_axes(name, ref.ndim)
        largest: Array = np.max(size, axis=tuple(i for i in range(ref.ndim) if i not in kept), initial=0, keepdims=True)
        return largest

    def _norms(self, name: str, ref: Array, got: Array) -> Array:
        """Return the size of each block: its largest number, or the sum of the terms of a slope."""
        if self.slopes.directions is None:
            return self._in_blocks(name, np.abs(ref))
        return np.abs(ref) + np.abs(got) + self._typical_terms(name, ref)

    def _typical_terms(self, name: str, ref: Array) -> Array:
        """Return for each direction the size of the sum of |g_i d_i|, estimated from all slopes of the input."""
        counts = np.array([np.count_nonzero(d.values) for d in self.slopes.directions_in(name)])
        finite = np.where(np.isfinite(ref), ref, 0)
        single = np.sqrt(np.mean(finite.astype(self.real) ** 2 / counts))
        return np.where(counts > 1, counts * single, 0)

    def _in_blocks(self, name: str, values: Array) -> Array:
        """Return the largest number of each block; each direction is a block."""
        if self.slopes.directions is not None or not values.ndim:
            return values
        kept = self.pair.block_axes(name, values.ndim)
        finite = np.where(np.isnan(values), 0, values)
        largest: Array = np.max(finite, axis=tuple(i for i in range(values.ndim) if i not in kept), initial=0)
        return largest

    def _outside(self, name: str, ref: Array, got: Array) -> Array:
        """Return how far each number lies outside the range of the derivatives to both sides."""
        jump = 64 * self.precision.u * np.abs(ref)
        if self.slopes.method == "differences":
            sides = []
            for side in (-1, 1):
                found = [slope.value for slope in self.slopes.differences_here(side)]
                sides.append(self.slopes.by_input(found)[name])
            low, high = np.fmin(*sides), np.fmax(*sides)
        else:
            low, high = ref.copy(), ref.copy()
            for k in range(MORE_SIDES):
                if k >= SIDES and ((low <= got) & (got <= high) | (np.abs(got - ref) <= jump)).all():
                    break
                near = self.slopes.at(self.reference.beside(np.random.default_rng(k)))[name]
                low, high = np.fmin(low, near), np.fmax(high, near)
        low, high = np.fmin(low, ref), np.fmax(high, ref)
        with np.errstate(all="ignore"):
            outside = np.maximum(np.maximum(low - got, got - high), 0)
        if self.slopes.directions is not None:
            # If several numbers cross kinks at once, in opposite directions, their derivatives give no bound.
            several = np.array([d.place is None for d in self.slopes.directions_in(name)])
            outside = np.where(several & (high - low > jump), 0, outside)
        return np.where(np.isfinite(outside), outside, 0)

    @cached_property
    def _noise(self) -> Arrays:
        """Largest changes of each gradient if each operation of the reference rounds at random."""
        if self.slopes.method == "differences":  # they would magnify the noise
            return {name: np.zeros(ref.shape, self.real) for name, ref in self.slopes.here.items()}
        return self.reference.noise(self.slopes.at, self.slopes.here)

    def is_zero(self, name: str) -> bool:
        """Return whether the reference's gradient of an input is 0, up to the rounding of the reference itself."""
        own = C * self.precision.u_ref / self.precision.u * np.max(self._noise[name], initial=0)
        return bool((np.abs(self.slopes.here[name]) <= own).all())

    def _noise_in_blocks(self, name: str) -> Array:
        return self._growth(name) * self._in_blocks(name, self._noise[name])

    def _plain_slope_errors(self, name: str) -> Array:
        """Return the largest errors of the plain computation, here and at nearby points, times `OTHER_WAY`."""
        largest = self._in_blocks(name, np.zeros(self.slopes.here[name].shape, self.real))
        if self.slopes.method == "differences":
            return largest
        largest = np.maximum(largest, self._noise_in_blocks(name))
        for plain, exact in self.reference.plain_points():
            got, want = self.slopes.at(plain)[name], self.slopes.at(exact)[name]
            errors = np.where(unlike(got, want, self.precision.largest, poles=True), np.inf, distance(got, want))
            largest = np.maximum(largest, self._in_blocks(name, errors))
        if self.slopes.directions is not None:  # single numbers share the largest error
            single = np.array([d.place is not None for d in self.slopes.directions_in(name)])
            largest = np.where(single, np.max(largest, where=single, initial=0), largest)
        return OTHER_WAY * largest
