"""The fast bending energy: documented behaviour and corner cases."""

import itertools

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, logits, polynomial, value_and_gradient

from twinloss import reference
from twinloss.fast import BendingEnergyLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (5, 7), (5, 6, 7)])
STEP = {"compact": 1, "wide": 2}
SPACING = (0.5, 3.0, 1.25)


def truth(u, **options):
    """The reference's value and the gradient of its sum, in long double."""
    wide = u.numpy().astype(np.longdouble)
    value = np.asarray(reference.bending_energy_loss(wide, **options))
    upstream = np.ones_like(value)
    slope = reference.bending_energy_loss_gradient(wide, cotangent=upstream, **options)
    return tuple(torch.from_numpy(np.asarray(a, np.float64)) for a in (value, slope))


def second(u, d, e, stencil):
    """d2u / (dx_d dx_e) of one component on its interior, by the definition and with NumPy's gradient only if wide."""
    step = STEP[stencil]
    inside = (slice(step, -step),) * u.ndim
    if stencil == "wide":  # central first differences, one after the other
        return np.gradient(np.gradient(u, axis=d), axis=e)[inside]
    near = [np.roll(u, [-i, -j], [d, e]) for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    if d == e:
        return (np.roll(u, -1, d) - 2 * u + np.roll(u, 1, d))[inside]
    return ((near[0] - near[1] - near[2] + near[3]) / 4)[inside]


def by_definition(u, stencil="compact", normalize=False, spacing=None):
    """The energies of the interior voxels of a field (B, C, *S), one derivative after the other."""
    spatial = u.shape[2:]
    h = spacing or (1,) * len(spatial)
    extent = [n * size for n, size in zip(spatial, h, strict=True)]
    energies = []
    for field in u:
        for c, component in enumerate(field):
            energy = 0
            for d, e in itertools.product(range(len(spatial)), repeat=2):  # both orders of a mixed derivative
                factor = extent[d] * extent[e] / extent[c] if normalize else 1
                energy = energy + (factor * second(component, d, e, stencil) / (h[d] * h[e])) ** 2
            energies.append(energy)
    return np.stack(energies).reshape(*u.shape[:2], *energies[0].shape)


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@STENCILS
@SPATIAL
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spaced", [False, True])
def test_loss_is_the_sum_of_all_squared_second_derivatives(form, stencil, spatial, normalize, spaced):
    u = logits(2, len(spatial), *spatial, dtype=torch.float64)
    options = {"stencil": stencil, "normalize": normalize, "spacing": SPACING[: len(spatial)] if spaced else None}
    expected = torch.from_numpy(by_definition(u.numpy(), **options))
    with dispatch.forced(form):
        found = BendingEnergyLoss(reduction="none", **options)(u)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@BACKENDS
@STENCILS
@SPATIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_field_costs_nothing_and_has_no_gradient(form, stencil, spatial, dtype):
    u = polynomial(spatial, lambda *x: 3 + sum((d + 2) * at for d, at in enumerate(x))).to(dtype)
    value, gradient = value_and_gradient(BendingEnergyLoss(stencil=stencil), u, form=form)
    assert value == 0
    assert (gradient == 0).all()


@BACKENDS
@STENCILS
def test_quadratic_field_costs_its_squared_second_derivatives(form, stencil):
    # d2/dx2 = 6, d2/dy2 = -2, d2/dz2 = 4; d2/dxdy = 5, d2/dxdz = 0, d2/dydz = -1: the stencils are exact here.
    u = polynomial((7, 6, 9), lambda x, y, z: 3 * x**2 - y**2 + 2 * z**2 + 5 * x * y - y * z)
    with dispatch.forced(form):
        energies = BendingEnergyLoss(stencil=stencil, reduction="none")(u)
    expected = 6.0**2 + 2.0**2 + 4.0**2 + 2 * (5.0**2 + 1.0**2)
    torch.testing.assert_close(energies, torch.full_like(energies, expected), rtol=1e-13, atol=0)


@BACKENDS
def test_checkerboard_costs_something_unless_the_stencil_is_wide(form):
    u = polynomial((6, 7, 8), lambda *x: (-1) ** sum(x))
    with dispatch.forced(form):
        # Each of three pure differences is 4, each mixed one 0.
        assert BendingEnergyLoss()(u) == 3 * 4**2
        assert BendingEnergyLoss(stencil="wide")(u) == 0


@BACKENDS
@pytest.mark.parametrize("size", [0.5, 2.0])
def test_spacing_divides_each_second_derivative_by_two_voxel_sizes(form, size):
    u = logits(1, 2, 5, 6, dtype=torch.float64)
    with dispatch.forced(form):
        value = BendingEnergyLoss(spacing=[size, size])(u)
        torch.testing.assert_close(value, BendingEnergyLoss()(u) / size**4, rtol=1e-13, atol=0)


@BACKENDS
@STENCILS
def test_anisotropic_spacing_measures_the_same_physical_field_alike(form, stencil):
    # x^2 + x y + y^2 of positions in mm: the derivatives do not depend on how the field is sampled.
    loss, h = BendingEnergyLoss(stencil=stencil, spacing=(0.5, 3.0)), (0.5, 3.0)
    u = polynomial((7, 8), lambda x, y: (h[0] * x) ** 2 + (h[0] * x) * (h[1] * y) + (h[1] * y) ** 2)
    with dispatch.forced(form):
        torch.testing.assert_close(loss(u).item(), 2.0**2 + 2.0**2 + 2 * 1.0**2, rtol=1e-12, atol=0)


@BACKENDS
@pytest.mark.parametrize("spacing", [None, (0.5, 3.0)])
def test_normalized_energy_does_not_hang_on_the_sampling(form, spacing):
    # u_c = S_c h_c q_c(position / extent): one deformation of the unit square, sampled twice. Its second derivatives
    # are (2, 0, 6) of component 0 and (2, 2, 0) of component 1, mixed one in the middle.
    expected = ((2**2 + 2 * 0 + 6**2) + (2**2 + 2 * 2**2 + 0)) / 2
    for spatial in ((8, 8), (10, 32)):
        extent = [n * h for n, h in zip(spatial, spacing or (1, 1), strict=True)]
        first = polynomial(spatial, lambda x, y, s=spatial: (x / s[0]) ** 2 + 3 * (y / s[1]) ** 2)
        second_ = polynomial(spatial, lambda x, y, s=spatial: (x / s[0]) ** 2 + 2 * (x / s[0]) * (y / s[1]))
        u = torch.cat([first * extent[0], second_ * extent[1]], 1)
        with dispatch.forced(form):
            value = BendingEnergyLoss(normalize=True, spacing=spacing)(u)
        torch.testing.assert_close(value.item(), expected, rtol=1e-9, atol=0)


@BACKENDS
@STENCILS
@SPATIAL
def test_none_covers_the_interior_and_mean_and_sum_reduce_it(form, stencil, spatial):
    u = logits(2, 3, *spatial, dtype=torch.float64)
    with dispatch.forced(form):
        none, mean, total = (BendingEnergyLoss(r, stencil=stencil)(u) for r in ("none", "mean", "sum"))
    assert none.shape == (2, 3, *(n - 2 * STEP[stencil] for n in spatial))
    torch.testing.assert_close(mean, none.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total, none.sum(), rtol=1e-13, atol=0)


@BACKENDS
@STENCILS
@SPATIAL
def test_field_of_the_least_size_has_one_interior_voxel(form, stencil, spatial):
    least = [2 * STEP[stencil] + 1] * len(spatial)
    u = logits(1, 2, *least, dtype=torch.float64)
    loss = BendingEnergyLoss("none", stencil=stencil)
    found = value_and_gradient(loss, u, form=form)
    assert found[0].shape == (1, 2, *[1] * len(spatial))
    assert_all_close(found, truth(u, reduction="none", stencil=stencil), 1e-13, 1e-13)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("normalize", [False, True])
def test_compact_stencil_is_what_monai_1_6_computes(normalize):
    monai = pytest.importorskip("monai.losses")
    u = logits(2, 3, 6, 7, 8, dtype=torch.float64)
    expected = value_and_gradient(monai.BendingEnergyLoss(normalize=normalize), u)
    found = value_and_gradient(BendingEnergyLoss(normalize=normalize), u)
    assert_all_close(found, expected, 1e-6, 1e-6)  # their ratios of extents are float32


# --- errors ----------------------------------------------------------------------------------------------------------


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
def test_patch_of_a_float16_field_that_is_nearly_all_background_keeps_its_energy(form):
    u = torch.zeros(1, 3, 40, 40, 40, dtype=torch.float16)
    u[0, 1, 20, 20, 20] = 0.25
    value, gradient = value_and_gradient(BendingEnergyLoss("sum"), u, form=form)
    # One voxel: 1, 4, 1 by three axes, and four corners of 1/16 in each of three planes, counted twice; times 1/16.
    torch.testing.assert_close(value.item(), (3 * 6 + 2 * 3 * 4 / 16) / 16, rtol=1e-3, atol=0)
    assert (gradient[:, [0, 2]] == 0).all()
    assert gradient[0, 1].count_nonzero() > 0


@BACKENDS
def test_large_offset_does_not_spoil_a_small_bend(form):
    bend = logits(1, 1, 8, 9, 10, dtype=torch.float64) / 64
    u = (bend + 1024).float()  # what is left of the bend is exact
    left = u.double() - 1024
    value, gradient = value_and_gradient(BendingEnergyLoss(), u, form=form)
    expected = value_and_gradient(BendingEnergyLoss(), left, form="plain")
    assert_all_close((value,), expected[:1], 1e-6)
    assert_all_close((gradient,), expected[1:], 0, 1e-6 * expected[1].abs().max().item())


# --- differentiation -------------------------------------------------------------------------------------------------


# --- layouts, threads, state -----------------------------------------------------------------------------------------
