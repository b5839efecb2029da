"""The kernels' own exp and log1p against longdouble."""

import numpy as np
import pytest
from numba import njit

from twinloss.fast.kernels.cpu.compiled.elementary import exp_nonpositive, log1p_nonnegative


@njit(error_model="numpy")
def exponentials(x, out):
    for i in range(x.size):
        out[i] = exp_nonpositive(x[i])


@njit(error_model="numpy")
def logarithms(x, out):
    for i in range(x.size):
        out[i] = log1p_nonnegative(x[i])


def applied(function, x):
    out = np.empty_like(x)
    function(x, out)
    return out


REALS = pytest.mark.parametrize("real", [np.float32, np.float64])


@REALS
def test_exp_is_within_two_ulp(real):
    lowest = -87 if real is np.float32 else -708
    x = np.concatenate([np.linspace(lowest, 0, 200_001), -np.logspace(-12, 0, 1001)]).astype(real)
    truth = np.exp(x.astype(np.longdouble))
    assert (np.abs(applied(exponentials, x) - truth) <= 2 * np.spacing(truth.astype(real))).all()


@REALS
def test_exp_underflows_to_zero_and_keeps_nan(real):
    out = applied(exponentials, np.array([0, -1e4, -np.inf, np.nan], real))
    np.testing.assert_array_equal(out, np.array([1, 0, 0, np.nan], real))


@REALS
def test_log1p_is_within_two_ulp(real):
    x = np.concatenate([np.linspace(0, 200, 200_001), np.logspace(-30, 3, 100_001)]).astype(real)
    truth = np.log1p(x.astype(np.longdouble))
    assert (np.abs(applied(logarithms, x) - truth) <= 2 * np.spacing(truth.astype(real))).all()


@REALS
def test_log1p_keeps_zero_and_nan(real):
    np.testing.assert_array_equal(applied(logarithms, np.array([0, np.nan], real)), np.array([0, np.nan], real))
