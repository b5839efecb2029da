"""Laws that every well-behaved torch module keeps, whatever it computes; the hunt checks them like other laws."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from twinloss.harness.judging.answers import ask_fast, fast_options
from twinloss.harness.judging.judgement import Precision
from twinloss.harness.model.operand import HALVES, Array, Elementwise, widened
from twinloss.harness.model.twin import Case, Claim, Law, Twin

# The number of roundoffs of the largest number by which two float32 computations may differ. They sum in a different
# order, because the kernels convert half-precision voxels to float32 a few at a time.
ROUNDOFFS = 16


def _flag(holds: bool, case: Case) -> Claim:
    """Return a claim that a condition holds."""
    return Claim("value", np.asarray(float(holds)), np.asarray(1.0), case, exact=True)


def _leaves_its_arguments(twin: Twin, case: Case) -> Iterator[Claim]:
    tensors = [operand.tensor() for operand in case.operands.values()]
    copies = [tensor.clone() for tensor in tensors]
    value = twin.fast(**fast_options(case.options))(tensors[0].requires_grad_(), *tensors[1:])
    value.sum().backward()
    for tensor, untouched in zip(tensors, copies, strict=True):
        now, before = (widened(t.nan_to_num(nan=0.5)) for t in (tensor, untouched))
        yield Claim("value", now, before, case, exact=True)
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    gradient = tensors[0].grad
    assert gradient is not None
    for made in (value, gradient):
        yield _flag(made.untyped_storage().data_ptr() not in storages, case)


def _none_is_zero(case: Case) -> bool:
    """Return whether overwriting any argument with zeros would change it."""
    return all(bool(np.any(operand.values != 0)) for operand in case.operands.values())


def _repeats_bitwise(twin: Twin, case: Case) -> Iterator[Claim]:
    first, second = ask_fast(twin, case), ask_fast(twin, case)
    yield Claim("value", second.value, first.value, case, exact=True)
    yield Claim("gradient", second.gradient, first.gradient, case, exact=True)


def _state(loss: torch.nn.Module) -> list[bytes]:
    """Return the pickled attributes of a module and its submodules, except callables and unpicklable objects."""
    held = [(name, v) for each in loss.modules() for name, v in sorted(vars(each).items()) if name != "_modules"]
    held += [(name, v) for name, v in sorted(vars(getattr(loss, "loss", loss)).items()) if name != "_modules"]
    return [pickle.dumps((name, v)) for name, v in held if _plain(v)]


def _plain(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # for example a lambda, or an object that holds one
        return False
    return not callable(value)


def _keeps_no_state(twin: Twin, case: Case) -> Iterator[Claim]:
    loss = twin.fast(**fast_options(case.options))
    before = _state(loss)
    first, second = (loss(*(o.tensor() for o in case.operands.values())) for _ in range(2))
    yield _flag(before == _state(loss), case)
    yield Claim("value", widened(second), widened(first), case, exact=True)


def _no_graph_without_request(twin: Twin, case: Case) -> Iterator[Claim]:
    """Without requires_grad the result has no graph, and the same value."""
    value = twin.fast(**fast_options(case.options))(*(o.tensor() for o in case.operands.values()))
    yield _flag(not value.requires_grad, case)
    yield Claim("value", widened(value), ask_fast(twin, case).value, case, exact=True)


def _copies_answer_alike(twin: Twin, case: Case) -> Iterator[Claim]:
    loss = twin.fast(**fast_options(case.options))
    made = [copy.deepcopy(loss)]
    if not any(isinstance(value, Elementwise) for value in case.options.values()):  # a lambda cannot be pickled
        made.append(pickle.loads(pickle.dumps(loss)))
    restored = twin.fast(**fast_options(case.options))
    restored.load_state_dict(loss.state_dict())
    tensors = [operand.tensor() for operand in case.operands.values()]
    want = widened(loss(*tensors))
    for other in (*made, restored):
        yield Claim("value", widened(other(*tensors)), want, case, exact=True)


def _hands_out_no_buffer(twin: Twin, case: Case) -> Iterator[Claim]:
    """Overwriting the results of one call must not affect the next call, and the next call must not overwrite them."""
    loss = twin.fast(**fast_options(case.options))
    answers: list[tuple[Array, Array]] = []
    overwritten: list[torch.Tensor] = []
    for _ in range(2):
        x, *rest = (o.tensor() for o in case.operands.values())
        value = loss(x.requires_grad_(), *rest)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        answers.append((widened(value).copy(), widened(gradient).copy()))
        yield _flag(all(bool(made.isnan().all()) for made in overwritten), case)
        overwritten += [value.detach().fill_(torch.nan), gradient.fill_(torch.nan)]
    for part, first, second in zip(("value", "gradient"), *answers, strict=True):
        yield Claim(part, second, first, case, exact=True)


def _no_grad(twin: Twin, case: Case) -> Iterator[Claim]:
    with torch.no_grad():
        x, *rest = (o.tensor() for o in case.operands.values())
        value = twin.fast(**fast_options(case.options))(x.requires_grad_(), *rest)
    yield _flag(not value.requires_grad, case)


def _rounds_a_half_once(twin: Twin, case: Case) -> Iterator[Claim]:
    """In half precision, value and gradient are those of float32 for the same numbers, rounded once.

    A sum of terms that are each rounded to half precision has a larger error.
    """
    wide = case.with_operand(next(iter(case.operands)), replace(case.input, dtype="float32"))
    narrow, exact = ask_fast(twin, case), ask_fast(twin, wide)
    for part in ("value", "gradient"):
        yield _flag(_is_rounded_once(getattr(narrow, part), getattr(exact, part), case.dtype), case)


def _is_rounded_once(narrow: Array, wide: Array, half: str) -> bool:
    """Return whether each number is within half a unit in the last place, plus the error of float32 computations."""
    p = Precision.of(half)
    own = ROUNDOFFS * p.u * np.max(np.abs(wide), initial=0, where=np.isfinite(wide))
    # Skip NaN, infinity, and numbers beyond the range of the half-precision dtype.
    held = np.isfinite(wide) & (np.abs(wide) < 0.99 * p.largest)
    with np.errstate(invalid="ignore"):
        error = np.abs(narrow.astype(np.float64) - wide)
    return bool((error[held] <= p.u_out * np.abs(wide[held]) + own + p.tiny).all())


ROUNDED_ONCE = Law("half precision is rounded once", _rounds_a_half_once, dtypes=HALVES)

PROTOCOL = (
    Law("arguments stay unchanged, and results share no memory with them", _leaves_its_arguments, {}, _none_is_zero),
    Law("a second call gives the same bits", _repeats_bitwise),
    Law("a call leaves no state", _keeps_no_state),
    Law("a graph is built only if an argument requires grad", _no_graph_without_request),
    Law("copies give the same answer, by deepcopy, pickle or state_dict", _copies_answer_alike),
    Law("results are not reused as buffers", _hands_out_no_buffer),
    Law("no graph is built under no_grad", _no_grad),
    ROUNDED_ONCE,
)
