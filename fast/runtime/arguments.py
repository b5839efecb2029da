"""Checks of the arguments that all losses have in common, before the shapes are checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Types of tensors that hold their own data and override no operations.
PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


class ShapeError(AssertionError, ValueError):
    """Raised if shapes do not match.

    MONAI documents an AssertionError for this case. It is also a ValueError, as for other invalid arguments.
    """


def dispatches(tensor: Tensor) -> bool:
    """Return whether the type of a tensor has a `__torch_dispatch__` of its own."""
    return type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def unwrapped(value: Any) -> Any:
    """Convert a tensor subclass to a plain tensor with the same data and autograd graph.

    A subclass with a `__torch_dispatch__` of its own is returned as it is, because it may have no data, like fake
    tensors, or only a part, like distributed tensors. The operators of torch handle these.
    """
    if not isinstance(value, Tensor) or type(value) in PLAIN_TENSORS:
        return value
    if dispatches(value):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def check_tensors(**given: Any) -> None:
    """Raise unless all arguments are dense real tensors on one device."""
    devices = set()
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(tensor).__name__}: convert arrays with torch.as_tensor"
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
    """Return the sum of one or more tensors."""
    made: Tensor = sum(terms)  # type: ignore[assignment]
    return made


def checked_flag(value: Any, name: str) -> bool:
    """Return a flag as a bool; the whole numbers 0 and 1 also count as flags.

    Anything else is an error, because it is likely an argument in the wrong position.
    """
    if not isinstance(value, (Integral, np.bool_)) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _is_boolean(value: Any) -> bool:
    """Return whether a value is a bool, an array of them, or a list with one of these."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_boolean, value))
    return isinstance(value, bool) or str(getattr(unwrapped(value), "dtype", "")) in ("bool", "torch.bool")


def numbers(value: Any, name: str) -> Tensor:
    """Convert a number, an array or nested lists to a float64 tensor on the CPU, without a gradient.

    Booleans are an error, because they are likely an argument in the wrong position.
    """
    if _is_boolean(value):
        raise TypeError(f"{name} must hold numbers, got the boolean {value!r}")
    try:
        return torch.as_tensor(unwrapped(value), dtype=torch.float64, device="cpu").detach()
    except (RuntimeError, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}") from error


def as_tuples(values: Tensor) -> Any:
    """Return the numbers of a tensor as nested tuples, or its only number.

    In older releases of torch, `Tensor.tolist` fails under torch.func.
    """
    return tuple(map(as_tuples, values)) if values.ndim else values.item()


def is_one_of(value: Any, choices: Collection[str]) -> bool:
    """Return whether a value is one of some names.

    Other types are not compared, because their comparison with a string may fail, as that of an array.
    """
    return isinstance(value, str) and value in choices
