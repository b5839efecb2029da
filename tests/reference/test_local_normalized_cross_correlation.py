"""The reference LNCC, by hand and against the sums over each window, written as in the definition."""

import itertools
from decimal import Decimal

import numpy as np
import pytest
from decimals import errors
from scipy.differentiate import derivative

from twinloss.reference import (
    local_normalized_cross_correlation_loss,
    local_normalized_cross_correlation_loss_gradient,
)

EXACT = {"smooth_nr": 0, "smooth_dr": 0}
KINDS = pytest.mark.parametrize("kind", ["rectangular", "triangular", "gaussian"])
DENOMINATORS = pytest.mark.parametrize("denominator", ["product", "clamp"])


def lncc(pred, target, **options):
    return local_normalized_cross_correlation_loss(pred, target, **({"reduction": "none"} | options))


def images(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape)


def window(size, kind, number):
    """Return the weights along an axis."""
    f, steps = (size + 1) // 2, range(-(size // 2), size // 2 + 1)
    if kind == "rectangular":
        return [number(1) for _ in steps]
    if kind == "triangular":  # [1, 2, …, f, …, 2, 1] / f²
        return [number(f - abs(j)) / number(f**2) for j in steps]
    sigma = number(size) / number(3)
    return [np.exp(-number(j**2) / (2 * sigma**2)) for j in steps]


def squared_correlations(p, t, size, kind, denominator="product", nu=1e-5, delta=1e-5):
    """Return the negative losses of all windows, in floats or decimals."""
    number, rank = type(p.flat[0]), p.ndim - 2
    w, nu, delta, made = window(size, kind, number), number(nu), number(delta), np.empty_like(p)
    for i in np.ndindex(p.shape):
        n = sw_t = sw_p = sw_tt = sw_pp = sw_tp = number(0)
        for offset in itertools.product(range(size), repeat=rank):
            at = [k + j - size // 2 for k, j in zip(i[2:], offset, strict=True)]
            inside = all(0 <= k < s for k, s in zip(at, p.shape[2:], strict=True))
            tj, pj = (a[(*i[:2], *at)] if inside else number(0) for a in (t, p))
            wj = np.prod([w[j] for j in offset])
            n, sw_t, sw_p = n + wj, sw_t + wj * tj, sw_p + wj * pj
            sw_tt, sw_pp, sw_tp = sw_tt + wj * tj**2, sw_pp + wj * pj**2, sw_tp + wj * tj * pj
        cross = sw_tp - sw_t * sw_p / n
        of_t, of_p = max(sw_tt - sw_t**2 / n, number(0)), max(sw_pp - sw_p**2 / n, number(0))
        below = of_t * of_p + delta if denominator == "product" else max(of_t, delta) * max(of_p, delta)
        made[i] = (cross**2 + nu) / below
    return made


def test_three_voxels_by_hand():
    p, t = np.array([[[1.0, 3, 2]]]), np.array([[[1.0, 2, 4]]])
    got = lncc(p, t, ndim=1, **EXACT)
    # windows (0 1 2 | 0 1 3), (1 2 4 | 1 3 2) and (2 4 0 | 3 2 0): cross² / (var_t var_p)
    assert np.allclose(got, [[[-(9 / (2 * 14 / 3)), -(1 / (14 / 3 * 2)), -(16 / (8 * 14 / 3))]]], rtol=1e-14)


def test_triangle_of_three_weighs_a_half_and_quarters():
    p, t = np.array([[[1.0, 0, 0]]]), np.array([[[1.0, 1, 0]]])
    # For the middle voxel: Σw = 1, Σwt = 3/4, Σwp = Σwtp = 1/4, so that cross = 1/16 and the variances are 3/16 each.
    assert np.isclose(lncc(p, t, ndim=1, kernel_type="triangular", **EXACT)[0, 0, 1], -1 / 9, rtol=1e-14)


@KINDS
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 2, 5), 5), ((1, 2, 4, 3), 3), ((1, 1, 3, 2, 4), 3), ((1, 1, 2, 3), 5)]
)
@DENOMINATORS
def test_loss_is_the_correlation_in_each_window(shape, size, kind, denominator):
    p, t = images(*shape)
    options = {"denominator": denominator, "kernel_size": size, "kernel_type": kind}
    constants = {"smooth_nr": 0.3, "smooth_dr": 0.7}
    expected = squared_correlations(p, t, size, kind, denominator, nu=0.3, delta=0.7)
    assert np.allclose(lncc(p, t, **options, **constants), -expected, rtol=1e-11)


@KINDS
@pytest.mark.parametrize(("a", "b"), [(3, -2), (-0.5, 1e3)])
def test_brightness_and_contrast_do_not_count_inside(kind, a, b):
    t, _ = images(1, 2, 8, 9)
    got = lncc(a * t + b, t, kernel_type=kind, **EXACT)
    assert np.allclose(got[..., 1:-1, 1:-1], -1, rtol=1e-9)
    assert np.all(got[..., 0, :] > -0.99)  # both images are 0 beyond the border, which a t + b is not


@KINDS
def test_contrast_does_not_count_at_the_border_either(kind):
    t, _ = images(1, 1, 4, 5, 6)
    assert np.allclose(lncc(-3 * t, t, kernel_type=kind, **EXACT), -1, rtol=1e-13)
    gradient = local_normalized_cross_correlation_loss_gradient(-3 * t, t, kernel_type=kind, **EXACT)
    assert np.abs(gradient).max() < 1e-14  # it is the optimum


def test_loss_is_symmetric_in_the_images():
    p, t = images(2, 1, 5, 6)
    assert np.allclose(lncc(p, t, kernel_type="gaussian"), lncc(t, p, kernel_type="gaussian"), rtol=1e-14)


@DENOMINATORS
def test_gradient_in_the_target_is_that_with_the_images_exchanged(denominator):
    p, t = images(1, 2, 4, 5)
    options = {"denominator": denominator, "smooth_dr": 0.5}
    direction, _ = images(*t.shape, seed=1)
    along = np.vectorize(lambda s: lncc(p, t + s * direction, reduction="sum", **options))
    found = derivative(along, 0.0, initial_step=0.05)
    exchanged = local_normalized_cross_correlation_loss_gradient(t, p, reduction="sum", **options)
    assert np.isclose((exchanged * direction).sum(), found.df, rtol=0, atol=10 * found.error + 1e-12)


def test_channels_and_items_are_independent():
    p, t = images(2, 3, 4, 5)
    whole = lncc(p, t)
    assert whole.shape == p.shape
    for b, c in np.ndindex(2, 3):
        alone = lncc(p[b : b + 1, c : c + 1], t[b : b + 1, c : c + 1])
        assert np.array_equal(alone[0, 0], whole[b, c])


def test_window_spans_the_last_axes():
    p, t = images(1, 2, 3, 4, 5)
    flat = (a.reshape(1, 6, 4, 5) for a in (p, t))
    assert np.array_equal(lncc(p, t, ndim=2), lncc(*flat).reshape(p.shape))


def test_window_of_one_voxel_sees_no_contrast():
    p, t = images(1, 1, 3, 3)
    assert np.allclose(lncc(p, t, kernel_size=1, smooth_nr=2, smooth_dr=4), -0.5, rtol=1e-15)
    assert not local_normalized_cross_correlation_loss_gradient(p, t, kernel_size=1).any()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
def test_flat_images_score_the_ratio_of_the_constants(value):
    flat, other = np.full((1, 1, 7), value), np.arange(7.0).reshape(1, 1, 7)
    inside = np.s_[..., 1:-1]
    for p, t in ((flat, flat), (flat, other), (other, flat)):
        assert np.allclose(lncc(p, t, ndim=1)[inside], -1, rtol=1e-6)
    clamped = {"ndim": 1, "denominator": "clamp", "smooth_nr": 0.25, "smooth_dr": 0.5}
    assert np.allclose(lncc(flat, flat, **clamped)[inside], -0.25 / 0.5**2, rtol=1e-6)
    assert np.allclose(lncc(other, flat, **clamped)[inside], -0.25 / (0.5 * 2), rtol=1e-6)  # var (k−1, k, k+1) = 2


def test_variance_below_the_clamp_has_no_slope():
    p, t = np.array([[[1.0, 3, 2]]]), np.array([[[1.0, 2, 4]]])
    middle = {"ndim": 1, "reduction": "none", "cotangent": np.array([[[0.0, 1, 0]]])}
    got = local_normalized_cross_correlation_loss_gradient(
        p, t, denominator="clamp", smooth_nr=0, smooth_dr=100, **middle
    )
    assert np.allclose(got, -2 * 1 / 100**2 * (t - 7 / 3), rtol=1e-13)  # cross = 1, both variances count as 100
    got = local_normalized_cross_correlation_loss_gradient(
        p, t, denominator="clamp", smooth_nr=0, smooth_dr=0.5, **middle
    )
    free = local_normalized_cross_correlation_loss_gradient(p, t, **EXACT, **middle)
    assert np.allclose(got, free, rtol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_over_windows_channels_and_items(reduction):
    p, t = images(2, 3, 4, 5)
    got = lncc(p, t, reduction=reduction)
    assert got.shape == ()
    assert np.isclose(got, getattr(lncc(p, t), reduction)(), rtol=1e-14)


@DENOMINATORS
def test_nan_stays_within_its_windows(denominator):
    p, t = images(1, 2, 9, 9)
    t[0, 1, 4, 4] = np.nan
    bad = np.isnan(lncc(p, t, denominator=denominator))
    assert bad.sum() == bad[0, 1, 3:6, 3:6].sum() == 9


@KINDS
@pytest.mark.parametrize("noise", [0.01, 1e-4])  # in pred: unrelated to the target, or nearly equal to it
@pytest.mark.parametrize("name", ["value", "gradient"])
def test_little_contrast_on_a_large_offset_keeps_its_accuracy(kind, noise, name):
    a, b = images(1, 1, 9, 9, 9)
    t = 1e4 + 0.01 * a
    p = t + noise * b if noise < 0.01 else 1e4 + 0.01 * b
    f = lncc if name == "value" else local_normalized_cross_correlation_loss_gradient
    options = {"kernel_type": kind, **EXACT}
    got, truth = f(p, t, **options), f(p.astype(np.longdouble), t.astype(np.longdouble), **options)
    inside = np.s_[..., 2:-2, 2:-2, 2:-2]
    assert np.abs((got - truth)[inside]).max() <= 1e-14 * np.abs(truth[inside]).max()


@pytest.mark.parametrize("kind", ["rectangular", "triangular"])  # their weights are exact
def test_contrast_of_a_few_units_in_the_last_place_is_enough(kind):
    """The mean of a window is not a floating-point number, but the deviations from it are still accurate."""
    p, t = np.random.default_rng(0).integers(0, 6, (2, 1, 1, 9, 9)).astype(float)
    ulp, inside = np.spacing(2.0**40), np.s_[..., 2:-2, 2:-2]
    options = {"kernel_type": kind, **EXACT}
    far = [2.0**40 + ulp * a for a in (p, t)]
    assert np.allclose(lncc(*far, **options)[inside], lncc(p, t, **options)[inside], rtol=1e-12)
    near, distant = (
        local_normalized_cross_correlation_loss_gradient(a, b, reduction="sum", **options)[inside]
        for a, b in ((p, t), far)
    )
    assert np.allclose(ulp * distant, near, rtol=0, atol=1e-12 * np.abs(near).max())


@DENOMINATORS
@pytest.mark.parametrize("dtype", [np.longdouble, np.float64, np.float32])
@pytest.mark.parametrize(
    ("shape", "size", "kind", "offset"),
    [
        ((1, 1, 7), 3, "rectangular", 0),
        ((1, 1, 9), 5, "triangular", 300),
        ((1, 1, 3, 4), 3, "gaussian", 0),
        ((1, 2, 4, 3), 3, "triangular", 300),
    ],
)
def test_value_and_gradient_have_the_accuracy_of_the_dtype(shape, size, kind, offset, denominator, dtype):
    p, t = (offset + a.astype(dtype) for a in images(*shape))
    options = {"kernel_size": size, "kernel_type": kind, "denominator": denominator}

    def truth(p, t):
        values = squared_correlations(p, t, size, kind, denominator)
        return -values.sum() / Decimal(values.size)

    found = errors(
        lambda p, t: local_normalized_cross_correlation_loss(p, t, **options),
        lambda p, t: local_normalized_cross_correlation_loss_gradient(p, t, **options),
        truth,
        p,
        t,
    )
    assert max(found) <= 32
