"""The reference mutual information, by hand and against a histogram that is filled voxel by voxel."""

import math
from decimal import Decimal

import numpy as np
import pytest
from decimals import errors, log
from scipy.differentiate import derivative

from twinloss.reference import global_mutual_information_loss, global_mutual_information_loss_gradient

EXACT = {"smooth_nr": 0, "smooth_dr": 0}
TINY = {"smooth_nr": 1e-300, "smooth_dr": 1e-300}  # without them, empty bins have no logarithm
SPLINE = {"kernel_type": "b-spline"}
KINDS = pytest.mark.parametrize("kind", ["gaussian", "b-spline"])


def mi(pred, target, **options):
    return -global_mutual_information_loss(pred, target, **({"reduction": "none"} | options))


def images(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.02, 0.98, shape), rng.uniform(0.02, 0.98, shape)


def gaussian(v, bins, ratio):
    """Return the weights of an intensity in all bins, as exponentials of the distances to the bin centres."""
    number = type(v)
    v, sigma = min(max(v, number(0)), number(1)), number(ratio) / (bins - 1)
    w = [np.exp(-((v - number(k) / (bins - 1)) ** 2) / (2 * sigma**2)) for k in range(bins)]
    return [part / sum(w) for part in w]


def spline(v, low, high, bins):
    """Return the weights in the four bins that start one below the bin of the voxel."""
    number = type(v)
    z = (v - low) / ((high - low) / (bins - 4)) + 2
    index = min(math.floor(z), bins - 3)
    s, w = z - index, [number(0)] * bins
    w[index - 1], w[index + 2] = (1 - s) ** 3 / 6, s**3 / 6
    w[index] = (3 * s**3 - 6 * s**2 + 4) / 6
    w[index + 1] = (3 * (1 - s) ** 3 - 6 * (1 - s) ** 2 + 4) / 6
    return w, index


def information(p, t, bins=23, ratio=0.5, kind="gaussian", nu=1e-7, delta=1e-7):
    """Return the mutual information of one item, in floats or decimals."""
    number, p, t = type(p.flat[0]), p.ravel(), t.ravel()
    of_p, of_t, joint = [], [], np.full((bins, bins), number(0))
    for a, b in zip(p, t, strict=True):
        if kind == "gaussian":
            of_p.append(gaussian(a, bins, ratio))
            of_t.append(gaussian(b, bins, ratio))
        else:
            of_p.append(spline(a, min(p), max(p), bins)[0])
            index = spline(b, min(t), max(t), bins)[1]
            of_t.append([number(int(k == index)) for k in range(bins)])
        joint += np.outer(of_p[-1], of_t[-1]) / number(len(p))
    alone = np.outer(sum(map(np.array, of_p)), sum(map(np.array, of_t))) / number(len(p)) ** 2
    nu, delta = number(nu), number(delta)
    return (joint * log((joint + nu) / (alone + delta) + delta)).sum()


@KINDS
@pytest.mark.parametrize(("bins", "ratio", "constant"), [(5, 0.5, 1e-7), (23, 0.5, 1e-3), (8, 2.0, 0.1)])
def test_information_is_that_of_the_histogram(kind, bins, ratio, constant):
    p, t = images(2, 1, 4, 5)
    options = {"num_bins": bins, "sigma_ratio": ratio, "smooth_nr": constant, "smooth_dr": constant / 2}
    expected = [information(*item, bins, ratio, kind, constant, constant / 2) for item in zip(p, t, strict=True)]
    assert np.allclose(mi(p, t, kernel_type=kind, **options), expected, rtol=1e-11)


def test_narrow_windows_count_labels():
    """The mutual information of an image with itself, or with any relabelling of it, is its entropy."""
    x = np.array([[0.0, 0, 0.5, 0.5, 0.5, 0.5, 1, 1]])
    options = {"num_bins": 3, "sigma_ratio": 0.02, **TINY}
    for y in (x, 1 - x):
        assert np.isclose(mi(x, y, **options)[0], 1.5 * np.log(2), rtol=1e-14)


def test_two_intensities_under_splines_by_hand():
    """With 6 bins, voxels lie at 2 and 4, with the weights 1/6, 4/6 and 1/6 around them. Both reach bin 3."""
    x = np.array([[7.0, 7.0, -1.0, -1.0]])
    assert np.isclose(mi(x, x, num_bins=6, **SPLINE, **TINY)[0], 10 / 12 * np.log(2), rtol=1e-14)


def test_five_bins_leave_one_for_the_target():
    p, t = images(1, 1, 9)
    assert abs(mi(p, t, num_bins=5, **SPLINE, **TINY)[0]) < 1e-15


@KINDS
def test_independent_intensities_have_no_information(kind):
    p, t = np.meshgrid(np.linspace(0.1, 0.9, 7), np.linspace(0, 1, 5))
    options = {"kernel_type": kind, "num_bins": 9, **TINY}
    assert abs(mi(p[np.newaxis], t[np.newaxis], **options)[0]) < 1e-14


@KINDS
def test_order_of_voxels_does_not_matter_across_blocks(kind):
    p, t = images(1, 1, 100, 173)
    t = (p + 0.2 * t) / 1.2
    order = np.random.default_rng(1).permutation(p.size)
    shuffled = [a.ravel()[order].reshape(1, 2, 50, 173) for a in (p, t)]
    options = {"kernel_type": kind, "num_bins": 7}
    assert np.isclose(mi(p, t, **options), mi(*shuffled, **options), rtol=1e-12)
    g = global_mutual_information_loss_gradient(p, t, **options)
    h = global_mutual_information_loss_gradient(*shuffled, **options)
    assert np.allclose(g.ravel()[order], h.ravel(), rtol=0, atol=1e-12 * np.abs(g).max())


def test_gaussian_form_is_symmetric_in_the_images():
    p, t = images(2, 1, 30)
    assert np.allclose(mi(p, t), mi(t, p), rtol=1e-13)


def test_gradient_in_the_target_of_the_gaussian_form_is_that_with_the_images_exchanged():
    p, t = images(1, 1, 12)
    direction, _ = images(*t.shape, seed=1)
    along = np.vectorize(lambda s: -mi(p, t + s * direction, num_bins=6).sum())
    found = derivative(along, 0.0, initial_step=0.01)
    exchanged = global_mutual_information_loss_gradient(t, p, num_bins=6, reduction="sum")
    assert np.isclose((exchanged * direction).sum(), found.df, rtol=0, atol=10 * found.error + 1e-12)


def test_target_of_the_spline_form_has_no_slope():
    p, t = images(1, 1, 12)
    inner = np.arange(12) % 2 * 1e-9 * ((t > t.min()) & (t < t.max()))
    assert mi(p, t + inner, **SPLINE) == mi(p, t, **SPLINE)


def test_items_are_independent_and_channels_are_samples():
    p, t = images(3, 2, 4, 5)
    p[1] = 5 * p[1] - 3  # the range of one item does not affect the other
    for options in ({}, SPLINE):
        whole = mi(p, t, **options)
        assert whole.shape == (3,)
        alone = [mi(p[b].reshape(1, -1), t[b].reshape(1, -1), **options)[0] for b in range(3)]
        assert np.array_equal(whole, alone)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_over_items(reduction):
    p, t = images(3, 1, 9)
    got = mi(p, t, reduction=reduction)
    assert got.shape == ()
    assert np.isclose(got, getattr(mi(p, t), reduction)(), rtol=1e-15)


def test_gaussian_intensities_are_clamped():
    p, t = images(1, 1, 8)
    p[0, 0, :4] = [-2, 1.5, 0, 1]
    assert mi(p, t) == mi(np.clip(p, 0, 1), t)
    g = global_mutual_information_loss_gradient(p, t)[0, 0]
    assert np.all(g[:2] == 0)
    assert np.all(g[2:] != 0)  # at 0 and 1 the slope is the one from inside


@pytest.mark.parametrize("voxel", [2, 3])
def test_slope_at_0_and_1_is_that_from_inside(voxel):
    p, t = images(1, 1, 8)
    p[0, 0, 2:4] = [0, 1]
    h = np.zeros_like(p)
    h[0, 0, voxel] = 1e-7 if voxel == 2 else -1e-7
    found = -(mi(p + h, t) - mi(p, t)) / h[0, 0, voxel]
    assert np.isclose(global_mutual_information_loss_gradient(p, t)[0, 0, voxel], found[0], rtol=1e-5)


@pytest.mark.parametrize("ratio", [1e-3, 1e-6])
def test_very_narrow_windows_do_not_vanish(ratio):
    p, t = images(1, 1, 50)
    value = mi(p, t, sigma_ratio=ratio)
    assert 0 < value[0] < np.log(23)
    assert np.isfinite(global_mutual_information_loss_gradient(p, t, sigma_ratio=ratio)).all()


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.0), (0.03, -5.0), (1e4, 1e6)])
def test_splines_are_invariant_to_brightness_and_contrast(a, b):
    p, t = images(1, 1, 40)
    assert np.isclose(mi(a * p + b, t, **SPLINE), mi(p, t, **SPLINE), rtol=1e-9)
    assert np.isclose(mi(p, a * t + b, **SPLINE), mi(p, t, **SPLINE), rtol=1e-9)


def test_gradient_of_splines_is_orthogonal_to_brightness_and_contrast():
    p, t = images(2, 1, 40)
    g = global_mutual_information_loss_gradient(p, t, **SPLINE)
    size = np.abs(g).max()
    assert size > 0
    for along in (g, g * p):
        assert np.abs(along.sum((1, 2))).max() < 1e-13 * size


def test_extreme_voxels_that_tie_share_the_gradient_of_the_range():
    p, t = images(1, 1, 20)
    p[0, 0, :5] = [1.5, 1.5, -0.5, -0.5, -0.5]
    t[0, 0, :5] = t[0, 0, 0]
    g = global_mutual_information_loss_gradient(p, t, **SPLINE)
    assert g[0, 0, 0] == g[0, 0, 1]
    assert g[0, 0, 2] == g[0, 0, 3] == g[0, 0, 4]
    for tied in (p == 1.5, p == -0.5):  # as long as they move together, the value is smooth
        found = derivative(np.vectorize(lambda s, d=tied: -mi(p + s * d, t, **SPLINE).sum()), 0.0, initial_step=0.01)
        assert np.isclose((g * tied).sum(), found.df, rtol=0, atol=10 * found.error + 1e-12)


def test_gradient_covers_the_whole_range():
    """This includes the part between the last bin and the maximum, where the index is clamped but not the position."""
    p = np.linspace(0, 1, 50).reshape(1, 1, -1)
    g = global_mutual_information_loss_gradient(p, p**2, num_bins=8, **SPLINE)
    assert np.all(g[0, 0, 1:-1] != 0)


@KINDS
@pytest.mark.parametrize("flat", [0.0, 0.3, 1.0])
def test_flat_image_has_no_information(kind, flat):
    p, t = images(1, 1, 30)
    constant = np.full_like(p, flat)
    for a, b in ((constant, t), (p, constant), (constant, constant)):
        assert abs(mi(a, b, kernel_type=kind)[0]) < 1e-4
        g = global_mutual_information_loss_gradient(a, b, kernel_type=kind)
        assert np.isfinite(g).all()
    assert not global_mutual_information_loss_gradient(constant, t, **SPLINE).any()


@pytest.mark.parametrize("dtype", [np.longdouble, np.float64, np.float32])
@pytest.mark.parametrize("kind", ["gaussian", "b-spline"])
@pytest.mark.parametrize(("bins", "ratio"), [(5, 0.5), (7, 1.0), (9, 0.3)])
def test_value_and_gradient_have_the_accuracy_of_the_dtype(kind, bins, ratio, dtype):
    p = np.array([[0.1, 0.3, 0.35, 0.62, 0.8, 0.93]], dtype)
    t = np.array([[0.9, 0.7, 0.1, 0.25, 0.05, 0.6]], dtype)
    constants = {"smooth_nr": 2.0**-20, "smooth_dr": 2.0**-18}
    options = {"num_bins": bins, "sigma_ratio": ratio, "kernel_type": kind} | constants
    if kind == "b-spline" and bins == 5:
        bins = options["num_bins"] = 6  # with 5 bins, the target uses only one, and the value is 0

    def truth(p, t):
        return -information(p, t, bins, Decimal(ratio), kind, constants["smooth_nr"], constants["smooth_dr"])

    found = errors(
        lambda p, t: global_mutual_information_loss(p, t, **options),
        lambda p, t: global_mutual_information_loss_gradient(p, t, **options),
        truth,
        p,
        t,
    )
    assert max(found) <= 32
