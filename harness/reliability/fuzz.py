"""Nonsensical arguments, which must raise a helpful error or give the correct result."""

from __future__ import annotations

import inspect
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from twinloss.harness.model.operand import widened
from twinloss.harness.reliability.everyday import Everyday, everyday
from twinloss.harness.reliability.registry import Row, line

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**70, -(2**63), 0.5, -0.5, 1e30, float("nan"), float("inf"), "", "mean", "junk",
    b"bytes", (), [], [1.0, 2.0], [[1.0]], {}, {"a": 1}, object, len, 1j, np.float32(0.5), np.array([1, 2]),
    torch.tensor(0.5), torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(0.5, device="meta"), torch.device("meta"),
    slice(3),
)  # fmt: skip
# Exceptions with a message that helps the caller.
TYPED = (TypeError, ValueError, AssertionError, NotImplementedError)


def options_of(each: Everyday, rng: random.Random) -> dict[str, Any]:
    """Return the usual options with some of them replaced by junk."""
    # The records of wrappers name the loss that they wrap, and take its options as keyword arguments.
    of_twin = [name for name in each.twin.options if name not in ("loss", "ndim")]
    named = [name for name in inspect.signature(each.twin.fast).parameters if name != "process_group"]
    names = of_twin if each.twin.wraps else named
    made = each.options
    for name in rng.sample(names, min(len(names), rng.choice((0, 1, 1, 2)))):
        made[name] = rng.choice(JUNK)
    return made


def mangled(x: torch.Tensor, rng: random.Random) -> Any:
    """Return the tensor, a variant of it, or something that a caller might pass by mistake."""
    change = rng.randrange(16)
    types = (torch.int8, torch.int64, torch.bool, torch.complex64, torch.float16, torch.uint16, torch.float64)
    if change == 0:
        return rng.choice((None, 3, "x", x.numpy(), x.tolist(), [x], object()))
    if change == 1:
        return x.to(rng.choice(types))
    if change == 2:
        return x.to("meta")
    if change == 3:
        return x[..., :0]
    if change == 4:
        return x.reshape(-1)
    if change == 5:
        return x[0, 0, 0, 0, 0]
    if change == 6:
        return x.transpose(1, 2)
    if change == 7:
        return x.to_sparse()
    if change == 8:
        return x.unsqueeze(0)
    if change == 9:
        return x[:1]
    if change == 10:
        return x * 2**40
    if change == 11:
        return x[:, :1].squeeze(1)
    return x


def attempt(each: Everyday, seed: int) -> str:
    """Call a loss with random arguments; return "error", "answer", or a description of what went wrong."""
    rng = random.Random(seed)
    options = options_of(each, rng)
    given = [mangled(x, rng) if rng.random() < 0.5 else x for x in each.arguments(6)]
    try:
        loss = each.twin.fast(**options)
        x = given[0]
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            given[0] = x.detach().requires_grad_()
        made = loss(*given)
        value = made[0] if options.pop("return_parts", False) else made
        if value.requires_grad and value.device.type == "cpu":
            torch.autograd.grad(value.sum(), given[0])
    except TYPED as error:
        return "error" if len(str(error)) > 10 else f"{type(error).__name__} without a message: {error!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    if value.device.type == "meta":
        return "answer"
    return _compared(each, options, given, value)


def _compared(each: Everyday, options: dict[str, Any], given: list[Any], answer: torch.Tensor) -> str:
    value = widened(answer)
    try:
        with np.errstate(all="ignore"):
            arrays = [_array(x, not each.twin.of_registration) for x in given]
            if "spatial_dims" in options:  # an alias of ndim, which the reference does not have
                options = {"ndim": options["spatial_dims"], **options} if options["spatial_dims"] else {**options}
                del options["spatial_dims"]
            wanted = widened(torch.as_tensor(each.twin.value(*arrays, **options)).to(answer.dtype))
    except Exception as error:
        return f"a result where the reference raises {type(error).__name__}: {str(error).splitlines()[0][:90]}"
    rough = 2e-2 if given[0].dtype in (torch.float16, torch.bfloat16) else 2e-3
    alike = value.shape == wanted.shape and np.allclose(value, wanted, rough, rough, equal_nan=True)
    return "answer" if alike else f"value differs from the reference: {value.ravel()[:1]}, {wanted.ravel()[:1]}"


def _array(x: Any, may_be_labels: bool) -> Any:
    if x is None:  # no mask
        return None
    return x.numpy() if may_be_labels and not x.is_floating_point() else widened(x).astype(np.float64)


def outcomes(each: Everyday, tries: int) -> Counter[str]:
    """Count the results of many attempts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Counter(attempt(each, seed) for seed in range(tries))


@line("Fuzz")
def nonsense(quick: bool) -> Iterator[Row]:
    """Options and tensors that are replaced by something that makes no sense."""
    tries = 60 if quick else 1000
    for each in everyday():
        found = outcomes(each, tries)
        errors, answers = found.pop("error", 0), found.pop("answer", 0)
        told = f"{errors} typed errors, {answers} results that match the reference"
        bad = "; ".join(f"{count} times {what}" for what, count in found.most_common(3))
        yield Row(f"{tries} calls", f"{told}; {bad}" if bad else told, not found, each.name)
