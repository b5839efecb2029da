"""Python functions that call kernels, as operators of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def operator(name: str) -> Callable[[Function], Function]:
    """Make a function what `torch.ops.twinloss.<name>` does on the CPU.

    This is `torch.library.custom_op` without its guard against torch.compile around each call, which the first one pays
    for with the import of the whole compiler, a second; no compiler looks into an operator in any case.
    """

    def register(function: Function) -> Function:
        qualified = f"twinloss::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(qualified, "cpu", function)
        return function

    return register
