"""Wrong answers to a case, all of which the judge must reject in some case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from twinloss.harness.judging.pair_call import ask_pair, joined, sizes_of
from twinloss.harness.judging.trial import Trial
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array, label
from twinloss.harness.model.pair import Pair
from twinloss.harness.model.twin import Case

# The factor by which one block, and by which the last number, is wrong.
BLOCK, TAIL = 1 + 2.0**-4, 1.5
# Two results of the reference that differ by less, relatively, are the same.
SAME = 1e-2
# Numbers of the reference that differ by less, relatively, are equal up to its rounding errors.
ROUNDED = 1e-12

# The name of a wrong answer, the part that is wrong, a function that makes it if it can be made, and one that returns
# whether it is right after all.
WrongAnswer = tuple[str, str, Callable[[], Answer | None], Callable[[], bool]]

Spoil = Callable[[Array], Array]


def _constant(values: Array) -> Array:
    return np.full_like(values, 0.5 if values.dtype.kind == "f" else 1)


def _negative(values: Array) -> Array:
    return ~values if values.dtype.kind == "b" else -values


def _shuffled(values: Array) -> Array:
    return np.roll(values.ravel(), 1).reshape(values.shape)


def _tail(values: Array) -> Array:
    made = values.copy()
    made.flat[-1:] = _scaled(made.ravel()[-1:], TAIL)
    return made


def _last_entry(values: Array) -> Array:
    """Change the last entry of the first axis."""
    made = np.atleast_1d(values.copy())
    made[-1:] = _scaled(made[-1:], BLOCK)
    return made.reshape(values.shape)


def _scaled(values: Array, factor: float) -> Array:
    if values.dtype.kind == "b":
        return ~values
    return values * values.dtype.type(factor) if values.dtype.kind == "f" else values + 1


OF_VALUES: dict[str, Spoil] = {
    "replaced by zeros": np.zeros_like,
    "replaced by a constant": _constant,
    "of the wrong sign": _negative,
    "shuffled": _shuffled,
    "of which the last entry is wrong": _last_entry,
    "of which the last number is wrong": _tail,
}
OF_GRADIENTS: dict[str, Spoil] = {
    "replaced by zeros": np.zeros_like,
    "replaced by a constant": _constant,
    "of the wrong sign": np.negative,
    "halved": lambda values: values / 2,
    "shuffled": _shuffled,
    "of which the last entry is wrong": _last_entry,
    "of which the last number is wrong": _tail,
}


def wrong_answers(trial: Trial) -> Iterator[WrongAnswer]:
    """Yield the wrong answers to a case."""
    answer, truth = trial.answer, trial.truth
    assert answer is not None
    assert truth is not None
    for name, spoil in OF_VALUES.items():
        yield (
            f"value {name}", "value", lambda spoil=spoil: _with_outputs(answer, spoil),  # type: ignore[misc]
            lambda spoil=spoil: _keeps(truth.outputs, spoil),  # type: ignore[misc]
        )  # fmt: skip
    for which in truth.twin.wrt if truth.twin.differentiable else ():
        for name, spoil in OF_GRADIENTS.items():
            yield (
                f"gradient of {which} {name}", "gradient",
                lambda spoil=spoil, which=which: _with_gradient(trial, which, spoil),  # type: ignore[misc]
                lambda which=which, name=name: "constant" not in name and truth.is_zero(which),  # type: ignore[misc]
            )  # fmt: skip
    if truth.twin.pair is not None:
        yield from _of_a_pair(trial, truth.twin.pair)


def _of_a_pair(trial: Trial, pair: Pair) -> Iterator[WrongAnswer]:
    """Yield wrong blocks, inputs in another order, and options that are dropped."""
    truth = trial.truth
    assert truth is not None
    for which in pair.wrt:
        for axis in pair.blocks.split():
            if axis in pair.inputs[which].axes:
                yield (
                    f"gradient of {which} with a wrong block of {axis}", "gradient",
                    lambda which=which, axis=axis: _with_wrong_block(trial, which, axis),  # type: ignore[misc]
                    lambda which=which: truth.is_zero(which),  # type: ignore[misc]
                )  # fmt: skip
    others = {f"call without option {name}={label(value)}": trial.case.having(**{name: None})
              for name, value in trial.case.options.items()}  # fmt: skip
    for a, b in combinations(pair.inputs, 2):
        if pair.inputs[a] == pair.inputs[b]:
            others[f"call with {a} and {b} in the other order"] = _swapped(trial.case, a, b)
    for name, case in others.items():
        yield name, "value", lambda case=case: _asked(trial, case), _never  # type: ignore[misc]


def _never() -> bool:
    return False


def _keeps(outputs: Sequence[Array], spoil: Spoil) -> bool:
    """Return whether the reference's outputs stay the same if they are spoilt, up to rounding, as equal ones do."""
    return all(np.allclose(spoil(each), each, rtol=ROUNDED, atol=0, equal_nan=True) for each in outputs if each.size)


def _with_outputs(answer: Answer, spoil: Spoil) -> Answer:
    outputs = tuple(spoil(output) if output.size else output for output in answer.all_outputs)
    return replace(answer, outputs=outputs, value=joined(outputs))


def _with_gradient(trial: Trial, which: str, spoil: Spoil) -> Answer:
    assert trial.answer is not None
    assert trial.truth is not None
    named = zip(trial.truth.twin.wrt, trial.answer.all_gradients, strict=True)
    gradients = {name: spoil(g) if name == which and g.size else g for name, g in named}
    return replace(trial.answer, gradients=gradients, gradient=joined(list(gradients.values())))


def _with_wrong_block(trial: Trial, which: str, axis: str) -> Answer | None:
    assert trial.answer is not None
    assert trial.truth is not None
    pair = trial.truth.twin.pair
    assert pair is not None
    if sizes_of(pair, trial.case)[axis] < 2:
        return None
    spec = pair.inputs[which]
    place = spec.axes.index(axis) - (len(spec.axes) if "..." in spec.axes else 0)

    def spoil(values: Array) -> Array:
        moved = np.moveaxis(values.copy(), place, 0)
        moved[-1] = _scaled(moved[-1], BLOCK)
        return np.moveaxis(moved, 0, place)

    return _with_gradient(trial, which, spoil)


def _swapped(case: Case, a: str, b: str) -> Case:
    operands = dict(case.operands)
    operands[a], operands[b] = operands[b], operands[a]
    return replace(case, operands=operands)


def _asked(trial: Trial, case: Case) -> Answer | None:
    """Return the answer to another case, unless the reference gives the same for both, as for the terms of a sum."""
    truth = trial.truth
    assert truth is not None
    try:
        other = Truth(truth.twin, case).value
        if other.shape == truth.value.shape and np.allclose(other, truth.value, rtol=SAME, atol=0, equal_nan=True):
            return None
        return ask_pair(truth.twin, case)
    except Exception:
        return None
