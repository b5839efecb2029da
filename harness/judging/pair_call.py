"""Call the fast function of a pair, its gradient and the reference, and return their results as arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import HALVES, Array, Operand, widened
from twinloss.harness.model.pair import Pair, PairError
from twinloss.harness.model.twin import Case, Twin

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Fast:
    """The fast function of a pair, and how to call it.

    Attributes:
        pair: the pair.
        found: the function, class or instance.
        slope: the function of its gradient, or None if it has autograd.
        by_arrays: whether it takes NumPy arrays.
        takes: returns whether the function, or the constructor if it is a class, has a parameter of a given name.
        call_takes: returns whether the call of an instance has a parameter of a given name.
    """

    pair: Pair
    found: Any
    slope: Callable[..., Any] | None
    by_arrays: bool
    takes: Callable[[str], bool]
    call_takes: Callable[[str], bool]

    @property
    def __name__(self) -> str:
        return str(getattr(self.found, "__name__", type(self.found).__name__))

    @property
    def constructed(self) -> bool:
        """Return whether it is a class, which is constructed before it is called."""
        return inspect.isclass(self.found)

    def theirs(self, name: str) -> str:
        """Return the fast function's name for our `name`."""
        return self.pair.names.get(name, name)

    def built(self, sizes: Mapping[str, int], options: Mapping[str, Any]) -> Any:
        """Return the callable: an instance of a class, made with the options and sizes that it takes."""
        return self.found(**self.constructor_arguments(sizes, options)) if self.constructed else self.found

    def constructor_arguments(self, sizes: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments with which a class is constructed."""
        return {
            self.theirs(name): value for name, value in {**sizes, **options}.items() if self.takes(self.theirs(name))
        }

    def called(
        self, loss: Any, arguments: Mapping[str, Any], options: Mapping[str, Any], more: Mapping[str, Any]
    ) -> Any:
        """Call a function or an instance, and return its results."""
        options = {
            self.theirs(name): value
            for name, value in options.items()
            if not self.constructed or (self.call_takes(self.theirs(name)) and not self.takes(self.theirs(name)))
        }
        held = {theirs: arguments[name] for name, theirs in self.pair.state.items() if name in arguments}
        passed = {name: value for name, value in arguments.items() if name not in self.pair.state}
        if any(name in self.pair.names for name in passed):
            positional, keyword = (), {self.theirs(name): value for name, value in passed.items()}
        else:
            positional, keyword = tuple(passed.values()), {}
        keyword |= {**options, **more}
        if not held:
            return loss(*positional, **keyword)
        return torch.func.functional_call(loss, held, positional, keyword)


def options_of(twin: Twin, case: Case) -> dict[str, Any]:
    """Return all options of a case, with the defaults of the pair."""
    return {**twin.defaults(), **case.options}


def pair_options(twin: Twin, case: Case) -> dict[str, Any]:
    """Return the options of a pair's reference: all but those that must not change the results."""
    assert twin.pair is not None
    return {name: value for name, value in options_of(twin, case).items() if name in twin.pair.options}


def tensors_of(pair: Pair, case: Case, wrt: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Return new tensors of all inputs on the device under test; those in `wrt` require a gradient."""
    made = {name: operand.tensor(pair.runs_on()) for name, operand in case.operands.items()}
    for name in wrt:
        made[name].requires_grad_()
    return made


def sizes_of(pair: Pair, case: Case) -> dict[str, int]:
    """Return the size of each named axis."""
    return pair.sizes_of({name: operand.values.shape for name, operand in case.operands.items()})


def build(twin: Twin, case: Case) -> Any:
    """Return the fast callable for a case."""
    fast, pair = fast_of(twin)
    return fast.built(sizes_of(pair, case), options_of(twin, case))


def fast_of(twin: Twin) -> tuple[Fast, Pair]:
    """Return the fast function and the pair of a twin that was made from one."""
    fast: Any = twin.fast
    assert isinstance(fast, Fast)
    return fast, fast.pair


def run(twin: Twin, case: Case, loss: Any, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    """Call the fast function with tensors, and return its outputs as tensors.

    Raises:
        TypeError: if an output is not an array or a tensor.
    """
    fast, pair = fast_of(twin)
    options = options_of(twin, case)
    arguments: dict[str, Any] = dict(tensors)
    for name in pair.writes:
        if name in arguments:  # a tensor that requires a gradient cannot be written to
            arguments[name] = arguments[name].clone()
    buffers = _buffers(twin, case)
    if fast.by_arrays:
        arguments = {name: as_array(tensor) for name, tensor in arguments.items()}
        more: dict[str, Any] = {fast.theirs(name): as_array(buffer) for name, buffer in buffers.items()}
    else:
        more = {fast.theirs(name): buffer for name, buffer in buffers.items()}
    returned = fast.called(loss, arguments, options, more)
    if pair.writes:
        returned = tuple(arguments[name] if name in arguments else more[fast.theirs(name)] for name in pair.writes)
    return tuple(_tensor(each) for each in (returned if isinstance(returned, tuple | list) else (returned,)))


def _buffers(twin: Twin, case: Case) -> dict[str, torch.Tensor]:
    """Return a tensor for each parameter that the fast function writes to, filled with NaN, or -1 for integers."""
    pair = twin.pair
    assert pair is not None
    names = [name for name in pair.writes if name not in pair.inputs]
    if not names:
        return {}
    wanted = reference_outputs(pair.reference, lifted(case, np.float64), pair_options(twin, case))[-len(names) :]
    made = {}
    for name, output in zip(names, wanted, strict=True):
        kind = output.dtype.kind
        dtype = {"f": case.dtype, "b": "bool"}.get(kind, str(output.dtype))
        fill: float = {"f": np.nan, "b": True, "u": 1}.get(kind, -1)
        made[name] = torch.full(output.shape, fill, dtype=getattr(torch, dtype), device=pair.runs_on())
    return made


def as_array(tensor: torch.Tensor) -> Array:
    """Convert a tensor to an array with the same strides; NumPy has no bfloat16."""
    made: Array = tensor.detach().cpu().numpy()
    return made


def _tensor(value: Any) -> torch.Tensor:
    """Convert an output to a tensor; it is a tensor, a number, or an array of NumPy or of a library with DLPack."""
    if isinstance(value, torch.Tensor):
        return value
    if value is None or isinstance(value, str | dict):
        raise TypeError(
            f"an array or a tensor was expected as an output, got {type(value).__name__}; if the function writes its "
            "outputs to a parameter, name that in writes="
        )
    if not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__"):
        return torch.utils.dlpack.from_dlpack(value)
    return torch.from_numpy(np.array(value))


def joined(values: Sequence[Array]) -> Array:
    """Return a single array as it is, or the numbers of several arrays in an array of one axis."""
    if len(values) == 1:
        return values[0]
    if not values:
        return np.zeros(0)
    common = np.result_type(*values) if all(v.dtype.kind == "f" for v in values) else np.float64
    return np.concatenate([np.asarray(v, common).ravel() for v in values])


def weights(case: Case, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Return the upstream gradient of each floating output; it differs between outputs."""
    if case.cotangent is None:
        return [np.ones(shape) for shape in shapes]
    return [np.resize(np.roll(case.cotangent, -k), shape) for k, shape in enumerate(shapes)]


def ask_pair(twin: Twin, case: Case) -> Answer:
    """Return outputs and gradients of the fast function of a pair.

    Raises:
        TypeError: if the outputs have no gradient, or a result has a wrong dtype.
    """
    return answer_with(twin, case, build(twin, case))


def answer_with(twin: Twin, case: Case, loss: Any, tensors: Tensors | None = None) -> Answer:
    """Return the answer of a callable that `build` made; `tensors` replace those of the case."""
    fast, pair = fast_of(twin)
    differentiated = twin.differentiable and fast.slope is None
    if tensors is None:
        tensors = tensors_of(pair, case, pair.wrt if differentiated else ())
    values = run(twin, case, loss, tensors)
    _check_dtypes(pair, case, values)
    gradients: dict[str, Array] = {}
    if twin.differentiable:
        if fast.slope is not None:
            gradients = _slopes(twin, case, fast.slope, tensors, values)
        else:
            gradients = _autograd(pair, case, tensors, values)
    outputs = tuple(widened(value) for value in values)
    return Answer(joined(outputs), joined(list(gradients.values())), outputs, gradients)


def _check_dtypes(pair: Pair, case: Case, values: Sequence[torch.Tensor]) -> None:
    wanted = [case.dtype if name == "same" else name for name in pair.results]
    for k, value in enumerate(values):
        dtype = str(value.dtype).removeprefix("torch.")
        if wanted and value.is_floating_point() and dtype not in wanted:
            raise TypeError(f"for inputs of {case.dtype}, output {k} is {dtype}, not {' or '.join(wanted)}")


def _autograd(pair: Pair, case: Case, tensors: Tensors, values: Sequence[torch.Tensor]) -> dict[str, Array]:
    floating = [value for value in values if value.is_floating_point()]
    upstream = weights(case, [tuple(value.shape) for value in floating])
    asked = [
        (value, torch.tensor(weight, dtype=value.dtype, device=value.device))
        for value, weight in zip(floating, upstream, strict=True)
        if value.requires_grad
    ]
    if not asked:
        raise TypeError(
            "the outputs have no gradient: they were detached, or computed on a copy of the numbers; give "
            "fast_gradient= if there is a function for the gradient, or leave out wrt="
        )
    asked_values, asked_weights = zip(*asked, strict=True)
    found = torch.autograd.grad(asked_values, [tensors[name] for name in pair.wrt], asked_weights, allow_unused=True)
    made = {}
    for name, gradient in zip(pair.wrt, found, strict=True):
        tensor = tensors[name]
        if gradient is not None and gradient.dtype != tensor.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, and its gradient {gradient.dtype}")
        made[name] = widened(torch.zeros_like(tensor) if gradient is None else gradient)
    return made


def _slopes(
    twin: Twin, case: Case, slope: Callable[..., Any], tensors: Tensors, values: Sequence[torch.Tensor]
) -> dict[str, Array]:
    """Return the gradients that the gradient function computes."""
    fast, pair = fast_of(twin)
    floating = [value for value in values if value.is_floating_point()]
    made: list[Any] = [
        torch.tensor(weight).to(value.dtype).to(value.device)
        for value, weight in zip(floating, weights(case, [tuple(value.shape) for value in floating]), strict=True)
    ]
    arguments: dict[str, Any] = dict(tensors)
    if fast.by_arrays:
        made = [as_array(each) for each in made]
        arguments = {name: as_array(tensor) for name, tensor in tensors.items()}
    cotangent = made[0] if len(made) == 1 else tuple(made)
    found = slope(*arguments.values(), cotangent=cotangent, **pair_options(twin, case))
    return {name: widened(_tensor(each)) for name, each in named_gradients(pair.wrt, found).items()}


def named_gradients(wrt: Sequence[str], found: Any) -> dict[str, Any]:
    """Assign the results of a gradient function to the inputs.

    Raises:
        PairError: if the number of arrays is not the number of names in `wrt`.
    """
    if isinstance(found, Mapping):
        found = tuple(found[name] for name in wrt)
    made = found if isinstance(found, tuple | list) else (found,)
    if len(made) != len(wrt):
        raise PairError(f"the gradient has {len(made)} arrays, but wrt names {len(wrt)}: {', '.join(wrt)}")
    return dict(zip(wrt, made, strict=True))


def lifted(case: Case, real: Any) -> dict[str, Array]:
    """Return copies of the inputs for the reference, floating numbers in dtype `real`."""
    return {name: _lifted(operand, real) for name, operand in case.operands.items()}


def _lifted(operand: Operand, real: Any) -> Array:
    floating = operand.dtype in ("float32", "float64", *HALVES)
    return np.array(operand.values, real if floating else operand.dtype)


def reference_outputs(
    reference: Callable[..., Any], arguments: Mapping[str, Array], options: Mapping[str, Any]
) -> tuple[Array, ...]:
    """Call a reference, and return its outputs as arrays."""
    with np.errstate(all="ignore"):
        made = reference(*arguments.values(), **options)
    return tuple(np.asarray(each) for each in (made if isinstance(made, tuple | list) else (made,)))
