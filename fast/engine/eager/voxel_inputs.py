"""The voxels of a segmentation as the kernels in operators of torch take them, and the slopes of their statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from twinloss.fast.engine.segmentation.labels import comparable, ignored
from twinloss.fast.kernels.contract import Plan, VoxelInputs, flat
from twinloss.fast.runtime.constants import classes, constant
from twinloss.fast.runtime.dispatch import widened


class Slopes(NamedTuple):
    """Derivatives with respect to the statistics, (B or 1, C, 1) in the dtype of the input, or None for 0.

    Attributes:
        hit: with respect to TP minus FN, or minus twice FN for squared overlaps.
        fp: with respect to FP.
        fn: with respect to FN.
        tp: with respect to TP.
        hits: with respect to the hits.
        misses: with respect to the misses.
        distance: with respect to the distance minus the nearness.
    """

    hit: Tensor | None = None
    fp: Tensor | None = None
    fn: Tensor | None = None
    tp: Tensor | None = None
    hits: Tensor | None = None
    misses: Tensor | None = None
    distance: Tensor | None = None


@dataclass
class Voxels:
    """The voxels of a call, flattened.

    Attributes:
        x: (B, C, N), float32 or float64, with 0 in excluded voxels, unless for a gradient.
        target: labels, (B, 1, N); or a dense target in the dtype of x, (B, C, N), with 0 in excluded voxels.
        labels: whether the target holds labels.
        weight: of the voxels, (B or 1, 1, N), or None if all are 1.
        soft: whether the weight may be neither 0 nor 1.
        excluded: the voxels of weight 0, (B or 1, 1, N), or None.
        ignored: the voxels that `ignore_index` excludes, (B, 1, N), or None.
    """

    x: Tensor
    target: Tensor
    labels: bool
    weight: Tensor | None
    soft: bool
    excluded: Tensor | None
    ignored: Tensor | None

    def own(self) -> Tensor:
        """Return whether a class is that of the label, (B, C, N); it is not in ignored voxels."""
        return one_hot(self.target, self.x.shape[1], self.ignored)

    def index(self) -> Tensor:
        """Return the labels as an index of the classes, whatever they hold."""
        return self.target.to(torch.int64).clamp(0, self.x.shape[1] - 1)

    def weighed(self, values: Tensor) -> Tensor:
        """Multiply values, which the caller owns, by the weight."""
        return values if self.weight is None else values.mul_(self.weight)


def voxels_of(inputs: VoxelInputs, plan: Plan, for_gradient: bool = False) -> Voxels:
    """Return the voxels of a call.

    In a gradient, what an excluded voxel holds matters to this voxel alone, whose gradient is then set to 0. So with
    `for_gradient`, it keeps its numbers, and has no weight unless others may be neither 0 nor 1.
    """
    x, target = widened(flat(inputs.x)), flat(inputs.target)
    out = None if plan.ignore_index is None else ignored(target, plan.labels, plan.ignore_index)
    excluded, weight, soft = out, None, False
    if inputs.mask is not None:
        mask = flat(inputs.mask)
        weight, soft = mask.to(x.dtype), mask.is_floating_point()
    if out is not None:
        weight = (~out).to(x.dtype) if weight is None else without(out, weight)
    if inputs.mask is not None and weight is not None:
        excluded = weight.eq(0)
    if for_gradient:
        weight = weight if soft else None
    elif excluded is not None:
        x = without(excluded, x)
    # Without an activation, a prediction may lie outside [0, 1], or equal the target.
    labels = plan.labels and not (plan.activation == "identity" and plan.overlap != "product")
    if not labels:
        dense = (one_hot(target, x.shape[1], out) if plan.labels else target).to(x.dtype)
        target = dense if excluded is None or for_gradient else without(excluded, dense)
    return Voxels(x, target, labels, weight, soft, excluded, out)


def one_hot(labels: Tensor, count: int, out: Tensor | None) -> Tensor:
    """Return whether a class is that of the label, (B, C, N); `out` holds the voxels to leave out, or is None."""
    made = comparable(labels) == classes(count, labels)
    return made if out is None else made.logical_and_(~out)


def only(chosen: Tensor, values: Tensor, room: Tensor | None = None) -> Tensor:
    """Return values, and 0 where they are not chosen, in `room` if it is given.

    A number in place of the constant would be written to the device in each call.
    """
    return torch.where(chosen, values, constant(0.0, values), out=room)


def without(excluded: Tensor, values: Tensor) -> Tensor:
    """Return values, and 0 where they are excluded."""
    return torch.where(excluded, constant(0.0, values), values)
