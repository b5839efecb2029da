"""The reference's results for a case: value and gradient, and how much rounding may change them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from twinloss.harness.judging.derivatives import Slopes
from twinloss.harness.judging.judgement import AT_ONCE, C, blocks
from twinloss.harness.judging.nearby import (
    ROUNDS,
    WAVES,
    Arrays,
    Real,
    Reference,
    perturbed_real_numbers,
)
from twinloss.harness.judging.pair_call import joined
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Case

Results = dict[Any, Array]

# A gradient has jumped if a roundoff of the input moves it by more than this share of the largest in its block,
JUMP = 2.0**-10
# and by more than this many roundoffs of the twin's unit.
MOVED = 64

# A value that is a difference of terms is accurate to this many roundoffs of the twin's unit, the size of these terms.
VALUE_ROUNDOFFS = 64

# Complex steps compute the plain gradient forwards, and the fast twin computes it backwards, with other rounding
# errors. `grade` allows twice this factor, so an error of up to C times that of the plain computation is only degraded.
OTHER_WAY = C / 2


class Truth(Reference):
    """The reference on exactly the numbers that the fast twin got; each result is computed on first use."""

    def known_for(self, case: Case) -> Truth:
        """Return the truth of a case with the same numbers in another dtype, reusing value and gradient."""
        other = Truth(self.twin, case, self.real)
        other.outputs, other.gradients = self.outputs, self.gradients
        return other

    @property
    def value(self) -> Array:
        """The value; several outputs are in a row."""
        return joined(self.outputs)

    @property
    def gradient(self) -> Array:
        """The gradient with respect to the input; those of several inputs are in a row."""
        return joined(list(self.gradients.values()))

    @cached_property
    def slopes(self) -> Slopes:
        """The derivatives of the reference."""
        return Slopes(self)

    @cached_property
    def gradients(self) -> Arrays:
        """The gradient with respect to each input, or its slopes along some directions."""
        return self.slopes.here if self.twin.wrt else {}

    def value_of(self, case: Case, real: Real | None = None) -> Array:
        """Return the reference's value of a case."""
        return self.outputs_at(self.lifted(real or self.real, case), self.options_of(case))[0]

    def gradient_of(self, case: Case) -> Array:
        """Return the gradient of a case with respect to the first input."""
        return next(iter(self.slopes.at(self.lifted(self.real, case), self.options_of(case, gradient=True)).values()))

    def results_at(self, part: str, arguments: Arrays, constants: Mapping[str, Any] | None = None) -> Results:
        """Return the outputs by number, or the gradients by input, at another point and with other constants."""
        if part == "value":
            return dict(enumerate(self.outputs_at(arguments, {**self.options, **(constants or {})})))
        return dict(self.slopes.at(arguments, {**self.slopes.options, **(constants or {})}))

    def plain_results(self, part: str) -> Iterable[tuple[Results, Results]]:
        """Return pairs of the reference's results in working precision and in its own, at this point and nearby."""
        if not self.few:
            return self._plain_results(part)
        if part not in self._plain:
            self._plain[part] = list(self._plain_results(part))
        return self._plain[part]

    @cached_property
    def _plain(self) -> dict[str, list[tuple[Results, Results]]]:
        """The results of a small case, cached since the judge needs them once for each answer."""
        return {}

    def _plain_results(self, part: str) -> Iterator[tuple[Results, Results]]:
        for plain, exact in self.plain_points():
            yield self.results_at(part, plain), self.results_at(part, exact)

    def kappa(self, where: tuple[int, ...]) -> float:
        """Return the conditioning of one element of the value: |f| + sum |x df/dx| + sum |c df/dc|."""
        one = np.zeros(self.value.shape)
        one[where] = 1
        scalar = self.value.ndim == 0 and self.case.cotangent is None
        arguments = self.arguments
        gradients = self.gradients if scalar else self.slopes.at(arguments, upstream=[one])
        moves = float(self._conditioning_in_the_rest[where])
        for name, gradient in gradients.items():
            x = arguments[name]
            for i in np.ndindex(*x.shape[:2]):
                with np.errstate(all="ignore"):
                    moves += float(np.nansum(np.abs(self.scale_of_roundoff(name, x[i]) * gradient[i])))
        return float(abs(self.value[where])) + moves

    @cached_property
    def _conditioning_in_the_rest(self) -> Array:
        """The conditioning of each element with respect to the other real arguments, at random, and the constants."""
        rng = np.random.default_rng(0)
        # The step is short, since some images have a contrast of only a few roundoffs. But it is much longer than a
        # roundoff of the reference.
        step = self.real(max(self.precision.u / 8, 1024 * self.precision.u_ref))
        arguments = self.arguments

        def slope(moved: Array) -> Array:
            with np.errstate(all="ignore"):
                made = np.abs(moved - self.value) / step
            return np.where(np.isnan(made), 0, made)

        others = np.zeros(self.value.shape, self.real)
        for _ in range(ROUNDS):
            moved = {
                name: x if name in self.twin.wrt or x.dtype.kind != "f" else perturbed_real_numbers(x, step, rng)
                for name, x in arguments.items()
            }
            others = np.maximum(others, slope(self.outputs_at(moved)[0]))
        for name, constant in self.constants().items():
            others = others + slope(self.results_at("value", arguments, {name: self.real(constant) * (1 + step)})[0])
        return others

    def blocks_in(self, name: str, values: Array) -> Array:
        """Return the largest |number| of each block in the gradient of an input; each direction is a block."""
        return blocks(values, self.axes_of_blocks(name, values.ndim))

    def axes_of_blocks(self, name: str, ndim: int) -> tuple[int, ...]:
        """Return the axes of blocks in a gradient, or that of the directions."""
        directions = self.twin.gradient is None and self.slopes.directions is not None
        return tuple(range(ndim)) if directions else self.twin.block_axes(name, ndim)

    def spreads(self, name: str) -> Iterator[Array]:
        """Perturb all real numbers by up to one roundoff, again and again; yield each block's largest change so far."""
        for k in range(len(WAVES)):
            while len(self._spreads) <= k:
                self._spreads.append(next(self._next_spread))
            yield self._spreads[k][name]

    @cached_property
    def _spreads(self) -> list[Arrays]:
        """The spreads so far, of all inputs."""
        return []

    @cached_property
    def _next_spread(self) -> Iterator[Arrays]:
        """A generator of the spreads of all inputs, which share the work."""
        least, worst = MOVED * self.precision.u * self.twin.unit, dict[str, Array]()
        for arguments, constants in self.perturbations():
            near = self.results_at("gradient", arguments, constants)
            for name, ref in self.gradients.items():
                with np.errstate(all="ignore"):
                    moves = np.asarray(near.pop(name))
                    # A user's gradient may return the same array twice; a volume leaves no memory for a copy.
                    moves = np.asarray(np.subtract(moves, ref, out=moves if self.twin.pair is None else None))
                if self.kinks:
                    _drop_jumps(moves, self._largest_of_its_block(name, ref), least)
                moved = self.blocks_in(name, moves)
                worst[name] = np.maximum(worst[name], moved) if name in worst else moved
            yield dict(worst)

    def _largest_of_its_block(self, name: str, ref: Array) -> Array:
        """Return the largest |number| of each block, in a shape that fits the gradient."""
        kept = self.axes_of_blocks(name, ref.ndim)
        return self.blocks_in(name, ref).reshape([n if i in kept else 1 for i, n in enumerate(ref.shape)])

    def sizes(self, name: str) -> Array:
        """Return for each block the magnitude of the terms that the gradient subtracts, at least its own magnitude."""
        sizes = self.blocks_in(name, self.gradients[name])
        with np.errstate(all="ignore"):
            terms = None if self.twin.terms is None else self.twin.terms(self)
        return sizes if terms is None else np.maximum(sizes, self.blocks_in(name, terms))

    def own_value(self) -> float:
        """Return the error of the reference in a value that is a difference of terms of size `unit`."""
        return VALUE_ROUNDOFFS * self.precision.u_ref * self.twin.unit

    def own_gradient(self, name: str) -> Array:
        """Return an estimate of the error of the reference's gradient, for each block."""
        u_ref, ref = self.precision.u_ref, self.gradients[name]
        # At a kink, the reference sees 1 - 1e-30 as a tie with 1, but a twin that keeps the 1e-30 does not.
        floor = (u_ref if self.kinks else 1e4 * u_ref**2) * self.twin.unit

        def off(real: Real) -> Array:
            with np.errstate(all="ignore"):
                return self.blocks_in(name, self.slopes.at(self.lifted(real))[name] - ref)

        return np.maximum(self.own_error(off), floor)

    def noise_in(self, part: str) -> Results:
        """Return the largest changes of each output or gradient if each operation of the reference rounds at random.

        The bounds of a precise twin leave no room for them, and differences would magnify them.
        """
        if self.twin.precise or (part == "gradient" and self.slopes.method == "differences"):
            return {}
        if part not in self._noises:
            results: Results = dict(enumerate(self.outputs)) if part == "value" else dict(self.gradients)
            ref = {key: values for key, values in results.items() if values.dtype.kind == "f"}
            self._noises[part] = self.noise(lambda moved: self.results_at(part, moved), ref)
        return self._noises[part]

    @cached_property
    def _noises(self) -> dict[str, Results]:
        return {}

    def is_zero(self, name: str) -> bool:
        """Return whether the reference's gradient of an input is 0, up to the rounding of the reference itself."""
        own = C * self.precision.u_ref / self.precision.u * np.max(self.noise_in("gradient").get(name, 0.0), initial=0)
        return bool((np.abs(self.gradients[name]) <= own).all())


def _drop_jumps(moves: Array, norms: Array, least: float) -> None:
    """Set the changes of elements that jumped across a kink to 0; `Reference.beside` is used to judge these.

    A change of at most `least` is not a jump, since a gradient may be 0 by cancellation.
    """
    norms = np.broadcast_to(norms, moves.shape)
    for i in range(len(moves)) if moves.size > AT_ONCE else (...,):
        moves[i] = np.where(np.abs(moves[i]) > np.maximum(JUMP * norms[i], least), 0, moves[i])
