"""The reference of a pair for a case, and the nearby points at which it is evaluated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from twinloss.harness.judging.judgement import C, Finding, Precision
from twinloss.harness.judging.pair_call import lifted, reference_options, reference_outputs, sizes_of
from twinloss.harness.judging.slopes import Analytic, rounding
from twinloss.harness.model.operand import Array
from twinloss.harness.model.pair import Pair
from twinloss.harness.model.twin import Case, Twin

Arrays = dict[str, Array]
Real = type[np.floating[Any]]
K = TypeVar("K")

# The number of nearby points at which the plain computation is tried, and their relative distance.
POINTS, NEAR = 20, 2.0**-10
# At a single point, the plain computation may be right by luck. With more than FEW numbers, FEWER points are enough.
FEW, FEWER = 16, 6

# The number of runs with random rounding, and the factor by which a second run of each reduces the noise.
NOISES, QUIETER = 4, 64.0

_REALS: dict[Pair, Real] = {}


@dataclass(frozen=True)
class Allowed:
    """Allowances of a bound: the spread over a number of perturbations, and the reference's own error."""

    rounds: int
    spread: Array | float
    own: Array | float


class Reference:
    """The reference on exactly the numbers that the fast function got; each result is computed on first use."""

    def __init__(self, twin: Twin, case: Case, real: Real | None = None) -> None:
        """Prepare the reference to compute in dtype `real`, by default the most precise one that it can."""
        assert twin.pair is not None
        self.pair, self.case = twin.pair, case
        self.options = reference_options(twin, case)
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

    def outputs_at(self, arguments: Mapping[str, Array], options: Mapping[str, Any] | None = None) -> tuple[Array, ...]:
        """Return the outputs of the reference at another point."""
        return reference_outputs(self.pair, arguments, self.options if options is None else options)

    def growth(self, blocks: int) -> float:
        """Return the factor for the rounding errors of sums, max(1, sqrt(n) / C), in a result with `blocks` blocks."""
        return max(1.0, math.sqrt(self.terms(blocks)) / C)

    def terms(self, blocks: int) -> int:
        """Return how many numbers of the inputs a block of a result depends on, on average."""
        count = sum(values.size for values in self.arguments.values() if values.dtype.kind == "f")
        return max(1, count // max(1, blocks))

    def blocks_of_output(self, k: int) -> int:
        """Return the number of blocks in an output; one with fewer numbers, such as a mean, sums over blocks."""
        wanted = self._blocks(self.pair.blocks.split())
        return wanted if self.outputs[k].size >= wanted else 1

    def blocks_of_input(self, name: str) -> int:
        """Return the number of blocks in the gradient of an input, which sums over block axes that it lacks."""
        return self._blocks(axis for axis in self.pair.blocks.split() if axis in self.pair.inputs[name].axes)

    def _blocks(self, axes: Iterable[str]) -> int:
        found = sizes_of(self.pair, self.case)
        return math.prod(found[axis] for axis in axes)

    def lifted(self, real: Real) -> Arrays:
        """Return the inputs in another precision."""
        return lifted(self.case, real)

    def basis(self, found: Finding, scale: Array, allowed: Allowed, blocks: int, method: str = "") -> str:
        """Explain in words how a bound was computed."""
        size, moved, mine = (
            float(np.broadcast_to(a, scale.shape)[found.where]) for a in (scale, allowed.spread, allowed.own)
        )
        u, u_out = (f"2^{round(math.log2(each))}" for each in (self.precision.u, self.precision.u_out))
        spread_of = (
            f"{moved:.3g} from {allowed.rounds} perturbations of the inputs by {u}" if allowed.rounds else "not needed"
        )
        real = "longdouble" if self.real is np.longdouble else np.dtype(self.real).name
        return (
            f"{found.bound:.3g} = {C:g} g (u * size + spread) + u_out * size + own + tiny, with size {size:.3g}, "
            f"spread {spread_of}, own error of the reference {mine:.3g}, g = {self.growth(blocks):.3g} "
            f"for {self.terms(blocks)} numbers in a block, u = {u}, u_out = {u_out}; "
            f"the reference computes in {real}{method and f', differentiated by {method}'}"
        )

    def perturbations(self, rounds: int) -> Iterator[tuple[Arrays, dict[str, Any]]]:
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
                name: self.real(v) * (1 + u * self.real(rng.uniform(-1, 1))) if is_rounded(v) else v
                for name, v in self.options.items()
            }
            yield arguments, options

    def plain_points(self) -> Iterator[tuple[Arrays, Arrays]]:
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

    def beside(self, rng: np.random.Generator) -> Arrays:
        """Return the inputs with each floating number moved up or down by a few roundoffs at random."""
        step, made = 4 * self.precision.u, dict(self.arguments)
        for name, x in self.arguments.items():
            if x.dtype.kind == "f":
                signs = np.asarray(rng.choice([-1.0, 1.0], x.shape), x.dtype)
                made[name] = np.asarray(x + step * sizes(x) * signs)
        return made

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

    def own_error(self, compute: Callable[[Any], Array], ref: Array) -> Array:
        """Estimate the error of the reference from its results in the next lower precisions."""
        u_ref = self.precision.u_ref
        worst = np.zeros(ref.shape, self.real)
        for lower in (np.float64, np.float32):
            share = 2 * u_ref / float(np.finfo(lower).eps)
            if share < 1:
                worst = np.maximum(worst, 64 * share * difference(compute(lower), ref))
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


def is_rounded(value: Any) -> bool:
    """Return whether an option is a real number that rounding may change; whole numbers are exact."""
    return isinstance(value, float) and math.isfinite(value) and value != round(value)


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
