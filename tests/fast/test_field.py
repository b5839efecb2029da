"""Behaviour that the losses of a displacement field share, and the gradient that is computed along with the energy."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, exact, logits, polynomial, value_and_gradient

from twinloss import reference
from twinloss.fast import BendingEnergyLoss, DiffusionLoss
from twinloss.fast.kernels.cpu import fields
from twinloss.fast.runtime import dispatch

STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (5, 7), (5, 6, 7)])
SPACING = (0.5, 3.0, 1.25)


def second(u, d, e, stencil):
    """Return d²u / (dx_d dx_e) of a component on its interior; NumPy's gradient computes it if wide."""
    step = {"compact": 1, "wide": 2}[stencil]
    inside = (slice(step, -step),) * u.ndim
    if stencil == "wide":  # central first differences, one after the other
        return np.gradient(np.gradient(u, axis=d), axis=e)[inside]
    near = [np.roll(u, [-i, -j], [d, e]) for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    if d == e:
        return (np.roll(u, -1, d) - 2 * u + np.roll(u, 1, d))[inside]
    return ((near[0] - near[1] - near[2] + near[3]) / 4)[inside]


def bending_by_definition(u, stencil="compact", normalize=False, spacing=None):
    """Return the energies of the interior voxels of a field (B, C, *S), one derivative after the other."""
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


def diffusion_by_definition(u, stencil="compact", normalize=False, spacing=None):
    """Return the energies of a field (B, C, *S), one derivative after the other, with NumPy's gradient if wide."""
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


@dataclass(frozen=True)
class OfField:
    """A loss of a field, with everything in which the two losses differ.

    Attributes:
        loss_class: the loss.
        by_definition: its energies, one derivative after the other.
        reference: the value and the gradient of the reference.
        least: by stencil, the least number of voxels along an axis.
        margin: by stencil, the number of voxels at each border without an energy.
        order: the order of its derivatives.
        checkerboard: the energy of each voxel of a checkerboard of 1 and -1.
        patch: the energy of a single voxel of value 1 in a volume of zeros.
    """

    loss_class: type[torch.nn.Module]
    by_definition: Callable[..., Any]
    reference: tuple[Callable[..., Any], Callable[..., Any]]
    least: dict[str, int]
    margin: dict[str, int]
    order: int
    checkerboard: float
    patch: float

    def __call__(self, **options):
        return self.loss_class(**options)


BOTH = pytest.mark.parametrize(
    "of_field",
    [
        OfField(
            BendingEnergyLoss,
            bending_by_definition,
            (reference.bending_energy_loss, reference.bending_energy_loss_gradient),
            least={"compact": 3, "wide": 5},
            margin={"compact": 1, "wide": 2},
            order=2,
            checkerboard=3 * 4**2,  # each pure difference is 4, each mixed one 0
            patch=3 * 6 + 2 * 3 * 4 / 16,  # 1, 4, 1 along each axis, and four corners of 1/16 in each plane, twice
        ),
        OfField(
            DiffusionLoss,
            diffusion_by_definition,
            (reference.diffusion_loss, reference.diffusion_loss_gradient),
            least={"compact": 2, "wide": 3},
            margin={"compact": 0, "wide": 1},
            order=1,
            checkerboard=3 * 2**2,
            patch=3 * 2,  # along each axis 1 at the voxel, and half of that at both neighbours
        ),
    ],
    ids=["bending", "diffusion"],
)
LOSSES = pytest.mark.parametrize(
    "loss",
    [BendingEnergyLoss(), BendingEnergyLoss(stencil="wide"), DiffusionLoss(), DiffusionLoss(stencil="wide")],
    ids=["bending", "bending-wide", "diffusion", "diffusion-wide"],
)
# In the largest shape, each component takes several slabs, and each slab several blocks of rows.
SHAPES = pytest.mark.parametrize("shape", [(1, 3, 6, 5, 7), (2, 2, 9, 8), (1, 1, 11), (1, 3, 20, 90, 70)])


@BACKENDS
@BOTH
@STENCILS
@SPATIAL
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spaced", [False, True])
def test_loss_is_the_sum_of_all_squared_derivatives(form, of_field, stencil, spatial, normalize, spaced):
    u = logits(2, len(spatial), *spatial, dtype=torch.float64)
    options = {"stencil": stencil, "normalize": normalize, "spacing": SPACING[: len(spatial)] if spaced else None}
    expected = torch.from_numpy(of_field.by_definition(u.numpy(), **options))
    with dispatch.forced(form):
        found = of_field(reduction="none", **options)(u)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@BACKENDS
@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@STENCILS
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fields_of_few_voxels_along_an_axis_are_those_of_the_reference(form, of_field, reduction, stencil, rank):
    least, options = of_field.least[stencil], {"reduction": reduction, "stencil": stencil}
    for spatial in itertools.product(range(least, least + 3), repeat=rank):
        u = logits(1, 2, *spatial, dtype=torch.float64)
        expected = exact(*of_field.reference, u, **options)
        assert_all_close(value_and_gradient(of_field(**options), u, form=form), expected, 1e-13, 1e-13)


@BACKENDS
@BOTH
@STENCILS
@SPATIAL
def test_none_covers_the_interior_and_mean_and_sum_reduce_it(form, of_field, stencil, spatial):
    u = logits(2, 3, *spatial, dtype=torch.float64)
    with dispatch.forced(form):
        none, mean, total = (of_field(reduction=r, stencil=stencil)(u) for r in ("none", "mean", "sum"))
    assert none.shape == (2, 3, *(n - 2 * of_field.margin[stencil] for n in spatial))
    torch.testing.assert_close(mean, none.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total, none.sum(), rtol=1e-13, atol=0)


@BACKENDS
@BOTH
def test_checkerboard_costs_something_unless_the_stencil_is_wide(form, of_field):
    u = polynomial((6, 7, 8), lambda *x: (-1) ** sum(x))
    with dispatch.forced(form):
        assert of_field()(u) == of_field.checkerboard
        assert of_field(stencil="wide")(u) == 0


@BACKENDS
@BOTH
@pytest.mark.parametrize("size", [0.5, 2.0])
def test_spacing_divides_each_derivative_by_a_voxel_size_for_each_order(form, of_field, size):
    u = logits(1, 2, 5, 6, dtype=torch.float64)
    with dispatch.forced(form):
        value = of_field(spacing=[size, size])(u)
        torch.testing.assert_close(value, of_field()(u) / size ** (2 * of_field.order), rtol=1e-13, atol=0)


@BACKENDS
@BOTH
def test_patch_of_a_float16_field_that_is_nearly_all_background_keeps_its_energy(form, of_field):
    u = torch.zeros(1, 3, 40, 40, 40, dtype=torch.float16)
    u[0, 1, 20, 20, 20] = 0.25
    value, gradient = value_and_gradient(of_field(reduction="sum"), u, form=form)
    assert value == torch.tensor(of_field.patch / 16, dtype=torch.float16)
    assert (gradient[:, [0, 2]] == 0).all()
    assert gradient[0, 1].count_nonzero() > 0


@BACKENDS
@BOTH
def test_large_offset_does_not_spoil_small_differences(form, of_field):
    small = logits(1, 1, 8, 9, 10, dtype=torch.float64) / 64
    u = (small + 1024).float()  # what is left of the differences is exact
    left = u.double() - 1024
    value, gradient = value_and_gradient(of_field(), u, form=form)
    expected = value_and_gradient(of_field(), left, form="plain")
    assert_all_close((value,), expected[:1], 1e-6)
    assert_all_close((gradient,), expected[1:], 0, 1e-6 * expected[1].abs().max().item())


def gradient(value, x, **options):
    return torch.autograd.grad(value, x, **options)[0]


@LOSSES
@SHAPES
def test_a_second_backward_gives_the_gradient_again_and_leaves_the_first_alone(loss, shape):
    x = logits(*shape).requires_grad_()
    value = loss(x)
    first = gradient(value, x, retain_graph=True)
    kept = first.clone()
    again = gradient(value, x, retain_graph=True)
    assert torch.equal(first, again)
    again.zero_()
    assert torch.equal(first, kept)


@LOSSES
@SHAPES
@pytest.mark.parametrize("factor", [-3.0, 2.0**16, 0.0])
def test_gradient_is_multiplied_by_the_upstream_gradient(loss, shape, factor):
    x = logits(*shape).requires_grad_()
    expected = factor * gradient(loss(x), x).double()
    value = loss(x)
    for _ in range(2):  # computed ahead, and computed again
        found = gradient(value, x, grad_outputs=torch.tensor(factor), retain_graph=True)
        largest = expected.abs().max().item()  # the terms of an element may cancel, and are rounded differently
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * torch.finfo(x.dtype).eps * largest)


@LOSSES
@SHAPES
def test_value_is_the_same_without_a_gradient(loss, shape):
    for seed in range(8):  # energies that are added in another order often have the same sum, especially in float32
        x = logits(*shape, dtype=torch.float64, seed=seed)
        asked = loss(x.clone().requires_grad_())
        with torch.no_grad():
            assert torch.equal(loss(x.clone().requires_grad_()), asked)
        assert torch.equal(loss(x), asked)


@LOSSES
def test_no_gradient_is_computed_unless_it_is_needed(loss, monkeypatch):
    def refuse(*_):
        raise AssertionError("a gradient was made")

    monkeypatch.setattr(fields.Energy, "gradient", refuse)
    monkeypatch.setattr(fields.Energy, "value_and_gradient", refuse)
    x = logits(1, 3, 6, 5, 7)
    loss(x)
    with torch.no_grad():
        loss(x.requires_grad_())
    with pytest.raises(AssertionError, match="a gradient was made"):
        loss(x)


@LOSSES
def test_a_field_that_is_changed_before_the_backward_is_an_error(loss):
    x = logits(1, 3, 6, 5, 7).requires_grad_()
    field = x * 1
    value = loss(field)
    field.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@LOSSES
def test_graph_of_the_gradient_keeps_no_computed_gradient(loss):
    x = logits(1, 3, 6, 5, 7).requires_grad_()
    value = loss(x)
    slope = gradient(value, x, create_graph=True)
    assert value.grad_fn.kept is None
    torch.testing.assert_close(gradient(value, x), slope.detach(), rtol=1e-5, atol=1e-8)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_field_of_integers_is_cast_to_the_default_float_type(loss, dtype, default):
    x = torch.randint(2, (1, 2, 6, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = loss(x)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == default
    assert torch.equal(found, loss(x.to(default)))
