"""Decimal arithmetic of 60 digits, to measure the error of the reference."""

from decimal import Context, Decimal, localcontext

import numpy as np

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
STEP = Decimal("1e-20")


def exact(value):
    """Return the exact value of a float, not the value of its shortest text."""
    above, below = value.as_integer_ratio()
    return Decimal(above) / Decimal(below)


def lifted(a):
    """Return an array of the same numbers as decimals."""
    made = np.empty(a.shape, object)
    made.ravel()[:] = [exact(v) for v in a.ravel()]
    return made


def log(a):
    """Return the natural logarithm of floats or decimals. (`numpy.exp` accepts both.)"""
    return np.vectorize(Decimal.ln, otypes=[object])(a) if a.dtype == object else np.log(a)


def slopes(value, x):
    """Return the derivative with respect to each element of x, to about 40 digits."""
    made = np.empty(x.shape, object)
    for i in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[i] += STEP
        below[i] -= STEP
        made[i] = (value(above) - value(below)) / (2 * STEP)
    return made


def errors(value, gradient, truth, x, *rest):
    """Return the relative errors of a value and its gradient, in units of the machine epsilon of x.

    `truth` computes the value in decimals. The error of the gradient is the largest error of an element, relative to
    the largest element.
    """
    got, slope = value(x, *rest), gradient(x, *rest)
    assert got.dtype == slope.dtype == x.dtype
    assert slope.shape == x.shape
    with localcontext(Context(prec=60)):
        unit, others = exact(np.finfo(x.dtype).eps), [lifted(a) for a in rest]
        expected, rates = truth(lifted(x), *others), slopes(lambda x: truth(x, *others), lifted(x))
        of_value = abs(exact(got[()]) - expected) / abs(expected)
        of_gradient = np.abs(lifted(slope) - rates).max() / np.abs(rates).max()
        return float(of_value / unit), float(of_gradient / unit)
