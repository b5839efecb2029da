"""The reference's results for a case: value, gradient and conditioning, in any precision and at nearby points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from twinloss.harness.judging.judgement import AT_ONCE, Precision, blocks
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array, Elementwise, function
from twinloss.harness.model.twin import Case, Twin
from twinloss.reference.steps.activation import softmax

# The relative distance of nearby points.
STEP = 2.0**-10

# The number of nearby points for cases with few numbers (POINTS), where single roundings matter, and for others
# (ROUNDS). A case has few numbers if it has less than MANY.
POINTS = 20
ROUNDS = 3
MANY = 5000

# Directions in which the input is perturbed: a cosine wave with this many radians per number, or random for None.
# Frequency 0 moves all numbers alike, since equal numbers are rounded alike. A slow wave also moves the sums of
# neighbours, since these are rounded themselves.
WAVES = (0.5, 0.0, None, None)

# A gradient has jumped if a roundoff of the input moves it by more than this share of the largest in its block,
JUMP = 2.0**-10
# and by more than this many roundoffs of the twin's unit.
MOVED = 64

# A value that is a difference of terms is accurate to this many roundoffs of the twin's unit, the size of these terms.
VALUE_ROUNDOFFS = 64

Move = Callable[[list[Array]], list[Array]]


def reference_options(case: Case, gradient: bool = False) -> dict[str, Any]:
    """Return the options in the form that the reference takes."""
    made: dict[str, Any] = {}
    for name, value in case.options.items():
        made[name] = function(value.numpy) if isinstance(value, Elementwise) else value
        if gradient and isinstance(value, Elementwise):
            made[f"{name}_derivative"] = function(value.derivative)
    return made


class Truth:
    """The reference on exactly the numbers that the fast twin got; each result is computed on first use."""

    def __init__(self, twin: Twin, case: Case, real: type[np.floating[Any]] = np.longdouble) -> None:
        """Prepare the reference to compute in dtype `real`."""
        self.twin = twin
        self.case = case
        self.real = real
        self.precision = Precision.of(case.tolerance, real)

    def known_for(self, case: Case) -> Truth:
        """Return the truth of a case with the same numbers in another dtype, reusing value and gradient."""
        other = Truth(self.twin, case, self.real)
        other.value, other.gradient = self.value, self.gradient
        return other

    @cached_property
    def value(self) -> Array:
        """The value of the loss."""
        return self.value_of(self.case)

    @cached_property
    def gradient(self) -> Array:
        """The gradient with respect to the input."""
        return self.gradient_of(self.case)

    def plain_points(self) -> Iterable[tuple[Answer, Answer]]:
        """Return pairs of the reference in working precision and in its own, at this point and at nearby points.

        At a single point the plain computation may be right by luck. This is less likely with many voxels, so that
        fewer points are enough.
        """
        return self._few_points if self.few else self._plain_points(ROUNDS)

    @cached_property
    def _few_points(self) -> list[tuple[Answer, Answer]]:
        """The points of a small case, cached since the judge needs them once for each part and each answer."""
        return list(self._plain_points(POINTS))

    def _plain_points(self, rounds: int) -> Iterator[tuple[Answer, Answer]]:
        plain = self.precision.plain
        for k in range(rounds):

            def move(operands: list[Array], k: int = k) -> list[Array]:
                near = self._perturbed(operands, STEP if k else 0.0, np.random.default_rng(k))
                return [a.astype(plain).astype(a.dtype) if a.dtype.kind == "f" else a for a in near]

            yield (
                Answer(self.value_of(self.case, plain, move), self.gradient_of(self.case, plain, move)),
                Answer(self.value_of(self.case, move=move), self.gradient_of(self.case, move=move)),
            )

    @property
    def few(self) -> bool:
        """Whether the case has so few numbers that single roundings, and luck, matter."""
        return self.case.input.values.size < MANY

    def value_of(self, case: Case, real: type[np.floating[Any]] | None = None, move: Move | None = None) -> Array:
        """Return the reference's value of a case; `move` may perturb the arguments first."""
        operands = [operand.lifted(real or self.real) for operand in case.operands.values()]
        if move:
            operands = move(operands)
        with np.errstate(all="ignore"):
            return np.asarray(self.twin.value(*operands, **reference_options(case)))

    def gradient_of(
        self,
        case: Case,
        real: type[np.floating[Any]] | None = None,
        move: Move | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> Array:
        """Return the reference's gradient of a case; `move` may perturb the arguments first."""
        real = real or self.real
        operands = [operand.lifted(real) for operand in case.operands.values()]
        if move:
            operands = move(operands)
        cotangent = case.weights(self.value.shape).astype(real)
        options = {**reference_options(case, gradient=True), **(constants or {})}
        with np.errstate(all="ignore"):
            return np.asarray(self.twin.gradient(*operands, cotangent=cotangent, **options))

    def kappa(self, where: tuple[int, ...]) -> float:
        """Return the conditioning of one element of the value: |f| + sum |x df/dx| + sum |c df/dc|."""
        one = np.zeros(self.value.shape)
        one[where] = 1
        case = self.case
        scalar = self.value.ndim == 0 and case.cotangent is None
        weighted = replace(case, cotangent=tuple(one.ravel()))
        gradient = self.gradient if scalar else self.gradient_of(weighted)
        x = case.input.lifted(self.real)
        moves = float(self._conditioning_in_the_rest[where])
        for b, c in np.ndindex(*x.shape[:2]):
            with np.errstate(all="ignore"):
                moves += float(np.nansum(np.abs(self._scale_of_roundoff(x[b, c]) * gradient[b, c])))
        return float(abs(self.value[where])) + moves

    @cached_property
    def _conditioning_in_the_rest(self) -> Array:
        """The conditioning of each element with respect to the other real arguments, at random, and the constants."""
        rng = np.random.default_rng(0)
        case = self.case
        # The step is short, since some images have a contrast of only a few roundoffs. But it is much longer than a
        # roundoff of the reference.
        step = self.real(max(self.precision.u / 8, 1024 * self.precision.u_ref))

        def slope(moved: Array) -> Array:
            with np.errstate(all="ignore"):
                made = np.abs(moved - self.value) / step
            return np.where(np.isnan(made), 0, made)

        others = np.zeros(self.value.shape, self.real)
        for _ in range(ROUNDS):
            moved = self.value_of(case, move=lambda all_: [all_[0], *_perturbed_real_numbers(all_[1:], step, rng)])
            others = np.maximum(others, slope(moved))
        for name, constant in self.constants().items():
            others = others + slope(self.value_of(case.having(**{name: self.real(constant) * (1 + step)})))
        return others

    def _scale_of_roundoff(self, x: Array) -> Array:
        """Return the scale of a perturbation of the input that changes its activation by one roundoff."""
        act = self.case.options.get("other_act")
        if act is not None:
            with np.errstate(all="ignore"):
                size: Array = np.abs(function(act.numpy)(x) / function(act.derivative)(x))
            # Where the activation has slope 0, no change of x explains its rounding.
            return np.fmax(np.abs(x), np.where(np.isinf(size), 0, size))
        return np.maximum(np.abs(x), 1) if self.twin.logits(self.case.options) else np.abs(x)

    def _perturbed(
        self, operands: list[Array], step: float, rng: np.random.Generator, wave: float | None = None
    ) -> list[Array]:
        """Perturb all real arguments by up to `step` times their scale; the input at random, or by a wave."""
        x, *rest = operands
        moved = np.array(x, order="C")
        numbers = moved.reshape(-1)
        for start in range(0, x.size, AT_ONCE):  # a whole volume leaves no memory for temporary arrays of its size
            part = numbers[start : start + AT_ONCE]
            if wave is None:
                directions = rng.uniform(-1, 1, part.size).astype(x.dtype)
            else:
                directions = np.cos(wave * np.arange(start, start + part.size)).astype(x.dtype)
            part += step * self._scale_of_roundoff(part) * directions
        return [moved, *_perturbed_real_numbers(rest, step, rng)]

    def constants(self) -> dict[str, float]:
        """Return the options that are real numbers, given or by default."""
        given = self.twin.defaults() | dict(self.case.options)
        return {name: given[name] for name in self.twin.constants if isinstance(given[name], float)}

    def spreads(self) -> Iterator[Array]:
        """Perturb all real numbers by up to one roundoff, again and again; yield each block's largest change so far."""
        rng = np.random.default_rng(0)
        u = self.precision.u
        worst = np.zeros(self.gradient.shape[:2], self.real)
        for k in range(len(WAVES)):
            # The perturbation is added in the reference's dtype, as a Python float does not resolve 2^-53.
            constants = {k: self.real(c) * (1 + self.real(u * rng.uniform(-1, 1))) for k, c in self.constants().items()}

            def move(operands: list[Array], wave: float | None = WAVES[k]) -> list[Array]:
                return self._perturbed(operands, u, rng, wave)

            near = self.gradient_of(self.case, move=move, constants=constants)
            with np.errstate(all="ignore"):
                near -= self.gradient
            if self.twin.kinks(self.case.options):
                _drop_jumps(near, self.gradient, MOVED * u * self.twin.unit)
            worst = np.maximum(worst, blocks(near))
            yield worst

    def sizes(self) -> Array:
        """Return for each block the magnitude of the terms that the gradient subtracts, at least its own magnitude.

        The gradient under a softmax is p_c sum_k p_k (h_c - h_k) with h = dL/dp, and every h is rounded. Other twins
        state the magnitude as `terms`.
        """
        sizes = blocks(self.gradient)
        with np.errstate(all="ignore"):
            if self.twin.terms is not None:
                return np.maximum(sizes, blocks(self.twin.terms(self)))
            slope = self.twin.slope(self)
            if slope is None:
                return sizes
            terms = softmax_terms(np.abs(slope), softmax(self.case.input.lifted(self.real)))
        return np.maximum(sizes, blocks(terms))

    def own_value(self) -> float:
        """Return the error of the reference in a value that is a difference of terms of size `unit`."""
        return VALUE_ROUNDOFFS * self.precision.u_ref * self.twin.unit

    def own_gradient(self) -> Array:
        """Return an estimate of the error of the reference's gradient, for each block."""
        u_ref = self.precision.u_ref
        # At a kink, the reference sees 1 - 1e-30 as a tie with 1, but a twin that keeps the 1e-30 does not.
        floor = (u_ref if self.twin.kinks(self.case.options) else 1e4 * u_ref**2) * self.twin.unit
        worst = np.full(self.gradient.shape[:2], floor, self.real)
        for lower in (np.float64, np.float32):
            share = 2 * u_ref / float(np.finfo(lower).eps)
            if share < 1:
                with np.errstate(all="ignore"):
                    off = self.gradient_of(self.case, lower) - self.gradient
                worst = np.maximum(worst, 64 * share * blocks(off))
        return worst

    def between(self, rounds: int = 4) -> tuple[Array, Array]:
        """Return the elementwise smallest and largest gradient at points a few roundoffs to either side."""
        low, high = self.gradient.copy(), self.gradient.copy()
        for k in range(rounds):
            for step in (4 * self.precision.u, -4 * self.precision.u):

                def move(operands: list[Array], step: float = step, k: int = k) -> list[Array]:
                    return _moved_to_either_side(operands, step, np.random.default_rng(k))

                near = self.gradient_of(self.case, move=move)
                np.minimum(low, near, out=low)
                np.maximum(high, near, out=high)
        return low, high


def softmax_terms(h: Array, p: Array) -> Array:
    """Return p_c sum_{k != c} p_k (|h_c| + |h_k|), the terms of a gradient through a softmax p; `h` holds the |h|."""
    terms = np.empty_like(p)
    for c in range(p.shape[1]):
        others = np.arange(p.shape[1]) != c
        terms[:, c] = p[:, c] * (p * (h[:, c : c + 1] + h))[:, others].sum(1)
    return terms


def _perturbed_real_numbers(operands: list[Array], step: Any, rng: np.random.Generator) -> list[Array]:
    """Multiply each number by 1 + step * d, d random in [-1, 1]; whole numbers (labels, 0, 1) are exact and stay."""
    moved = []
    for a in operands:
        real = (a != np.round(a)) if a.dtype.kind == "f" else np.zeros(a.shape, bool)
        moved.append(
            np.where(real, a * (1 + step * rng.uniform(-1, 1, a.shape).astype(a.dtype)), a) if real.any() else a
        )
    return moved


def _drop_jumps(moves: Array, gradient: Array, least: float) -> None:
    """Set the changes of elements that jumped across a kink to 0; `Truth.between` is used to judge these.

    A change of at most `least` is not a jump, since a gradient may be 0 by cancellation.
    """
    for i, norm in np.ndenumerate(blocks(gradient)):
        moves[i] = np.where(np.abs(moves[i]) > max(JUMP * norm, least), 0, moves[i])


def _moved_to_either_side(operands: list[Array], step: float, rng: np.random.Generator) -> list[Array]:
    """Move each element of the input up or down by `step` at random."""
    x, *rest = operands
    signs = rng.choice([-1.0, 1.0], x.shape).astype(x.dtype)
    return [x + step * np.maximum(np.abs(x), 1) * signs, *rest]
