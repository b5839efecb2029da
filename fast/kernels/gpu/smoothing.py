"""Smoothing of images on a GPU: along x and y in one launch, along z in another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.gpu.compiled import smoothing
from twinloss.fast.kernels.gpu.launch import launch
from twinloss.fast.kernels.gpu.window import Step, far, near, programs
from twinloss.fast.runtime.constants import on_device

# The largest number of steps that are carried in registers.
_RING = 33


def smooth(images: Tensor, taps: Sequence[float], rank: int) -> Tensor:
    """Return images (N, D, H, W), correlated with the taps along their last `rank` axes."""
    made = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    if made.numel() == 0:
        return made
    # The axes of an image of two are taken as z and x.
    source, out = (near(each.transpose(1, 2) if rank == 2 else each, len(taps)) for each in (images, made))
    weights = on_device(np.array(taps), images.device)
    steps = _steps(len(taps), rank)
    room = torch.empty_like(made) if len(steps) > 1 else made
    for step, target in zip(steps, [made, room, made][-len(steps) :], strict=True):
        _launch(step, source, target.view(out.shape), weights)
        source = target.view(out.shape)
    return made


def _steps(size: int, rank: int) -> list[Step]:
    if size > _RING:
        return [Step(True, row=size), *(Step(deep, along=size) for deep in (False, True)[3 - rank :])]
    if rank == 1:
        return [Step(True, row=size)]
    return [Step(True, row=size, ring=size)] if rank == 2 else [Step(False, row=size, ring=size), Step(True, ring=size)]


def _launch(step: Step, source: Tensor, target: Tensor, weights: Tensor) -> None:
    ready = programs(step, tuple(source.shape), 0, source.shape[1], source.device)
    launch(
        smoothing.smooth, ready.grid, source, *step.strides(source), target, *ready.geometry, weights,
        warps=ready.warps, STEP=step, BLOCK=ready.block, FAR=far(source),
    )  # fmt: skip
