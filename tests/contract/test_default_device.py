"""Another default device, of torch.device as a context or torch.set_default_device, changes no loss of CPU tensors."""

import ast
import importlib
from pathlib import Path

import pytest
import torch
from every_loss import EVERY_LOSS
from support import BACKENDS

from twinloss.fast import DiceLoss
from twinloss.fast.runtime import dispatch

FAST = Path(importlib.import_module("twinloss.fast").__file__).parent
FACTORIES = {factory.__name__ for factory in importlib.import_module("torch.utils._device")._device_constructors()}


def _everything(each, dtype):
    """The loss, with and without a graph, its gradient, and one that has a graph, with the gradient of its sum."""
    x, *rest = each.arguments(dtype)
    with torch.no_grad():
        without = each(x, *rest)
    value = each(x.requires_grad_(), *rest)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    (again,) = torch.autograd.grad(each(x, *rest).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(again.sum(), x, allow_unused=True, materialize_grads=True)
    return [tensor.detach() for tensor in (without, value, gradient, again, second)]


@EVERY_LOSS
@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_loss_and_gradients_are_bitwise_the_same(each, form, dtype):
    with dispatch.forced(form):
        expected = _everything(each, dtype)
        arguments = each.arguments
        given = iter([arguments(dtype)])
        inside = type(each)(each.make, lambda _: next(given))
        with torch.device("meta"):
            found = _everything(inside, dtype)
    for a, b in zip(found, expected, strict=True):
        assert a.is_cpu
        assert torch.equal(a, b)


@EVERY_LOSS
def test_loss_is_made_under_another_default_device(each):
    expected = each(*each.arguments(torch.float32))
    with torch.device("meta"):
        loss = each.make()
    given = each.arguments(torch.float32)
    assert torch.equal(type(each)(lambda: loss, each.arguments)(*given), expected)


def test_set_default_device_changes_nothing():
    x, target = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        found = DiceLoss(sigmoid=True)(x, target)
    finally:
        torch.set_default_device(before)
    assert torch.equal(found, DiceLoss(sigmoid=True)(x, target))


def _factories_without_a_device(source):
    """The lines of a source that call a factory of torch, which takes the default device if it is given none."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            of_torch = isinstance(call.func.value, ast.Name) and call.func.value.id == "torch"
            given = any(keyword.arg == "device" for keyword in call.keywords)
            if of_torch and call.func.attr in FACTORIES and not given:
                yield call.lineno


def test_no_factory_is_called_without_a_device():
    assert list(_factories_without_a_device("torch.empty(2)\ntorch.empty(2, device=x.device)\nx.new_empty(2)")) == [1]
    found = [
        f"{path.name}:{line}"
        for path in sorted(FAST.rglob("*.py"))
        for line in _factories_without_a_device(path.read_text())
    ]
    assert found == []


def test_factories_are_called_by_their_full_names():
    # Which the test above relies on.
    assert FACTORIES >= {"tensor", "empty", "full", "zeros", "arange", "eye", "scalar_tensor", "as_tensor"}
    for path in FAST.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert not FACTORIES & {each.name for each in node.names}, path.name
