"""Make a twin of a user's pair, and check before any hunt that its functions fit its description."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis.errors import HypothesisException

from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.drawing.pair_cases import in_domain, pair_cases
from twinloss.harness.hunting.loading import TargetError, load, load_object
from twinloss.harness.hunting.target import is_of_arrays, parameters
from twinloss.harness.judging import pair_protocol
from twinloss.harness.judging.pair_call import (
    Fast,
    ask_pair,
    fast_of,
    lifted,
    named_gradients,
    options_of,
    pair_options,
    reference_outputs,
    sizes_of,
    weights,
)
from twinloss.harness.judging.trial import Trial, examine
from twinloss.harness.model.operand import Array, Operand
from twinloss.harness.model.pair import Pair, PairError
from twinloss.harness.model.twin import Case, Law, Twin

# The entry points by which packages make their pairs known.
GROUP = "twinloss.pairs"

# The number of cases that must all be wrong before a pair is refused.
SIMPLE = 5


@dataclass(frozen=True)
class PairPlace:
    """The place of a pair, from which another process makes its twin."""

    place: str

    def twin(self) -> Twin:
        """Return the twin."""
        return as_twin(load_pair(self.place), self.place)


def load_pair(place: str) -> Pair:
    """Load the pair that `package.module:PAIR` or `path/file.py:PAIR` names.

    Raises:
        TargetError: if there is no such pair.
        PairError: if its description contradicts itself.
    """
    try:
        found = load_object(place, Pair)
    except TargetError as error:
        cause = error.__cause__
        raise (cause if isinstance(cause, PairError) else error) from error
    if not isinstance(found, Pair):
        raise TargetError(f"{place} is a {type(found).__name__}, not a Pair: name a pair, as in mykernels.pairs:PAIR")
    return found


def installed() -> dict[str, EntryPoint]:
    """Return the pairs that installed packages have, by name."""
    return {each.name: each for each in entry_points(group=GROUP)}


def find_pair(name: str) -> tuple[Pair, str]:
    """Return the pair of a place, or of an installed package by its name, and its place.

    Raises:
        TargetError: if there is no such pair.
    """
    if ":" in name:
        file, _, attribute = name.rpartition(":")
        place = f"{Path(file).resolve()}:{attribute}" if file.endswith(".py") else name
        return load_pair(name), place
    known = installed()
    if name not in known:
        raise TargetError(
            f"no pair is called {name!r}: name one as package.module:PAIR; those of installed packages are "
            f"{', '.join(known) or 'none'}"
        )
    return load_pair(known[name].value), known[name].value


def place_of(pair: Pair) -> str | None:
    """Return the place of a pair that is a variable of a loaded module, or None."""
    for module in list(sys.modules.values()):
        name = next((key for key, value in list(getattr(module, "__dict__", {}).items()) if value is pair), None)
        if name is not None:
            file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
            importable = module.__name__ != "__main__" and "." in module.__name__ and spec is not None
            return f"{file}:{name}" if file and not importable else f"{module.__name__}:{name}"
    return None


def as_twin(pair: Pair, place: str | None = None) -> Twin:
    """Make the twin of a pair; `place` is where other processes find it, by default its module.

    Raises:
        TargetError: if the fast function cannot be imported.
        PairError: if the fast function cannot be called as the pair says, or its device cannot be used here.
    """
    place = place or place_of(pair)
    _refuse_device(pair)
    found = _loaded(pair, pair.fast)
    slope = None if pair.fast_gradient is None else _loaded(pair, pair.fast_gradient)
    by_arrays = pair.takes == "numpy" if pair.takes else is_of_arrays(found)
    call = found
    if not inspect.isroutine(found):
        call = getattr(found, "forward", None) or (found.__call__ if inspect.isclass(found) else found)
    fast = Fast(pair, found, slope, by_arrays, parameters(found), _keywords(call))
    _refuse_signature(fast, call)
    laws = _laws(pair)
    made = Twin(
        name=pair.name,
        fast=fast,  # type: ignore[arg-type]
        value=pair.reference,
        gradient=pair.gradient,
        operands=tuple(pair.inputs),
        options=pair.all_options(),
        cases=pair_cases,
        allowed=pair.allowed,
        domain=lambda case: in_domain(pair, case),
        unit=pair.unit,
        precise=pair.precise,
        constants=_constants(pair),
        kinks=lambda options: pair.kinks({**pair.defaults(), **options}),
        terms=pair.terms,
        value_terms=pair.value_terms,
        differentiable=bool(pair.wrt),
        pair=pair,
        laws=laws,
        origin=PairPlace(place) if place else None,
        source=_source(place),
    )
    return replace(made, laws=(*laws, *pair_protocol.protocol(made)))


def _constants(pair: Pair) -> tuple[str, ...]:
    if pair.constants is not None:
        return tuple(pair.constants)
    return tuple(name for name, tried in pair.options.items() if any(map(_is_rounded, tried)))


def _is_rounded(value: Any) -> bool:
    """Return whether a value of an option is a real number that rounding may change; whole numbers are exact."""
    return isinstance(value, float) and math.isfinite(value) and value != round(value)


def _refuse_device(pair: Pair) -> None:
    try:
        torch.empty(0, device=pair.runs_on())
    except (RuntimeError, AssertionError) as error:
        where = f"device={pair.device!r}"
        raise PairError(f"{pair.name}: {where} cannot be used here: {error}; leave it out to use the CPU") from error


def _loaded(pair: Pair, given: Any) -> Any:
    if isinstance(given, str):
        return load(given)
    if not callable(given):
        raise PairError(f"{pair.name}: the fast function is {given!r}: give a function, a class or its place as a text")
    return given


def _keywords(call: Any) -> Any:
    try:
        known = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return lambda name: False
    return {p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}.__contains__


def _laws(pair: Pair) -> tuple[Law, ...]:
    for law in pair.laws:
        if not isinstance(law, Law):
            raise PairError(f'{law!r} is no law: make one as in laws.permutes("B"); see twinloss.harness.laws')
        for name in law.needs:
            if name not in pair.options:
                raise PairError(f"the law '{law.name}' needs an option {name}, which {pair.name} does not have")
    return tuple(pair.laws)


def _source(place: str | None) -> str:
    """Return the statements that bind PAIR."""
    if place is None:
        return "# Import your pair here: it is not a variable of a module that could be imported.\nPAIR = ..."
    where, _, name = place.rpartition(":")
    if where.endswith(".py"):
        return f"from twinloss.harness.hunting.pairs import load_pair\n\nPAIR = load_pair({place!r})"
    return f"from {where} import {name}" + ("" if name == "PAIR" else " as PAIR")


def _refuse_signature(fast: Fast, call: Any) -> None:
    """Check that the fast function has parameters for all inputs and options.

    Raises:
        PairError: if it does not.
    """
    pair = fast.pair
    function = getattr(fast.found, "py_func", fast.found)
    for name in pair.all_options():
        taken = fast.takes(fast.theirs(name)) or fast.call_takes(fast.theirs(name))
        if not taken and _has_signature(call):
            raise PairError(
                f"{fast.__name__}{_signature(function)} has no parameter {fast.theirs(name)}: rename the option with "
                f"names={{{name!r}: …}}, or leave it out of options"
            )
    if fast.constructed or not _has_signature(function):
        return
    passed = [name for name in pair.inputs if name not in pair.state]
    by_name = any(name in pair.names for name in passed)
    keywords = [fast.theirs(name) for name in (*pair.all_options(), *(w for w in pair.writes if w not in pair.inputs))]
    keywords += [fast.theirs(name) for name in passed] if by_name else []
    try:
        inspect.signature(function).bind(*([] if by_name else passed), **dict.fromkeys(keywords))
    except TypeError as error:
        given = ", ".join([*([] if by_name else passed), *(f"{name}=…" for name in keywords)])
        raise PairError(
            f"{fast.__name__}{_signature(function)} cannot be called as {fast.__name__}({given}): {error}; rename "
            "inputs and options with names={ours: theirs}"
        ) from error


def _has_signature(function: Any) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        return False
    return True


def _signature(function: Any) -> str:
    return str(inspect.signature(function)) if _has_signature(function) else "(…)"


def refuse_what_does_not_fit(twin: Twin, dtypes: Sequence[str], seed: int) -> None:
    """Run both functions on simple cases, and refuse a pair whose functions do not fit its description.

    Raises:
        PairError: if the reference or the gradient is not usable, or if the fast function fails on all simple cases.
            The message says what was passed, what came, and how to mend it.
    """
    fast, pair = fast_of(twin)
    if fast.by_arrays and pair.runs_on().type != "cpu":
        raise PairError(f"{fast.__name__} takes NumPy arrays, which are not on {pair.runs_on()}: use the CPU")
    if fast.by_arrays and "bfloat16" in dtypes:
        raise PairError(f"{fast.__name__} takes NumPy arrays, which have no bfloat16: leave bfloat16 out of the dtypes")
    for dtype in dtypes:
        try:
            cases = drawn(twin, dtype, twin.defaults(), None, SIMPLE, seed)
        except HypothesisException as error:
            raise PairError(f"{pair.name}: no case fits sizes, ranges and domain together: {error}") from error
        if not cases:
            raise PairError(f"{pair.name}: no case fits sizes, ranges and domain together: allow more of them")
        for case in cases:
            _refuse_reference(twin, pair, case)
        complaints = [_complaint(twin, case) for case in cases]
        if all(complaints):
            raise PairError(f"{pair.name}: {complaints[0]}")


def _refuse_reference(twin: Twin, pair: Pair, case: Case) -> None:
    name = getattr(pair.reference, "__name__", "the reference")
    options = pair_options(twin, case)
    passed = _passed(case, options)
    arguments = lifted(case, np.float64)
    before = {key: value.copy() for key, value in arguments.items()}
    try:
        outputs = reference_outputs(pair.reference, arguments, options)
    except Exception as error:
        raise PairError(f"the reference {name} raised {type(error).__name__} for {passed}: {error}") from error
    for key, value in arguments.items():
        if not np.array_equal(value, before[key], equal_nan=value.dtype.kind == "f"):
            raise PairError(f"the reference {name} modifies its input {key}: copy it first, for {passed}")
    for k, output in enumerate(outputs):
        if output.dtype.kind not in "fiub":
            raise PairError(f"the reference {name} must return arrays of numbers, got {output!r} as output {k}")
        if output.dtype.kind == "f" and output.dtype.itemsize < 8 and any(v.dtype.kind == "f" for v in before.values()):
            raise PairError(
                f"the reference {name} returns {output.dtype} for inputs of float64: it must compute in the precision "
                "of its inputs, without astype or constants of another dtype"
            )
    if pair.precise and len(outputs) > 1:
        raise PairError(f"precise=True is for a single output, and the reference {name} returns {len(outputs)}")
    again = reference_outputs(pair.reference, lifted(case, np.float64), options)
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(outputs, again, strict=True)):
        raise PairError(f"the reference {name} gives other results in a second call, for {passed}")
    if pair.wrt and not any(output.dtype.kind == "f" for output in outputs):
        raise PairError(f"the reference {name} returns no floating numbers, so there is no gradient: leave out wrt")
    if pair.gradient is not None:
        _refuse_gradient(pair, case, outputs, options, passed)


def _refuse_gradient(pair: Pair, case: Case, outputs: Sequence[Array], options: Mapping[str, Any], passed: str) -> None:
    assert pair.gradient is not None
    upstream = weights(case, [output.shape for output in outputs if output.dtype.kind == "f"])
    arguments = lifted(case, np.float64)
    try:
        with np.errstate(all="ignore"):
            cotangent = upstream[0] if len(upstream) == 1 else tuple(upstream)
            found = named_gradients(pair.wrt, pair.gradient(*arguments.values(), cotangent=cotangent, **options))
    except PairError:
        raise
    except Exception as error:
        raise PairError(f"the gradient raised {type(error).__name__} for {passed}: {error}") from error
    for name, gradient in found.items():
        if np.shape(gradient) != arguments[name].shape:
            raise PairError(f"the gradient for {name} has shape {np.shape(gradient)}, for {passed}")


def _complaint(twin: Twin, case: Case) -> str | None:
    """Describe why the fast function cannot be judged on a case, or return None."""
    fast, pair = fast_of(twin)
    options = options_of(twin, case)
    passed = _passed(case, options)
    try:
        answer = ask_pair(twin, case)
    except Exception as error:
        what = f"{fast.__name__} raised {type(error).__name__} for {passed}: {error}"
        if pair.takes is None and isinstance(error, TypeError | AttributeError):
            taken, other = ("NumPy arrays", "torch") if fast.by_arrays else ("torch tensors", "numpy")
            what += f"\nit was called with {taken}; if that is wrong, give takes={other!r}"
        if fast.constructed:
            made = fast.constructor_arguments(sizes_of(pair, case), options)
            what += f"\nconstructed with: {made}\nsignature: {_signature(fast.found)}"
        return what
    want = reference_outputs(pair.reference, lifted(case, np.float64), pair_options(twin, case))
    got_shapes, shapes = [o.shape for o in answer.outputs], [o.shape for o in want]
    if len(want) != len(answer.outputs):
        return f"{fast.__name__} returns {len(answer.outputs)} outputs, and the reference {len(want)}, for {passed}"
    if got_shapes != shapes:
        return f"{fast.__name__} returns shapes {got_shapes}, and the reference {shapes}, for {passed}"
    return None


def _passed(case: Case, options: Mapping[str, Any]) -> str:
    """Return the inputs and options as text, with dtype and shape for each input."""
    made = [f"{name}: {o.dtype} {o.values.shape}" for name, o in case.operands.items()]
    return ", ".join([*made, *(f"{name}={value!r}" for name, value in options.items())])


def replay(
    pair: Pair,
    inputs: Mapping[str, tuple[Any, ...]],
    options: Mapping[str, Any] | None = None,
    *,
    dtype: str,
    cotangent: Sequence[float] | None = None,
    law: str | None = None,
) -> Trial:
    """Run a case of a pair, print what both functions return, and return the trial, whose `kind` is None if they agree.

    Args:
        pair: the pair.
        inputs: for each input its numbers, its dtype and, if it is not contiguous, its memory layout.
        options: the options that differ from their defaults.
        dtype: the dtype under test.
        cotangent: the upstream gradient, repeated to fill the outputs; ones by default.
        law: the name of the law to check.
    """
    twin = as_twin(pair)
    operands = {name: Operand(*given) for name, given in inputs.items()}
    found = next((each for each in twin.laws if each.name == law), None)
    case = Case(operands, dict(options or {}), None if cotangent is None else tuple(cotangent), law=found, tested=dtype)
    trial = examine(twin, case)
    print(trial.message or "the two functions agree")
    if trial.answer is not None and trial.truth is not None and trial.kind in ("value", "gradient"):
        pairs = (
            ("value", trial.answer.value, trial.truth.value),
            ("gradient", trial.answer.gradient, trial.truth.gradient),
        )
        for part, got, want in pairs:
            if got.shape == want.shape:
                got, want = got.ravel(), want.ravel()
                error = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0, np.abs(got - want))
                print(f"{part}:\n  fast      {got[:20]}\n  reference {want[:20].astype(float)}")
                print(f"  error     {error[:20].astype(float)}")
    return trial
