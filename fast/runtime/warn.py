"""Warnings: where they point to, once for each loss, and where there are no numbers to warn of."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module

from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import dispatches

# Files whose lines are none of the user's.
_OURS = tuple(str(folder) + os.sep for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))

# What each loss has warned of. It is kept apart from the losses, as a forward changes no state of a module.
_warned: WeakKeyDictionary[Module, set[str]] = WeakKeyDictionary()


def warn(message: str) -> None:
    """Warn at the line that called this package, however many calls lie between; under torch.compile say nothing."""
    if torch.compiler.is_compiling():
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def warn_once(loss: Module, topic: str, message: str) -> None:
    """Warn unless this loss has warned of the topic before."""
    if torch.compiler.is_compiling() or has_warned(loss, topic):
        return
    _warned.setdefault(loss, set()).add(topic)
    warn(message)


def has_warned(loss: Module, topic: str) -> bool:
    """Return whether this loss has warned of the topic before."""
    return topic in _warned.get(loss, ())


def numbers_are_hidden(tensor: Tensor) -> bool:
    """Return whether a tensor has no numbers to look at: on the meta device, fake, in a trace, graph or transform."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    if dispatch.transformed() or tensor.is_meta:
        return True
    # Fake and distributed tensors, say, have a dispatch of their own, which may refuse to show numbers.
    if dispatches(tensor) or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
