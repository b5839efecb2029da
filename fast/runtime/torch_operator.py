"""Functions that call kernels, as operators of torch and as nodes of its graph.

torch.compile, torch.export and subclasses of tensors see an operator. Its way through torch's dispatcher takes longer
than a kernel does on a small volume, so that a call which nobody traces goes straight to the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import PLAIN_TENSORS

SetupContext = Callable[[Any, tuple[Any, ...], Any], None]
# The inputs of a plain form that a gradient is asked for, and the value.
InputsAndValue = tuple[Sequence[Tensor], Tensor]
T = TypeVar("T")


class Operator:
    """A function that calls kernels, and `torch.ops.twinloss.<name>` made of it.

    The function finds the kernels by the device of its tensors, so that it serves all devices. This class is
    `torch.library.custom_op` without its guard against torch.compile around each call, which the first call pays for
    with the import of the whole compiler, a second; no compiler looks into an operator in any case.
    """

    def __init__(self, name: str, function: Callable[..., Any], schema: str | None) -> None:
        self.name = f"twinloss::{name}"
        self.function = self.direct = function
        schema = schema or torch.library.infer_schema(function, mutates_args=())
        torch.library.define(self.name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(self.name, "default", function)
        self.operator = getattr(torch.ops.twinloss, name)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, or the operator if the call is traced; either is differentiable once it has a gradient."""
        return (self.operator if is_traced(arguments) else self.direct)(*arguments)

    def fake(self, function: Callable[..., Any]) -> None:
        """Register the fake (meta) implementation."""
        torch.library.register_fake(self.name, function)

    def differentiable(self, setup_context: SetupContext, backward: Callable[..., Any]) -> None:
        """Give the operator a gradient."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)
        self.direct = _applied(self.function, setup_context, backward)


def operator(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], Operator]:
    """Make an operator of a function; the schema is needed where the annotations do not tell it."""
    return lambda function: Operator(name, function, schema)


def is_traced(arguments: Sequence[Any]) -> bool:
    """Return whether a compiler, a dispatch mode such as that of fake tensors, or a tensor subclass must see a call."""
    if torch.compiler.is_compiling() or (torch._C._len_torch_dispatch_stack() > 0 and not dispatch.is_watched()):
        return True
    for each in arguments:  # a generator would take twice as long
        if isinstance(each, Tensor) and type(each) not in PLAIN_TENSORS:
            return True
    return False


def gradients(
    upstream: Tensor, plain: Callable[[], InputsAndValue], by_kernels: Callable[[], tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    """Return the gradients that a backward is asked for.

    Args:
        upstream: the slope in the value.
        plain: the plain form, for a graph of the gradient and for all else that needs operators of torch.
        by_kernels: the gradients in all other cases.
    """
    return _by_autograd(upstream, plain) if dispatch.by_torch(upstream) else by_kernels()


def _by_autograd(upstream: Tensor, plain: Callable[[], InputsAndValue]) -> tuple[Tensor, ...]:
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs, value = plain()
        value = value.to(upstream.dtype)
    return torch.autograd.grad(value, inputs, upstream, create_graph=graph, allow_unused=True, materialize_grads=True)


def scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    """Multiply a gradient, which the caller must own, by the slope in the value."""
    if not upstream.is_cpu:
        return gradient.mul_(upstream)  # to look at the slope would wait for the device
    factor = upstream.item()
    return gradient if factor == 1 else gradient.mul_(factor)


class Once(Generic[T]):
    """Something large that a value keeps for its gradient, and lets go of when it is taken.

    Otherwise it would live as long as the loss; and a gradient that is taken belongs to the caller.
    """

    def __init__(self, kept: T) -> None:
        self._kept: T | None = kept

    def take(self) -> T | None:
        """Return what was kept, or None the second time."""
        kept, self._kept = self._kept, None
        return kept


class Computation(NamedTuple):
    """A value that kernels compute from some tensors, and its gradient in the first of them.

    Attributes:
        value: given a tuple of the tensors, and whether a gradient will be asked for, the value and whatever is kept
            for the gradient.
        gradient: the gradient, given the slope in the value, what was kept, and the tensors.
        plain: given the tensors, the first of them and the value in operators of torch.
        saved: the tensors that are saved in place of those that are given, if others are; `gradient` and `plain` get
            these.
    """

    value: Callable[[tuple[Any, ...], bool], tuple[Tensor, Any]]
    gradient: Callable[..., Tensor]
    plain: Callable[..., InputsAndValue]
    saved: Callable[..., Sequence[Tensor | None]] | None = None


def one_node(computation: Computation, *tensors: Tensor | None) -> Tensor:
    """Compute a value as one node of the graph: on a small input, each node costs more than its arithmetic."""
    first = tensors[0]
    ahead = torch.is_grad_enabled() and first is not None and first.requires_grad
    value: Tensor = _Node.apply(computation, ahead, *tensors)  # type: ignore[no-untyped-call]
    return value


class _Node(Function):
    @staticmethod
    def forward(ctx: Any, computation: Computation, ahead: bool, *tensors: Tensor | None) -> Tensor:
        value, ctx.kept = computation.value(tensors, ahead)
        ctx.save_for_backward(*(tensors if computation.saved is None else computation.saved(*tensors)))
        ctx.by_kernels, ctx.plain = computation.gradient, computation.plain  # and not `value`, which may hold tensors
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if dispatch.by_torch(upstream[0]):  # as `gradients`, which takes a microsecond longer
            ctx.kept = None
            (gradient,) = _by_autograd(upstream[0], lambda: ctx.plain(*tensors))
        else:
            gradient = ctx.by_kernels(upstream[0], ctx.kept, *tensors)
        return None, None, gradient, *[None] * (len(tensors) - 1)


def apply(function: type[Function]) -> Callable[..., Any]:
    """Return a function's `apply` in the form that serves a call best.

    Torch looks up the signature of a forward that takes no context at each call, which nobody needs in eager mode. A
    compiler takes no function that has a `jvp`: so the derivative in forward mode is a static method `along`, and it
    becomes `jvp` only where somebody asks for it.
    """
    direct = _applied(function.forward, function.setup_context, function.backward)
    along: Any = function.along  # type: ignore[attr-defined]
    in_forward_mode: Any = type(function.__name__, (function,), {"jvp": staticmethod(along)})
    itself: Any = function

    def applied(*arguments: Any) -> Any:
        if dispatch.observed():
            return in_forward_mode.apply(*arguments)
        if torch.compiler.is_compiling():
            _meet(arguments)
            return itself.apply(*arguments)
        return direct(*arguments)

    return applied


def _meet(arguments: Sequence[Any]) -> None:
    """Let torch.compile meet the numbers among the arguments of a function before it enters the function.

    With `dynamic=True`, a number that it meets first within a function is unknown outside, and a further call of the
    same loss in the same graph would fail.
    """
    for argument in arguments:
        if isinstance(argument, tuple):
            _meet(argument)
        elif isinstance(argument, float):
            float(argument)


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for `backward`, and for `along`."""
    ctx.save_for_backward(*tensors)
    if dispatch.observed():
        ctx.save_for_forward(*tensors)


def by_numpy(first: Tensor) -> bool:
    """Return whether NumPy may compute a formula on a few numbers, which takes a fifth of the time of torch operators.

    It may where nobody traces the formula, and autograd does not record it.
    """
    return not (is_traced((first,)) or dispatch.by_torch(first)) and first.is_cpu


def on_arrays(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Let a formula on arrays take tensors on the CPU; its result has axes."""

    @wraps(formula)
    def compute(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            made = formula(*(each.numpy() if isinstance(each, Tensor) else each for each in arguments))
        return torch.from_numpy(made)

    return compute


def _applied(function: Callable[..., Any], setup: SetupContext, by_output: Callable[..., Any]) -> Callable[..., Any]:
    class Direct(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = function(*arguments)
            setup(ctx, arguments, output)
            return output

        backward = staticmethod(by_output)

    return Direct.apply
