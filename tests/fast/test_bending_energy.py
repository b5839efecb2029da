"""The fast bending energy: documented behaviour and corner cases."""

import pytest
import torch
from support import BACKENDS, assert_all_close, logits, polynomial, value_and_gradient

from twinloss.fast import BendingEnergyLoss
from twinloss.fast.runtime import dispatch

STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (5, 7), (5, 6, 7)])


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
@STENCILS
def test_anisotropic_spacing_measures_the_same_physical_field_alike(form, stencil):
    # x^2 + x y + y^2 of positions in mm: the derivatives do not depend on how the field is sampled.
    loss, h = BendingEnergyLoss(stencil=stencil, spacing=(0.5, 3.0)), (0.5, 3.0)
    u = polynomial((7, 8), lambda x, y: (h[0] * x) ** 2 + (h[0] * x) * (h[1] * y) + (h[1] * y) ** 2)
    with dispatch.forced(form):
        torch.testing.assert_close(loss(u).item(), 2.0**2 + 2.0**2 + 2 * 1.0**2, rtol=1e-12, atol=0)


@BACKENDS
@pytest.mark.parametrize("spacing", [None, (0.5, 3.0)])
def test_normalized_energy_does_not_depend_on_the_sampling(form, spacing):
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


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("normalize", [False, True])
def test_compact_stencil_is_what_monai_1_6_computes(normalize):
    monai = pytest.importorskip("monai.losses")
    u = logits(2, 3, 6, 7, 8, dtype=torch.float64)
    expected = value_and_gradient(monai.BendingEnergyLoss(normalize=normalize), u)
    found = value_and_gradient(BendingEnergyLoss(normalize=normalize), u)
    assert_all_close(found, expected, 1e-6, 1e-6)  # their ratios of extents are float32
