"""What every loss asks of its arguments before it looks at their shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

# Types of tensors that hold their own numbers and override nothing.
PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


class ShapeError(AssertionError, ValueError):
    """Two shapes that must agree differ; documented as an AssertionError, caught by newer code as a ValueError."""


def dispatches(tensor: Tensor) -> bool:
    """Return whether the type of a tensor has a `__torch_dispatch__` of its own."""
    return type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def unwrapped(value: Any) -> Any:
    """A subclass of tensors as a plain tensor with the same numbers and graph.

    A subclass that has a `__torch_dispatch__` of its own may hold no numbers, as that of fake tensors, or a part of
    them, as that of distributed tensors. It stays as it is, and the operators of torch deal with it.
    """
    if not isinstance(value, Tensor) or type(value) in PLAIN_TENSORS:
        return value
    if dispatches(value):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def check_tensors(**given: Any) -> None:
    """Raise unless all are dense tensors on one device."""
    devices = set()
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(tensor).__name__}: torch.as_tensor makes one of an array"
            )
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}: use .to_dense()")
        if tensor.is_complex():
            raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
        devices.add(tensor.device)
    if len(devices) > 1:
        where = ", ".join(f"{name} on {tensor.device}" for name, tensor in given.items())
        raise ValueError(f"all tensors must be on one device, got {where}: move them with .to(device)")


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors, of which there is at least one."""
    made: Tensor = sum(terms)  # type: ignore[assignment]
    return made


def checked_flag(value: Any, name: str) -> bool:
    """A switch as a bool; a string is none, but an argument that has come to the wrong place."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    try:
        return bool(value)
    except (RuntimeError, ValueError) as error:  # of several numbers
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}: {error}") from error


def numbers(value: Any, name: str) -> Tensor:
    """Numbers, an array or nested lists of them in float64 on the CPU, without a gradient."""
    try:
        return torch.as_tensor(unwrapped(value), dtype=torch.float64, device="cpu").detach()
    except (RuntimeError, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}") from error


def is_one_of(value: Any, choices: Collection[str]) -> bool:
    """Whether a value is one of some names; what is no string is none, and need not compare with one."""
    return isinstance(value, str) and value in choices
