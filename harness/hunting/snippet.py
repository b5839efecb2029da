"""Counterexamples as scripts that run on their own, and fail until the bug is fixed."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

import numpy as np

from twinloss.harness.judging.trial import Trial
from twinloss.harness.judging.verdict import gradient_bounds, value_bounds
from twinloss.harness.model import device
from twinloss.harness.model.operand import LAYOUTS, Array, Elementwise, Operand, label
from twinloss.harness.model.twin import Case, Twin

# Arguments with at most this many numbers are printed in full in a line.
FEW = 12

# Arrays with more numbers are compressed.
LONGEST = 4000

COMPARED = '''"""{title}."""

import sys

import numpy as np
import torch
{device}{source}
from {slow_module} import {value}, {gradient}

nan, inf = float("nan"), float("inf")

# The exact numbers, and the tensors that hold them.
{numbers}
{tensors}

fast = {fast}({fast_options})({names})
weights = np.resize({cotangent}, fast.shape)
(fast_gradient,) = torch.autograd.grad(fast, {first}, torch.tensor(weights, dtype=fast.dtype, device=fast.device))

# The reference on the same numbers, with more digits.
slow = {value}({lifted}{slow_options})
slow_gradient = {gradient}(
    {lifted}, cotangent=weights{slow_options}{derivatives}
)

# The largest error that rounding explains, computed from the reference: see twinloss/harness/judging/judgement.py.
value_bound = np.array({value_bound})
gradient_bound = np.array({gradient_bound})

failed = False
for part, got, want, bound in (
{parts}
):
    got = got.detach().double().cpu().numpy()
    want = np.asarray(want).astype(np.float64)
    error = np.where(np.isnan(got) & np.isnan(want) | (got == want), 0, abs(got - want))
    wrong = ~(error <= bound)
    failed |= bool(wrong.any())
    print(f"{{part}}: {{'DIFFERS' if wrong.any() else 'agrees'}}")
    print("  fast     ", got.ravel()[:20])
    print("  reference", want.ravel()[:20])
    print("  error    ", error.ravel()[:20])
    print("  bound    ", np.broadcast_to(bound, error.shape).ravel()[:20])
sys.exit(failed)
'''

EXAMINED = '''"""{title}."""

import sys
from dataclasses import replace

import numpy as np
{device}{source}
from twinloss.harness.judging.trial import examine
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.operand import Elementwise, Operand
from twinloss.harness.model.twin import Case

nan, inf = float("nan"), float("inf")

# The exact numbers, and the dtype and memory layout in which the fast twin gets them.
{numbers}
{twin}
law = next((law for law in twin.laws if law.name == {law!r}), None)
case = Case(
    {{{operands}}},
    {options!r},
    {cotangent},
    traits={traits!r},
    law=law,
)
trial = examine(twin, case)
print(trial.message or "nothing is wrong")
sys.exit(trial.kind is not None)
'''

REPLAYED = '''"""{title}."""

import sys

import numpy as np
{device}from twinloss.harness import replay
{source}

nan, inf = float("nan"), float("inf")

# The exact numbers.
{numbers}

trial = replay(
    PAIR,
    {{{operands}}},
    {options!r},
    dtype={dtype!r},
    cotangent={cotangent},
    law={law!r},
)
sys.exit(trial.kind is not None)
'''

PARTS = {
    "value": '    ("value", fast, slow, value_bound),',
    "gradient": '    ("gradient", fast_gradient, slow_gradient, gradient_bound),',
}


@np.errstate(all="ignore")
def snippet(twin: Twin, trial: Trial) -> str:
    """Return a script: a plain comparison if that shows the failure, otherwise one that uses the harness."""
    if twin.pair is not None:
        return _replayed(twin, trial)
    if trial.kind in ("value", "gradient", "error", "reference"):
        return _compared(twin, trial)
    return _examined(twin, trial)


def literal(values: Array) -> str:
    """Return an expression that reproduces the array exactly."""
    if values.size > LONGEST:
        packed = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
        raw = f'zlib.decompress(base64.b64decode("{packed}"))'
        return f"np.frombuffer({raw}, {str(values.dtype)!r}).reshape({values.shape})"
    return f"np.array({values.tolist()}, {str(values.dtype)!r})"


def _source(twin: Twin) -> str:
    return twin.source or f"from {twin.fast.__module__} import {twin.fast.__name__}"


def _device() -> str:
    """Return the lines that choose the device, if the default is not meant."""
    name = device.name_of_device()
    return "" if name == "cpu" else f"from twinloss.harness.model import device\n\ndevice.use({name!r})\n\n"


def _numbers(case: Case) -> str:
    lines = [f"{name} = {literal(operand.values)}" for name, operand in case.operands.items()]
    if any(operand.values.size > LONGEST for operand in case.operands.values()):
        lines.insert(0, "import base64, zlib")
    return "\n".join(lines)


def _tensor(name: str, operand: Operand, first: bool) -> str:
    place = "" if device.current().type == "cpu" else f', device="{device.current().type}"'
    lines = [f"{name}_tensor = torch.tensor({name}{place}).to(torch.{operand.dtype})"]
    if operand.layout != "contiguous":
        lines.append(f"{name}_tensor = (lambda x: {LAYOUTS[operand.layout]})({name}_tensor)")
    if first:
        lines.append(f"{name}_tensor.requires_grad_()")
    return "\n".join(lines)


def _arguments(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in options.items())


def _texts(case: Case, attribute: str) -> dict[str, str]:
    return {
        name: f"lambda x: {getattr(value, attribute)}" if isinstance(value, Elementwise) else repr(value)
        for name, value in case.options.items()
    }


def _derivatives(case: Case) -> str:
    acts = {k: v for k, v in case.options.items() if isinstance(v, Elementwise)}
    return "".join(f", {name}_derivative=lambda x: {act.derivative}" for name, act in acts.items())


def _title(twin: Twin, trial: Trial) -> str:
    message = trial.message.replace("\\", "/").replace('"', "'")
    return f"twinloss counterexample: {twin.name}, {trial.case.dtype}: {message}"


def _bounds(trial: Trial) -> tuple[str, str]:
    """Return the bounds as literals; that of the gradient has an entry for each block."""
    truth = trial.truth
    if truth is None:
        return "0.0", "0.0"
    value = value_bounds(truth, np.full(truth.value.shape, np.inf))
    gradient = gradient_bounds(truth, np.full(truth.gradient.shape[:2], np.inf))
    shape = (*gradient.shape, *[1] * (truth.gradient.ndim - 2))
    return repr(value.astype(float).tolist()), repr(gradient.astype(float).reshape(shape).tolist())


def _compared(twin: Twin, trial: Trial) -> str:
    case = trial.case
    names = list(case.operands)
    slow_options = _arguments(_texts(case, "numpy"))
    value_bound, gradient_bound = _bounds(trial)
    return COMPARED.format(
        title=_title(twin, trial),
        device=_device(),
        source=_source(twin),
        fast=twin.fast.__name__,
        slow_module=twin.value.__module__,
        value=twin.value.__name__,
        gradient=twin.gradient.__name__,
        numbers=_numbers(case),
        tensors="\n".join(_tensor(name, case.operands[name], name == names[0]) for name in names),
        names=", ".join(f"{name}_tensor" for name in names),
        first=f"{names[0]}_tensor",
        fast_options=_arguments(_texts(case, "torch")),
        cotangent=repr([float(w) for w in case.cotangent]) if case.cotangent else "1.0",
        lifted=", ".join(_lifted(name, case.operands[name]) for name in names),
        slow_options=f", {slow_options}" if slow_options else "",
        derivatives=_derivatives(case),
        value_bound=value_bound,
        gradient_bound=gradient_bound,
        parts="\n".join(PARTS[part] for part in PARTS if part == "value" or twin.differentiable),
    )


def _lifted(name: str, operand: Operand) -> str:
    return name if operand.values.dtype.kind in "iub" else f"{name}.astype(np.longdouble)"


def _examined(twin: Twin, trial: Trial) -> str:
    case = trial.case
    operands = [f'"{name}": Operand({name}, "{o.dtype}", "{o.layout}")' for name, o in case.operands.items()]
    return EXAMINED.format(
        title=_title(twin, trial),
        device=_device(),
        source=_source(twin),
        twin="" if twin.source else f"twin = replace(find({twin.name!r}), fast={twin.fast.__name__})",
        numbers=_numbers(case),
        operands=", ".join(operands),
        options=dict(case.options),
        cotangent=tuple(float(w) for w in case.cotangent) if case.cotangent else None,
        traits=dict(case.traits),
        law=case.law.name if case.law else None,
    )


def _replayed(twin: Twin, trial: Trial) -> str:
    case = trial.case
    given = {name: [name, repr(o.dtype)] for name, o in case.operands.items()}
    for name, operand in case.operands.items():
        given[name] += [repr(operand.layout)] if operand.layout != "contiguous" else []
    return REPLAYED.format(
        title=_title(twin, trial),
        device=_device(),
        source=twin.source,
        numbers=_numbers(case),
        operands=", ".join(f"{name!r}: ({', '.join(parts)})" for name, parts in given.items()),
        options=dict(case.options),
        dtype=case.dtype,
        cotangent=tuple(float(w) for w in case.cotangent) if case.cotangent else None,
        law=case.law.name if case.law else None,
    )


def in_a_line(trial: Trial) -> str:
    """Return a case and both answers in one line."""
    case = trial.case
    parts = [
        f"{name} ({o.dtype}) "
        + (f"{np.round(o.values, 3).tolist()}" if o.values.size <= FEW else f"of {o.values.shape}")
        for name, o in case.operands.items()
    ]
    parts += [f"{name}={label(value)}" for name, value in case.options.items()]
    if trial.answer is None or trial.truth is None:
        return ", ".join(parts)
    part = "value" if trial.kind == "value" else "gradient"
    got, want = (np.asarray(getattr(each, part), np.float64) for each in (trial.answer, trial.truth))
    if got.shape != want.shape:  # the gradient is judged along some directions
        return ", ".join(parts)
    got, want = got.ravel(), want.ravel()
    if not got.size:
        return ", ".join(parts)
    at = int(np.argmax(np.where(got == want, 0, np.nan_to_num(np.abs(got - want), nan=np.inf))))
    return f"{', '.join(parts)}: {part} {got[at]:.6g}, by the paper {want[at]:.6g}" if got.size and want.size else ""


def shortened(snippet: str, longest: int = 400) -> str:
    """Return a script for display, with long lines of numbers cut off; the file that is written is complete."""
    return "\n".join(
        line if len(line) <= longest else f"{line[:longest]} … and {len(line) - longest} characters more"
        for line in snippet.split("\n")
    )
