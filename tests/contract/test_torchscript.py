"""Tests of every loss under torch.jit.trace, and of the error under torch.jit.script."""

import io

import pytest
import torch
from every_loss import EVERY_LOSS
from support import assert_all_close

from twinloss.fast import DiceLoss, wasserstein_distance_map

# Torch warns that both functions are deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def _others(arguments):
    """Arguments of the same shapes with other numbers."""
    return tuple(tensor.flip(-1) for tensor in arguments)


@EVERY_LOSS
def test_traced_loss_gives_value_and_gradient_for_other_numbers(each):
    traced = torch.jit.trace(each.make(), each.arguments(torch.float64))
    x, *rest = _others(each.arguments(torch.float64))
    x.requires_grad_()
    made = [each(x, *rest), traced(x, *rest)]
    expected, found = ([value, *torch.autograd.grad(value.sum(), x)] for value in made)
    assert_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_trace_of_a_model_can_be_saved():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.loss = torch.nn.Conv1d(1, 1, 1), DiceLoss(sigmoid=True)

        def forward(self, image, target):
            return self.loss(input=self.layer(image), target=target)

    model, file = Model(), io.BytesIO()
    arguments = torch.rand(2, 1, 5), torch.ones(2, 1, 5)
    torch.jit.save(torch.jit.trace(model, arguments), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for given in (arguments, _others(arguments), (torch.rand(2, 1, 5), torch.zeros(2, 1, 5))):
        torch.testing.assert_close(loaded(*given), model(*given))
    loaded(*arguments).backward()
    model(*arguments).backward()
    torch.testing.assert_close(loaded.layer.weight.grad, model.layer.weight.grad)


def test_invalid_label_makes_a_traced_loss_nan_instead_of_an_error():
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    x = torch.zeros(1, 2, 3)
    traced = torch.jit.trace(loss, (x, torch.tensor([[[0, 1, 0]]])))
    assert traced(x, torch.tensor([[[0, 2, 0]]])).isnan()
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        loss(x, torch.tensor([[[0, 2, 0]]]))


def test_traced_wasserstein_distance_map():
    p, y = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]]), torch.tensor([[0, 1]])
    traced = torch.jit.trace(lambda p, y: wasserstein_distance_map(p, y, [[0, 1], [1, 0]]), (p, y))
    assert torch.equal(traced(p, 1 - y), torch.tensor([[0.25, 0.5]]))


def test_errors_of_arguments_are_raised_while_a_loss_is_traced():
    with pytest.raises(ValueError, match="target has shape"):
        torch.jit.trace(DiceLoss(), (torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)))
    assert not torch.jit.is_tracing()
    assert torch.isfinite(DiceLoss()(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)))


@EVERY_LOSS
def test_script_says_what_to_do_instead(each):
    loss = each.make()
    for module in (loss, torch.nn.Sequential(loss)):
        with pytest.raises(RuntimeError, match=r"use torch\.jit\.trace, torch\.export or torch\.compile"):
            torch.jit.script(module)
