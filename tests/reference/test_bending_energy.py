"""The reference bending energy, by hand and against differences that are taken axis by axis."""

import itertools
from decimal import Decimal

import numpy as np
import pytest
from decimals import errors

from twinloss.reference import bending_energy_loss, bending_energy_loss_gradient

STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SHAPES = pytest.mark.parametrize("shape", [(2, 1, 7), (1, 2, 5, 6), (2, 3, 5, 7, 6), (1, 2, 5, 5, 5)])


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


@STENCILS
def test_one_row_of_the_gradient_is_the_stencil(stencil):
    u, cotangent = np.arange(8.0).reshape(1, 1, 8) ** 2, np.zeros((1, 1, 6 if stencil == "compact" else 4))
    cotangent[..., 1] = 0.5
    row = {"compact": [0, 1, -2, 1, 0, 0, 0, 0], "wide": [0, 0.25, 0, -0.5, 0, 0.25, 0, 0]}[stencil]
    got = bending_energy_loss_gradient(u, stencil=stencil, reduction="none", cotangent=cotangent)
    assert np.allclose(got.ravel(), 2 * 2 * 0.5 * np.array(row))  # 2 u'' · ½, and u'' = 2


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
