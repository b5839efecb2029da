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
from torch.nn import Module

# Folders whose code is not the user's.
_FAST = Path(__file__).parents[1]
_OURS = tuple(str(folder) + os.sep for folder in (_FAST, _FAST.with_name("compat"), Path(torch.__file__).parent))

# The topics that each loss has warned about. They are not stored in the loss, because `forward` must not change it.
_warned: WeakKeyDictionary[Module, set[str]] = WeakKeyDictionary()


def warn(message: str) -> None:
    """Warn, with the location of the nearest caller outside the losses and torch.

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
