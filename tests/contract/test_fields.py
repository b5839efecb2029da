"""What both losses of displacement fields, bending energy and diffusion, have in common."""

import pytest
import torch
from loss_options import REDUCTIONS, SPACING, STENCILS, grid, values, with_options
from support import BACKENDS, assert_all_close, logits, value_and_gradient

from twinloss.fast import BendingEnergyLoss, DiffusionLoss
from twinloss.fast.runtime import dispatch

EVERY_LOSS = pytest.mark.parametrize("loss_class", [BendingEnergyLoss, DiffusionLoss])
BY_STENCIL = grid(REDUCTIONS, STENCILS)


@BACKENDS
@with_options(
    {
        BendingEnergyLoss: grid(BY_STENCIL, values("spatial", (9,), (5, 7), (5, 6, 7))),
        DiffusionLoss: grid(BY_STENCIL, values("spatial", (9,), (3, 7), (5, 3, 6))),
    }
)
def test_gradient_is_that_of_automatic_differentiation_for_any_upstream(form, loss_class, options):
    options = dict(options)
    spatial = options.pop("spatial")
    u = logits(2, 3, *spatial, dtype=torch.float64).requires_grad_()
    loss = loss_class(spacing=SPACING[: len(spatial)], **options)
    with dispatch.forced("plain"):
        value = loss(u)
        upstream = logits(*value.shape, dtype=torch.float64, seed=5) if value.ndim else torch.tensor(0.7).double()
        expected = torch.autograd.grad(value, u, upstream)
    with dispatch.forced(form):
        found = torch.autograd.grad(loss(u), u, upstream)
    assert_all_close(found, expected, 1e-12, 1e-12)


@EVERY_LOSS
def test_kernel_and_plain_form_agree_beyond_one_chunk(loss_class):
    # Longer than a slab of planes, and rows longer and shorter than a block.
    for shape in ((1, 3, 60, 50, 40), (1, 2, 70, 2100), (1, 1, 9, 3, 3), (1, 1, 3, 700, 3), (1, 1, 5000)):
        u = logits(*shape, dtype=torch.float64)
        too_thin = loss_class is BendingEnergyLoss and 3 in shape[2:]
        for stencil in ("compact",) if too_thin else ("compact", "wide"):
            loss = loss_class(stencil=stencil)
            expected = value_and_gradient(loss, u, form="plain")
            assert_all_close(value_and_gradient(loss, u, form="kernel"), expected, 1e-12, 1e-15)


@BACKENDS
@EVERY_LOSS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_constant_field_has_neither_value_nor_gradient(form, loss_class, reduction, dtype):
    for constant in (0.0, 300.7):
        u = torch.full((2, 3, 5, 6, 7), constant, dtype=dtype)
        value, gradient = value_and_gradient(loss_class(reduction=reduction), u, form=form)
        assert (value == 0).all()
        assert (gradient == 0).all()


@BACKENDS
@EVERY_LOSS
def test_any_number_of_components_will_do_without_normalize(form, loss_class):
    u, loss = logits(2, 4, 5, 6, dtype=torch.float64), loss_class(reduction="none")
    with dispatch.forced(form):
        together = loss(u)
        for c in range(4):
            torch.testing.assert_close(together[:, c : c + 1], loss(u[:, c : c + 1]))


@BACKENDS
@EVERY_LOSS
@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 3), r"1 to 3 spatial axes.*\(2, 3\)"),
        ({}, (2, 3, 5, 5, 5, 5), r"1 to 3 spatial axes.*\(2, 3, 5, 5, 5, 5\)"),
        ({}, (0, 3, 5), r"\(0, 3, 5\)"),
        ({}, (2, 0, 5), r"\(2, 0, 5\)"),
        ({}, (1, 2, 5, 1), r"at least \d voxels.*compact.*\(1, 2, 5, 1\)"),
        ({"stencil": "wide"}, (1, 2, 2, 5), r"at least \d voxels.*wide.*\(1, 2, 2, 5\)"),
        ({"spacing": [1.0]}, (1, 2, 5, 5), r"spacing has 1 sizes for 2 spatial axes"),
        ({"spacing": []}, (1, 2, 5, 5), r"spacing has 0 sizes for 2 spatial axes"),
        ({"normalize": True}, (1, 3, 5, 5), r"component for each of the 2 spatial axes.*\(1, 3, 5, 5\)"),
    ],
)
def test_field_that_does_not_fit_is_a_value_error_that_names_its_shape(form, loss_class, options, shape, message):
    with dispatch.forced(form), pytest.raises(ValueError, match=message):
        loss_class(**options)(torch.zeros(shape))


@BACKENDS
@pytest.mark.parametrize(
    ("loss_class", "stencil", "least"),
    [
        (BendingEnergyLoss, "compact", 3),
        (BendingEnergyLoss, "wide", 5),
        (DiffusionLoss, "compact", 2),
        (DiffusionLoss, "wide", 3),
    ],
)
def test_field_with_too_few_voxels_is_a_value_error(form, loss_class, stencil, least):
    loss = loss_class(stencil=stencil)
    for shape in ((1, 2, 6, least - 1), (1, 2, least - 1, 6), (1, 3, least - 1, 8, 8)):
        message = rf"at least {least} voxels.*{stencil}.*\({', '.join(map(str, shape))}\)"
        with dispatch.forced(form), pytest.raises(ValueError, match=message):
            loss(torch.rand(shape))


@EVERY_LOSS
def test_field_of_complex_numbers_is_a_type_error(loss_class):
    with pytest.raises(TypeError, match="complex64"):
        loss_class()(torch.zeros(1, 1, 5, dtype=torch.complex64))
