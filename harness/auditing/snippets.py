"""The code that shows a finding: lines that a user of the library could write, and what they print."""

from __future__ import annotations

import contextlib
import io
import random
import re
import warnings
from typing import Any

import numpy as np
import torch

from twinloss.harness.auditing.peer import VARIABLES, Peer
from twinloss.harness.judging.trial import Trial, wrong_parts
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.operand import Array, Operand
from twinloss.harness.model.twin import Case

# At most this many numbers are printed side by side; of more, the one that differs most.
FEW = 6


def run(code: str) -> str:
    """Run the lines; return what they print, or the error that they raise."""
    printed = io.StringIO()
    random.seed(0)
    torch.manual_seed(0)
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, "<errata>", "exec"), {"__name__": "errata"})
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{printed.getvalue()}{type(error).__name__}: {lines[0][:160]}".strip()
    return printed.getvalue().strip()


def tensor(operand: Operand, asks_for_gradient: bool = False) -> str:
    """Return the code of a tensor."""
    values, dtype = operand.values, operand.dtype
    real = dtype.startswith(("float", "bfloat"))
    more = [] if dtype in ("float32", "int64", "bool") else [f"dtype=torch.{dtype}"]
    if not real:
        values = values.astype(bool if dtype == "bool" else np.int64)
    flat = values.ravel()
    same = values.size > 1 and bool((flat == flat[0]).all() or (real and np.isnan(flat.astype(float)).all()))
    if same and values.size > 4:
        made = f"torch.full({values.shape}, {_numbers(flat[0], dtype)}"
    else:
        made = f"torch.tensor({_numbers(values, dtype)}"
    more += ["requires_grad=True"] if asks_for_gradient else []
    return ", ".join([made, *more]) + ")"


def _numbers(values: Any, dtype: str) -> str:
    kind = {"float64": np.float64, "float16": np.float16}.get(dtype, np.float32)

    def one(number: Any) -> str:
        if isinstance(number, (bool, np.bool_)):
            return str(bool(number))
        if isinstance(number, (int, np.integer)):
            return str(int(number))
        if not np.isfinite(number):
            return f'float("{"-" if number == -np.inf else ""}{"nan" if np.isnan(number) else "inf"}")'
        return str(kind(number)) if dtype != "float64" else repr(float(number))

    def nested(array: Array) -> str:
        if array.ndim == 0:
            return one(array.item() if array.dtype.kind != "f" else float(array))
        return "[" + ", ".join(nested(each) for each in array) + "]"

    array = np.asarray(values)
    if dtype.startswith(("float", "bfloat")):
        array = array.astype(np.float64)
    return nested(array)


def literal(number: Any, digits: int = 6) -> str:
    """Return a number as the lines print it."""
    return f"{number:.{digits}g}"


def lines(peer: Peer, case: Case, gradient: bool = False) -> list[str]:
    """Return the lines that make the arguments and the loss."""
    made = [peer.head, ""]
    for n, (variable, operand) in enumerate(zip(VARIABLES, case.operands.values(), strict=False)):
        made.append(f"{variable} = {tensor(operand, asks_for_gradient=gradient and n == 0)}")
    made.append(f"loss = {peer.expression(case.options)}")
    return made


def call(peer: Peer, case: Case) -> str:
    """Return the code of the call."""
    return peer.called(len(case.operands))


def snippet(peer: Peer, trial: Trial) -> str:
    """Return lines of the peer's own code that show what it answers, and what was expected."""
    case, of_gradient = trial.case, trial.kind == "gradient"
    made = lines(peer, case, of_gradient)
    value = call(peer, case)
    if trial.kind == "error" or trial.answer is None:
        wanted = float(np.sum(Truth(peer.twin(), case).value))
        return "\n".join([*made, f'print(f"got {{{value}.sum().item():.6g}}, expected {literal(wanted)}")'])
    got, want = wrong_parts(trial)
    if got.shape != want.shape:
        return "\n".join([*made, f'print("got", tuple({value}.shape), "expected {want.shape}")'])
    if of_gradient:
        made.append(_backward(value, case, np.shape(trial.truth.value) if trial.truth else ()))
    name = "x.grad" if of_gradient else value
    exact = np.asarray(getattr(trial.truth, "gradient" if of_gradient else "value"))
    if 1 < want.size <= FEW:
        numbers = ", ".join(literal(number) for number in exact.ravel())
        return "\n".join([*made, f'print("got", {name}.flatten().tolist(), "expected {numbers}")'])
    with np.errstate(all="ignore"):
        alike = (got == want) | (np.isnan(got) & np.isnan(want))
        off = np.where(alike, 0, np.nan_to_num(np.abs(got - want), nan=np.inf))
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(off)), off.shape))
    index = f"[{', '.join(map(str, at))}]" if want.size > 1 else ""
    # Enough digits to show the difference.
    digits = next((n for n in (6, 9, 12, 17) if literal(got[at], n) != literal(exact[at], n)), 17)
    shown = f"got {{{name}{index}.item():.{digits}g}}, expected {literal(exact[at], digits)}"
    return "\n".join([*made, f'print(f"{shown}")'])


def _backward(value: str, case: Case, shape: tuple[int, ...]) -> str:
    if case.cotangent is None:
        return f"{value}.backward()" if shape == () else f"{value}.sum().backward()"
    weights = case.weights(shape).tolist()
    return f"({value} * torch.tensor({weights})).sum().backward()"


def compact(message: str, longest: int = 160) -> str:
    """Return the first line of a message, shortened."""
    return re.sub(r"\s+", " ", message.strip().splitlines()[0] if message.strip() else "")[:longest]
