"""What losses of a field share: the gradient that is made with the energy, and handed out once."""

import pytest
import torch
from support import logits

from twinloss.fast import BendingEnergyLoss, DiffusionLoss
from twinloss.fast.kernels.cpu import fields

LOSSES = pytest.mark.parametrize(
    "loss",
    [BendingEnergyLoss(), BendingEnergyLoss(stencil="wide"), DiffusionLoss(), DiffusionLoss(stencil="wide")],
    ids=["bending", "bending-wide", "diffusion", "diffusion-wide"],
)
# Of the largest each component takes several slabs, and each slab several blocks of rows.
SHAPES = pytest.mark.parametrize("shape", [(1, 3, 6, 5, 7), (2, 2, 9, 8), (1, 1, 11), (1, 3, 20, 90, 70)])


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
def test_the_gradient_takes_on_the_slope_of_what_becomes_of_the_loss(loss, shape, factor):
    x = logits(*shape).requires_grad_()
    expected = factor * gradient(loss(x), x).double()
    value = loss(x)
    for _ in range(2):  # made ahead, and anew
        found = gradient(value, x, grad_outputs=torch.tensor(factor), retain_graph=True)
        largest = expected.abs().max().item()  # terms of an element may cancel, which round apart
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * torch.finfo(x.dtype).eps * largest)


@LOSSES
@SHAPES
def test_the_value_is_the_same_where_nobody_asks_for_a_gradient(loss, shape):
    for seed in range(8):  # energies that are added up in another order often have the same sum, more so in float32
        x = logits(*shape, dtype=torch.float64, seed=seed)
        asked = loss(x.clone().requires_grad_())
        with torch.no_grad():
            assert torch.equal(loss(x.clone().requires_grad_()), asked)
        assert torch.equal(loss(x), asked)


@LOSSES
def test_no_gradient_is_made_where_nobody_asks_for_one(loss, monkeypatch):
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
def test_a_graph_of_the_gradient_keeps_no_gradient_that_nobody_may_have(loss):
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
