"""The fast diffusion loss: documented behaviour and corner cases."""

import itertools

import pytest
import torch
from support import BACKENDS, assert_all_close, logits, polynomial, value_and_gradient

from twinloss.fast import DiffusionLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (3, 7), (5, 3, 6)])


@BACKENDS
@STENCILS
@SPATIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_translation_costs_nothing_and_has_no_gradient(form, stencil, spatial, dtype):
    u = torch.full((1, 2, *spatial), 0.3, dtype=dtype)
    value, gradient = value_and_gradient(DiffusionLoss(stencil=stencil), u, form=form)
    assert value == 0
    assert (gradient == 0).all()


@BACKENDS
@STENCILS
def test_linear_field_costs_its_squared_slopes(form, stencil):
    u = polynomial((7, 4, 9), lambda x, y, z: 3 * x - y + 2 * z + 5)
    with dispatch.forced(form):
        energies = DiffusionLoss(stencil=stencil, reduction="none")(u)
    torch.testing.assert_close(energies, torch.full_like(energies, 3.0**2 + 1.0**2 + 2.0**2), rtol=0, atol=0)


@BACKENDS
def test_no_voxel_is_free_unless_the_stencil_is_wide(form):
    for place in itertools.product((0, 1, 3), (0, 2), (0, 1, 4)):
        u = torch.zeros(1, 1, 4, 3, 5)
        u[(0, 0, *place)] = 1
        value, gradient = value_and_gradient(DiffusionLoss(), u, form=form)
        assert value > 0
        assert gradient[(0, 0, *place)] > 0
    corner = torch.zeros(1, 1, 4, 3, 5)
    corner[..., -1, -1, -1] = 1
    assert value_and_gradient(DiffusionLoss(stencil="wide"), corner, form=form)[0] == 0


@BACKENDS
@STENCILS
def test_anisotropic_spacing_measures_the_same_physical_field_alike(form, stencil):
    h = (0.5, 3.0)
    u = polynomial((7, 8), lambda x, y: 2 * (h[0] * x) - 3 * (h[1] * y))
    with dispatch.forced(form):
        value = DiffusionLoss(stencil=stencil, spacing=h)(u)
    torch.testing.assert_close(value.item(), 2.0**2 + 3.0**2, rtol=1e-12, atol=0)


@BACKENDS
@pytest.mark.parametrize("spacing", [None, (0.5, 3.0)])
def test_normalized_loss_does_not_depend_on_the_sampling(form, spacing):
    # u_c = extent_c q_c(position / extent): one deformation of the unit square, sampled twice, with slopes 1, 3; 2, -1.
    for spatial in ((8, 8), (10, 32)):
        extent = [n * h for n, h in zip(spatial, spacing or (1, 1), strict=True)]
        first = polynomial(spatial, lambda x, y, s=spatial: x / s[0] + 3 * y / s[1])
        second = polynomial(spatial, lambda x, y, s=spatial: 2 * x / s[0] - y / s[1])
        u = torch.cat([first * extent[0], second * extent[1]], 1)
        with dispatch.forced(form):
            value = DiffusionLoss(True, spacing=spacing)(u)
        torch.testing.assert_close(value.item(), (1**2 + 3**2 + 2**2 + 1**2) / 2, rtol=1e-12, atol=0)


@REDUCTIONS
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("normalize", [False, True])
def test_wide_stencil_is_what_monai_computes(reduction, normalize):
    monai = pytest.importorskip("monai.losses")
    u = logits(2, 3, 6, 7, 8, dtype=torch.float64)
    expected = value_and_gradient(monai.DiffusionLoss(normalize, reduction), u)
    found = value_and_gradient(DiffusionLoss(normalize, reduction, stencil="wide"), u)
    assert_all_close(found, expected, 1e-6, 1e-6)  # their ratios of extents are float32


def test_both_stencils_are_close_on_a_smooth_field():
    u = polynomial((40, 50), lambda x, y: torch.sin(x / 10) * torch.cos(y / 12))
    compact, wide = DiffusionLoss()(u[..., 1:-1, 1:-1]), DiffusionLoss(stencil="wide")(u)
    torch.testing.assert_close(compact, wide, rtol=1e-2, atol=0)


def test_reduction_in_the_place_of_normalize_is_refused():
    with pytest.raises(TypeError, match="normalize must be True or False, got 'sum'"):
        DiffusionLoss("sum")
