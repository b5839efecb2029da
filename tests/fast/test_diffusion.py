"""The fast diffusion loss: documented behaviour and corner cases."""

import itertools

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, logits, polynomial, value_and_gradient

from twinloss import reference
from twinloss.fast import DiffusionLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (3, 7), (5, 3, 6)])
MARGIN = {"compact": 0, "wide": 1}
SPACING = (0.5, 3.0, 1.25)


def truth(u, **options):
    """The reference's value and the gradient of its sum, in long double."""
    wide = u.numpy().astype(np.longdouble)
    value = np.asarray(reference.diffusion_loss(wide, **options))
    upstream = np.ones_like(value)
    slope = reference.diffusion_loss_gradient(wide, cotangent=upstream, **options)
    return tuple(torch.from_numpy(np.asarray(a, np.float64)) for a in (value, slope))


def by_definition(u, stencil="compact", normalize=False, spacing=None):
    """The energies of a field (B, C, *S), one derivative after the other, with NumPy's gradient if wide."""
    spatial = u.shape[2:]
    h = spacing or (1,) * len(spatial)
    extent = [n * size for n, size in zip(spatial, h, strict=True)]
    energies = []
    for field in u:
        for c, component in enumerate(field):
            energy = 0
            for d in range(len(spatial)):
                factor = (extent[d] / extent[c] if normalize else 1) / h[d]
                if stencil == "wide":
                    inside = (slice(1, -1),) * len(spatial)
                    squares = (np.gradient(component, axis=d) ** 2)[inside]
                else:
                    around = np.pad(np.diff(component, axis=d) ** 2, [(int(e == d),) * 2 for e in range(len(spatial))])
                    neighbours = np.full(spatial[d], 2).reshape(-1, *[1] * (len(spatial) - 1 - d))
                    neighbours[0] = neighbours[-1] = 1
                    squares = (np.delete(around, 0, d) + np.delete(around, -1, d)) / neighbours
                energy = energy + factor**2 * squares
            energies.append(energy)
    return np.stack(energies).reshape(*u.shape[:2], *energies[0].shape)


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@STENCILS
@SPATIAL
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spaced", [False, True])
def test_loss_is_the_sum_of_all_squared_first_derivatives(form, stencil, spatial, normalize, spaced):
    u = logits(2, len(spatial), *spatial, dtype=torch.float64)
    options = {"stencil": stencil, "normalize": normalize, "spacing": SPACING[: len(spatial)] if spaced else None}
    expected = torch.from_numpy(by_definition(u.numpy(), **options))
    with dispatch.forced(form):
        found = DiffusionLoss(reduction="none", **options)(u)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


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
def test_checkerboard_costs_something_unless_the_stencil_is_wide(form):
    u = polynomial((6, 7, 8), lambda *x: (-1) ** sum(x))
    with dispatch.forced(form):
        assert DiffusionLoss()(u) == 3 * 2**2
        assert DiffusionLoss(stencil="wide")(u) == 0


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
@pytest.mark.parametrize("size", [0.5, 2.0])
def test_spacing_divides_each_slope_by_the_voxel_size(form, size):
    u = logits(1, 2, 5, 6, dtype=torch.float64)
    with dispatch.forced(form):
        value = DiffusionLoss(spacing=[size, size])(u)
        torch.testing.assert_close(value, DiffusionLoss()(u) / size**2, rtol=1e-13, atol=0)


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
def test_normalized_loss_does_not_hang_on_the_sampling(form, spacing):
    # u_c = extent_c q_c(position / extent): one deformation of the unit square, sampled twice, with slopes 1, 3; 2, -1.
    for spatial in ((8, 8), (10, 32)):
        extent = [n * h for n, h in zip(spatial, spacing or (1, 1), strict=True)]
        first = polynomial(spatial, lambda x, y, s=spatial: x / s[0] + 3 * y / s[1])
        second = polynomial(spatial, lambda x, y, s=spatial: 2 * x / s[0] - y / s[1])
        u = torch.cat([first * extent[0], second * extent[1]], 1)
        with dispatch.forced(form):
            value = DiffusionLoss(True, spacing=spacing)(u)
        torch.testing.assert_close(value.item(), (1**2 + 3**2 + 2**2 + 1**2) / 2, rtol=1e-12, atol=0)


@BACKENDS
@STENCILS
@SPATIAL
def test_mean_and_sum_reduce_what_none_gives(form, stencil, spatial):
    u = logits(2, 3, *spatial, dtype=torch.float64)
    with dispatch.forced(form):
        none, mean, total = (DiffusionLoss(False, r, stencil=stencil)(u) for r in ("none", "mean", "sum"))
    assert none.shape == (2, 3, *(n - 2 * MARGIN[stencil] for n in spatial))
    torch.testing.assert_close(mean, none.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total, none.sum(), rtol=1e-13, atol=0)


@BACKENDS
@REDUCTIONS
@STENCILS
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fields_of_few_voxels_along_an_axis_are_those_of_the_reference(form, reduction, stencil, rank):
    least = 2 + MARGIN[stencil]
    for spatial in itertools.product(range(least, 6), repeat=rank):
        u = logits(1, 2, *spatial, dtype=torch.float64)
        loss = DiffusionLoss(reduction=reduction, stencil=stencil)
        assert_all_close(
            value_and_gradient(loss, u, form=form), truth(u, reduction=reduction, stencil=stencil), 1e-13, 1e-13
        )


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


# --- errors ----------------------------------------------------------------------------------------------------------


def test_reduction_in_the_place_of_normalize_is_refused():
    with pytest.raises(TypeError, match="normalize must be True or False, got 'sum'"):
        DiffusionLoss("sum")


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
def test_patch_of_a_float16_field_that_is_nearly_all_background_keeps_its_energy(form):
    u = torch.zeros(1, 3, 40, 40, 40, dtype=torch.float16)
    u[0, 1, 20, 20, 20] = 0.25
    value, gradient = value_and_gradient(DiffusionLoss(reduction="sum"), u, form=form)
    # Along each of three axes 1 at the voxel, and half of that at both neighbours; times 1/16.
    assert value == 3 * 2 / 16
    assert (gradient[:, [0, 2]] == 0).all()
    assert gradient[0, 1].count_nonzero() > 0


@BACKENDS
def test_large_offset_does_not_spoil_small_slopes(form):
    small = logits(1, 1, 8, 9, 10, dtype=torch.float64) / 64
    u = (small + 1024).float()  # what is left of the slopes is exact
    left = u.double() - 1024
    value, gradient = value_and_gradient(DiffusionLoss(), u, form=form)
    expected = value_and_gradient(DiffusionLoss(), left, form="plain")
    assert_all_close((value,), expected[:1], 1e-6)
    assert_all_close((gradient,), expected[1:], 0, 1e-6 * expected[1].abs().max().item())


# --- differentiation -------------------------------------------------------------------------------------------------


# --- layouts, threads, state -----------------------------------------------------------------------------------------
