"""A check, before any hunt, that a target can be called: a wrong signature is not a counterexample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch

from twinloss.harness.drawing import coverage
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.hunting.conventions import of_one_type
from twinloss.harness.hunting.loading import TargetError
from twinloss.harness.hunting.target import Target, Wiring
from twinloss.harness.judging.answers import fast_options
from twinloss.harness.model.twin import Case, Twin

HOW_TO_FIX = (
    "to fix it: use --map {argument}=THEIRS where an argument or option has another name, --option NAME=VALUE for a "
    "further option that it needs, --labels-without-channel if it takes labels of shape (B, *S); in Python names=, "
    "options=, labels_without_channel="
)


def refuse_what_cannot_be_called(twin: Twin, wiring: Wiring, dtypes: Sequence[str], seed: int) -> None:
    """Call a target on simple cases of every rank, with one channel and with several, until a call succeeds.

    Raises:
        TargetError: if every call fails. The message shows what was passed, the signature, and how to fix the call.
    """
    first: tuple[Case, Exception] | None = None
    count = 0
    for case in _simple_cases(twin, dtypes, seed):
        count += 1
        try:
            _call(twin, case)
        except Exception as raised:
            first = first or (case, raised)
        else:
            return
    if first:
        case, error = first
        raise TargetError(
            f"{wiring.target} cannot be called: all {count} simple cases raised an error, the first of them\n"
            f"{type(error).__name__}: {error}\npassed: {_passed(twin, case)}\nsignature: {_signature(twin)}\n"
            + HOW_TO_FIX.format(argument=twin.operands[-1])
        ) from error


def _simple_cases(twin: Twin, dtypes: Sequence[str], seed: int) -> Iterator[Case]:
    shapes = coverage.shapes(twin)
    ordinary = {name: values[0] for name, values in shapes.items()}
    for dtype, rank, channels in product(dtypes, shapes[coverage.RANK], shapes.get(coverage.CHANNELS, (None,))):
        wanted = ordinary | {coverage.RANK: rank} | ({coverage.CHANNELS: channels} if channels else {})
        for case in drawn(coverage.narrowed(twin, wanted), dtype, twin.defaults(), None, 1, seed):
            yield of_one_type(twin, case)


def _call(twin: Twin, case: Case) -> None:
    tensors = [operand.tensor() for operand in case.operands.values()]
    loss = twin.fast(**fast_options(case.options))
    loss(*tensors)
    if isinstance(loss, Target) and loss.slope is not None:
        loss.of_arrays(loss.slope, dict(zip(case.operands, tensors, strict=True)))


def _passed(twin: Twin, case: Case) -> str:
    """Return the call as text, with dtype and shape for each argument."""
    target = twin.fast
    assert issubclass(target, Target)
    options = [f"{name}={value!r}" for name, value in target.passes(fast_options(case.options)).items()]
    named = any(name in target.wiring.names for name in case.operands)
    arguments = [
        (f"{target.wiring.theirs(name)}=" if named else "") + f"{o.dtype} {tuple(o.values.shape)}"
        for name, o in case.operands.items()
    ]
    name = target.__name__
    if inspect.isclass(target.found):
        return f"{name}({', '.join(options)})({', '.join(arguments)})"
    return f"{name}({', '.join(arguments + options)})"


def _signature(twin: Twin) -> str:
    """Return the signatures of the constructor, if there is one, and of the call."""
    target = twin.fast
    assert issubclass(target, Target)
    found, name = target.found, target.__name__
    called: Callable[..., Any] = found
    if isinstance(found, torch.nn.Module) or (inspect.isclass(found) and issubclass(found, torch.nn.Module)):
        called = found.forward
    elif inspect.isclass(found):
        called = found.__call__
    of_call = f"{getattr(called, '__name__', 'call')}{_parameters(called)}"
    return f"{name}{_parameters(found)}, then {of_call}" if inspect.isclass(found) else of_call


def _parameters(called: Callable[..., Any]) -> str:
    if getattr(called, "__init__", None) is torch.nn.Module.__init__:
        return "()"  # its signature accepts all names, but it rejects them at run time
    try:
        return str(inspect.signature(getattr(called, "py_func", called)))
    except (TypeError, ValueError):
        return "(…)"
