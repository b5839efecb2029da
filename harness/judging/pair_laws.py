"""Laws for pairs: relations between answers of the fast function, which hold whatever the reference computes.

`permutes`, `scales` and the other functions without an underscore make laws for `Pair(laws=[…])`. The hunt always
checks the laws in `pair_protocol.py`, which every function should keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from twinloss.harness.judging.pair_call import (
    answer_with,
    ask_pair,
    build,
    joined,
    lifted,
    options_of,
    pair_options,
    reference_outputs,
    sizes_of,
)
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array, Operand, widened
from twinloss.harness.model.pair import Pair
from twinloss.harness.model.twin import Case, Claim, Law, Twin

Inputs = Mapping[str, Array]
Change = Callable[[dict[str, Array]], Inputs]


def permutes(axis: str, **needs: Any) -> Law:
    """Claim that a permutation of `axis` in the inputs permutes the results in the same way.

    The axis of each output is found with the reference; an output without it must not change. As in all laws, `needs`
    are the options under which the law holds.
    """

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        pair = pair_of(twin)
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
    """Claim that the outputs for a sum of two inputs are the sum of their outputs, up to a constant term."""

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
        yield Claim("value", ask_pair(twin, moved).value.ravel(), ask_pair(twin, case).value.ravel(), case)

    return Law(f"{name} changes nothing", claims, needs)


def equivariant(name: str, change: Change, of_outputs: Callable[[Array], Array], **needs: Any) -> Law:
    """Claim that a change of the inputs changes every output as `of_outputs` says."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        moved = _with_values(case, change(dict(_values(case))))
        here, there = ask_pair(twin, case), ask_pair(twin, moved)
        want = joined([np.asarray(of_outputs(output)) for output in here.outputs])
        yield Claim("value", there.value, want, case)

    return Law(name, claims, needs)


def bounded(low: float = -np.inf, high: float = np.inf, **needs: Any) -> Law:
    """Claim that every number of the outputs lies between `low` and `high`."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        value = ask_pair(twin, case).value
        yield Claim("value", value, np.clip(value, low, high), case)

    return Law(f"the outputs lie in [{low:g}, {high:g}]", claims, needs)


def independent(axis: str, **needs: Any) -> Law:
    """Claim that the outputs for one entry of an axis of the inputs do not depend on the other entries.

    Inputs without `axis` are shared. It must be the first axis of each output.
    """

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        pair, case = pair_of(twin), replace(case, cotangent=None)
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
        yield flag(bool(predicate(dict(_values(case)), outputs, options_of(twin, case))), case)

    return Law(name, claims, needs)


def compiles(backend: str = "inductor", **needs: Any) -> Law:
    """Claim that torch.compile(fullgraph=True) accepts the function and computes the same.

    It takes seconds. backend="eager" is faster, and checks only that torch can capture the function.
    """

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        loss = build(twin, case)
        torch.compiler.reset()
        compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
        yield from same(answer_with(twin, case, compiled), answer_with(twin, case, loss), case)

    return Law("torch.compile computes the same", claims, needs)


def ignores_autocast(**needs: Any) -> Law:
    """Claim that the results under autocast are those without it."""

    def claims(twin: Twin, case: Case) -> Iterator[Claim]:
        with torch.autocast(pair_of(twin).runs_on().type, torch.bfloat16):
            inside = ask_pair(twin, case)
        yield from same(inside, ask_pair(twin, case), case)

    return Law("autocast changes nothing", claims, needs)


def pair_of(twin: Twin) -> Pair:
    """Return the pair of a twin that was made from one."""
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
    return reference_outputs(twin.value, lifted(case, np.float64), pair_options(twin, case))


def flag(condition: bool, case: Case) -> Claim:
    """Return a claim that a condition holds."""
    return Claim("value", np.asarray(float(condition)), np.asarray(1.0), case, exact=True)


def same(got: Answer, want: Answer, case: Case, exact: bool = False) -> Iterator[Claim]:
    """Claim that two answers are equal."""
    yield Claim("value", got.value, want.value, case, exact=exact)
    yield Claim("gradient", got.gradient, want.gradient, case, exact=exact)


__all__ = [
    "bounded", "compiles", "equivariant", "holds", "ignores_autocast", "independent", "invariant",
    "linear", "permutes", "scales",
]  # fmt: skip
