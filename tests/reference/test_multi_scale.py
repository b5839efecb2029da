"""The reference multi-scale wrapper: its kernels by hand, and its sums as loops."""

import itertools
from decimal import Decimal

import numpy as np
import pytest
from decimals import PI, errors
from scipy.differentiate import derivative

from twinloss.reference import (
    local_normalized_cross_correlation_loss,
    local_normalized_cross_correlation_loss_gradient,
    multi_scale_loss,
    multi_scale_loss_gradient,
)

KERNELS = pytest.mark.parametrize("kernel", ["gaussian", "cauchy"])


def images(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape)


def squares(p, t):
    return np.asarray(((p - t) ** 2).mean())


def squares_gradient(p, t, cotangent):
    return 2 * cotangent * (p - t) / p.dtype.type(p.size)


def smoothed(image, sigma, **options):
    """Return the images that the wrapped loss gets."""
    zero = np.zeros_like(image)
    return multi_scale_loss(zero, image, lambda p, t: p, scales=[sigma], reduction="none", **options)[0]


def samples(sigma, kernel="gaussian", normalize=False, number=float, pi=np.pi):
    """Return the kernel along an axis."""
    s, reach = number(sigma), int(3 * sigma + 0.5) if kernel == "gaussian" else int(5 * sigma)
    steps = [number(j) for j in range(-reach, reach + 1)]
    if kernel == "gaussian":
        k = [np.exp(-(j**2) / (2 * s**2)) / (s * np.sqrt(2 * pi)) for j in steps]
    else:
        k = [1 / ((j / s) ** 2 + 1) for j in steps]
    return [v / sum(k) for v in k] if normalize or kernel == "cauchy" else k


def by_hand(image, k):
    """Return the correlation with k along all spatial axes, voxel by voxel."""
    made, reach = np.empty_like(image), len(k) // 2
    for i in np.ndindex(image.shape):
        made[i] = type(image.flat[0])(0)
        for offset in itertools.product(range(-reach, reach + 1), repeat=image.ndim - 2):
            at = [v + j for v, j in zip(i[2:], offset, strict=True)]
            if all(0 <= v < n for v, n in zip(at, image.shape[2:], strict=True)):
                made[i] += image[(*i[:2], *at)] * np.prod([k[j + reach] for j in offset])
    return made


@KERNELS
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1, 1.2])
@pytest.mark.parametrize("normalize", [False, True])
def test_smoothed_point_is_the_kernel(kernel, sigma, normalize):
    point = np.zeros((1, 1, 15, 13, 14))
    point[0, 0, 7, 6, 7] = 1
    k = np.array(samples(sigma, kernel, normalize))
    expected, r = np.zeros_like(point), len(k) // 2
    whole = np.einsum("i,j,k->ijk", k, k, k)
    expected[0, 0, 7 - r : 8 + r, 6 - r : 7 + r, 7 - r : 8 + r] = whole
    assert np.allclose(smoothed(point, sigma, kernel=kernel, normalize_kernel=normalize), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("sigma", "kernel", "reach"),
    [(1, "gaussian", 3), (0.8, "gaussian", 2), (0.16, "gaussian", 0), (1.2, "cauchy", 6), (0.19, "cauchy", 0)],
)
def test_reach(sigma, kernel, reach):
    point = np.zeros((1, 1, 21))
    point[0, 0, 10] = 1
    assert np.flatnonzero(smoothed(point, sigma, kernel=kernel)).tolist() == list(range(10 - reach, 11 + reach))


def test_sum_of_the_samples():
    """The samples of a narrow Gaussian do not sum to 1, which is why `normalize_kernel` exists."""
    ones = np.ones((1, 1, 31))
    middle = {s: smoothed(ones, s)[0, 0, 15] for s in (0.3, 0.5, 2)}
    assert middle[0.3] == pytest.approx(1.34, abs=0.005)
    assert middle[0.5] == pytest.approx(1, abs=0.02)
    assert middle[2] == pytest.approx(1, abs=0.003)
    for options in ({"normalize_kernel": True}, {"kernel": "cauchy"}):
        assert np.isclose(smoothed(ones, 0.3, **options)[0, 0, 15], 1, rtol=1e-15)


@KERNELS
@pytest.mark.parametrize("shape", [(2, 2, 9), (1, 2, 4, 5), (1, 1, 2, 3, 1)])
def test_images_are_smoothed_and_are_0_beyond_their_borders(shape, kernel):
    p, t = images(*shape)
    k = samples(0.8, kernel)
    got = multi_scale_loss(t, p, lambda p, t: p - 2 * t, scales=[0.8], kernel=kernel, reduction="none")
    assert np.allclose(got[0], by_hand(p, k) - 2 * by_hand(t, k), rtol=1e-12, atol=1e-14)


def test_loss_gets_the_prediction_first_once_for_each_scale():
    p, t = images(1, 1, 7)
    seen = []

    def loss(y_pred, y_true):
        seen.append((y_pred, y_true))
        return squares(y_pred, y_true)

    got = multi_scale_loss(t, p, loss, scales=[0, 1, 0.3], reduction="none")
    assert len(seen) == 3
    assert np.array_equal(seen[0][0], p)
    assert np.array_equal(seen[0][1], t)
    assert got.tolist() == [squares(*pair) for pair in seen]


def test_without_scales_it_is_the_loss():
    p, t = images(2, 3, 7)
    by_voxel = multi_scale_loss(t, p, lambda p, t: p - t, reduction="none")
    assert np.array_equal(by_voxel, p - t)
    for scales in (None, [0]):
        assert multi_scale_loss(t, p, squares, scales=scales) == squares(p, t)
        g = multi_scale_loss_gradient(t, p, squares, squares_gradient, scales=scales)
        assert np.array_equal(g, squares_gradient(p, t, 1.0))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_over_the_stack(reduction):
    p, t = images(2, 1, 6)
    stack = multi_scale_loss(t, p, lambda p, t: (p - t) ** 2, scales=[0, 1, 2], reduction="none")
    assert stack.shape == (3, *p.shape)
    got = multi_scale_loss(t, p, lambda p, t: (p - t) ** 2, scales=[0, 1, 2], reduction=reduction)
    assert np.isclose(got, getattr(stack, reduction)(), rtol=1e-14)


@KERNELS
@pytest.mark.parametrize("scales", [None, [0, 1], [0.3, 1.5]])
def test_losses_of_voxels_lead_back_to_the_images(kernel, scales):
    p, t = images(1, 2, 5, 6)
    lncc = {"kernel_type": "triangular", "reduction": "none"}
    options = {"scales": scales, "kernel": kernel, "reduction": "none"}

    def loss(p, t):
        return local_normalized_cross_correlation_loss(p, t, **lncc)

    def gradient(p, t, cotangent):
        return local_normalized_cross_correlation_loss_gradient(p, t, cotangent=cotangent, **lncc)

    cotangent = np.random.default_rng(1).normal(size=multi_scale_loss(t, p, loss, **options).shape)
    direction, _ = images(*p.shape, seed=2)
    along = np.vectorize(lambda s: (cotangent * multi_scale_loss(t, p + s * direction, loss, **options)).sum())
    found = derivative(along, 0.0, initial_step=0.05)
    g = multi_scale_loss_gradient(t, p, loss, gradient, cotangent=cotangent, **options)
    assert np.isclose((g * direction).sum(), found.df, rtol=0, atol=10 * found.error + 1e-11)


def test_lncc_of_equal_images_is_perfect_at_all_scales():
    t, _ = images(1, 1, 6, 7)
    got = multi_scale_loss(
        t,
        2 * t,
        lambda p, t: local_normalized_cross_correlation_loss(p, t, smooth_nr=0, smooth_dr=0),
        scales=[0, 1, 2],
        reduction="none",
    )
    assert np.allclose(got, -1, rtol=1e-13)


@KERNELS
@pytest.mark.parametrize("dtype", [np.longdouble, np.float64, np.float32])
@pytest.mark.parametrize(("shape", "normalize"), [((1, 1, 7), False), ((1, 2, 3, 2), True)])
def test_value_and_gradient_have_the_accuracy_of_the_dtype(shape, normalize, kernel, dtype):
    p, t = (a.astype(dtype) for a in images(*shape))
    scales = [0, 0.3, 1.1]
    options = {"scales": scales, "kernel": kernel, "normalize_kernel": normalize}

    def truth(p, t):
        losses = [((p - t) ** 2).sum()]
        for sigma in scales[1:]:
            k = samples(sigma, kernel, normalize, Decimal, PI)
            losses.append(((by_hand(p, k) - by_hand(t, k)) ** 2).sum())
        return sum(losses) / (3 * p.size)

    found = errors(
        lambda p, t: multi_scale_loss(t, p, squares, **options),
        lambda p, t: multi_scale_loss_gradient(t, p, squares, squares_gradient, **options),
        truth,
        p,
        t,
    )
    assert max(found) <= 16
