"""The reference on a case, evaluated on exactly the numbers that the fast twin got, and at nearby points."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, repeat
from typing import Any, TypeVar

import numpy as np

from twinloss.harness.judging.judgement import AT_ONCE, C, Precision
from twinloss.harness.judging.pair_call import lifted, pair_options, reference_outputs, sizes_of
from twinloss.harness.judging.slopes import Analytic, rounding
from twinloss.harness.model.operand import Array, Elementwise, function
from twinloss.harness.model.twin import Case, Twin

Arrays = dict[str, Array]
Real = type[np.floating[Any]]
K = TypeVar("K")

# The relative distance of the nearby points at which the plain computation is tried.
STEP = 2.0**-10

# The number of these points for cases with few numbers (POINTS), where single roundings matter, and for others
# (ROUNDS). A case has few numbers if it has less than MANY.
POINTS = 20
ROUNDS = 3
MANY = 5000

# Directions in which the input is perturbed: a cosine wave with this many radians per number, or random for None.
# Frequency 0 moves all numbers alike, since equal numbers are rounded alike. A slow wave also moves the sums of
# neighbours, since these are rounded themselves.
WAVES = (0.5, 0.0, None, None)

# The number of runs with random rounding, and the factor by which a second run of each reduces the noise.
NOISES, QUIETER = 4, 64.0

_REALS: dict[Callable[..., Any], Real] = {}


def reference_options(case: Case, gradient: bool = False) -> dict[str, Any]:
    """Return the options of a loss in the form that its reference takes."""
    made: dict[str, Any] = {}
    for name, value in case.options.items():
        made[name] = function(value.numpy) if isinstance(value, Elementwise) else value
        if gradient and isinstance(value, Elementwise):
            made[f"{name}_derivative"] = function(value.derivative)
    return made


class Reference:
    """The reference on a case, and at nearby points; each result is computed on first use."""

    def __init__(self, twin: Twin, case: Case, real: Real | None = None) -> None:
        """Prepare the reference to compute in dtype `real`, by default the most precise one that it can."""
        self.twin = twin
        self.case = case
        self.real = real or best_real(twin, case)
        self.precision = Precision.of(case.tolerance, self.real)

    @property
    def arguments(self) -> Arrays:
        """New arrays of the arguments, in the reference's precision."""
        return self.lifted(self.real)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the reference."""
        return self.options_of(self.case)

    def options_of(self, case: Case, gradient: bool = False) -> dict[str, Any]:
        """Return the options of a case for the reference, or for its gradient."""
        return reference_options(case, gradient) if self.twin.pair is None else pair_options(self.twin, case)

    @cached_property
    def outputs(self) -> tuple[Array, ...]:
        """The outputs of the reference."""
        return self.outputs_at(self.arguments)

    def outputs_at(self, arguments: Mapping[str, Array], options: Mapping[str, Any] | None = None) -> tuple[Array, ...]:
        """Return the outputs of the reference at another point."""
        return reference_outputs(self.twin.value, arguments, self.options if options is None else options)

    def lifted(self, real: Real, case: Case | None = None) -> Arrays:
        """Return the arguments in another precision, of another case if one is given."""
        case = case or self.case
        if self.twin.pair is not None:
            return lifted(case, real)
        return {name: operand.lifted(real) for name, operand in case.operands.items()}

    @property
    def kinks(self) -> bool:
        """Whether the gradient may jump."""
        return self.twin.kinks(self.case.options)

    @property
    def few(self) -> bool:
        """Whether the case has so few numbers that single roundings, and luck, matter."""
        return max(self.case.operands[name].values.size for name in self.twin.wrt or self.case.operands) < MANY

    def growth(self, blocks: int) -> float:
        """Return the factor for the rounding errors of sums, max(1, sqrt(n) / C), in a result with `blocks` blocks."""
        return 1.0 if self.twin.precise else max(1.0, math.sqrt(self.terms(blocks)) / C)

    def terms(self, blocks: int) -> int:
        """Return how many numbers of the inputs a block of a result depends on, on average."""
        count = sum(values.size for values in self.arguments.values() if values.dtype.kind == "f")
        return max(1, count // max(1, blocks))

    def blocks_of_output(self, k: int) -> int:
        """Return the number of blocks in an output; one with fewer numbers, such as a mean, sums over blocks."""
        pair = self.twin.pair
        if pair is None:
            return 1
        wanted = self._blocks(pair.blocks.split())
        return wanted if self.outputs[k].size >= wanted else 1

    def blocks_of_input(self, name: str) -> int:
        """Return the number of blocks in the gradient of an input, which sums over block axes that it lacks."""
        pair = self.twin.pair
        return 1 if pair is None else self._blocks(a for a in pair.blocks.split() if a in pair.inputs[name].axes)

    def _blocks(self, axes: Iterable[str]) -> int:
        assert self.twin.pair is not None
        found = sizes_of(self.twin.pair, self.case)
        return math.prod(found[axis] for axis in axes)

    def constants(self) -> dict[str, float]:
        """Return the options that are real numbers, given or by default."""
        given = self.twin.defaults() | dict(self.case.options)
        return {name: given[name] for name in self.twin.constants if isinstance(given[name], float)}

    def perturbations(self) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        """Yield arguments and constants, all real numbers perturbed by up to one roundoff, without end."""
        rng = np.random.default_rng(0)
        u = self.precision.u
        for wave in chain(WAVES, repeat(None)):
            # The perturbation is added in the reference's dtype, as a Python float does not resolve 2^-53.
            constants = {k: self.real(c) * (1 + self.real(u * rng.uniform(-1, 1))) for k, c in self.constants().items()}
            yield self._perturbed(self.arguments, u, rng, wave), constants

    def _perturbed(self, arguments: Arrays, step: float, rng: np.random.Generator, wave: float | None = None) -> Arrays:
        """Perturb all real numbers by up to `step` times their scale; the inputs at random, or by a wave."""
        made = {}
        for name, x in arguments.items():
            if x.dtype.kind != "f":
                made[name] = x
                continue
            if self.twin.is_exact(name):
                made[name] = perturbed_real_numbers(x, step, rng)
                continue
            made[name] = np.array(x, order="C")
            numbers = made[name].reshape(-1)
            for start in range(0, x.size, AT_ONCE):  # a whole volume leaves no memory for temporary arrays of its size
                part = numbers[start : start + AT_ONCE]
                if wave is None:
                    directions = rng.uniform(-1, 1, part.size).astype(x.dtype)
                else:
                    directions = np.cos(wave * np.arange(start, start + part.size)).astype(x.dtype)
                part += step * self.scale_of_roundoff(name, part) * directions
        return made

    def scale_of_roundoff(self, name: str, x: Array) -> Array:
        """Return the scale of a perturbation of an input that changes its activation by one roundoff."""
        act = self.case.options.get("other_act")
        if isinstance(act, Elementwise):
            with np.errstate(all="ignore"):
                size: Array = np.abs(function(act.numpy)(x) / function(act.derivative)(x))
            # Where the activation has slope 0, no change of x explains its rounding.
            return np.fmax(np.abs(x), np.where(np.isinf(size), 0, size))
        return np.maximum(np.abs(x), 1) if self.twin.has_logits(name, self.case.options) else np.abs(x)

    def plain_points(self) -> Iterator[tuple[Arrays, Arrays]]:
        """Yield the arguments in working precision and in the reference's own, here and at nearby points.

        At a single point the plain computation may be right by luck. This is less likely with many numbers, so that
        fewer points are enough.
        """
        plain = self.precision.plain
        for k in range(self.number_of_plain_points()):

            def moved(real: Real, k: int = k) -> Arrays:
                near = self._perturbed(self.lifted(real), STEP if k else 0.0, np.random.default_rng(k))
                return {n: a.astype(plain).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in near.items()}

            yield moved(plain), moved(self.real)

    def number_of_plain_points(self) -> int:
        """Return at how many points the plain computation is tried."""
        return POINTS if self.few else ROUNDS

    def beside(self, rounds: int) -> Iterator[Arrays]:
        """Yield the arguments with each number under test moved up or down by a few roundoffs at random."""
        for k in range(rounds):
            for step in (4 * self.precision.u, -4 * self.precision.u):
                rng, made = np.random.default_rng(k), self.arguments
                for name in self.twin.wrt:
                    x = made[name]
                    signs = rng.choice([-1.0, 1.0], x.shape).astype(x.dtype)
                    size = np.maximum(np.abs(x), self.twin.unit) if self.twin.unit else sizes(x)
                    made[name] = np.asarray(x + step * size * signs)
                yield made

    def noise(self, compute: Callable[[Arrays], dict[K, Array]], ref: Mapping[K, Array]) -> dict[K, Array]:
        """Return the largest changes of the reference's results if each of its operations rounds at random.

        `compute` returns the results for inputs; `ref` holds those without noise. A change that does not
        shrink with the noise is a jump across a kink, and counts as 0.
        """
        worst = {name: np.zeros(values.shape, self.real) for name, values in ref.items()}
        arguments = {k: x.view(Analytic) if x.dtype.kind == "f" else x for k, x in self.arguments.items()}
        for seed in range(NOISES):
            try:
                with rounding(self.precision.u, seed):
                    noisy = compute(arguments)
                with rounding(self.precision.u / QUIETER, seed):
                    quiet = compute(arguments)
            except Exception:
                return worst  # the reference does not take such arrays
            for name, values in ref.items():
                moved, less = (difference(each[name], values) for each in (noisy, quiet))
                worst[name] = np.maximum(worst[name], np.where(2 * less <= moved, moved, 0))
        return worst

    def own_error(self, compute: Callable[[Any], Array]) -> Array:
        """Estimate the error of the reference from that of its results in the next lower precisions."""
        u_ref, worst = self.precision.u_ref, np.asarray(0.0)
        for lower in (np.float64, np.float32):
            share = 2 * u_ref / float(np.finfo(lower).eps)
            if share < 1:
                worst = np.maximum(worst, 64 * share * compute(lower))
        return worst


def best_real(twin: Twin, case: Case) -> Real:
    """Return the most precise dtype in which the reference computes, longdouble or float64."""
    if twin.pair is None:
        return np.longdouble
    if twin.value not in _REALS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = reference_outputs(twin.value, lifted(case, np.longdouble), pair_options(twin, case))
            floating = [output.dtype for output in outputs if output.dtype.kind == "f"]
            _REALS[twin.value] = np.longdouble if all(dtype == np.longdouble for dtype in floating) else np.float64
        except Exception:
            _REALS[twin.value] = np.float64
    return _REALS[twin.value]


def perturbed_real_numbers(a: Array, step: Any, rng: np.random.Generator) -> Array:
    """Multiply each number by 1 + step * d, d random in [-1, 1]; whole numbers (labels, 0, 1) are exact and stay."""
    real = a != np.round(a)
    return np.where(real, a * (1 + step * rng.uniform(-1, 1, a.shape).astype(a.dtype)), a) if real.any() else a


def ordinary(rng: np.random.Generator, arguments: Arrays) -> Arrays:
    """Return a nearby point at which no number is 0 and no two are equal."""
    made = {}
    for name, x in arguments.items():
        if x.dtype.kind == "f":
            moved = np.where(x == 0, 0.01 * sizes(x), x)
            x = np.asarray(moved * (1 - 0.25 * rng.random(x.shape)), x.dtype)
        made[name] = x
    return made


def difference(near: Array, ref: Array) -> Array:
    """Return |near - ref|, and 0 where it is not finite."""
    with np.errstate(all="ignore"):
        made = np.abs(near - ref)
    return np.where(np.isfinite(made), made, 0)


def sizes(x: Array) -> Array:
    """Return the absolute value of each number; for zeros, the largest one of the array, or 1 if all are 0."""
    finite = np.abs(np.where(np.isfinite(x), x, 0))
    typical = np.max(finite, initial=0) or 1
    made: Array = np.where(finite > 0, finite, typical)
    return made
