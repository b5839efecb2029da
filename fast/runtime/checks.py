"""Checks that read numbers: they are free on the CPU, and make the host wait for any other device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import dispatches

_everywhere = os.environ.get("TWINLOSS_CHECK", "0") not in ("", "0")


@contextmanager
def checked(everywhere: bool = True) -> Iterator[None]:
    """Check labels and masks on every device within the block, in all threads.

    Without it, or the environment variable `TWINLOSS_CHECK=1`, labels and masks out of range raise an error on the CPU
    only; on other devices they make the loss NaN, because a check would wait for the device.
    """
    global _everywhere
    before, _everywhere = _everywhere, everywhere
    try:
        yield
    finally:
        _everywhere = before


def is_readable(tensor: Tensor) -> bool:
    """Return whether a check may read the numbers of a tensor.

    It may not on a device other than the CPU, unless `checked` asks for it; nor on the meta device, for fake tensors,
    and within a trace, a CUDA graph or a transform of torch.func.
    """
    if tensor.is_meta or not (tensor.is_cpu or _everywhere):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    # Fake and distributed tensors, for example, have a dispatch of their own, which may not give access to values.
    if dispatch.transformed() or dispatches(tensor):
        return False
    if torch._C._len_torch_dispatch_stack() > 0 and not dispatch.is_watched():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
