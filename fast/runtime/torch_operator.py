"""Python functions that call kernels, as operators of torch.

An operator is what torch.compile, torch.export and subclasses of tensors see. Its way through torch's dispatcher takes
longer than a kernel does on a small volume, so that a call that nobody looks into goes straight to the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import PLAIN_TENSORS

SetupContext = Callable[[Any, tuple[Any, ...], Any], None]


class Operator:
    """A function that calls kernels, and `torch.ops.twinloss.<name>` made of it.

    This is `torch.library.custom_op` without its guard against torch.compile around each call, which the first one pays
    for with the import of the whole compiler, a second; no compiler looks into an operator in any case.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = f"twinloss::{name}"
        self.function = self.direct = function
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(self.name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(self.name, "cpu", function)
        self.operator = getattr(torch.ops.twinloss, name)

    def __call__(self, *arguments: Any) -> Any:
        """What the function makes of the arguments, with a gradient if it is differentiable."""
        return (self.operator if looked_into(arguments) else self.direct)(*arguments)

    def fake(self, function: Callable[..., Any]) -> None:
        """What the results look like, for arguments without numbers."""
        torch.library.register_fake(self.name, function)

    def differentiable(self, setup_context: SetupContext, backward: Callable[..., Any]) -> None:
        """Give it a gradient."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)
        self.direct = _applied(self.function, setup_context, backward)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make an operator of a function."""
    return lambda function: Operator(name, function)


def apply(function: type[Function]) -> Callable[..., Any]:
    """Make of a function what its `apply` is, in the form that serves a call best.

    Torch looks up the signature of a forward that takes no context at each call: nobody needs that in eager mode. A
    compiler takes no function that has a `jvp`: so the derivative in forward mode is a static method `along`, and `jvp`
    only where somebody asks for it.
    """
    direct = _applied(function.forward, function.setup_context, function.backward)
    in_forward_mode = type(function.__name__, (function,), {"jvp": staticmethod(function.along)})

    def applied(*arguments: Any) -> Any:
        if dispatch.observed():
            return in_forward_mode.apply(*arguments)
        return (function.apply if torch.compiler.is_compiling() else direct)(*arguments)

    return applied


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for `backward`, and for `along`."""
    ctx.save_for_backward(*tensors)
    if dispatch.observed():
        ctx.save_for_forward(*tensors)


def on_arrays(formula: Callable[..., Any]) -> Callable[..., Any]:
    """A formula on a few numbers that NumPy computes where nobody looks: an operator of torch takes five times as long.

    It is written so that it holds for tensors and arrays alike, the first argument being one; autograd must not record
    it, and its result has axes.
    """

    @wraps(formula)
    def compute(*arguments: Any) -> Any:
        if looked_into(arguments) or dispatch.by_torch(arguments[0]) or not arguments[0].is_cpu:
            return formula(*arguments)
        with np.errstate(all="ignore"):
            made = formula(*(each.numpy() if isinstance(each, Tensor) else each for each in arguments))
        return torch.from_numpy(made)

    return compute


def slopes_by_torch(plain: Callable[[], Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a plain form in some inputs, which ask for them, given the slope in its result."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        made = plain().to(upstream.dtype)
    return torch.autograd.grad(made, inputs, upstream, create_graph=graph, allow_unused=True, materialize_grads=True)


def _applied(function: Callable[..., Any], setup: SetupContext, by_output: Callable[..., Any]) -> Callable[..., Any]:
    class Direct(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = function(*arguments)
            setup(ctx, arguments, output)
            return output

        backward = staticmethod(by_output)

    return Direct.apply


def looked_into(arguments: tuple[Any, ...]) -> bool:
    """Whether a compiler, a dispatch mode such as that of fake tensors, or a subclass of tensors is to see a call."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    for each in arguments:  # a generator would take twice as long
        if isinstance(each, Tensor) and type(each) not in PLAIN_TENSORS:
            return True
    return False
