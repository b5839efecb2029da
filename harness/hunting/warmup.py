"""`twinloss warmup`: compile the kernels in advance, for example while a container is built."""

from __future__ import annotations

import torch

from twinloss.harness.judging.answers import expected_warnings_silent
from twinloss.harness.model.twin import Twin

# Edge lengths of cubes: a small one that all losses accept, and one large enough for kernels with fewer passes.
_SMALL, _LARGE = 8, 56
# The number of kernels that all losses use in one dtype, roughly, for the progress bar.
KERNELS = 40


def warm_up(twin: Twin, dtype: str) -> None:
    """Call a loss in a dtype, forward and backward, so that its kernels are compiled.

    The loss is also called with two classes, because a softmax of two classes uses the kernels for a sigmoid. If the
    loss supports soft targets and `ignore_index`, it is also called with these.
    """
    first = twin.usual
    for line in (first, first.of_classes(2)) if first.of_classes else (first,):
        x, *rest = (_of_type(operand, dtype) for operand in line.operands(_SMALL))
        _call(twin.fast(**line.options), x, *rest)
        if line.options.get("to_onehot_y"):
            soft = [torch.zeros_like(x).scatter(1, rest[0], 1), *rest[1:]]
            _call(twin.fast(**{**line.options, "to_onehot_y": False}), x, *soft)
        if "ignore_index" in twin.options:
            _call(twin.fast(**line.options, ignore_index=-1), x, *rest)
    _call(twin.fast(**first.options), *(_of_type(operand, dtype) for operand in first.operands(_LARGE)))


def _of_type(operand: torch.Tensor, dtype: str) -> torch.Tensor:
    return operand.to(getattr(torch, dtype)) if operand.is_floating_point() else operand


def _call(loss: torch.nn.Module, x: torch.Tensor, *rest: torch.Tensor) -> None:
    """Call a loss without a gradient, with two backward passes, and in bfloat16, as these may use other kernels."""
    with expected_warnings_silent():
        loss(x.detach(), *rest)
        value = loss(x.requires_grad_(), *rest)
        value.backward(retain_graph=True)
        value.backward()
        if x.dtype == torch.float32:
            loss(x.detach().bfloat16().requires_grad_(), *rest).backward()
