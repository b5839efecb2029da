"""Checks of labels and masks, and the voxels that a target excludes.

Where values cannot be read (`is_readable`), as under torch.func and on a GPU, invalid values make the loss NaN instead
of raising an error.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from twinloss.fast.kernels.contract import VoxelInputs
from twinloss.fast.runtime.checks import is_readable
from twinloss.fast.runtime.dispatch import widened


def ignored(target: Tensor, labels: bool, ignore_index: int) -> Tensor:
    """Return which voxels a target (B, 1 or C, …) excludes, (B, 1, …)."""
    if labels or target.shape[1] == 1:
        return _equals(target, ignore_index)
    return target[:, ignore_index : ignore_index + 1] == 1


def checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask in the dtype of x; a value outside [0, 1] raises an error, or becomes NaN."""
    if not is_readable(mask):
        return torch.where((mask >= 0) & (mask <= 1), mask.to(x.dtype), torch.nan)
    low, high = mask.detach().to(x.dtype).aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"mask values must lie in [0, 1], got {low.item():g} to {high.item():g}: divide by the maximum, or compare "
            "with a threshold"
        )
    return mask.to(x.dtype)


def comparable(labels: Tensor) -> Tensor:
    """Return labels in a dtype that torch can compare; it cannot compare unsigned dtypes other than uint8."""
    unsigned = labels.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return labels.to(torch.int64) if unsigned else labels


def _equals(labels: Tensor, number: int) -> Tensor:
    """Return where labels equal a number; torch would wrap a number out of range, and find 256 where a byte is 0."""
    labels = comparable(labels)
    if not labels.is_floating_point() and labels.dtype != torch.bool:
        limits = torch.iinfo(labels.dtype)
        if not limits.min <= number <= limits.max:
            return torch.zeros_like(labels, dtype=torch.bool)
    return labels == number


def wrong_labels(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Return where a label is not a class and is not ignored."""
    whole = target.to(torch.int64)
    wrong = (whole < 0) | (whole >= classes) | (target != whole)
    return wrong if ignore_index is None else wrong & ~_equals(target, ignore_index)


def checked_labels(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Return labels as int64, with 0 where they are ignored; raise an error if one is not a class, or return 0."""
    target = comparable(target)
    wrong = wrong_labels(target, classes, ignore_index)
    if not is_readable(target):
        target = torch.where(wrong, 0, target)
    elif wrong.any():
        _raise_wrong_labels(target, classes, ignore_index)
    labels = target.to(torch.int64)
    return labels if ignore_index is None else labels.masked_fill(_equals(target, ignore_index), 0)


def _raise_wrong_labels(target: Tensor, classes: int, ignore_index: int | None) -> NoReturn:
    target = comparable(target)
    values = target[wrong_labels(target, classes, ignore_index)]
    found: Tensor = values.unique()  # type: ignore[no-untyped-call]
    shown = ", ".join(f"{v:g}" for v in found[:5].tolist()) + (", …" if found.numel() > 5 else "")
    raise ValueError(
        f"labels must be whole numbers in [0, {classes}), one for each of the input's {classes} channels; got "
        f"{values.numel()} voxels with {shown}: relabel the target, or pass ignore_index for a label to leave out"
    )


def raise_invalid(inputs: VoxelInputs, ignore_index: int | None) -> NoReturn:
    """Raise the error that names the invalid values, after a kernel has found some."""
    if inputs.mask is not None:
        checked_mask(inputs.mask, widened(inputs.x))
    _raise_wrong_labels(inputs.target, inputs.x.shape[1], ignore_index)
