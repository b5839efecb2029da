r"""The reference's results for a case of a pair, and the bounds that they give.

The rules are those of `judgement.py`; here is how they read for a function of which only the values are known.

**Value.** Every number of every output must satisfy

    |fast - ref| <= C g (max_k |ref(x(1 + u d_k)) - ref(x)| + u |ref|) + u_out |ref| + own + tiny,

where the d_k are random in [-1, 1], one for each floating number of the inputs and options, and one d_k is 1
everywhere. Logits are perturbed by u max(|x|, 1) instead.
Integers and booleans must be equal to the reference's, here or at one of these points.

**Sums.** g = max(1, sqrt(n) / C) for n numbers in the inputs of a block: rounding errors of a sum of n terms grow like
sqrt(n) (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis"). C g is C up to n = 64.

**Gradient.** It is that of the sum of all outputs times random upstream gradients. A block must satisfy

    max |g_fast - g_ref| <= C g (max_k max |g_ref(x(1 + u d_k)) - g_ref(x)| + u max |g_ref|)
                            + u_out max |g_ref| + own + tiny.

g_ref is the closed form of the pair, or else a derivative by complex step or, where the reference is not analytic, by
differences; see `slopes.py`. The error estimate of the differences is a part of `own`. If there are many numbers, the
derivatives along some directions are compared instead: random ones within a block, and those of single numbers.

**Degraded** is an error beyond the bound of at most twice that of the plain computation: the reference in the working
precision, here or at nearby points. For a gradient it is C times that error, since complex steps compute the gradient
forwards, and the fast function computes it backwards, with other roundings.

**Reference.** It computes in longdouble if it can, else in float64. `own` also holds an estimate of its rounding error,
scaled from its results in the next lower precisions.

**Kinks.** An element of the gradient that exceeds its bound may also lie between the derivatives to both sides. What
jumps across a kink is left out of the spread, and a block is not judged by directions that cross kinks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from twinloss.harness.judging import slopes
from twinloss.harness.judging.judgement import C, Finding, Precision, bound, distance, finding, grade, unlike
from twinloss.harness.judging.pair_call import (
    in_a_row,
    lifted,
    named_gradients,
    reference_options,
    reference_outputs,
    sizes_of,
    weights,
)
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array
from twinloss.harness.model.pair import Pair
from twinloss.harness.model.twin import Case, Twin

Arrays = dict[str, Array]
Real = type[np.floating[Any]]

# With more numbers, derivatives are taken along some directions only: within so many blocks, and for so many numbers.
FULL, BLOCKS, SINGLE = 64, 4, 12

# The number of perturbations that decide most cases, and of those that decide the rest.
ROUNDS, MORE_ROUNDS = 6, 16

# The number of nearby points at which the plain computation is tried, and their relative distance.
POINTS, NEAR = 20, 2.0**-10
# At a single point the plain computation may be right by luck. With more than FEW numbers, FEWER points are enough.
FEW, FEWER = 16, 6
# The plain gradient is computed forwards, by complex steps, and the fast one backwards, with other rounding errors: in
# all, C times the error of the plain computation is degraded, and not wrong.
OTHER_WAY = C / 2
# A gradient has jumped if a roundoff moves it by more than this share of the largest number of its block.
JUMP = 2.0**-10
# The number of points to both sides of a kink.
SIDES = 8

# Error estimates of difference quotients that are a larger share of the slope cannot confirm a complex step.
CONFIRMED = 1e-6
# The number of points at which differences may confirm it.
TRIES = 3
# The largest error estimate of a one-sided derivative, as a share of it, unless the point is a pole.
DECIDED = 1e-2

_REALS: dict[Pair, Real] = {}


@dataclass(frozen=True)
class Direction:
    """A direction in one of the inputs; `place` is the index of its only number, or None if it moves several."""

    name: str
    values: Array
    place: tuple[int, ...] | None = None


class PairTruth:
    """The reference on exactly the numbers that the fast function got; each result is computed on first use."""

    def __init__(self, twin: Twin, case: Case, real: Real | None = None) -> None:
        """Prepare the reference to compute in dtype `real`, by default the most precise one that it can."""
        assert twin.pair is not None
        self.twin, self.pair, self.case = twin, twin.pair, case
        self.options = reference_options(twin, case)
        self._near: list[Arrays] = []
        # For each output and input the number of perturbations, and the spread and own error that they allow.
        self._allowed_values: dict[int, tuple[int, Any, Any]] = {}
        self._allowed_slopes: dict[str, tuple[int, Any, Any]] = {}
        self.real = real or best_real(self.pair, case, self.options)
        self.precision = Precision.of(case.tolerance, self.real)

    @cached_property
    def arguments(self) -> Arrays:
        """The inputs in the reference's precision."""
        return lifted(self.case, self.real)

    @cached_property
    def outputs(self) -> tuple[Array, ...]:
        """The outputs of the reference."""
        return reference_outputs(self.pair, self.arguments, self.options)

    @property
    def value(self) -> Array:
        """All numbers of the outputs in a row."""
        return in_a_row(self.outputs)

    @property
    def gradient(self) -> Array:
        """All numbers of the gradient, or its slopes along the directions, in a row."""
        if not self.pair.wrt:
            return np.zeros(0)
        return in_a_row([part for _, part, _ in self._gradient_parts(None)])

    @property
    def growth(self) -> float:
        """The factor for the rounding errors of sums: max(1, sqrt(n) / C)."""
        return max(1.0, math.sqrt(self.terms) / C)

    @property
    def terms(self) -> int:
        """The number of numbers in the inputs of a block."""
        count = sum(values.size for values in self.arguments.values() if values.dtype.kind == "f")
        sizes = sizes_of(self.pair, self.case)
        blocks = math.prod(sizes[axis] for axis in self.pair.blocks.split())
        return max(1, count // max(1, blocks))

    # The value.

    def judge_value(self, answer: Answer) -> Finding:
        """Judge all outputs, and return the worst finding."""
        if len(answer.outputs) != len(self.outputs):
            return Finding("value", "fail", np.inf, of=f"{len(answer.outputs)} outputs, not {len(self.outputs)}")
        found = [self._judge_output(k, got) for k, got in enumerate(answer.outputs)]
        return _worst(found) if found else Finding("value", "pass", 0.0)

    def _judge_output(self, k: int, got: Array) -> Finding:
        ref = self.outputs[k]
        of = f"output {k}" if len(self.outputs) > 1 else ""
        if got.shape != ref.shape:
            return Finding("value", "fail", np.inf, of=f"{of} of shape {got.shape}, not {ref.shape}".strip())
        if not got.size:
            return Finding("value", "pass", 0.0, of=of)
        if ref.dtype.kind != "f":
            return self._judge_integers(k, got, of)
        if unlike(got, ref, self.precision.largest).any():
            return Finding("value", "fail", np.inf, of=of)
        errors = distance(got, ref)
        bounds = self.value_bounds(k, errors)
        found = finding("value", errors, bounds, grade(errors, bounds, lambda: self._plain_errors(k)))
        return replace(found, of=of, basis=self._basis(found, np.abs(ref), self._allowed_values[k]))

    def _judge_integers(self, k: int, got: Array, of: str) -> Finding:
        low = high = np.asarray(self.outputs[k])
        if not (got == low).all():
            for arguments, options in self._perturbations(ROUNDS):
                near = reference_outputs(self.pair, arguments, options)[k]
                low, high = np.minimum(low, near), np.maximum(high, near)
        wrong = ~((got >= low) & (got <= high))
        if not wrong.any():
            return Finding("value", "pass", 0.0, of=of)
        where = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        place = tuple(int(i) for i in where)
        return Finding("value", "fail", np.inf, where=place, of=f"{of} is {got[where]}, not {low[where]}".strip())

    def value_bounds(self, k: int, errors: Array) -> Array:
        """Return the bound of each number of an output; costly allowances are computed only if the errors need them."""
        ref = self.outputs[k]
        scale = self.growth * np.abs(ref)
        bounds = bound(scale, ref, self.precision)
        self._allowed_values[k] = (0, 0.0, 0.0)
        if (errors <= bounds).all():
            return bounds
        for rounds, (spread, own) in enumerate(self._value_allowances(k), 1):
            bounds = bound(scale, ref, self.precision, self.growth * spread, own)
            self._allowed_values[k] = (rounds, spread, own)
            if (errors <= bounds).all():
                break
        return bounds

    def _value_allowances(self, k: int) -> Iterator[tuple[Array, Array | float]]:
        ref = self.outputs[k]
        spread = np.zeros(ref.shape, self.real)
        for arguments, options in self._perturbations(MORE_ROUNDS):
            near = reference_outputs(self.pair, arguments, options)[k]
            spread = np.maximum(spread, _difference(near, ref))
            yield spread, 0.0
        yield (
            spread,
            self._own_error(lambda real: reference_outputs(self.pair, lifted(self.case, real), self.options)[k], ref),
        )

    def _plain_errors(self, k: int) -> Array:
        """Return the largest errors of the reference in working precision, here and at nearby points."""
        worst = np.zeros(self.outputs[k].shape, self.real)
        for plain, exact in self._points():
            got = reference_outputs(self.pair, plain, self.options)[k]
            want = reference_outputs(self.pair, exact, self.options)[k]
            errors = distance(got, want)
            worst = np.maximum(worst, np.where(unlike(got, want, self.precision.largest), np.inf, errors))
        return worst

    # The gradient.

    @cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [output.shape for output in self.outputs if output.dtype.kind == "f"]

    @cached_property
    def _upstream(self) -> list[Array]:
        return [weight.astype(self.real) for weight in weights(self.case, self._shapes)]

    def weighted(self, arguments: Mapping[str, Array], options: Mapping[str, Any]) -> Any:
        """Return the sum of all floating outputs times the upstream gradients."""
        floating = [each for each in reference_outputs(self.pair, arguments, options) if each.dtype.kind in "fc"]
        with np.errstate(all="ignore"):
            return sum(np.sum(weight * output) for weight, output in zip(self._upstream, floating, strict=True))

    @cached_property
    def method(self) -> str:
        """How the reference is differentiated: "closed form", "complex step" or "differences"."""
        if self.pair.gradient is not None:
            return "closed form"
        return "complex step" if self._is_analytic() else "differences"

    @cached_property
    def directions(self) -> tuple[Direction, ...] | None:
        """The directions along which the gradient is compared; None stands for all numbers."""
        sizes = {name: self.arguments[name].size for name in self.pair.wrt}
        if self.pair.gradient is not None or sum(sizes.values()) <= FULL:
            return None
        rng = np.random.default_rng(0)
        made = []
        for name in self.pair.wrt:
            values = self.arguments[name]
            for block in _some(rng, _blocks(values.shape, self.pair.block_axes(name, values.ndim)), BLOCKS):
                moved = np.zeros(values.shape, self.real)
                moved[block] = rng.choice([-1.0, 1.0], moved[block].shape) * rng.uniform(0.5, 1, moved[block].shape)
                made.append(Direction(name, moved))
            made += [self._single(name, place) for place in _some(rng, list(np.ndindex(values.shape)), SINGLE)]
        return tuple(made)

    def _single(self, name: str, place: tuple[int, ...]) -> Direction:
        one = np.zeros(self.arguments[name].shape, self.real)
        one[place] = 1
        return Direction(name, one, place)

    def _all_directions(self) -> Sequence[Direction]:
        if self.directions is not None:
            return self.directions
        shapes = {name: self.arguments[name].shape for name in self.pair.wrt}
        return [self._single(name, place) for name, shape in shapes.items() for place in np.ndindex(shape)]

    def _gradient_parts(self, answer: Answer | None) -> Iterator[tuple[str, Array, Array]]:
        """Yield for each input its name, the reference's gradient or slopes, and those of the answer, if given."""
        ref = self._reference_slopes
        for name in self.pair.wrt:
            got = answer.gradients[name] if answer else ref[name]
            if self.directions is not None and answer:
                got = np.array([np.sum(got.astype(self.real) * d.values) for d in self.directions if d.name == name])
            yield name, ref[name], got

    @cached_property
    def _reference_slopes(self) -> Arrays:
        return self._slopes_at(self.arguments, self.options)

    def _slopes_at(self, arguments: Arrays, options: Mapping[str, Any]) -> Arrays:
        """Return the gradient for each input; along the directions, if it is not known for all numbers."""
        if self.method == "closed form":
            return self._closed_form(arguments, options)
        if self.method == "complex step":
            return self._complex_slopes(arguments, options)
        return self._by_input([self._differences(arguments, options, d).value for d in self._all_directions()])

    def _by_input(self, found: Sequence[Any]) -> Arrays:
        """Sort one number for each direction by inputs, in the shape of the input if there is one for each number."""
        made = {}
        for name in self.pair.wrt:
            own = np.array([v for v, d in zip(found, self._all_directions(), strict=True) if d.name == name], self.real)
            made[name] = own.reshape(self.arguments[name].shape) if self.directions is None else own
        return made

    def _closed_form(self, arguments: Arrays, options: Mapping[str, Any]) -> Arrays:
        assert self.pair.gradient is not None
        real = next((a.dtype.type for a in arguments.values() if a.dtype.kind == "f"), self.real)
        upstream = [weight.astype(real) for weight in weights(self.case, self._shapes)]
        cotangent = upstream[0] if len(upstream) == 1 else tuple(upstream)
        with np.errstate(all="ignore"):
            found = self.pair.gradient(*arguments.values(), cotangent=cotangent, **options)
        made = {name: np.asarray(each) for name, each in named_gradients(self.pair, found).items()}
        for name, each in made.items():
            if each.shape != arguments[name].shape:
                raise ValueError(f"the gradient for {name} has shape {each.shape}, and {name} {arguments[name].shape}")
        return made

    def _complex_slope(self, arguments: Arrays, options: Mapping[str, Any], direction: Direction) -> Any:
        x = arguments[direction.name]
        scale = _scale(x, direction)
        step = (scale * direction.values).astype(x.dtype)
        held = _as_complex(arguments)

        def along(t: Any) -> Any:
            return self.weighted({**held, direction.name: np.asarray(x + t * step).view(slopes.Analytic)}, options)

        return slopes.complex_step(along, x.dtype.type) / scale

    def _complex_slopes(self, arguments: Arrays, options: Mapping[str, Any]) -> Arrays:
        """Return the derivatives along all directions; those of single numbers need not move whole arrays."""
        found: list[Any] = []
        held, name = _as_complex(arguments), ""
        for direction in self._all_directions():
            if direction.place is None:
                found.append(self._complex_slope(arguments, options, direction))
                continue
            if direction.name != name:
                name, x = direction.name, arguments[direction.name]
                sizes, moved = _sizes(x), held[name].copy()
                step = slopes.complex_length(x.dtype.type)
            place = direction.place
            moved[place] = x[place] + 1j * (step * sizes[place])
            value = self.weighted({**held, name: moved}, options)
            found.append(np.imag(value) / (step * sizes[place]))
            moved[place] = x[place]
        return self._by_input(found)

    def _differences(
        self, arguments: Arrays, options: Mapping[str, Any], direction: Direction, side: int = 0
    ) -> slopes.Slope:
        x = arguments[direction.name]
        scale = _scale(x, direction)
        step = (scale * direction.values).astype(x.dtype)

        def along(t: Any) -> Any:
            return self.weighted({**arguments, direction.name: x + t * step}, options)

        with np.errstate(all="ignore"):
            found = slopes.one_sided(along, self.real, side) if side else slopes.central(along, self.real)
        return slopes.Slope(found.value / scale, found.error / scale)

    @cached_property
    def _size(self) -> Any:
        """The sum of all |outputs|, times the upstream gradients."""
        floating = [output for output in self.outputs if output.dtype.kind == "f"]
        return sum(np.nansum(np.abs(w * output)) for w, output in zip(self._upstream, floating, strict=True))

    def _is_analytic(self) -> bool:
        """Return whether a complex step can be taken: differences confirm it at points near by, away from kinks."""
        rng = np.random.default_rng(0)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error")
            try:
                points = [_ordinary(rng, self.arguments) for _ in range(TRIES)]
                return any(all(self._is_confirmed(rng, point, name) for name in self.pair.wrt) for point in points)
            except Exception:
                return False

    def _is_confirmed(self, rng: np.random.Generator, arguments: Arrays, name: str) -> bool:
        """Return whether a complex step along a random direction agrees with differences that are accurate."""
        x = arguments[name]
        if not x.size:
            return True
        signs = rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1, x.shape) * _sizes(x)
        direction = Direction(name, signs.astype(self.real))
        exact = self._complex_slope(arguments, self.options, direction)
        near = self._differences(arguments, self.options, direction)
        # A step of 1 along the direction moves the outputs by about their own size.
        accurate = near.error * _scale(x, direction) <= CONFIRMED * max(self._size, abs(near.value))
        return bool(accurate and abs(exact - near.value) <= CONFIRMED * abs(near.value) + 10 * near.error)

    @cached_property
    def own_slope_errors(self) -> Arrays:
        """The error estimates of the differences; 0 for the other methods."""
        if self.method != "differences":
            return {name: np.zeros(ref.shape, self.real) for name, ref in self._reference_slopes.items()}
        return self._by_input(
            [self._differences(self.arguments, self.options, d).error for d in self._all_directions()]
        )

    def judge_gradient(self, answer: Answer) -> Finding:
        """Judge the gradients of all inputs, and return the worst finding."""
        found = [self._judge_gradient_of(*part) for part in self._gradient_parts(answer)]
        return _worst(found)

    def _judge_gradient_of(self, name: str, ref: Array, got: Array) -> Finding:
        if got.shape != ref.shape:
            return Finding("gradient", "fail", np.inf, of=f"{name} of shape {got.shape}, not {ref.shape}")
        if not ref.size:
            return Finding("gradient", "pass", 0.0, of=name)
        undecided = ~np.isfinite(self.own_slope_errors[name])
        if self.method == "differences" and not np.isfinite(got).all():
            undecided |= ~np.isfinite(got) & self._is_at_a_pole(name)
        got = np.where(undecided, ref, got)
        if unlike(got, ref, self.precision.largest, poles=True).any():
            return Finding("gradient", "fail", np.inf, of=name)
        norms = self._norms(name, ref, got)
        errors = self._in_blocks(name, distance(got, ref))
        bounds = self.gradient_bounds(name, errors, norms)
        if (errors > bounds).any():
            errors = self._in_blocks(name, self._outside(name, ref, got))
        found = finding("gradient", errors, bounds, grade(errors, bounds, lambda: self._plain_slope_errors(name)))
        return replace(found, of=name, basis=self._basis(found, norms, self._allowed_slopes[name]))

    def _basis(self, found: Finding, scale: Array, allowed: tuple[int, Any, Any]) -> str:
        """Describe in words what a bound rests on."""
        rounds, spread, own = allowed
        size, moved, mine = (float(np.broadcast_to(a, scale.shape)[found.where]) for a in (scale, spread, own))
        u = f"2^{round(math.log2(self.precision.u))}"
        spread_of = f"{moved:.3g} from {rounds} perturbations of the inputs by {u}" if rounds else "not needed"
        real = "longdouble" if self.real is np.longdouble else np.dtype(self.real).name
        method = f", differentiated by {self.method}" if found.part == "gradient" else ""
        return (
            f"{found.bound:.3g} = {C:g} g (u * size + spread) + u_out * size + own + tiny, with size {size:.3g}, "
            f"spread {spread_of}, own error of the reference {mine:.3g}, g = {self.growth:.3g} for {self.terms} "
            f"numbers in a block, u = {u}, u_out = 2^{round(math.log2(self.precision.u_out))}; the reference computes "
            f"in {real}{method}"
        )

    def _is_at_a_pole(self, name: str) -> Array:
        """Return where no derivative to a side can be found, though those to both sides may cancel."""
        found = [
            max(slope.error / abs(slope.value) if slope.value else 0 for slope in sides)
            for sides in (
                [self._differences(self.arguments, self.options, d, s) for s in (-1, 1)] for d in self._all_directions()
            )
        ]
        return ~(self._by_input(found)[name] <= DECIDED)

    def gradient_bounds(self, name: str, errors: Array, norms: Array) -> Array:
        """Return the bound of each block of the gradient of an input."""
        errors_of_slopes = self.own_slope_errors[name]  # infinite where a slope is undecided, and so not judged
        own = self._in_blocks(name, np.where(np.isfinite(errors_of_slopes), errors_of_slopes, 0))
        bounds = bound(self.growth * norms, norms, self.precision, own=own)
        self._allowed_slopes[name] = (0, 0.0, own)
        if (errors <= bounds).all():
            return bounds
        for rounds, (spread, more) in enumerate(self._gradient_allowances(name), 1):
            bounds = bound(self.growth * norms, norms, self.precision, self.growth * spread, own + more)
            self._allowed_slopes[name] = (rounds, spread, own + more)
            if (errors <= bounds).all():
                break
        return bounds

    def _gradient_allowances(self, name: str) -> Iterator[tuple[Array, Array | float]]:
        ref = self._reference_slopes[name]
        spread = self._in_blocks(name, np.zeros(ref.shape, self.real))
        most = JUMP * self._norm_of_each(name, ref)
        for k in range(ROUNDS):
            moved = _difference(self._slopes_near(k)[name], ref)
            # A number that jumps across a kink is judged by the derivatives to both sides instead.
            spread = np.maximum(spread, self._in_blocks(name, np.where(moved > most, 0, moved)))
            yield spread, 0.0
        if self.method != "differences":
            own = self._own_error(lambda real: self._slopes_at(lifted(self.case, real), self.options)[name], ref)
            yield spread, self._in_blocks(name, own)

    def _slopes_near(self, k: int) -> Arrays:
        """Return the slopes at a perturbed point; all inputs share the work."""
        if not self._near:
            self._perturbed = self._perturbations(ROUNDS)
        while len(self._near) <= k:
            self._near.append(self._slopes_at(*next(self._perturbed)))
        return self._near[k]

    def _norm_of_each(self, name: str, ref: Array) -> Array:
        """Return for each number of a gradient the largest one of its block."""
        size = np.abs(np.where(np.isfinite(ref), ref, 0))
        if self.directions is not None or not ref.ndim:
            return size
        kept = self.pair.block_axes(name, ref.ndim)
        worst: Array = np.max(size, axis=tuple(i for i in range(ref.ndim) if i not in kept), initial=0, keepdims=True)
        return worst

    def _norms(self, name: str, ref: Array, got: Array) -> Array:
        """Return the size of each block: its largest number, or the sum of the terms of a slope."""
        if self.directions is None:
            return self._in_blocks(name, np.abs(ref))
        return np.abs(ref) + np.abs(got) + self._typical_terms(name, ref)

    def _typical_terms(self, name: str, ref: Array) -> Array:
        """Return for each direction the size of the sum of |g_i d_i|, estimated from all slopes of the input."""
        counts = np.array([np.count_nonzero(d.values) for d in self.directions or () if d.name == name])
        finite = np.where(np.isfinite(ref), ref, 0)
        single = np.sqrt(np.mean(finite.astype(self.real) ** 2 / counts))
        return np.where(counts > 1, counts * single, 0)

    def _in_blocks(self, name: str, values: Array) -> Array:
        """Return the largest number of each block; each direction is a block."""
        if self.directions is not None or not values.ndim:
            return values
        kept = self.pair.block_axes(name, values.ndim)
        finite = np.where(np.isnan(values), 0, values)
        worst: Array = np.max(finite, axis=tuple(i for i in range(values.ndim) if i not in kept), initial=0)
        return worst

    def _outside(self, name: str, ref: Array, got: Array) -> Array:
        """Return how far each number lies outside the derivatives to both sides."""
        if self.method == "differences":
            sides = []
            for side in (-1, 1):
                found = [self._differences(self.arguments, self.options, d, side).value for d in self._all_directions()]
                sides.append(self._by_input(found)[name])
            low, high = np.fmin(*sides), np.fmax(*sides)
        else:
            low, high = ref.copy(), ref.copy()
            for k in range(SIDES):
                near = self._slopes_at(self._beside(np.random.default_rng(k)), self.options)[name]
                low, high = np.fmin(low, near), np.fmax(high, near)
        low, high = np.fmin(low, ref), np.fmax(high, ref)
        with np.errstate(all="ignore"):
            outside = np.maximum(np.maximum(low - got, got - high), 0)
        if self.directions is not None:
            # Several numbers that cross kinks at once, in opposite directions, bound nothing.
            several = np.array([d.place is None for d in self.directions if d.name == name])
            outside = np.where(several & (high - low > 64 * self.precision.u * np.abs(ref)), 0, outside)
        return np.where(np.isfinite(outside), outside, 0)

    def _beside(self, rng: np.random.Generator) -> Arrays:
        """Return the inputs with each floating number moved up or down by a few roundoffs at random."""
        step, made = 4 * self.precision.u, dict(self.arguments)
        for name, x in self.arguments.items():
            if x.dtype.kind == "f":
                signs = np.asarray(rng.choice([-1.0, 1.0], x.shape), x.dtype)
                made[name] = np.asarray(x + step * _sizes(x) * signs)
        return made

    def _plain_slope_errors(self, name: str) -> Array:
        """Return what the plain computation may explain: its errors here and at nearby points, times `OTHER_WAY`."""
        worst = self._in_blocks(name, np.zeros(self._reference_slopes[name].shape, self.real))
        if self.method == "differences":
            return worst
        for plain, exact in self._points():
            got, want = self._slopes_at(plain, self.options)[name], self._slopes_at(exact, self.options)[name]
            errors = np.where(unlike(got, want, self.precision.largest, poles=True), np.inf, distance(got, want))
            worst = np.maximum(worst, self._in_blocks(name, errors))
        if self.directions is not None:  # those of single numbers are alike
            single = np.array([d.place is not None for d in self.directions if d.name == name])
            worst = np.where(single, np.max(worst, where=single, initial=0), worst)
        return OTHER_WAY * worst

    def contradiction(self) -> str | None:
        """Describe how differences of the reference's value contradict the closed form of its gradient, or None."""
        if self.pair.gradient is None or not self.value.size:
            return None
        rng = np.random.default_rng(0)
        for name in self.pair.wrt:
            x, closed = self.arguments[name], self._reference_slopes[name]
            if not x.size or not np.isfinite(closed).all():
                continue
            for direction in self._checked_directions(name, rng):
                slope, size = np.sum(closed * direction.values), np.sum(np.abs(closed * direction.values))
                found = [self._differences(self.arguments, self.options, direction, side) for side in (-1, 0, 1)]
                low, high = min(s.value for s in found), max(s.value for s in found)
                tolerance = 10 * max(s.error for s in found) + 1e-9 * size
                if not tolerance <= 1e-3 * (size + abs(low)):
                    continue
                if not low - tolerance <= slope <= high + tolerance:
                    return (
                        f"gradient of {name}: the closed form has slope {float(slope):.12g} along a direction, but "
                        f"differences of the reference give {float(low):.12g} to {float(high):.12g}"
                    )
        return None

    def _checked_directions(self, name: str, rng: np.random.Generator) -> list[Direction]:
        shape = self.arguments[name].shape
        places = _some(rng, list(np.ndindex(shape)), 2)
        return [self._single(name, place) for place in places]

    # What both share.

    def full_bound(self, part: str) -> float:
        """Return the largest bound of the value or the gradient, with all allowances."""
        if part == "value":
            bounds = [
                self.value_bounds(k, np.full(o.shape, np.inf))
                for k, o in enumerate(self.outputs)
                if o.dtype.kind == "f"
            ]
        else:
            bounds = []
            for name, ref, _ in self._gradient_parts(None):
                norms = self._norms(name, ref, ref)
                bounds.append(self.gradient_bounds(name, np.full(norms.shape, np.inf), norms))
        return max((float(np.max(each, initial=0)) for each in bounds), default=0.0)

    def _perturbations(self, rounds: int) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        """Yield inputs and options with every floating number changed by up to a roundoff."""
        rng = np.random.default_rng(0)
        u = self.real(self.precision.u)
        for k in range(rounds):
            arguments = {}
            for name, x in self.arguments.items():
                d = np.asarray(np.ones(x.shape) if k == 0 else rng.uniform(-1, 1, x.shape), self.real)
                size = np.maximum(np.abs(x), 1) if self.pair.inputs[name].logits else x
                arguments[name] = np.asarray(x + u * size * d) if x.dtype.kind == "f" else x
            options = {
                name: self.real(v) * (1 + u * self.real(rng.uniform(-1, 1))) if _is_rounded(v) else v
                for name, v in self.options.items()
            }
            yield arguments, options

    def _points(self) -> Iterator[tuple[Arrays, Arrays]]:
        """Yield the inputs in working precision and in the reference's, here and at nearby points."""
        plain = self.precision.plain
        few = sum(x.size for x in self.arguments.values())
        for k in range(POINTS if few <= FEW else FEWER):
            rng = np.random.default_rng(k)
            exact, narrow = {}, {}
            for name, x in self.arguments.items():
                if x.dtype.kind == "f":
                    moved = np.asarray(x * (1 + (NEAR if k else 0.0) * rng.uniform(-1, 1, x.shape)), plain)
                    narrow[name], exact[name] = moved, moved.astype(self.real)
                else:
                    narrow[name] = exact[name] = x
            yield narrow, exact

    def _own_error(self, compute: Callable[[Any], Array], ref: Array) -> Array:
        """Estimate the error of the reference from its results in the next lower precisions."""
        u_ref = self.precision.u_ref
        worst = np.zeros(ref.shape, self.real)
        for lower in (np.float64, np.float32):
            share = 2 * u_ref / float(np.finfo(lower).eps)
            if share < 1:
                worst = np.maximum(worst, 64 * share * _difference(compute(lower), ref))
        return worst


def best_real(pair: Pair, case: Case, options: Mapping[str, Any]) -> Real:
    """Return the most precise dtype in which the reference computes, longdouble or float64."""
    if pair not in _REALS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = reference_outputs(pair, lifted(case, np.longdouble), options)
            floating = [output.dtype for output in outputs if output.dtype.kind == "f"]
            _REALS[pair] = np.longdouble if all(dtype == np.longdouble for dtype in floating) else np.float64
        except Exception:
            _REALS[pair] = np.float64
    return _REALS[pair]


def _is_rounded(value: Any) -> bool:
    """Return whether an option is a real number that rounding may change; whole numbers are exact."""
    return isinstance(value, float) and math.isfinite(value) and value != round(value)


def _ordinary(rng: np.random.Generator, arguments: Arrays) -> Arrays:
    """Return a point near by at which no number is 0 and no two are equal."""
    made = {}
    for name, x in arguments.items():
        if x.dtype.kind == "f":
            moved = np.where(x == 0, 0.01 * _sizes(x), x)
            x = np.asarray(moved * (1 - 0.25 * rng.random(x.shape)), x.dtype)
        made[name] = x
    return made


def _difference(near: Array, ref: Array) -> Array:
    with np.errstate(all="ignore"):
        made = np.abs(near - ref)
    return np.where(np.isfinite(made), made, 0)


def _as_complex(arguments: Arrays) -> Arrays:
    """Return the inputs with all floating numbers complex, so that an array like one of them can hold the results."""
    return {
        name: x.astype(np.result_type(x, np.complex64)).view(slopes.Analytic) if x.dtype.kind == "f" else x
        for name, x in arguments.items()
    }


def _sizes(x: Array) -> Array:
    """Return the size of each number, or for 0 that of the others, or 1."""
    finite = np.abs(np.where(np.isfinite(x), x, 0))
    typical = np.max(finite, initial=0) or 1
    made: Array = np.where(finite > 0, finite, typical)
    return made


def _scale(x: Array, direction: Direction) -> Any:
    """Return the length of a step of 1, so that no number moves by more than about its own size."""
    if direction.place is not None:
        return _sizes(x)[direction.place]
    moved = direction.values != 0
    return (
        np.min(_sizes(x)[moved] / np.abs(direction.values[moved]), initial=np.inf) if moved.any() else x.dtype.type(1)
    )


def _blocks(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """Return an index for each block: a number at the axes of blocks, and all at the others."""
    made: list[tuple[Any, ...]] = []
    for place in np.ndindex(*(shape[axis] for axis in axes)):
        index: list[Any] = [slice(None)] * len(shape)
        for axis, i in zip(axes, place, strict=True):
            index[axis] = i
        made.append((*index, ...))
    return made


def _some(rng: np.random.Generator, all_of: list[Any], count: int) -> list[Any]:
    """Return the first and the last, and some between them."""
    if len(all_of) <= count:
        return all_of
    between = rng.choice(np.arange(1, len(all_of) - 1), count - 2, replace=False)
    return [all_of[i] for i in (0, *sorted(between), -1)]


def _worst(findings: Sequence[Finding]) -> Finding:
    from twinloss.harness.judging.judgement import ORDER

    return max(findings, key=lambda each: (ORDER.index(each.verdict), each.ratio))
