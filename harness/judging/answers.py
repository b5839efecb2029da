"""Run the fast twin on a case: value and gradient, as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from twinloss.harness.judging.pair_call import ask_pair
from twinloss.harness.model.answer import Answer
from twinloss.harness.model.operand import Array, Elementwise, function, widened
from twinloss.harness.model.twin import Case, Twin

# Beginnings of warnings that losses give by design for some of the drawn inputs.
EXPECTED = (
    "single channel prediction",
    "sigmoid=True applies to the Dice term only",
    "no mask given",
    "some class is nearer to the background",
    "intensities beyond",
    "only the target requires",
    "target holds values",
    "target sums to",
)


class WrongDtypeError(TypeError):
    """Value or gradient have a wrong dtype; `answer` holds their numbers, which can be judged nevertheless."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer


@contextmanager
def expected_warnings_silent() -> Iterator[None]:
    """Suppress the warnings that are expected for drawn inputs."""
    with warnings.catch_warnings():
        for start in EXPECTED:
            warnings.filterwarnings("ignore", message=start, category=UserWarning)
        yield


def fast_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options in the form that the torch module takes."""
    return {name: function(value.torch) if isinstance(value, Elementwise) else value for name, value in options.items()}


def ask_slope(twin: Twin, case: Case, name: str) -> Array | None:
    """Return the fast twin's gradient with respect to another argument than the input, or None if it has none."""
    with expected_warnings_silent():
        tensors = {each: operand.tensor() for each, operand in case.operands.items()}
        value = twin.fast(**fast_options(case.options))(*(t.requires_grad_(n == name) for n, t in tensors.items()))
        if not value.requires_grad:
            return None
        weights = torch.tensor(case.weights(tuple(value.shape)), dtype=value.dtype, device=value.device)
        (gradient,) = torch.autograd.grad(value, tensors[name], weights, allow_unused=True)
    return None if gradient is None else widened(gradient)


def ask_fast(twin: Twin, case: Case) -> Answer:
    """Return value and gradient of the fast twin, from one forward and one backward pass.

    Raises:
        TypeError: if the value is not a tensor, or has no gradient.
        WrongDtypeError: if value or gradient has a wrong dtype.
    """
    if twin.pair is not None:
        return ask_pair(twin, case)
    with expected_warnings_silent():
        x, *rest = (operand.tensor() for operand in case.operands.values())
        value = twin.fast(**fast_options(case.options))(x.requires_grad_(), *rest)
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"a tensor was expected as the value, got {type(value).__name__}")
        if not value.requires_grad:
            raise TypeError("the value has no gradient: it was detached, or computed on a copy of the input's numbers")
        weights = torch.tensor(case.weights(tuple(value.shape)), dtype=value.dtype, device=value.device)
        (gradient,) = torch.autograd.grad(value, x, weights)
    answer = Answer(widened(value), widened(gradient))
    if value.dtype not in [getattr(torch, dtype) for dtype in twin.results(case)] or gradient.dtype != x.dtype:
        message = f"for an input of {x.dtype}, the value is {value.dtype} and the gradient {gradient.dtype}"
        raise WrongDtypeError(message, answer)
    return answer
