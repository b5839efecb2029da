"""The gradient of a reference: in closed form, by complex steps or by differences."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from twinloss.harness.judging import slopes
from twinloss.harness.judging.nearby import Arrays, Reference, ordinary, sizes
from twinloss.harness.judging.pair_call import named_gradients, weights
from twinloss.harness.model.operand import Array

# With more than FULL numbers, derivatives are taken only along some directions: in each input, within BLOCKS blocks and
# for SINGLE single numbers.
FULL, BLOCKS, SINGLE = 64, 4, 12

# Differences can confirm a complex step only if their error estimate is at most this share of the slope.
CONFIRMED = 1e-6
# The number of points at which differences may confirm it.
TRIES = 3


@dataclass(frozen=True)
class Direction:
    """A direction in one of the inputs; `place` is the index of its only number, or None if it moves several."""

    name: str
    values: Array
    place: tuple[int, ...] | None = None


class Slopes:
    """The derivatives of the sum of all outputs times random upstream gradients."""

    def __init__(self, reference: Reference) -> None:
        """Prepare to differentiate the reference at its case."""
        self.reference, self.twin, self.wrt, self.real = reference, reference.twin, reference.twin.wrt, reference.real

    @cached_property
    def arguments(self) -> Arrays:
        """The arguments in the reference's precision; a closed form does not keep them, as volumes are large."""
        return self.reference.arguments

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The options of the reference's gradient."""
        return self.reference.options_of(self.reference.case, gradient=True)

    @property
    def _upstream(self) -> list[Array]:
        shapes = [output.shape for output in self.reference.outputs if output.dtype.kind == "f"]
        return [weight.astype(self.real) for weight in weights(self.reference.case, shapes)]

    def weighted(self, arguments: Mapping[str, Array], options: Mapping[str, Any]) -> Any:
        """Return the sum of all floating outputs times the upstream gradients."""
        floating = [each for each in self.reference.outputs_at(arguments, options) if each.dtype.kind in "fc"]
        with np.errstate(all="ignore"):
            return sum(np.sum(weight * output) for weight, output in zip(self._upstream, floating, strict=True))

    @cached_property
    def method(self) -> str:
        """Method of differentiation of the reference: "closed form", "complex step" or "differences"."""
        if self.twin.gradient is not None:
            return "closed form"
        return "complex step" if self._is_analytic() else "differences"

    @cached_property
    def directions(self) -> tuple[Direction, ...] | None:
        """The directions along which the gradient is compared; None stands for all numbers."""
        if self.twin.gradient is not None or sum(self.arguments[name].size for name in self.wrt) <= FULL:
            return None
        rng = np.random.default_rng(0)
        made = []
        for name in self.wrt:
            values = self.arguments[name]
            for block in _some(rng, _blocks(values.shape, self.twin.block_axes(name, values.ndim)), BLOCKS):
                moved = np.zeros(values.shape, self.real)
                moved[block] = rng.choice([-1.0, 1.0], moved[block].shape) * rng.uniform(0.5, 1, moved[block].shape)
                made.append(Direction(name, moved))
            made += [self._single(name, place) for place in _some(rng, list(np.ndindex(values.shape)), SINGLE)]
        return tuple(made)

    def _single(self, name: str, place: tuple[int, ...]) -> Direction:
        one = np.zeros(self.arguments[name].shape, self.real)
        one[place] = 1
        return Direction(name, one, place)

    def all_directions(self) -> Sequence[Direction]:
        """Return the directions, or one for each number if there are none."""
        if self.directions is not None:
            return self.directions
        shapes = {name: self.arguments[name].shape for name in self.wrt}
        return [self._single(name, place) for name, shape in shapes.items() for place in np.ndindex(shape)]

    @cached_property
    def here(self) -> Arrays:
        """The gradient at the case, or its slopes along the directions."""
        return self.at(self.reference.arguments)

    def some_places(self, chosen: Array) -> list[tuple[int, ...]]:
        """Return some of the places at which an array is true."""
        return _some(np.random.default_rng(0), [tuple(map(int, place)) for place in np.argwhere(chosen)], SINGLE)

    def at_place(self, name: str, place: tuple[int, ...]) -> Any:
        """Return the derivative with respect to one number of an input."""
        direction = self._single(name, place)
        if self.method == "complex step":
            return self._complex_slope(self.arguments, self.options, direction)
        return self.differences(self.arguments, self.options, direction).value

    def directions_in(self, name: str) -> list[Direction]:
        """Return the directions in an input."""
        return [direction for direction in self.all_directions() if direction.name == name]

    def at(
        self, arguments: Arrays, options: Mapping[str, Any] | None = None, upstream: Sequence[Array] | None = None
    ) -> Arrays:
        """Return the gradient for each input, or its slopes along the directions if there are any.

        `upstream` replaces the upstream gradients of the case in a closed form.
        """
        options = self.options if options is None else options
        if self.method == "closed form":
            return self._closed_form(arguments, options, self._upstream if upstream is None else upstream)
        if self.method == "complex step":
            return self._complex_slopes(arguments, options)
        return self.by_input([self.differences(arguments, options, each).value for each in self.all_directions()])

    def by_input(self, found: Sequence[Any]) -> Arrays:
        """Group the values of all directions by input, in its shape if each of its numbers has a direction."""
        made = {}
        for name in self.wrt:
            own = np.array([v for v, d in zip(found, self.all_directions(), strict=True) if d.name == name], self.real)
            made[name] = own.reshape(self.arguments[name].shape) if self.directions is None else own
        return made

    def _closed_form(self, arguments: Arrays, options: Mapping[str, Any], upstream: Sequence[Array]) -> Arrays:
        assert self.twin.gradient is not None
        real = next((a.dtype.type for a in arguments.values() if a.dtype.kind == "f"), self.real)
        upstream = [weight.astype(real) for weight in upstream]
        if any(isinstance(each, slopes.Analytic) for each in arguments.values()):
            upstream = [each.view(slopes.Analytic) for each in upstream]
        cotangent = upstream[0] if len(upstream) == 1 else tuple(upstream)
        with np.errstate(all="ignore"):
            found = self.twin.gradient(*arguments.values(), cotangent=cotangent, **options)
        made = {name: np.asarray(each) for name, each in named_gradients(self.wrt, found).items()}
        for name, each in made.items():
            if each.shape != arguments[name].shape:
                raise ValueError(f"the gradient for {name} has shape {each.shape}, and {name} {arguments[name].shape}")
        return made

    def _complex_slope(self, arguments: Arrays, options: Mapping[str, Any], direction: Direction) -> Any:
        x = arguments[direction.name]
        scale = min(_scale(x, direction), 1)
        step = (scale * direction.values).astype(x.dtype)
        held = _as_complex(arguments)

        def along(t: Any) -> Any:
            return self.weighted({**held, direction.name: np.asarray(x + t * step).view(slopes.Analytic)}, options)

        return slopes.complex_step(along, x.dtype.type) / scale

    def _complex_slopes(self, arguments: Arrays, options: Mapping[str, Any]) -> Arrays:
        """Return the derivatives along all directions; those of single numbers need not move whole arrays."""
        found: list[Any] = []
        held, name = _as_complex(arguments), ""
        for direction in self.all_directions():
            if direction.place is None:
                found.append(self._complex_slope(arguments, options, direction))
                continue
            if direction.name != name:
                name, x = direction.name, arguments[direction.name]
                scales, moved = np.minimum(sizes(x), 1), held[name].copy()
                step = slopes.complex_length(x.dtype.type)
            place = direction.place
            moved[place] = x[place] + 1j * (step * scales[place])
            value = self.weighted({**held, name: moved}, options)
            found.append(np.imag(value) / (step * scales[place]))
            moved[place] = x[place]
        return self.by_input(found)

    def differences(
        self, arguments: Arrays, options: Mapping[str, Any], direction: Direction, side: int = 0
    ) -> slopes.Slope:
        """Return the slope along a direction by central differences, or by those to one side."""
        x = arguments[direction.name]
        scale = _scale(x, direction)
        step = (scale * direction.values).astype(x.dtype)

        def along(t: Any) -> Any:
            return self.weighted({**arguments, direction.name: x + t * step}, options)

        with np.errstate(all="ignore"):
            size = self._size(arguments)
            found = slopes.one_sided(along, self.real, side, size) if side else slopes.central(along, self.real, size)
        return slopes.Slope(found.value / scale, found.error / scale)

    def _size(self, arguments: Arrays) -> Any:
        """Return the sum of all |outputs|, times the upstream gradients."""
        floating = [output for output in self.reference.outputs_at(arguments) if output.dtype.kind == "f"]
        return sum(np.nansum(np.abs(w * output)) for w, output in zip(self._upstream, floating, strict=True))

    def _is_analytic(self) -> bool:
        """Return whether complex steps are right: differences must confirm one at a nearby point, away from kinks."""
        rng = np.random.default_rng(0)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error")
            try:
                points = [ordinary(rng, self.arguments) for _ in range(TRIES)]
                return any(all(self._is_confirmed(rng, point, name) for name in self.wrt) for point in points)
            except Exception:
                return False

    def _is_confirmed(self, rng: np.random.Generator, arguments: Arrays, name: str) -> bool:
        """Return whether a complex step along a random direction agrees with differences that are accurate."""
        x = arguments[name]
        if not x.size:
            return True
        signs = rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1, x.shape) * sizes(x)
        direction = Direction(name, signs.astype(self.real))
        exact = self._complex_slope(arguments, self.options, direction)
        near = self.differences(arguments, self.options, direction)
        # A step of 1 along the direction moves the outputs by about their own size.
        accurate = near.error * _scale(x, direction) <= CONFIRMED * max(self._size(arguments), abs(near.value))
        return bool(accurate and abs(exact - near.value) <= CONFIRMED * abs(near.value) + 10 * near.error)

    @cached_property
    def own_errors(self) -> Arrays:
        """The error estimates of the differences; 0 for the other methods."""
        if self.method != "differences":
            return {name: np.zeros(ref.shape, self.real) for name, ref in self.here.items()}
        return self.by_input([slope.error for slope in self.differences_here()])

    def differences_here(self, side: int = 0) -> list[slopes.Slope]:
        """Return the slopes at the case along all directions by differences, central or to one side."""
        return [self.differences(self.arguments, self.options, each, side) for each in self.all_directions()]

    def contradiction(self) -> str | None:
        """Describe how differences of the reference's value contradict the closed form of its gradient, or None."""
        if self.twin.gradient is None or not sum(output.size for output in self.reference.outputs):
            return None
        rng = np.random.default_rng(0)
        for name in self.wrt:
            x, closed = self.arguments[name], self.here[name]
            if not x.size or not np.isfinite(closed).all():
                continue
            for direction in self._checked_directions(name, rng):
                slope, size = np.sum(closed * direction.values), np.sum(np.abs(closed * direction.values))
                found = [self.differences(self.arguments, self.options, direction, side) for side in (-1, 0, 1)]
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


def _as_complex(arguments: Arrays) -> Arrays:
    """Return the inputs with floating numbers as complex ones, so that arrays made like them can hold the results."""
    return {
        name: x.astype(np.result_type(x, np.complex64)).view(slopes.Analytic) if x.dtype.kind == "f" else x
        for name, x in arguments.items()
    }


def _scale(x: Array, direction: Direction) -> Any:
    """Return the length of a step of 1, so that no number moves by more than about its own size."""
    if direction.place is not None:
        return sizes(x)[direction.place]
    moved = direction.values != 0
    return np.min(sizes(x)[moved] / np.abs(direction.values[moved]), initial=np.inf) if moved.any() else x.dtype.type(1)


def _blocks(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """Return an index for each block: one entry of each block axis, and all entries of the other axes."""
    made: list[tuple[Any, ...]] = []
    for place in np.ndindex(*(shape[axis] for axis in axes)):
        index: list[Any] = [slice(None)] * len(shape)
        for axis, i in zip(axes, place, strict=True):
            index[axis] = i
        made.append((*index, ...))
    return made


def _some(rng: np.random.Generator, all_of: list[Any], count: int) -> list[Any]:
    """Return the first entry, the last one, and random ones between them, `count` in all."""
    if len(all_of) <= count:
        return all_of
    between = rng.choice(np.arange(1, len(all_of) - 1), count - 2, replace=False)
    return [all_of[i] for i in (0, *sorted(between), -1)]
