"""Laws that every fast function of a pair should keep, whatever it computes."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import torch

from twinloss.harness.judging.pair_call import (
    answer_with,
    as_array,
    ask_pair,
    build,
    fast_of,
    options_of,
    run,
    sizes_of,
    tensors_of,
)
from twinloss.harness.judging.pair_laws import flag, pair_of, same
from twinloss.harness.model.operand import widened
from twinloss.harness.model.pair import Pair
from twinloss.harness.model.twin import Case, Claim, Law, Twin


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
    yield from same(ask_pair(twin, case), ask_pair(twin, case), case, exact=True)


def _hands_out_no_buffer(twin: Twin, case: Case) -> Iterator[Claim]:
    """Claim that overwriting the results of a call does not affect the next call, which does not overwrite them."""
    pair, loss = pair_of(twin), build(twin, case)
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
    pair, loss = pair_of(twin), build(twin, case)
    before = _state(loss)
    for _ in range(2):
        run(twin, case, loss, tensors_of(pair, case))
    yield flag(before == _state(loss), case)


def _copies_answer_alike(twin: Twin, case: Case) -> Iterator[Claim]:
    loss = build(twin, case)
    want = answer_with(twin, case, loss)
    made = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    if isinstance(loss, torch.nn.Module):
        made.append(build(twin, case))
        made[-1].load_state_dict(loss.state_dict())
    for other in made:
        yield from same(answer_with(twin, case, other), want, case, exact=True)


def _copies_its_arguments(twin: Twin, case: Case) -> Iterator[Claim]:
    """Claim that changing a list or an array after construction does not change the results."""
    fast, pair = fast_of(twin)
    options = copy.deepcopy(options_of(twin, case))
    loss = fast.built(sizes_of(pair, case), options)
    want = answer_with(twin, case, loss)
    for value in options.values():
        if isinstance(value, list | np.ndarray):
            value[:] = [0 * each for each in value]
        elif isinstance(value, torch.Tensor):
            value.zero_()
    yield from same(answer_with(twin, case, loss), want, case, exact=True)


def _no_graph_without_request(twin: Twin, case: Case) -> Iterator[Claim]:
    pair, loss = pair_of(twin), build(twin, case)
    plain = run(twin, case, loss, tensors_of(pair, case))
    held = bool(pair.state) or isinstance(loss, torch.nn.Module)
    yield flag(held or not any(value.requires_grad for value in plain), case)
    with torch.no_grad():
        made = run(twin, case, loss, tensors_of(pair, case, pair.wrt))
    # Under no_grad, a view of a leaf still requires a gradient, but it has no graph.
    yield flag(all(value.grad_fn is None for value in made), case)


class _Subclass(torch.Tensor):
    """A subclass of tensors that changes nothing."""


def _accepts_subclasses(twin: Twin, case: Case) -> Iterator[Claim]:
    pair, loss = pair_of(twin), build(twin, case)
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
    pair, loss = pair_of(twin), build(twin, case)
    want = run(twin, case, loss, tensors_of(pair, case))
    tensors = tensors_of(pair, case)
    if any(name not in pair.inputs for name in pair.writes):
        return  # the harness itself makes the buffers
    with _other_defaults():
        made = run(twin, case, loss, tensors)
    for a, b in zip(made, want, strict=True):
        yield flag(a.device == b.device and a.dtype == b.dtype, case)
        if a.device == b.device:
            yield Claim("value", widened(a), widened(b), case)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of threads of torch, and of Numba if it has been imported."""
    numba = sys.modules.get("numba")
    before, before_numba = torch.get_num_threads(), numba.get_num_threads() if numba else 0
    torch.set_num_threads(count)
    if numba:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if numba:
            numba.set_num_threads(before_numba)


def _ignores_threads(twin: Twin, case: Case) -> Iterator[Claim]:
    answers = []
    for count in (1, 4):
        with _threads(count):
            answers.append(ask_pair(twin, case))
    yield from same(answers[1], answers[0], case)


def _alike(pair: Pair) -> list[tuple[str, str]]:
    """Return the pairs of inputs for which one array may be given."""
    free = [name for name in pair.inputs if name not in pair.writes and name not in pair.state]
    return [(a, b) for a, b in combinations(free, 2) if pair.inputs[a] == pair.inputs[b]]


def _accepts_one_tensor_twice(twin: Twin, case: Case) -> Iterator[Claim]:
    pair = pair_of(twin)
    for a, b in _alike(pair):
        equal = case.with_operand(b, case.operands[a])
        if not twin.domain(equal):
            continue
        loss, tensors = build(twin, equal), tensors_of(pair, equal)
        want = run(twin, equal, loss, tensors)
        got = run(twin, equal, loss, {**tensors, b: tensors[a]})
        for one, two in zip(got, want, strict=True):
            yield Claim("value", widened(one), widened(two), equal, exact=True)


def _follows_its_state(twin: Twin, case: Case) -> Iterator[Claim]:
    """Claim that a module that loads a state_dict after a call computes with the new parameters."""
    pair = pair_of(twin)
    tensors = tensors_of(pair, case)
    loss = copy.deepcopy(build(twin, case)).to(pair.runs_on(), getattr(torch, case.dtype))
    others = {name: tensor for name, tensor in tensors.items() if name not in pair.state}
    run(twin, case, loss, others)
    loss.load_state_dict({**loss.state_dict(), **{theirs: tensors[name] for name, theirs in pair.state.items()}})
    want = run(twin, case, build(twin, case), tensors)
    for got, each in zip(run(twin, case, loss, others), want, strict=True):
        yield Claim("value", widened(got), widened(each), case)


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
STATE = Law("a state_dict that is loaded takes effect", _follows_its_state)
TWICE = Law("one tensor may be given for two inputs", _accepts_one_tensor_twice)
OF_CLASSES = (Law("arguments of the constructor are copied", _copies_its_arguments),)


def protocol(twin: Twin) -> tuple[Law, ...]:
    """Return the laws that the fast function of a pair should keep, whatever it computes."""
    fast, pair = fast_of(twin)
    made = list(OF_ALL)
    if pair.writes and any(name not in pair.inputs for name in pair.writes):
        made.remove(BUFFERS)
    if not fast.by_arrays:
        made += OF_TENSORS
    if _alike(pair):
        made.append(TWICE)
    if pair.state:
        made.append(STATE)
    if fast.constructed or not hasattr(fast.found, "__code__"):
        made += OF_OBJECTS if fast.constructed or isinstance(fast.found, torch.nn.Module) else ()
    if fast.constructed and any(
        isinstance(v, list | np.ndarray | torch.Tensor) for o in pair.all_options().values() for v in o
    ):
        made += OF_CLASSES
    return tuple(made)
