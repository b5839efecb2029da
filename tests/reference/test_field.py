"""Properties that the reference losses of a displacement field share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from twinloss.reference import bending_energy_loss, diffusion_loss

STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])


def positions(sizes, spacing=None):
    """Return the coordinates of the voxel centres, (rank, *sizes)."""
    h = np.ones(len(sizes)) if spacing is None else np.asarray(spacing)
    return (np.indices(sizes) + 0.5) * h.reshape(-1, *[1] * len(sizes))


def quadratic(matrices, x):
    """Return the field with components xᵀAx/2, (1, C, *S), whose second derivatives are A."""
    return np.einsum("cde,d...,e...->c...", np.asarray(matrices, float), x, x)[np.newaxis] / 2


def linear(slopes, x):
    """Return the field with components A x + 1, (1, C, *S)."""
    return np.einsum("cd,d...->c...", np.asarray(slopes, float), x)[np.newaxis] + 1


def symmetric(rank, components, seed=0):
    a = np.random.default_rng(seed).integers(-4, 5, (components, rank, rank))
    return a + a.transpose(0, 2, 1)


def slopes(rank, components):
    return np.random.default_rng(0).integers(-4, 5, (components, rank))


@dataclass(frozen=True)
class OfPolynomial:
    """A loss, and the fields of which every voxel has the same energy.

    Attributes:
        loss: the loss.
        coefficients: makes random derivatives of such a field, (C, …), from the number of axes and of components.
        field: makes the field from these and the coordinates of the voxels; its energy is the sum of their squares.
        margin: by stencil, the number of voxels at each border without an energy.
        checkerboard: the energy of a voxel of a checkerboard of 1 and -1 in two dimensions.
        nan: by stencil, the number of energies that a NaN reaches in two dimensions.
    """

    loss: Callable[..., Any]
    coefficients: Callable[[int, int], Any]
    field: Callable[..., Any]
    margin: dict[str, int]
    checkerboard: float
    nan: dict[str, int]

    def energy(self, coefficients):
        """Return the energy of each component, (1, C)."""
        return (coefficients**2).reshape(1, len(coefficients), -1).sum(2)


BOTH = pytest.mark.parametrize(
    "of",
    [
        OfPolynomial(
            bending_energy_loss,
            symmetric,
            quadratic,
            margin={"compact": 1, "wide": 2},
            checkerboard=16 + 16,  # 1 + 2 + 1 along each axis; the four diagonal neighbours are equal
            nan={"compact": 9, "wide": 9},  # 3 × 3; or 9 with those along the axes at distance 2
        ),
        OfPolynomial(
            diffusion_loss,
            slopes,
            linear,
            margin={"compact": 0, "wide": 1},
            checkerboard=2**2 + 2**2,
            nan={"compact": 5, "wide": 4},
        ),
    ],
    ids=["bending", "diffusion"],
)


@BOTH
@STENCILS
@pytest.mark.parametrize("sizes", [(6,), (5, 6), (5, 6, 7)])
def test_field_with_equal_derivatives_everywhere_has_their_energy_at_every_voxel(of, sizes, stencil):
    a = of.coefficients(len(sizes), 2)
    got = of.loss(of.field(a, positions(sizes)), stencil=stencil, reduction="none")
    assert got.shape == (1, 2, *(n - 2 * of.margin[stencil] for n in sizes))
    assert np.array_equal(got, np.broadcast_to(of.energy(a).reshape(1, 2, *[1] * len(sizes)), got.shape))


@BOTH
def test_checkerboard_has_a_loss_with_the_compact_stencil_only(of):
    u = (-1.0) ** np.indices((6, 7)).sum(0)[np.newaxis, np.newaxis]
    assert of.loss(u) == of.checkerboard
    assert of.loss(u, stencil="wide") == 0


@BOTH
@STENCILS
def test_spacing_makes_derivatives_physical(of, stencil):
    a, h = of.coefficients(3, 3), [0.5, 2.0, 1.25]
    got = of.loss(of.field(a, positions((5, 6, 7), h)), stencil=stencil, spacing=h, reduction="none")
    assert np.allclose(got, of.energy(a).reshape(1, 3, 1, 1, 1), rtol=1e-12)


@BOTH
@STENCILS
@pytest.mark.parametrize("spacing", [None, (1.0, 1.5)])
def test_normalized_loss_does_not_depend_on_the_resolution(of, stencil, spacing):
    """Sample a field over 6 × 8 mm (or voxels) twice as finely along one axis, and three times along the other."""
    h = np.ones(2) if spacing is None else np.asarray(spacing)
    a, finer = of.coefficients(2, 2), np.array([2, 3])
    u, v = of.field(a, positions((6, 8), h)), of.field(a, positions((12, 24), h / finer))
    if spacing is None:  # displacements are in voxels
        v *= finer.reshape(1, 2, 1, 1)
    options = {"stencil": stencil, "normalize": True}
    coarse = of.loss(u, spacing=spacing, **options)
    assert coarse > 0
    got = of.loss(v, spacing=None if spacing is None else (h / finer).tolist(), **options)
    assert np.isclose(got, coarse, rtol=1e-12)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction_is_over_voxels_components_and_items(of, reduction):
    u = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = getattr(of.loss(u, reduction="none"), reduction)()
    got = of.loss(u, reduction=reduction)
    assert got.shape == ()
    assert np.isclose(got, expected, rtol=1e-15)


@BOTH
@STENCILS
def test_nan_stays_within_reach_of_the_stencil(of, stencil):
    u = np.zeros((1, 2, 9, 9))
    u[0, 1, 4, 4] = np.nan
    bad = np.isnan(of.loss(u, stencil=stencil, reduction="none"))
    assert not bad[0, 0].any()
    assert bad[0, 1].sum() == of.nan[stencil]
