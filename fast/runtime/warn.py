"""Warnings to the user of a loss.

They point to the line of the user that called the loss. Some are given only once for each loss.
"""

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

# Folders whose code is not the user's.
_OURS = tuple(str(folder) + os.sep for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))

# The topics that each loss has warned about. They are not stored in the loss, because `forward` must not change it.
_warned: WeakKeyDictionary[Module, set[str]] = WeakKeyDictionary()


def warn(message: str) -> None:
    """Warn, with the location of the nearest caller outside this package and torch.

    Under torch.compile there is no warning.
    """
    if torch.compiler.is_compiling():
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def warn_once(loss: Module, topic: str, message: str) -> None:
    """Warn unless this loss has already warned about the topic."""
    if torch.compiler.is_compiling() or has_warned(loss, topic):
        return
    _warned.setdefault(loss, set()).add(topic)
    warn(message)


def has_warned(loss: Module, topic: str) -> bool:
    """Return whether this loss has already warned about the topic."""
    return topic in _warned.get(loss, ())


def is_first(loss: Module, topic: str) -> bool:
    """Return whether this is the first question about a topic for this loss."""
    topics = _warned.setdefault(loss, set())
    first = topic not in topics
    topics.add(topic)
    return first


def numbers_are_hidden(tensor: Tensor) -> bool:
    """Return whether the values of a tensor cannot be read.

    This is so on the meta device, for fake tensors, and within a trace, a CUDA graph or a transform of torch.func.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    if dispatch.transformed() or tensor.is_meta:
        return True
    # Fake and distributed tensors, for example, have a dispatch of their own, which may not give access to values.
    if dispatches(tensor) or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
