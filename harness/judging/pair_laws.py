"""Laws for pairs: relations between answers of the fast function, which hold whatever the reference computes.

`permutes`, `scales` and the other functions without an underscore make laws for `Pair(laws=[…])`. PROTOCOL holds the
laws that every function should keep; the hunt checks them without being asked to.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from twinloss.harness.judging.pair_call import (
    answer_with,
    as_array,
    ask_pair,
    build,
    fast_of,
    in_a_row,
    lifted,
    options_of,
    reference_options,
    reference_outputs,
    run,
    sizes_of,
    tensors_of,
)
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array, Operand, widened
from twinloss.harness.model.pair import Pair
from twinloss.harness.model.twin import Case, Claim, Law, Twin

Inputs = Mapping[str, Array]
Change = Callable[[dict[str, Array]], Inputs]


def permutes(axis: str, **needs: Any) -> Law:
    """Claim that another order of `axis` in the inputs gives the same results in that order.

    The axis of each output is found with the reference; an output without it must not change. `needs` are options that
    the law needs, as in all laws.
    """

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        pair = _pair(twin)
        order = np.random.default_rng(0).permutation(sizes_of(pair, case)[axis])
        case = replace(case, cotangent=None)
        moved = _with_values(case, {name: _taken(pair, name, axis, values, order) for name, values in _values(case)})
        here, there = ask_pair(twin, case), ask_pair(twin, moved)
        before, after = _reference(twin, case), _reference(twin, moved)
        for k, (got, want) in enumerate(zip(there.outputs, here.outputs, strict=True)):
            places = [None, *(i for i, size in enumerate(want.shape) if size == len(order))]
            fitting = [i for i in places if _alike(_along(before[k], i, order), after[k])]
            if not fitting:
                raise ValueError(f"the reference does not keep the law: output {k} is not permuted along any axis")
            yield Claim("value", got.ravel(), _along(want, fitting[-1], order).ravel(), case)
        for name, gradient in here.gradients.items():
            want = _taken(pair, name, axis, gradient, order)
            yield Claim("gradient", there.gradients[name].ravel(), want.ravel(), case)

    def applies(case: Case) -> bool:
        return True

    return Law(f"the order of {axis} does not matter", claims, needs, applies)


def scales(name: str, degree: int = 1, factor: float = 2.0, **needs: Any) -> Law:
    """Claim that `factor` times an input gives `factor` ** `degree` times the outputs."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        moved = _with_values(case, {name: factor * case.operands[name].values})
        here, there = ask_pair(twin, case), ask_pair(twin, moved)
        yield Claim("value", there.value, factor**degree * here.value, moved)
        for each, gradient in here.gradients.items():
            power = degree - 1 if each == name else degree
            yield Claim("gradient", there.gradients[each].ravel(), factor**power * gradient.ravel(), moved)

    return Law(f"{factor:g} times {name} gives {factor:g}^{degree} times the outputs", claims, needs)


def linear(name: str, **needs: Any) -> Law:
    """Claim that the outputs for a sum are the sum of the outputs, if an input is split in two."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        values = case.operands[name].values
        chosen = np.random.default_rng(0).random(values.shape) < 0.5
        parts = [ask_pair(twin, _with_values(case, {name: np.where(c, values, 0)})) for c in (chosen, ~chosen)]
        nothing = ask_pair(twin, _with_values(case, {name: np.zeros_like(values)}))
        whole = ask_pair(twin, case)
        terms = [part.value.astype(np.float64) for part in (*parts, nothing)]
        scale = float(np.max(np.abs(terms), initial=0))
        yield Claim("value", whole.value, terms[0] + terms[1] - terms[2], case, scale)

    return Law(f"the outputs are linear in {name}", claims, needs)


def invariant(name: str, change: Change, **needs: Any) -> Law:
    """Claim that a change of the inputs has no effect; `change` takes a dict of arrays and returns the changed ones."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        moved = _with_values(case, change(dict(_values(case))))
        yield Claim("value", ask_pair(twin, moved).value, ask_pair(twin, case).value, case)

    return Law(f"{name} changes nothing", claims, needs)


def equivariant(name: str, change: Change, of_outputs: Callable[[Array], Array], **needs: Any) -> Law:
    """Claim that a change of the inputs changes every output as `of_outputs` says."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        moved = _with_values(case, change(dict(_values(case))))
        here, there = ask_pair(twin, case), ask_pair(twin, moved)
        want = in_a_row([np.asarray(of_outputs(output)) for output in here.outputs])
        yield Claim("value", there.value, want, case)

    return Law(name, claims, needs)


def bounded(low: float = -np.inf, high: float = np.inf, **needs: Any) -> Law:
    """Claim that every number of the outputs lies between `low` and `high`."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        value = ask_pair(twin, case).value
        yield Claim("value", value, np.clip(value, low, high), case)

    return Law(f"the outputs lie in [{low:g}, {high:g}]", claims, needs)


def independent(axis: str, **needs: Any) -> Law:
    """Claim that the outputs for one entry of the first axis of the inputs do not depend on the other entries.

    Inputs without `axis` are shared. Outputs must have the axis first.
    """

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        pair, case = _pair(twin), replace(case, cotangent=None)
        whole = ask_pair(twin, case)
        for b in range(sizes_of(pair, case)[axis]):
            one = np.array([b])
            alone = _with_values(case, {name: _taken(pair, name, axis, values, one) for name, values in _values(case)})
            part = ask_pair(twin, alone)
            for got, want in zip(part.outputs, whole.outputs, strict=True):
                yield Claim("value", got.ravel(), want[b : b + 1].ravel(), alone)

    return Law(f"the entries of {axis} are independent", claims, needs)


def holds(name: str, predicate: Callable[[Inputs, tuple[Array, ...], Mapping[str, Any]], bool], **needs: Any) -> Law:
    """Claim that a predicate of inputs, outputs and options holds."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        outputs = ask_pair(twin, case).outputs
        yield _flag(bool(predicate(dict(_values(case)), outputs, options_of(twin, case))), case)

    return Law(name, claims, needs)


def compiles(**needs: Any) -> Law:
    """Claim that torch.compile(fullgraph=True) accepts the function and computes the same. It takes seconds."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        loss = build(twin, case)
        torch.compiler.reset()
        compiled = torch.compile(loss, fullgraph=True, dynamic=False)
        yield from _same(answer_with(twin, case, compiled), answer_with(twin, case, loss), case)

    return Law("torch.compile computes the same", claims, needs)


def ignores_autocast(**needs: Any) -> Law:
    """Claim that the results under autocast are those without it."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        with torch.autocast(_pair(twin).runs_on().type, torch.bfloat16):
            inside = ask_pair(twin, case)
        yield from _same(inside, ask_pair(twin, case), case)

    return Law("autocast changes nothing", claims, needs)


def _pair(twin: Twin) -> Pair:
    assert twin.pair is not None
    return twin.pair


def _values(case: Case) -> list[tuple[str, Array]]:
    return [(name, operand.values) for name, operand in case.operands.items()]


def _with_values(case: Case, values: Inputs) -> Case:
    """Return the case with new values for some inputs, rounded to their dtypes and contiguous."""
    made = {}
    for name, operand in case.operands.items():
        if name in values:
            rounded = Operand(np.array(values[name]), operand.dtype).tensor()
            made[name] = Operand(widened(rounded).astype(operand.values.dtype), operand.dtype)
        else:
            made[name] = operand
    return replace(case, operands=made)


def _taken(pair: Pair, name: str, axis: str, values: Array, order: Array) -> Array:
    spec = pair.inputs[name]
    if axis not in spec.axes:
        return values
    place = spec.axes.index(axis) - (len(spec.axes) if "..." in spec.axes else 0)
    return np.take(values, order, axis=place)


def _along(values: Array, axis: int | None, order: Array) -> Array:
    return values if axis is None else np.take(values, order, axis=axis)


def _alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(
        np.allclose(a, b, rtol=1e-9, atol=1e-9 * np.max(np.abs(a), initial=0), equal_nan=True)
    )


def _reference(twin: Twin, case: Case) -> tuple[Array, ...]:
    return reference_outputs(_pair(twin), lifted(case, np.float64), reference_options(twin, case))


def _flag(condition: bool, case: Case) -> Claim:
    """Return a claim that a condition holds."""
    return Claim("value", np.asarray(float(condition)), np.asarray(1.0), case, exact=True)


def _same(got: Answer, want: Answer, case: Case, exact: bool = False) -> Iterator[Claim]:
    yield Claim("value", got.value, want.value, case, exact=exact)
    yield Claim("gradient", got.gradient, want.gradient, case, exact=exact)


# Laws that every function keeps.


def _leaves_its_inputs(twin: Twin, case: Case) -> Iterator[Claim]:
    fast, pair = fast_of(twin)
    tensors = tensors_of(pair, case, pair.wrt if twin.differentiable and fast.slope is None else ())
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    answer_with(twin, case, build(twin, case), tensors)
    for name, tensor in tensors.items():
        if name not in pair.writes:
            now, old = (as_array(t.detach().double()) for t in (tensor, before[name]))
            yield Claim("value", np.nan_to_num(now, nan=0.5), np.nan_to_num(old, nan=0.5), case, exact=True)


def _repeats_bitwise(twin: Twin, case: Case) -> Iterator[Claim]:
    yield from _same(ask_pair(twin, case), ask_pair(twin, case), case, exact=True)


def _hands_out_no_buffer(twin: Twin, case: Case) -> Iterator[Claim]:
    """Overwriting the results of one call must not affect the next call, and the next call must not overwrite them."""
    pair, loss = _pair(twin), build(twin, case)
    first = run(twin, case, loss, tensors_of(pair, case))
    kept = [as_array(value).copy() for value in map(_writable, first)]
    second = run(twin, case, loss, tensors_of(pair, case))
    for value, copied in zip(first, kept, strict=True):
        yield Claim("value", as_array(_writable(value)), copied, case, exact=True)
    for value in first:
        if value.is_floating_point():
            value.detach().fill_(torch.nan)
    for value, copied in zip(second, kept, strict=True):
        yield Claim("value", as_array(_writable(value)), copied, case, exact=True)


def _writable(value: torch.Tensor) -> torch.Tensor:
    return value.detach().double() if value.is_floating_point() else value.detach()


def _state(loss: Any) -> list[bytes]:
    """Return the pickled attributes of an instance, and of the modules within it, as far as they can be pickled."""
    modules = loss.modules() if isinstance(loss, torch.nn.Module) else (loss,)
    held = []
    for module in modules:
        attributes = getattr(module, "__dict__", {})
        for name, value in sorted(attributes.items()):
            try:
                held += [] if callable(value) else [pickle.dumps((name, value))]
            except Exception:
                continue
    return held


def _keeps_no_state(twin: Twin, case: Case) -> Iterator[Claim]:
    pair, loss = _pair(twin), build(twin, case)
    before = _state(loss)
    for _ in range(2):
        run(twin, case, loss, tensors_of(pair, case))
    yield _flag(before == _state(loss), case)


def _copies_answer_alike(twin: Twin, case: Case) -> Iterator[Claim]:
    loss = build(twin, case)
    want = answer_with(twin, case, loss)
    made = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    if isinstance(loss, torch.nn.Module):
        made.append(build(twin, case))
        made[-1].load_state_dict(loss.state_dict())
    for other in made:
        yield from _same(answer_with(twin, case, other), want, case, exact=True)


def _copies_its_arguments(twin: Twin, case: Case) -> Iterator[Claim]:
    """Changing a list or an array after construction must not change the results."""
    fast, pair = fast_of(twin)
    options = copy.deepcopy(options_of(twin, case))
    loss = fast.built(sizes_of(pair, case), options)
    want = answer_with(twin, case, loss)
    for value in options.values():
        if isinstance(value, list | np.ndarray):
            value[:] = [0 * each for each in value]
        elif isinstance(value, torch.Tensor):
            value.zero_()
    yield from _same(answer_with(twin, case, loss), want, case, exact=True)


def _no_graph_without_request(twin: Twin, case: Case) -> Iterator[Claim]:
    pair, loss = _pair(twin), build(twin, case)
    plain = run(twin, case, loss, tensors_of(pair, case))
    held = bool(pair.state) or isinstance(loss, torch.nn.Module)
    yield _flag(held or not any(value.requires_grad for value in plain), case)
    with torch.no_grad():
        made = run(twin, case, loss, tensors_of(pair, case, pair.wrt))
    # A view of a leaf requires a gradient even then, but it has no graph.
    yield _flag(all(value.grad_fn is None for value in made), case)


class _Subclass(torch.Tensor):
    """A subclass of tensors that changes nothing."""


def _accepts_subclasses(twin: Twin, case: Case) -> Iterator[Claim]:
    pair, loss = _pair(twin), build(twin, case)
    tensors = {name: tensor.as_subclass(_Subclass) for name, tensor in tensors_of(pair, case).items()}
    made = run(twin, case, loss, tensors)
    want = run(twin, case, loss, tensors_of(pair, case))
    for a, b in zip(made, want, strict=True):
        yield Claim("value", widened(a.as_subclass(torch.Tensor)), widened(b), case, exact=True)


@contextmanager
def _other_defaults() -> Iterator[None]:
    """Make float64 the default dtype, and a device without memory the default device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def _ignores_defaults(twin: Twin, case: Case) -> Iterator[Claim]:
    pair, loss = _pair(twin), build(twin, case)
    want = run(twin, case, loss, tensors_of(pair, case))
    tensors = tensors_of(pair, case)
    if any(name not in pair.inputs for name in pair.writes):
        return  # the harness itself makes the buffers
    with _other_defaults():
        made = run(twin, case, loss, tensors)
    for a, b in zip(made, want, strict=True):
        yield _flag(a.device == b.device and a.dtype == b.dtype, case)
        if a.device == b.device:
            yield Claim("value", widened(a), widened(b), case)


def _ignores_threads(twin: Twin, case: Case) -> Iterator[Claim]:
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            answers.append(ask_pair(twin, case))
    finally:
        torch.set_num_threads(before)
    yield from _same(answers[1], answers[0], case)


INPUTS = Law("inputs stay unchanged", _leaves_its_inputs)
REPEATS = Law("a second call gives the same bits", _repeats_bitwise)
BUFFERS = Law("results are not reused as buffers", _hands_out_no_buffer)
THREADS = Law("the number of threads does not matter", _ignores_threads)
OF_ALL = (INPUTS, REPEATS, BUFFERS)
OF_TENSORS = (
    Law("a graph is built only on request", _no_graph_without_request),
    Law("a subclass of tensors gives the same", _accepts_subclasses),
    Law("default dtype and device do not matter", _ignores_defaults),
    THREADS,
)
OF_OBJECTS = (
    Law("a call leaves no state", _keeps_no_state),
    Law("copies give the same answer, by deepcopy, pickle or state_dict", _copies_answer_alike),
)
OF_CLASSES = (Law("arguments of the constructor are copied", _copies_its_arguments),)


def protocol(twin: Twin) -> tuple[Law, ...]:
    """Return the laws that the fast function of a pair should keep, whatever it computes."""
    fast, pair = fast_of(twin)
    made = list(OF_ALL)
    if pair.writes and any(name not in pair.inputs for name in pair.writes):
        made.remove(BUFFERS)
    if not fast.by_arrays:
        made += OF_TENSORS
    if fast.constructed or not hasattr(fast.found, "__code__"):
        made += OF_OBJECTS if fast.constructed or isinstance(fast.found, torch.nn.Module) else ()
    if fast.constructed and any(
        isinstance(v, list | np.ndarray | torch.Tensor) for o in pair.all_options().values() for v in o
    ):
        made += OF_CLASSES
    return tuple(made)


__all__ = [
    "bounded", "compiles", "equivariant", "holds", "ignores_autocast", "independent", "invariant",
    "linear", "permutes", "scales",
]  # fmt: skip
