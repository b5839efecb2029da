"""The reference diffusion loss, by hand and against differences that are taken voxel by voxel."""

from decimal import Decimal

import numpy as np
import pytest
from decimals import errors

from twinloss.reference import diffusion_loss, diffusion_loss_gradient

STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SHAPES = pytest.mark.parametrize("shape", [(2, 1, 7), (1, 2, 3, 6), (2, 3, 3, 7, 4), (1, 2, 3, 3, 3)])


def energies(u, stencil="compact", normalize=False, spacing=None):
    """Return the energy of each component and voxel, in floats or decimals, with a loop over voxels and neighbours."""
    sizes, number = u.shape[2:], type(u.flat[0])
    h = [number(1)] * len(sizes) if spacing is None else [number(v) for v in spacing]
    extent = [number(n) * size for n, size in zip(sizes, h, strict=True)]
    margin = 0 if stencil == "compact" else 1
    made = np.empty((*u.shape[:2], *(n - 2 * margin for n in sizes)), u.dtype)
    for b, c, *i in np.ndindex(made.shape):
        at, total = np.array(i) + margin, number(0)
        for d, n in enumerate(sizes):
            a = 1 / h[d] * (extent[d] / extent[c] if normalize else 1)
            near = [at + step * (np.arange(len(sizes)) == d) for step in (-1, 1) if 0 <= at[d] + step < n]
            field = u[b, c]
            if stencil == "wide":
                squares = [(a * (field[tuple(near[1])] - field[tuple(near[0])]) / 2) ** 2]
            else:
                squares = [(a * (field[tuple(j)] - field[tuple(at)])) ** 2 for j in near]
            total += sum(squares) / len(squares)
        made[(b, c, *i)] = total
    return made


@STENCILS
@SHAPES
def test_translation_has_no_loss(shape, stencil):
    u = np.full(shape, 2.5)
    assert diffusion_loss(u, stencil=stencil) == 0
    assert not diffusion_loss_gradient(u, stencil=stencil).any()


@pytest.mark.parametrize(
    ("stencil", "u", "expected"),
    [
        ("compact", [6, 0, 0, 2], [36, 18, 2, 4]),  # one neighbour at a border, the mean of two elsewhere
        ("compact", [1, 4], [9, 9]),
        ("wide", [6, 0, 0, 2], [9, 1]),  # (6/2)², (2/2)²
    ],
)
def test_row_by_hand(stencil, u, expected):
    got = diffusion_loss(np.array([[u]], float), stencil=stencil, reduction="none")
    assert got.tolist() == [[expected]]


def test_forward_differences_are_those_of_the_paper_except_at_the_border():
    """On a field that is flat at the border, the sum is VoxelMorph's sum over all pairs of neighbours."""
    u = np.zeros((1, 2, 6, 7))
    u[..., 2:-2, 2:-2] = np.random.default_rng(0).normal(size=(2, 2, 3))
    pairs = sum((np.diff(u, axis=axis) ** 2).sum() for axis in (2, 3))
    assert np.isclose(diffusion_loss(u, reduction="sum"), pairs, rtol=1e-15)


@STENCILS
@SHAPES
@pytest.mark.parametrize("spacing", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("normalize", [False, True])
def test_energy_is_that_of_differences_voxel_by_voxel(shape, stencil, spacing, normalize):
    rank = len(shape) - 2
    components = rank if normalize else shape[1] + 1
    u = np.random.default_rng(0).normal(size=(shape[0], components, *shape[2:]))
    options = {"stencil": stencil, "spacing": spacing and spacing[:rank], "normalize": normalize}
    assert np.allclose(diffusion_loss(u, reduction="none", **options), energies(u, **options), rtol=1e-13)


def test_normalized_loss_by_hand():
    u = np.broadcast_to(np.indices((3, 5)).sum(0), (1, 2, 3, 5)).astype(float)  # both components are x + y
    # The derivatives of u/3 and v/5 with respect to x/3 and y/5.
    got = diffusion_loss(u, normalize=True, reduction="none")[0, :, 1, 1]
    assert np.allclose(got, [1 + (5 / 3) ** 2, (3 / 5) ** 2 + 1], rtol=1e-14)


@pytest.mark.parametrize(
    ("stencil", "at", "expected"),
    [
        ("compact", 2, [0, -3, 3 - 5, 5, 0]),  # (3² + 5²)/2, with 4 − 1 and 9 − 4
        ("compact", 0, [-2, 2, 0, 0, 0]),  # 1², from its only neighbour
        ("wide", 1, [0, -4, 0, 4, 0]),  # ((9 − 1)/2)², two voxels from the first
    ],
)
def test_row_of_the_gradient_by_hand(stencil, at, expected):
    u = np.arange(5.0).reshape(1, 1, 5) ** 2
    cotangent = np.zeros((1, 1, 5 if stencil == "compact" else 3))
    cotangent[..., at] = 1
    got = diffusion_loss_gradient(u, reduction="none", stencil=stencil, cotangent=cotangent)
    assert got.tolist() == [[expected]]


def test_every_voxel_contributes_to_the_compact_loss():
    """Moving a single voxel, even in a corner, has a loss, and the gradient points back."""
    for place in np.ndindex(3, 3, 3):
        u = np.zeros((1, 1, 3, 3, 3))
        u[(0, 0, *place)] = 1
        assert diffusion_loss(u) > 0
        assert diffusion_loss_gradient(u)[(0, 0, *place)] > 0
    corner = np.zeros((1, 1, 3, 3, 3))
    corner[..., 0, 0, 0] = 1
    assert diffusion_loss(corner, stencil="wide") == 0


@pytest.mark.parametrize("dtype", [np.longdouble, np.float64, np.float32])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 1, 7), {"spacing": [0.3]}),
        ((1, 2, 2, 4), {}),
        ((1, 2, 5, 6), {"stencil": "wide", "normalize": True}),
        ((1, 2, 4, 3), {"normalize": True, "spacing": [0.7, 1.5]}),
    ],
)
def test_value_and_gradient_have_the_accuracy_of_the_dtype(shape, options, dtype):
    u = np.random.default_rng(0).normal(size=shape).astype(dtype)

    def truth(u):
        e = energies(u, **options)
        return e.sum() / Decimal(e.size)

    found = errors(lambda u: diffusion_loss(u, **options), lambda u: diffusion_loss_gradient(u, **options), truth, u)
    assert max(found) <= 8
