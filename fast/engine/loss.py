"""The base class of all losses: how they take arguments, and how they are copied, saved and loaded.

A loss computes with plain tensors. Its `forward` is decorated with `entry_point`, which unwraps subclasses of tensors,
such as MONAI's MetaTensor, and records the plain form under `torch.jit.trace`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import PLAIN_TENSORS, unwrapped
from twinloss.fast.runtime.options import Configured
from twinloss.fast.runtime.ranks import is_group, restored, to_be_pickled

if TYPE_CHECKING:
    from typing_extensions import Self

P = ParamSpec("P")
R = TypeVar("R")

# Buffers in which MONAI's losses keep class weights. In twinloss, weights are options, and losses have no state.
_BUFFERS_OF_MONAI = (
    "class_weight",
    "dice.class_weight",
    "focal.class_weight",
    "cross_entropy.weight",
    "binary_cross_entropy.pos_weight",
)


def checked_loss(value: Any, name: str) -> Callable[..., Tensor]:
    """Check a loss that another one wraps."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be a loss, got the class {value.__name__}: pass {value.__name__}(…)")
    if not callable(value):
        raise TypeError(
            f"{name} must be a module or another callable that takes two tensors, got {type(value).__name__}"
        )
    loss: Callable[..., Tensor] = value
    return loss


def entry_point(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function so that its body gets plain tensors, even if it is called with tensor subclasses.

    Gradients flow back to the original tensors. Under `torch.jit.trace`, the plain form is recorded.
    """

    @wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        for each in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(each, Tensor) and type(each) not in PLAIN_TENSORS:
                args = tuple(map(unwrapped, args))  # type: ignore[assignment]
                kwargs = {name: unwrapped(value) for name, value in kwargs.items()}  # type: ignore[assignment]
                break
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return _recorded(function, args, kwargs)
        return function(*args, **kwargs)

    # torch.compile limits the number of graphs per code object, so each loss gets a code object of its own.
    code: Any = entered
    code.__code__ = code.__code__.replace(co_name=function.__qualname__)
    return entered


@contextmanager
def untraced() -> Iterator[None]:
    """Suspend `torch.jit.trace` within a context."""
    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    if state is None:
        yield
        return
    tracer._set_tracing_state(None)
    try:
        yield
    finally:
        tracer._set_tracing_state(state)


def _recorded(function: Callable[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> R:
    """Call a function under `torch.jit.trace`, so that the trace holds torch operators and sizes as numbers.

    Under `torch.jit.trace`, sizes are tensors. Therefore its tracer is suspended while another one (make_fx) turns the
    plain form into a graph, and then records this graph.
    """
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._pytree import tree_flatten, tree_unflatten

    given, structure = tree_flatten((args, dict(kwargs)))  # an argument may be a list of tensors
    places = [k for k, each in enumerate(given) if isinstance(each, Tensor)]

    def on_tensors(*tensors: Tensor) -> R:
        put = given.copy()
        for place, tensor in zip(places, tensors, strict=True):
            put[place] = tensor
        positional, named = tree_unflatten(put, structure)
        return function(*positional, **named)

    tensors = [given[place] for place in places]
    with untraced(), dispatch.recording():
        graph = make_fx(on_tensors)(*(each.detach() for each in tensors))
    made: R = graph.forward(*tensors)
    return made


class Loss(Configured):
    """A loss without state, whose `forward` is an `entry_point`."""

    def __copy__(self) -> Self:
        """Make a copy that shares all options, and the process group."""
        return self._with(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Make a copy with copies of all options except the process group, which is shared."""
        memo.update({id(value): value for value in self.__dict__.values() if is_group(value)})
        made = self._with({})
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def _with(self, options: Mapping[str, Any]) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(options)
        made.forget()
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, in which a marker stands for the default process group.

        Raises:
            TypeError: for any other process group, because it exists only in the processes that made it.
        """
        return {name: to_be_pickled(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled state; its default process group becomes that of this process."""
        super().__setstate__({name: restored(value) for name, value in state.items()})  # type: ignore[no-untyped-call]
        self.forget()

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise an error that names alternatives to `torch.jit.script`, which calls this method.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}, which calls Python: use torch.jit.trace, "
            "torch.export or torch.compile"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Ignore class weights in a checkpoint of a MONAI loss: MONAI keeps them as buffers, twinloss as options."""
        for name in _BUFFERS_OF_MONAI:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)
