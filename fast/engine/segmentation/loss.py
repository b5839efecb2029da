"""The base class of segmentation losses: options, checks of arguments, and the reduction.

The reference has its own code for these, which is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.loss import Loss
from twinloss.fast.engine.segmentation.dense_target import is_looked_at, look_at
from twinloss.fast.engine.segmentation.fraction import (
    distance_matrix,
    fraction,
    reduced_fraction,
    shares,
    volumes,
)
from twinloss.fast.engine.segmentation.parts import ClassParts, Parts
from twinloss.fast.engine.segmentation.statistics import Activation, Overlap
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import (
    FN,
    FP,
    TP,
    VOXELS,
    Distances,
    FractionPlan,
    Terms,
    VoxelKernels,
    Weigh,
    unweighted,
)
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError, as_tuples, check_tensors, checked_flag, numbers
from twinloss.fast.runtime.constants import constant
from twinloss.fast.runtime.options import LARGEST, Rule, checked_number, is_whole
from twinloss.fast.runtime.ranks import ProcessGroup, checked_group
from twinloss.fast.runtime.torch_operator import Computation, is_traced, one_node
from twinloss.fast.runtime.warn import warn

ClassWeight = float | Sequence[float] | np.ndarray | Tensor


def mean_of(total: Tensor, count: Tensor) -> Tensor:
    """Return total / count, and 0 where the count is 0: the loss of a patch without any counted voxel is 0."""
    return total / torch.where(count > 0, count, 1)


def times(factor: float, loss: Tensor) -> Tensor:
    """Return a factor times a loss; a factor of 1 takes no operator, forward and backward."""
    return loss if factor == 1 else factor * loss


def checked_weight(weight: ClassWeight | None, name: str = "weight") -> float | tuple[float, ...] | None:
    """Return a class weight as Python numbers, so that `.half()` of a surrounding module does not round it."""
    if weight is None:
        return None
    values = numbers(weight, name)
    if values.ndim > 1:
        raise ValueError(f"{name} must be a number or one number per class, got shape {tuple(values.shape)}")
    if not bool((values >= 0).all()) or bool(values.isinf().any()):
        raise ValueError(f"{name} must be finite and not negative, got {values.tolist()}")
    if bool((values > LARGEST).any()):
        raise ValueError(f"{name} must be at most {LARGEST:g}, got {values.tolist()}: a larger number may overflow")
    weights: float | tuple[float, ...] = as_tuples(values)
    return weights


def checked_activation(value: Any, name: str) -> Callable[[Tensor], Tensor] | None:
    """Check a function that turns the input into probabilities, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be None or callable, got {type(value).__name__}")
    activation: Callable[[Tensor], Tensor] | None = value
    return activation


def checked_label(value: Any, name: str) -> int | None:
    """Check a label, or None."""
    if value is None:
        return None
    if not is_whole(value):
        raise ValueError(f"{name} must be None or a whole number, got {value!r}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be a label that fits into 64 bits, got {value}")
    return int(value)


def one_activation(sigmoid: bool, softmax: bool, other_act: Callable[[Tensor], Tensor] | None) -> None:
    """Raise an error if more than one activation is given."""
    if sigmoid + softmax + (other_act is not None) > 1:
        raise ValueError(
            "sigmoid, softmax and other_act exclude each other: give at most one, got "
            f"sigmoid={sigmoid}, softmax={softmax}, other_act={other_act}"
        )


def weight_by_class(weight: float | tuple[float, ...], classes: int, like: Tensor, name: str = "weight") -> Tensor:
    """Return a checked weight as a tensor that broadcasts over the classes of `like`, and must not be modified."""
    _check_length(weight, classes, name)
    return constant(weight, like)


def numbers_by_class(weight: float | tuple[float, ...] | None, classes: int, name: str = "weight") -> tuple[float, ...]:
    """Return a checked weight as a number for each class."""
    if isinstance(weight, tuple):
        _check_length(weight, classes, name)
        return weight
    return (1.0 if weight is None else weight,) * classes


def _check_length(weight: float | tuple[float, ...], classes: int, name: str) -> None:
    if isinstance(weight, tuple) and len(weight) != classes:
        raise ValueError(
            f"{name} has {len(weight)} values but {classes} classes take part in the loss: give one value "
            "for each (without the background if include_background=False), or a single number"
        )


def with_parts(loss: Tensor, parts: Parts) -> Tensor:
    """Return the tuple of a loss and its parts, detached and in the dtype of the loss.

    The annotation is that of a loss without this option, so that `forward` has one type.
    """
    detached = type(parts)(*(part.detach().to(loss.dtype) for part in parts))
    return cast(Tensor, (loss, detached))


def check_mask_shape(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise an error unless the shape of a mask fits that of the input."""
    if tuple(mask.shape[1:]) != (1, *shape[2:]) or mask.shape[0] not in (1, shape[0]):
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)} and input {shape}: expected ({shape[0]} or 1, 1, *{shape[2:]})"
        )


class Fraction(NamedTuple):
    """A fraction of statistics; `FractionPlan` describes terms, weights and distances."""

    overlap: Overlap
    terms: Terms
    weigh: Weigh = unweighted
    distances: Distances | None = None


# The methods that kernels replace where they compute the reduced loss, and the packages whose methods they know.
_REPLACED, _PACKAGES = ("by_class", "answer", "reduce", "reduced"), ("twinloss.fast.", "twinloss.compat.")


class SegmentationLoss(Loss):
    """A loss of input (B, C, *S) and a target of the same shape, or labels (B, 1, *S), of any spatial rank.

    Subclasses may override `by_class`, `answer`, `reduce` and `reduced`. Kernels then compute only the statistics.
    """

    _is_overridden: ClassVar[bool] = False

    option_checks: ClassVar = {
        **Loss.option_checks,
        **dict.fromkeys(("include_background", "to_onehot_y", "sigmoid", "softmax", "batch"), checked_flag),
        **dict.fromkeys(("smooth_nr", "smooth_dr"), checked_number),
        "other_act": checked_activation,
        "ignore_index": checked_label,
        "process_group": checked_group,
        "return_parts": checked_flag,
    }
    option_rules: ClassVar[tuple[Rule, ...]] = ((("sigmoid", "softmax", "other_act"), one_activation),)

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable[[Tensor], Tensor] | None,
        reduction: str,
        smooth_nr: float,
        smooth_dr: float,
        batch: bool,
        ignore_index: int | None,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(reduction=reduction)
        self.other_act = other_act
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.ignore_index = ignore_index
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.smooth_nr = smooth_nr
        self.smooth_dr = smooth_dr
        self.batch = batch
        self.process_group = process_group
        self.return_parts = return_parts

    def __init_subclass__(cls, **options: Any) -> None:
        """Find out whether a subclass has methods of its own in place of those that kernels replace."""
        super().__init_subclass__(**options)
        cls._is_overridden = not all(getattr(cls, name).__module__.startswith(_PACKAGES) for name in _REPLACED)

    def voxels(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Voxels:
        """Return the checked arguments of forward."""
        labels, background = self._check(input, target, mask)
        index, kept, classes = self.ignore_index, None, input.shape[1]
        if target.shape[1] == classes + 1:
            kept = target[:, classes:].detach() != 1
            target, index, mask = target[:, :classes], None, kept if mask is None else torch.where(kept, mask, 0)
        voxels = Voxels(input, target, mask, labels, background, index, self.batch, self.process_group, kept)
        if not labels and is_looked_at(self, target):
            look_at(self, target, voxels.taking_part(), *self.exclusive(background))
        return voxels

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        return self.reduced_fraction(self.voxels(input, target, mask))

    def exclusive(self, background: bool) -> tuple[bool, bool]:
        """Return whether the prediction is a softmax, and whether its background class is included."""
        return self.softmax, background

    def activation(self, input: Tensor) -> Activation | Callable[[Tensor], Tensor]:
        """Return the activation, which turns the input into the prediction, as a name or a function."""
        if self.other_act is not None:
            return self.other_act
        if self.softmax and input.shape[1] > 1:
            return "softmax"
        return "sigmoid" if self.sigmoid else "identity"

    def terms(self, voxels: Voxels, factors: tuple[float, float, float], squared: bool = False) -> Terms:
        """Return the terms of a fraction with the overlap a TP and the errors b FP + c FN, of the included classes."""
        a, b, c = factors
        first = 0 if voxels.background else 1
        smoothing = self.smooth_nr, self.smooth_dr
        return Terms(((TP, a),), ((FP, b), (FN, c)), *smoothing, first, self.batch, complementary=not squared)

    def fraction(self, voxels: Voxels) -> Fraction:
        """Return the fraction of the statistics that a subclass consists of."""
        raise NotImplementedError

    def is_fraction(self) -> bool:
        """Return whether the loss of each class is the fraction itself, so that kernels compute the reduced loss."""
        return not self._is_overridden

    def by_class(self, fractions: Tensor, voxels: Voxels) -> Tensor:
        """Return the loss of each item and class, (B, C'), or (1, C') with `batch`, given the fractions."""
        return fractions

    def reduced_fraction(self, voxels: Voxels) -> Tensor:
        """Return the reduced loss, in the dtype `dispatch.result_type`."""
        input, activation = voxels.input, self.activation(voxels.input)
        parted = self.return_parts or self.process_group is not None or self.reduction == "none"
        if isinstance(activation, str) and self.is_fraction() and not parted:
            tensors = input, voxels.target, voxels.mask
            if dispatch.choose(VOXELS, *tensors) == "kernel" and not is_traced(tensors):
                kernels, kind = VOXELS.kernels(input), dispatch.result_type(input)
                make = partial(self._computation, voxels, activation, kernels, kind)
                return one_node(self.remembered((kernels, kind, input.shape, voxels.kept is None), make), *tensors)
        overlap, terms, weigh, distances = self.fraction(voxels)
        sums = voxels.sums(activation, distance_matrix(distances, input), overlap=overlap)
        weights = weigh(volumes(sums.volume, terms))
        losses = self.by_class(fraction(sums.stack, terms, *weights), voxels)
        pooled = shares(sums.stack.detach(), terms, *weights) if self.return_parts and weights else losses
        return self.answer(losses, pooled, input)

    def _computation(
        self, voxels: Voxels, activation: Activation, kernels: VoxelKernels, kind: torch.dtype
    ) -> Computation:
        overlap, terms, weigh, distances = self.fraction(voxels)
        plan = voxels.plan(activation, overlap=overlap)
        return reduced_fraction(kernels, FractionPlan(plan, terms, weigh, distances, self.reduction == "mean", kind))

    def answer(self, losses: Tensor, by_class: Tensor, input: Tensor) -> Tensor:
        """Return the reduced losses of items and classes, and with `return_parts` a tuple of these and `ClassParts`."""
        loss = self.reduce(losses, input)
        if not self.return_parts:
            return loss
        by_class = by_class.detach().sum(0) / (1 if self.reduction == "sum" else len(by_class))
        return with_parts(loss, ClassParts(by_class))

    def reduce(self, loss: Tensor, input: Tensor) -> Tensor:
        """Reduce per-item values and convert them to the dtype of the loss."""
        return self.reduced(loss, input.ndim).to(dispatch.result_type(input))

    def reduced(self, loss: Tensor, ndim: int) -> Tensor:
        """Reduce per-item values; with "none" they get a shape that broadcasts against an input of `ndim` axes."""
        if self.reduction == "none":
            return loss.reshape(*loss.shape, *[1] * (ndim - 2))
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def _check(self, input: Tensor, target: Tensor, mask: Tensor | None) -> tuple[bool, bool]:
        """Return whether the target holds labels, and whether the background is included."""
        check_tensors(input=input, target=target, **({} if mask is None else {"mask": mask}))
        shape = tuple(input.shape)
        if not input.is_floating_point():
            raise TypeError(f"input must be a floating-point tensor of logits or probabilities, got {input.dtype}")
        if input.ndim < 2 or input.numel() == 0:
            raise ValueError(f"input must be (batch, classes, *spatial) with at least one voxel, got shape {shape}")
        single = shape[1] == 1
        if single:
            for option, ignored in (
                ("softmax=True", self.softmax),
                ("to_onehot_y=True", self.to_onehot_y),
                ("include_background=False", not self.include_background),
            ):
                if ignored:
                    warn(f"single channel prediction, `{option}` ignored")
        labels = self.to_onehot_y and not single
        further = self.ignore_index == shape[1] and not labels and target.ndim > 1 and target.shape[1] == shape[1] + 1
        expected = (shape[0], 1 if labels else shape[1] + further, *shape[2:])
        if tuple(target.shape) != expected:
            hint = "labels" if labels else "the shape of the input; for labels (B, 1, *S) pass to_onehot_y=True"
            raise ShapeError(f"target has shape {tuple(target.shape)} and input {shape}: expected {expected}, {hint}")
        if mask is not None:
            check_mask_shape(mask, shape)
        if self.ignore_index is not None and not labels and not single and not 0 <= self.ignore_index < expected[1]:
            raise ValueError(
                f"ignore_index={self.ignore_index} names no channel of a target with {shape[1]} channels: give the "
                f"channel that is 1 in voxels to leave out, or {shape[1]} and a further channel"
            )
        return labels, self.include_background or single


class ClassWeightedLoss(SegmentationLoss):
    """A segmentation loss with the option `weight`, a factor on the loss of each included class."""

    option_checks: ClassVar = {**SegmentationLoss.option_checks, "weight": checked_weight}
    weight: Any

    def is_fraction(self) -> bool:
        """Return whether the loss of each class is the fraction itself."""
        return self.weight is None and not self._is_overridden

    def by_class(self, fractions: Tensor, voxels: Voxels) -> Tensor:
        """Return the weighted loss of each item and class."""
        return fractions if self.weight is None else fractions * self.class_weight(fractions, voxels)

    def class_weight(self, loss: Tensor, voxels: Voxels) -> Tensor:
        """Return the weight of each included class."""
        return weight_by_class(self.weight, loss.shape[1], loss)
