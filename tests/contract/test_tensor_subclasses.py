"""Subclasses of tensors as arguments, such as the MetaTensor that MONAI's loaders hand out."""

import pytest
import torch
from every_loss import EVERY_LOSS, LOSSES
from support import BACKENDS, assert_all_close, logits, soft
from torch.utils._pytree import tree_map_only

from twinloss.fast import DiceLoss, wasserstein_distance_map
from twinloss.fast.runtime import dispatch


class Narrow(torch.Tensor):
    """A tensor that refuses every function of torch that it is asked for."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} is not for this tensor")


class Wide(torch.Tensor):
    """A tensor that changes nothing."""


def _meta_tensor(tensor):
    from monai.data import MetaTensor

    return MetaTensor(tensor, meta={"name": "image"})


SUBCLASSES = {
    "narrow": lambda tensor: tensor.as_subclass(Narrow),
    "wide": lambda tensor: tensor.as_subclass(Wide),
    "MetaTensor": _meta_tensor,
}
EVERY_SUBCLASS = pytest.mark.parametrize("made", list(SUBCLASSES.values()), ids=list(SUBCLASSES))


def _step(each, arguments):
    """The loss and the gradient that its first argument gets, for all that subclasses may do."""
    with torch._C.DisableTorchFunctionSubclass():
        leaf = arguments[0].requires_grad_()
    value = each(*arguments)
    value.sum().backward()
    with torch._C.DisableTorchFunctionSubclass():
        return value.detach(), leaf.grad.as_subclass(torch.Tensor)


@EVERY_LOSS
@BACKENDS
@EVERY_SUBCLASS
def test_loss_of_a_subclass_is_that_of_the_tensor(each, form, made):
    with dispatch.forced(form):
        expected = _step(each, each.arguments(torch.float32))
        found = _step(each, [made(tensor) for tensor in each.arguments(torch.float32)])
        without = each(*(made(tensor) for tensor in each.arguments(torch.float32)))
    for a, b in zip((*found, without), (*expected, expected[0]), strict=True):
        assert type(a) is torch.Tensor
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("dice", "wide"), ("masked dice", "MetaTensor"), ("focal none", "wide"), ("bending energy", "MetaTensor"),
     ("lncc", "wide"), ("multi-scale", "MetaTensor")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_loss_of_a_subclass_is_that_of_the_tensor(name, kind):
    # Torch compiles no operator on such a subclass: the graph breaks where the tensor is taken out of it.
    each = LOSSES[name]
    torch.compiler.reset()
    expected = _step(each, each.arguments(torch.float32))
    compiled = torch.compile(each.make(), backend="aot_eager")
    found = _step(compiled, [SUBCLASSES[kind](tensor) for tensor in each.arguments(torch.float32)])
    assert_all_close(found, expected, rtol=1e-5, atol=1e-6)


@EVERY_SUBCLASS
def test_keyword_arguments_and_one_argument_alone_may_be_of_a_subclass(made):
    x, target = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    loss = DiceLoss(sigmoid=True)
    expected = loss(x, target)
    for given in (loss(made(x), target), loss(x, made(target)), loss(input=x, target=made(target))):
        assert torch.equal(given, expected)


@EVERY_SUBCLASS
def test_wasserstein_distance_map_takes_subclasses(made):
    p, y = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]]), torch.tensor([[0, 1]])
    found = wasserstein_distance_map(made(p), made(y), made(torch.tensor([[0, 1], [1, 0]])))
    assert type(found) is torch.Tensor
    assert torch.equal(found, torch.tensor([[0.75, 0.5]]))


@EVERY_SUBCLASS
def test_weights_may_be_of_a_subclass(made):
    x, target = logits(1, 2, 4), soft(1, 2, 4)
    found = DiceLoss(softmax=True, weight=made(torch.tensor([1.0, 2.0], dtype=torch.float64)))(x, target)
    assert torch.equal(found, DiceLoss(softmax=True, weight=[1.0, 2.0])(x, target))


class _Counted(torch.Tensor):
    """A wrapper of a tensor that sees the operators that are called on it."""

    called: list

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        _Counted.called.append(str(func))
        args, kwargs = tree_map_only(_Counted, lambda each: each.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, _Counted, func(*args, **kwargs))


def test_wrapper_of_tensors_is_left_alone_and_sees_the_operators():
    _Counted.called = []
    x, target = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    found = DiceLoss(sigmoid=True)(_Counted(x), target)
    assert _Counted.called[0] == "twinloss.voxel_sums.default"
    assert torch.equal(found.inner, DiceLoss(sigmoid=True)(x, target))
