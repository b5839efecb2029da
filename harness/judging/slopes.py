"""Derivatives of a function that is only known by its values, with an estimate of their own error.

`complex_step` is exact up to rounding, but needs an analytic function: it evaluates f(x + i h d) with a tiny h. The
others are central and one-sided difference quotients, extrapolated to step 0 (Ridders' method).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

# The first steps of a difference quotient, relative to the size of the numbers. The first that is accurate enough is
# taken: a kink near the point needs a short step.
STEPS = (2.0**-4, 2.0**-10, 2.0**-18, 2.0**-26)
LEVELS = 5
GOOD = 1e-11

# An error estimate that is a larger share of the derivative means that the quotients do not converge.
CONVERGED = 1e-2

# The number of roundoffs of the largest value that its rounding error may have.
ROUNDOFFS = 8


# Functions that are applied to the real part alone, those that depend on its sign, and those with a real domain.
_STEPWISE = {np.floor, np.ceil, np.rint, np.trunc, np.sign, np.isnan, np.isfinite, np.isinf, np.signbit}
_COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
_OF_A_DOMAIN = {np.sqrt, np.log, np.log2, np.log10, np.log1p, np.arcsin, np.arccos, np.arctanh}


# Functions whose results need no rounding.
_EXACT = {np.negative, np.positive, np.conjugate, np.maximum, np.minimum, np.fmax, np.fmin} | _STEPWISE | _COMPARISONS


class _Noise:
    """Multiplies results by 1 + u d, d random in [-1, 1]; real and imaginary parts have numbers of their own.

    With an even seed, all numbers of an array have the same d, since equal numbers are rounded alike.
    """

    def __init__(self, u: float, seed: int) -> None:
        self._u, self._rng, self._alike = u, np.random.default_rng(seed), seed % 2 == 0

    def on(self, values: Any) -> Any:
        """Return floating or complex numbers with noise, and others as they are."""
        if not isinstance(values, np.ndarray | np.inexact) or values.dtype.kind not in "fc":
            return values
        if values.dtype.kind == "f":
            return values * self._factors(values)
        made = np.empty_like(values)
        made.real, made.imag = values.real * self._factors(values.real), values.imag * self._factors(values.imag)
        return made[()]

    def _factors(self, values: Any) -> Any:
        d = self._rng.uniform(-1, 1, () if self._alike else values.shape)
        return 1 + values.dtype.type(self._u) * np.asarray(d, values.dtype)


_noise: ContextVar[_Noise | None] = ContextVar("noise", default=None)


@contextmanager
def rounding(u: float, seed: int) -> Iterator[None]:
    """Round the results of all functions of `Analytic` arrays at random, by up to `u` (Monte Carlo arithmetic).

    See Parker 1997, "Monte Carlo arithmetic: exploiting randomness in floating-point arithmetic".
    """
    token = _noise.set(_Noise(u, seed))
    try:
        yield
    finally:
        _noise.reset(token)


class Analytic(np.ndarray[Any, Any]):
    """A complex array whose functions continue those of real numbers, so that a complex step differentiates them.

    |z| is z or -z, comparisons and maxima look at the real parts, and a root of a negative number is NaN.
    Within `rounding`, arrays may also be real.
    """

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **more: Any) -> Any:
        """Apply a ufunc."""
        plain = [np.asarray(each) if isinstance(each, Analytic) else each for each in inputs]
        if out is not None:
            more["out"] = tuple(np.asarray(each) if isinstance(each, Analytic) else each for each in out)
        if method == "__call__" and ufunc in _COMPARISONS | _STEPWISE:
            return ufunc(*map(np.real, plain), **more)
        if method == "__call__" and ufunc in (np.absolute, np.fabs):
            (z,) = plain
            return np.where(np.real(z) < 0, -z, z).view(Analytic)
        if ufunc in (np.maximum, np.minimum, np.fmax, np.fmin) and method == "__call__":
            a, b = plain
            left = np.real(a) >= np.real(b) if ufunc in (np.maximum, np.fmax) else np.real(a) <= np.real(b)
            return np.where(left | np.isnan(a), a, b).view(Analytic)
        noise = None if ufunc in _EXACT or method == "at" else _noise.get()
        if noise is not None and (method != "__call__" or ufunc is np.matmul):
            plain = [noise.on(each) for each in plain]  # the terms of a sum are rounded, too
        made = getattr(ufunc, method)(*plain, **more)
        if ufunc in _OF_A_DOMAIN:
            made = np.where(np.isnan(ufunc(np.real(plain[0]))), np.nan, made)
        if noise is not None:
            made = noise.on(made)
        if out is not None:
            if noise is not None and len(out) == 1:
                np.asarray(out[0])[...] = made
            return out[0] if len(out) == 1 else out
        return made.view(Analytic) if isinstance(made, np.ndarray) else made

    def var(  # type: ignore[override]
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, **more: Any
    ) -> Any:
        """Return the variance without conjugation."""
        centred = self - self.mean(axis, keepdims=True)
        total = (centred * centred).sum(axis, **more)
        return total * (total.size / self.size) / (1 - ddof * total.size / self.size)

    def std(  # type: ignore[override]
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, **more: Any
    ) -> Any:
        """Return the standard deviation without conjugation."""
        return np.sqrt(self.var(axis, ddof=ddof, **more))


@dataclass(frozen=True)
class Slope:
    """A derivative, and an estimate of its error."""

    value: Any
    error: Any


def complex_length(real: type[np.floating[Any]]) -> Any:
    """Return the length of a complex step, so small that its square is 0."""
    limits = np.finfo(real)
    return np.sqrt(limits.tiny * limits.eps) / 2


def complex_step(f: Callable[[Any], Any], real: type[np.floating[Any]]) -> Any:
    """Return the derivative at 0 of an analytic function of one number."""
    h = complex_length(real)
    return real(np.imag(f(1j * h)) / h)


def central(f: Callable[[Any], Any], real: type[np.floating[Any]], size: Any = 0) -> Slope:
    """Return the derivative at 0, by central differences; `size` is that of the terms of f, if it sums."""
    return _best(lambda h: (f(h) - f(-h)) / (2 * h), 4, max(abs(f(real(0))), size), real)


def one_sided(f: Callable[[Any], Any], real: type[np.floating[Any]], side: int, size: Any = 0) -> Slope:
    """Return the derivative at 0 to one side, by differences."""
    here = f(real(0))
    return _best(lambda h: (f(side * h) - here) / (side * h), 2, max(abs(here), size), real)


def _best(quotient: Callable[[Any], Any], factor: int, size: Any, real: type[np.floating[Any]]) -> Slope:
    """Extrapolate with one first step after the other; `factor` is by how much half a step divides the error."""
    best = Slope(real(np.nan), real(np.inf))
    for first in STEPS:
        found = _extrapolated(quotient, factor, real(first), size, real)
        if not found.error >= best.error:
            best = found
        if best.error <= GOOD * abs(best.value):
            break
    # Quotients that do not converge, as at a pole, say nothing, and neither does the difference between them.
    converged = best.error <= CONVERGED * abs(best.value) or best.error <= GOOD * size
    return best if converged else Slope(best.value, real(np.inf))


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
