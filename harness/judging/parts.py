"""The parts of an answer that are judged, each output and each gradient, and the bounds of their errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from twinloss.harness.judging.judgement import C, Finding, bound, distance, in_blocks, unlike
from twinloss.harness.judging.nearby import difference
from twinloss.harness.judging.truth import OTHER_WAY, Truth
from twinloss.harness.model.operand import Array

# The number of perturbations for integer outputs, and the largest number for floating outputs.
ROUNDS, MORE_ROUNDS = 6, 16
# The number of pairs of points that are tried beside a kink, and beside several kinks that meet.
SIDES, MORE_SIDES = 4, 12
# The largest error estimate of a one-sided derivative, as a share of it, unless the point is a pole.
DECIDED = 1e-2


@dataclass(frozen=True)
class Allowed:
    """Allowances of a bound: the size of the terms, the spread over some perturbations, and the reference's error."""

    scale: Array
    spread: Array | float = 0.0
    own: Array | float = 0.0
    rounds: int = 0


class Part:
    """A part of an answer.

    Attributes:
        truth: the reference's results.
        part: "value" or "gradient".
        key: the number of the output, or the name of the input.
        ref: the reference's result.
        axes: the axes of its blocks; all axes if each number is judged by itself.
        along: whether the numbers are slopes along some directions.
        allowed: the allowances of the last bound.
    """

    along = False
    allowed: Allowed

    def __init__(self, truth: Truth, part: str, key: Any, ref: Array, axes: tuple[int, ...], blocks: int) -> None:
        """Prepare to judge answers."""
        self.truth, self.part, self.key, self.ref, self.axes, self._blocks = truth, part, key, ref, axes, blocks

    @property
    def of(self) -> str:
        """What messages call it; our losses have only one value and one gradient."""
        return str(self.key) if self.truth.twin.pair is not None else ""

    def compared(self, got: Array) -> Array:
        """Return the numbers of an answer that are compared."""
        return got

    def decided(self, given: Array, got: Array) -> Array | None:
        """Return the compared numbers, the reference's where it is undecided; None if they are wrong in any case."""
        return got

    def unlike(self, fast: Array, ref: Array) -> Array:
        """Return where only one of two arrays has NaN or infinity; their kinds may differ in a gradient."""
        return unlike(fast, ref, self.largest, poles=self.part == "gradient")

    def is_unlike(self, got: Array) -> bool:
        """Return whether NaN or infinity stand in other places than in the reference."""
        return bool(in_blocks(self.unlike, self.axes, got, self.ref).any())

    @property
    def largest(self) -> Any:
        """The largest number of the dtype."""
        return self.truth.precision.largest

    def errors(self, got: Array) -> Array:
        """Return the largest error in each block."""
        return in_blocks(distance, self.axes, got, self.ref)

    def norms(self, got: Array) -> Array:
        """Return the size of each block."""
        raise NotImplementedError

    def allowances(self, norms: Array, errors: Array) -> Iterator[Allowed]:
        """Yield allowances that allow for more and more, as far as the errors need them."""
        raise NotImplementedError

    def bounds(self, norms: Array, errors: Array) -> Array:
        """Return the bound of each block; costly allowances are computed only if the errors need them."""
        bounds = norms
        for allowed in self.allowances(norms, errors):
            self.allowed, bounds = allowed, self._bound(norms, allowed)
            if (errors <= bounds).all():
                break
        return bounds

    def _bound(self, norms: Array, allowed: Allowed) -> Array:
        growth = self.truth.growth(self._blocks)
        return bound(growth * allowed.scale, norms, self.truth.precision, growth * allowed.spread, allowed.own)

    def outside(self, got: Array) -> Array:
        """Return the largest error in each block if numbers may lie on either side of a kink."""
        return self.errors(got)

    def plain_errors(self) -> Array:
        """Return the largest errors of the plain computation in each block, here and at nearby points."""
        largest = np.zeros_like(self.norms(self.ref))
        for plain, exact in self.truth.plain_results(self.part):
            largest = np.maximum(largest, in_blocks(self._plain_errors, self.axes, plain[self.key], exact[self.key]))
        return np.maximum(largest, self.noise())

    def _plain_errors(self, got: Array, want: Array) -> Array:
        return np.where(unlike(got, want, self.truth.precision.largest, poles=True), np.inf, distance(got, want))

    def noise(self) -> Array:
        """Return half the effect that rounding each operation at random may have in each block; `grade` doubles it."""
        noise = self.truth.noise_in(self.part).get(self.key)
        if noise is None:
            return np.zeros_like(self.norms(self.ref))
        return np.asarray(C / 2 * self.truth.growth(self._blocks) * in_blocks(np.abs, self.axes, noise))

    def full_bounds(self) -> Array:
        """Return the bounds with all allowances."""
        norms = self.norms(self.ref)
        return self.bounds(norms, np.full(norms.shape, np.inf))

    def basis(self, found: Finding) -> str:
        """Explain in words how a bound was computed."""
        truth, allowed = self.truth, self.allowed
        size, moved, mine = (
            float(np.broadcast_to(a, allowed.scale.shape)[found.where])
            for a in (allowed.scale, allowed.spread, allowed.own)
        )
        u, u_out = (f"2^{round(math.log2(each))}" for each in (truth.precision.u, truth.precision.u_out))
        spread_of = (
            f"{moved:.3g} from {allowed.rounds} perturbations of the inputs by {u}" if allowed.rounds else "not needed"
        )
        real = "longdouble" if truth.real is np.longdouble else np.dtype(truth.real).name
        method = f", differentiated by {truth.slopes.method}" if self.part == "gradient" else ""
        return (
            f"{found.bound:.3g} = {C:g} g (u * size + spread) + u_out * size + own + tiny, with size {size:.3g}, "
            f"spread {spread_of}, own error of the reference {mine:.3g}, g = {truth.growth(self._blocks):.3g} "
            f"for {truth.terms(self._blocks)} numbers in a block, u = {u}, u_out = {u_out}; "
            f"the reference computes in {real}{method}"
        )


class Output(Part):
    """An output, of which every number is judged by itself."""

    def __init__(self, truth: Truth, k: int) -> None:
        """Prepare to judge output number `k`."""
        ref = truth.outputs[k]
        super().__init__(truth, "value", k, ref, tuple(range(ref.ndim)), truth.blocks_of_output(k))

    @property
    def of(self) -> str:
        """What messages call it."""
        return f"output {self.key}" if len(self.truth.outputs) > 1 else ""

    def norms(self, got: Array) -> Array:
        """Return the absolute value of each number."""
        return np.abs(self.ref)

    def allowances(self, norms: Array, errors: Array) -> Iterator[Allowed]:
        """Yield the condition numbers of a precise twin, or the spread over perturbations."""
        twin, own, scale = self.truth.twin, self.truth.own_value(), np.array(norms)
        yield Allowed(scale, own=own)
        if not twin.precise:
            yield from self._spreads(norms)
            return
        if twin.value_terms is not None:
            scale = np.asarray(np.maximum(scale, twin.value_terms(self.truth)))
            yield Allowed(scale, own=own)
        beyond = errors > self._bound(norms, Allowed(scale, own=own))
        for where in zip(*np.nonzero(np.atleast_1d(beyond)), strict=True):
            index = where if self.ref.ndim else ()
            scale[index] = max(scale[index], self.truth.kappa(index))
        yield Allowed(scale, own=own)

    def _spreads(self, norms: Array) -> Iterator[Allowed]:
        spread = np.zeros(self.ref.shape, self.truth.real)
        for rounds, moved in zip(range(1, MORE_ROUNDS + 1), self.truth.perturbations(), strict=False):
            spread = np.maximum(spread, self._moved(*moved))
            yield Allowed(norms, spread, rounds=rounds)
        own = self.truth.own_error(lambda real: self._moved(self.truth.lifted(real)))
        yield Allowed(norms, spread, own, MORE_ROUNDS)

    def _moved(self, *point: Any) -> Array:
        return difference(self.truth.results_at("value", *point)[self.key], self.ref)

    def range_of_integers(self, got: Array) -> tuple[Array, Array]:
        """Return the smallest and the largest integers of the reference here and, if needed, at nearby points."""
        low = high = self.ref
        if not (got == low).all():
            for _, moved in zip(range(ROUNDS), self.truth.perturbations(), strict=False):
                near = self.truth.results_at("value", *moved)[self.key]
                low, high = np.minimum(low, near), np.maximum(high, near)
        return low, high


class Gradient(Part):
    """The gradient with respect to an input, which is judged block by block or along some directions."""

    def __init__(self, truth: Truth, name: str) -> None:
        """Prepare to judge the gradient with respect to the input `name`."""
        ref = truth.gradients[name]
        axes = truth.axes_of_blocks(name, ref.ndim)
        super().__init__(truth, "gradient", name, ref, axes, truth.blocks_of_input(name))
        self._slopes = truth.slopes
        self._numeric = truth.twin.gradient is None
        self.along = self._numeric and truth.slopes.directions is not None

    @cached_property
    def _directions(self) -> Sequence[Any]:
        return self._slopes.directions_in(self.key)

    def compared(self, gradient: Array) -> Array:
        """Return the gradient of an answer, or its slopes along the directions."""
        if not self.along:
            return gradient
        return np.array([np.sum(gradient.astype(self.truth.real) * d.values) for d in self._directions])

    @property
    def largest(self) -> Any:
        """The largest number of the dtype; sums along a direction may exceed it."""
        if not self.along:
            return self.truth.precision.largest
        return np.where([d.place is None for d in self._directions], np.inf, self.truth.precision.largest)

    def decided(self, gradient: Array, got: Array) -> Array | None:
        """Return the numbers to compare, the reference's where it is undecided; None if one is wrongly infinite."""
        if not self._numeric:
            return got
        undecided = ~np.isfinite(self._slopes.own_errors[self.key])
        if self._slopes.method == "differences" and not np.isfinite(got).all():
            undecided |= ~np.isfinite(got) & self._is_at_a_pole()
        if self.along and not np.isfinite(gradient).all():
            if self._is_wrongly_infinite(gradient):
                return None
            undecided |= ~np.isfinite(got)
        return np.where(undecided, self.ref, got)

    def _is_wrongly_infinite(self, gradient: Array) -> bool:
        """Return whether a number of a gradient is not finite although the derivative is, and fits into the dtype."""
        places = self._slopes.some_places(~np.isfinite(gradient))
        ref = np.array([self._slopes.at_place(self.key, place) for place in places], self.truth.real)
        got = np.array([gradient[place] for place in places])
        return bool(unlike(got, ref, self.truth.precision.largest, poles=True).any())

    def _is_at_a_pole(self) -> Array:
        """Return where a one-sided derivative cannot be determined, even if the two cancel in a central difference."""
        found = [
            max(slope.error / abs(slope.value) if slope.value else 0 for slope in sides)
            for sides in zip(*(self._slopes.differences_here(side) for side in (-1, 1)), strict=True)
        ]
        return ~(self._slopes.by_input(found)[self.key] <= DECIDED)

    def norms(self, got: Array) -> Array:
        """Return the size of each block: its largest number, or the sum of the terms of a slope."""
        if not self.along:
            return self.truth.blocks_in(self.key, self.ref)
        return np.abs(self.ref) + np.abs(got) + self._typical_terms()

    def _typical_terms(self) -> Array:
        """Return for each direction the size of the sum of |g_i d_i|, estimated from all slopes of the input."""
        counts = np.array([np.count_nonzero(d.values) for d in self._directions])
        finite = np.where(np.isfinite(self.ref), self.ref, 0)
        single = np.sqrt(np.mean(finite.astype(self.truth.real) ** 2 / counts))
        return np.where(counts > 1, counts * single, 0)

    def allowances(self, norms: Array, errors: Array) -> Iterator[Allowed]:
        """Yield the size of the terms, the spread over perturbations, and the reference's own error."""
        own = self._errors_of_differences()
        yield Allowed(norms, own=own)
        sizes = norms if self.along else self.truth.sizes(self.key)
        yield Allowed(sizes, own=own)
        spread: Array | float = 0.0
        for rounds, spread in enumerate(self.truth.spreads(self.key), 1):
            yield Allowed(sizes, spread, own, rounds)
        if self._slopes.method != "differences":
            yield Allowed(sizes, spread, self.truth.own_gradient(self.key), rounds)

    def _errors_of_differences(self) -> Array | float:
        if self._slopes.method != "differences":
            return 0.0
        errors = self._slopes.own_errors[self.key]  # infinite where a slope is undecided and not judged
        return self.truth.blocks_in(self.key, errors)

    def outside(self, got: Array) -> Array:
        """Return how far the gradient lies outside the range of the derivatives to both sides, in each block."""
        low, high = self.ref.copy(), self.ref.copy()
        for near in self._sides(got, low, high):
            np.fmin(low, near, out=low)
            np.fmax(high, near, out=high)
        with np.errstate(all="ignore"):
            outside = np.maximum(np.maximum(low - got, got - high), 0)
        if self.along:
            # If several numbers cross kinks at once, in opposite directions, their derivatives give no bound.
            several = np.array([d.place is None for d in self._directions])
            outside = np.where(several & (high - low > self._jump()), 0, outside)
        return self.truth.blocks_in(self.key, outside)

    def _sides(self, got: Array, low: Array, high: Array) -> Iterator[Array]:
        """Yield the derivatives to both sides, until the numbers lie between those that `low` and `high` hold."""
        if self._slopes.method == "differences":
            for side in (-1, 1):
                yield self._slopes.by_input([slope.value for slope in self._slopes.differences_here(side)])[self.key]
            return
        for k, arguments in enumerate(self.truth.beside(MORE_SIDES)):
            if k >= 2 * SIDES and ((low <= got) & (got <= high) | (np.abs(got - self.ref) <= self._jump())).all():
                break
            yield self._slopes.at(arguments)[self.key]

    def _jump(self) -> Array:
        return np.asarray(64 * self.truth.precision.u * np.abs(self.ref))

    def plain_errors(self) -> Array:
        """Return the largest errors of the plain computation in each block, here and at nearby points."""
        if self._slopes.method == "differences":
            return np.zeros_like(self.norms(self.ref))
        largest = super().plain_errors()
        if self.along:  # single numbers share the largest error
            single = np.array([d.place is not None for d in self._directions])
            largest = np.where(single, np.max(largest, where=single, initial=0), largest)
        return OTHER_WAY * largest if self._numeric else largest
