"""Warnings about dense targets that are not class probabilities, for which a loss has no meaning."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module

from twinloss.fast.runtime.checks import is_readable
from twinloss.fast.runtime.warn import warn

# The number of targets that are checked for each loss. A check takes up to a third of the time of a loss.
_LOOKS = 8

# The tolerance for targets in bfloat16, and for interpolated targets.
_SLACK = 0.01

# The number of checked targets of each loss. It is stored here because forward must not change the state of a module.
_looks: WeakKeyDictionary[Module, int] = WeakKeyDictionary()


def is_looked_at(loss: Module, target: Tensor) -> bool:
    """Return whether to check a target: it must have readable values, and be one of the first targets of its loss."""
    if torch.compiler.is_compiling() or _looks.get(loss, 0) >= _LOOKS:
        return False
    return is_readable(target)


def look_at(loss: Module, target: Tensor, taken: Tensor | None, exclusive: bool, whole: bool) -> None:
    """Warn if a target lies outside [0, 1] or does not sum to 1; after a warning, no more targets are checked.

    Args:
        loss: the module that is called.
        target: a dense target, (B, C, *S).
        taken: which voxels are not excluded, (B or 1, 1, *S), or None if all are included.
        exclusive: whether the prediction is a softmax, so that the classes exclude each other.
        whole: whether the background is included; only then is a sum of less than 1 wrong.
    """
    _looks[loss] = _looks.get(loss, 0) + 1
    message = _outside(target, taken)
    if message is None and exclusive and target.shape[1] > 1:
        message = _not_one(target, taken, whole)
    if message is not None:
        _looks[loss] = _LOOKS
        warn(message)


def _outside(target: Tensor, taken: Tensor | None) -> str | None:
    if target.dtype == torch.bool:
        return None
    values = target.detach()
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has no aminmax for these
        values = values.to(torch.int64)
    low, high = (end.item() for end in (values if taken is None else torch.where(taken, values, 0)).aminmax())
    if not (low < -_SLACK or high > 1 + _SLACK):
        return None
    labels = ", or labels (B, 1, *S) with to_onehot_y=True" if target.shape[1] > 1 else ""
    return (
        f"target holds values from {low:g} to {high:g}, and the loss has a meaning only for values in [0, 1], the "
        f"share of each class: pass a binary mask such as (target > 0).float(){labels}"
    )


def _not_one(target: Tensor, taken: Tensor | None, whole: bool) -> str | None:
    total = target.detach()[:, 0 if whole else 1 :].sum(1, keepdim=True, dtype=torch.float32)
    if taken is not None:
        total = torch.where(taken, total, 1)
    low, high = (end.item() for end in total.aminmax())
    if not ((whole and low < 1 - _SLACK) or high > 1 + _SLACK):
        return None
    return (
        f"target sums to values from {low:g} to {high:g} over the {'' if whole else 'foreground '}classes, but under "
        "a softmax the classes exclude each other: make each voxel's target sum to 1, background included, or use "
        "the sigmoid form for classes that overlap"
    )
