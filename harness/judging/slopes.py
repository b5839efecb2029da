"""Derivatives of a function that is only known by its values, with an estimate of their own error.

`complex_step` is exact up to rounding, but needs an analytic function: it evaluates f(x + i h d) with a tiny h. The
others are central and one-sided difference quotients, extrapolated to step 0 (Ridders' method).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# The first steps of a difference quotient, relative to the size of the numbers. The first that is accurate enough is
# taken: a kink near the point needs a short step.
STEPS = (2.0**-4, 2.0**-10, 2.0**-18, 2.0**-26)
LEVELS = 5
GOOD = 1e-11

# The number of roundoffs of the largest value that its rounding error may have.
ROUNDOFFS = 8


@dataclass(frozen=True)
class Slope:
    """A derivative, and an estimate of its error."""

    value: Any
    error: Any


def complex_length(real: type[np.floating[Any]]) -> Any:
    """Return the length of a complex step, so small that its square underflows."""
    return real(np.finfo(real).tiny ** 0.5)


def complex_step(f: Callable[[Any], Any], real: type[np.floating[Any]]) -> Any:
    """Return the derivative at 0 of an analytic function of one number."""
    h = complex_length(real)
    return real(np.imag(f(1j * h)) / h)


def central(f: Callable[[Any], Any], real: type[np.floating[Any]]) -> Slope:
    """Return the derivative at 0, by central differences."""
    return _best(lambda h: (f(h) - f(-h)) / (2 * h), 4, f, real)


def one_sided(f: Callable[[Any], Any], real: type[np.floating[Any]], side: int) -> Slope:
    """Return the derivative at 0 to one side, by differences."""
    here = f(real(0))
    return _best(lambda h: (f(side * h) - here) / (side * h), 2, f, real)


def _best(quotient: Callable[[Any], Any], factor: int, f: Callable[[Any], Any], real: type[np.floating[Any]]) -> Slope:
    """Extrapolate with one first step after the other; `factor` is by how much half a step divides the error."""
    size = abs(f(real(0)))
    best = Slope(real(np.nan), real(np.inf))
    for first in STEPS:
        found = _extrapolated(quotient, factor, real(first), size, real)
        if not found.error >= best.error:
            best = found
        if best.error <= GOOD * abs(best.value):
            break
    return best


def _extrapolated(
    quotient: Callable[[Any], Any], factor: int, first: Any, size: Any, real: type[np.floating[Any]]
) -> Slope:
    row = [quotient(first)]
    last = first / 2 ** (LEVELS - 1)
    rounding = ROUNDOFFS * real(np.finfo(real).eps) * size / last
    best = Slope(real(np.nan), real(np.inf))
    for level in range(1, LEVELS):
        above, row = row, [quotient(first / 2**level)]
        for j in range(level):
            power = factor ** (j + 1) if factor == 4 else 2 ** (j + 1)
            row.append(row[j] + (row[j] - above[j]) / (power - 1))
        error = abs(row[-1] - above[-1]) + rounding
        if error <= best.error:
            best = Slope(row[-1], error)
    return best
