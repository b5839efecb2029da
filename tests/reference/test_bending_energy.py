"""The reference bending energy, by hand and against differences that are taken axis by axis."""

import itertools
from decimal import Decimal

import numpy as np
import pytest
from decimals import errors

from twinloss.reference import bending_energy_loss, bending_energy_loss_gradient

STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SHAPES = pytest.mark.parametrize("shape", [(2, 1, 7), (1, 2, 5, 6), (2, 3, 5, 7, 6), (1, 2, 5, 5, 5)])


def positions(sizes, spacing=None):
    """Return the coordinates of the voxel centres, (rank, *sizes)."""
    h = np.ones(len(sizes)) if spacing is None else np.asarray(spacing)
    return (np.indices(sizes) + 0.5) * h.reshape(-1, *[1] * len(sizes))


def quadratic(matrices, x):
    """Return the field with components xᵀAx/2, (1, C, *S), whose second derivatives are A."""
    return np.einsum("cde,d...,e...->c...", np.asarray(matrices, float), x, x)[np.newaxis] / 2


def symmetric(rank, components, seed=0):
    a = np.random.default_rng(seed).integers(-4, 5, (components, rank, rank))
    return a + a.transpose(0, 2, 1)


def step(u, axis):
    """Return the central difference, which is one voxel shorter at each end."""
    u = np.moveaxis(u, axis + 2, 0)
    return np.moveaxis((u[2:] - u[:-2]) / 2, 0, axis + 2)


def inside(u, shape):
    """Return the middle of an array, which has the given shape."""
    for axis, n in enumerate(shape):
        margin = (u.shape[axis] - n) // 2
        u = u.take(range(margin, u.shape[axis] - margin), axis)
    return u


def energies(u, stencil="compact", normalize=False, spacing=None):
    """Return the energy of each component and voxel, in floats or decimals."""
    rank, number = u.ndim - 2, type(u.flat[0])
    h = [number(1)] * rank if spacing is None else [number(v) for v in spacing]
    margin = 1 if stencil == "compact" else 2
    shape = (*u.shape[:2], *(n - 2 * margin for n in u.shape[2:]))
    if normalize:  # positions and displacements are in units of the extent of the grid
        u = np.stack([u[:, c] / (number(u.shape[c + 2]) * h[c]) for c in range(rank)], axis=1)
        h = [1 / number(n) for n in u.shape[2:]]
    total = 0
    for d, e in itertools.product(range(rank), repeat=2):  # each mixed derivative occurs twice
        if d == e and stencil == "compact":
            second = np.diff(u, 2, axis=d + 2)
        else:
            second = step(step(u, d), e)
        total = total + (inside(second, shape) / (h[d] * h[e])) ** 2
    return total


@STENCILS
@SHAPES
def test_affine_field_has_no_loss(shape, stencil):
    rng = np.random.default_rng(0)
    slopes = rng.integers(-3, 4, (*shape[:2], len(shape) - 2))
    u = np.einsum("bcd,d...->bc...", slopes, np.indices(shape[2:])) + 0.5
    assert bending_energy_loss(u, stencil=stencil) == 0
    assert not bending_energy_loss_gradient(u, stencil=stencil).any()


@STENCILS
@pytest.mark.parametrize("sizes", [(6,), (5, 6), (5, 6, 7)])
def test_quadratic_field_has_the_energy_of_its_second_derivatives(sizes, stencil):
    a = symmetric(len(sizes), 2)
    got = bending_energy_loss(quadratic(a, positions(sizes)), stencil=stencil, reduction="none")
    margin = 1 if stencil == "compact" else 2
    assert got.shape == (1, 2, *(n - 2 * margin for n in sizes))
    expected = (a**2).sum((1, 2)).reshape(1, 2, *[1] * len(sizes))
    assert np.array_equal(got, np.broadcast_to(expected, got.shape))


def test_checkerboard_has_a_loss_with_the_compact_stencil_only():
    u = (-1.0) ** np.indices((6, 7)).sum(0)[np.newaxis, np.newaxis]
    # 1 + 2 + 1 along each axis; the four diagonal neighbours are equal.
    assert bending_energy_loss(u) == 16 + 16
    assert bending_energy_loss(u, stencil="wide") == 0


@pytest.mark.parametrize(
    ("stencil", "u", "expected"),
    [
        ("compact", [6, 0, 0, 0, 0], [36, 0, 0]),  # 6 − 2 · 0 + 0
        ("wide", [6, 0, 0, 0, 0, 0, 6], [2.25, 0, 2.25]),  # (6 − 2 · 0 + 0)/4, two voxels off
    ],
)
def test_row_by_hand(stencil, u, expected):
    got = bending_energy_loss(np.array([[u]], float), stencil=stencil, reduction="none")
    assert got.tolist() == [[expected]]


def test_mixed_derivative_counts_twice():
    u = np.zeros((1, 1, 3, 3))
    u[..., 2, 2] = 4
    assert bending_energy_loss(u) == 2 * 1**2


@STENCILS
@SHAPES
@pytest.mark.parametrize("spacing", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("normalize", [False, True])
def test_energy_is_that_of_differences_axis_by_axis(shape, stencil, spacing, normalize):
    rank = len(shape) - 2
    components = rank if normalize else shape[1] + 1
    u = np.random.default_rng(0).normal(size=(shape[0], components, *shape[2:]))
    options = {"stencil": stencil, "spacing": spacing and spacing[:rank], "normalize": normalize}
    assert np.allclose(bending_energy_loss(u, reduction="none", **options), energies(u, **options), rtol=1e-12)


@STENCILS
def test_spacing_makes_derivatives_physical(stencil):
    a, h = symmetric(3, 3), [0.5, 2.0, 1.25]
    got = bending_energy_loss(quadratic(a, positions((5, 6, 7), h)), stencil=stencil, spacing=h, reduction="none")
    assert np.allclose(got, (a**2).sum((1, 2)).reshape(1, 3, 1, 1, 1), rtol=1e-12)


@STENCILS
@pytest.mark.parametrize("spacing", [None, (1.0, 1.5)])
def test_normalized_energy_does_not_depend_on_the_resolution(stencil, spacing):
    """Sample a field over 6 × 8 mm (or voxels) twice as finely along one axis, and three times along the other."""
    h = np.ones(2) if spacing is None else np.asarray(spacing)
    a, finer = symmetric(2, 2), np.array([2, 3])
    x = positions((6, 8), h)
    fine = positions((12, 24), h / finer)
    u, v = quadratic(a, x), quadratic(a, fine)
    if spacing is None:  # displacements are in voxels
        v *= finer.reshape(1, 2, 1, 1)
    options = {"stencil": stencil, "normalize": True}
    coarse = bending_energy_loss(u, spacing=spacing, **options)
    assert coarse > 0
    got = bending_energy_loss(v, spacing=None if spacing is None else (h / finer).tolist(), **options)
    assert np.isclose(got, coarse, rtol=1e-12)


@STENCILS
def test_normalized_energy_does_not_depend_on_the_unit_of_length(stencil):
    u, h = np.random.default_rng(0).normal(size=(1, 3, 5, 6, 7)), np.array([0.5, 2.0, 1.25])
    in_voxels = bending_energy_loss(u, stencil=stencil, normalize=True)
    in_mm = bending_energy_loss(u * h.reshape(3, 1, 1, 1), stencil=stencil, normalize=True, spacing=h.tolist())
    assert np.isclose(in_mm, in_voxels, rtol=1e-13)


def test_normalized_energy_by_hand():
    u = np.zeros((1, 2, 3, 5))
    u[0, :, 1, 2] = 1
    # For u/3 and v/5, ∂²/∂x² is −2 · 3 · 3 and ∂²/∂y² is −2 · 5 · 5. Mixed differences do not reach the middle voxel.
    middle = bending_energy_loss(u, normalize=True, reduction="none")[0, :, 0, 1]
    assert np.allclose(middle, [(18 / 3) ** 2 + (50 / 3) ** 2, (18 / 5) ** 2 + (50 / 5) ** 2], rtol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_over_voxels_components_and_items(reduction):
    u = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = getattr(bending_energy_loss(u, reduction="none"), reduction)()
    got = bending_energy_loss(u, reduction=reduction)
    assert got.shape == ()
    assert np.isclose(got, expected, rtol=1e-15)


@STENCILS
def test_one_row_of_the_gradient_is_the_stencil(stencil):
    u, cotangent = np.arange(8.0).reshape(1, 1, 8) ** 2, np.zeros((1, 1, 6 if stencil == "compact" else 4))
    cotangent[..., 1] = 0.5
    row = {"compact": [0, 1, -2, 1, 0, 0, 0, 0], "wide": [0, 0.25, 0, -0.5, 0, 0.25, 0, 0]}[stencil]
    got = bending_energy_loss_gradient(u, stencil=stencil, reduction="none", cotangent=cotangent)
    assert np.allclose(got.ravel(), 2 * 2 * 0.5 * np.array(row))  # 2 u'' · ½, and u'' = 2


@STENCILS
def test_nan_stays_within_reach_of_the_stencil(stencil):
    u = np.zeros((1, 2, 9, 9))
    u[0, 1, 4, 4] = np.nan
    bad = np.isnan(bending_energy_loss(u, stencil=stencil, reduction="none"))
    assert not bad[0, 0].any()
    assert bad[0, 1].sum() == 9  # compact: 3 × 3; wide: also 9, with those along the axes at distance 2


@pytest.mark.parametrize("dtype", [np.longdouble, np.float64, np.float32])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 1, 7), {"spacing": [0.3]}),
        ((1, 2, 3, 4), {}),
        ((1, 2, 5, 6), {"stencil": "wide", "normalize": True}),
        ((1, 2, 4, 3), {"normalize": True, "spacing": [0.7, 1.5]}),
    ],
)
def test_value_and_gradient_have_the_accuracy_of_the_dtype(shape, options, dtype):
    u = np.random.default_rng(0).normal(size=shape).astype(dtype)

    def truth(u):
        e = energies(u, **options)
        return e.sum() / Decimal(e.size)

    found = errors(
        lambda u: bending_energy_loss(u, **options), lambda u: bending_energy_loss_gradient(u, **options), truth, u
    )
    assert max(found) <= 8
