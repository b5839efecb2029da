"""Wrapper that computes a loss of outputs at several resolutions; the twin of `reference/deep_supervision.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.loss import Loss, checked_loss, entry_point
from twinloss.fast.engine.segmentation.loss import times
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import (
    ShapeError,
    as_tuples,
    check_tensors,
    checked_flag,
    numbers,
    total,
    unwrapped,
)
from twinloss.fast.runtime.options import LARGEST, fixed, one_of


def _checked_weights(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    given = numbers(value, name)
    weights: tuple[float, ...] = as_tuples(given) if given.ndim == 1 else ()
    if not weights:
        raise ValueError(f"{name} must be None or a list with a number for each level, got shape {tuple(given.shape)}")
    if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(f"{name} must be finite and not negative, and one of them must not be 0, got {list(weights)}")
    if max(weights) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:g}, got {list(weights)}: a larger number may overflow")
    return weights


def _one_value(loss: Any) -> Tensor:
    """Check the loss of a level, and return it."""
    if not isinstance(loss, Tensor):
        hint = ": parts of several levels are not added, so do not pass return_parts=True"
        raise TypeError(
            f"the wrapped loss must return a tensor, got {type(loss).__name__}{hint if isinstance(loss, tuple) else ''}"
        )
    return loss


def _check_levels(given: Any, name: str) -> None:
    """Check a tensor, or a list of tensors."""
    if isinstance(given, (list, tuple)):
        check_tensors(**{f"{name}[{k}]": each for k, each in enumerate(given)})
    elif isinstance(given, Tensor):
        check_tensors(**{name: given})
    else:
        raise TypeError(f"{name} must be a tensor or a list of tensors, got {type(given).__name__}")


class DeepSupervisionLoss(Loss):
    r"""Weighted sum of a loss over the outputs of a network at several resolutions.

    .. math::
        L = \sum_l w_l\, \ell(x_l, r_l(g))

    Here :math:`\ell` is the wrapped loss, :math:`x_l` is the output at level l, and :math:`r_l(g)` is the target on the
    grid of this output. Each voxel of an output gets the target and the mask at the nearest voxel. They are never
    interpolated, so that labels stay labels. If their size along an axis is a multiple of the output's, they are
    sliced and not copied.

    Args:
        loss: the wrapped loss, called as ``loss(input, target)`` or ``loss(input, target, mask)``: a module of this
            package or any callable. If it returns a value for each voxel, levels of different sizes cannot be added.
        weight_mode: the weights w. ``"exp"``: 1, 1/2, 1/4, …; ``"same"``: 1 for all levels; ``"two"``: 1, 1/2, 1/2, …
        weights: a list with the weight of each level, which replaces ``weight_mode``. nnU-Net divides the weights
            of ``"exp"`` by their sum, and gives the coarsest level 0. A level of weight 0 is not computed: its gradient
            is 0, even if it holds NaN, and it need not match the target.
        interp_mode: the voxel of a target with n voxels along an axis that voxel i of an output with m voxels gets.
            ``"nearest-exact"``: ⌊(i + ½) n/m⌋, the voxel at the same place. ``"nearest"``: ⌊i n/m⌋, the one at its
            lower border. These are the modes of ``torch.nn.functional.interpolate``.
        stacked: the input is a single tensor, (B, L, C, *S), with the levels along axis 1, as in MONAI's DynUNet.

    Shape:
        input: a list or tuple of outputs (B, C, *S), the finest first, or a single output, which is one level, or with
        ``stacked`` (B, L, C, *S). target and mask: as the wrapped loss takes them, on a grid at least as fine as every
        output's, or lists with one for each level, which are passed on unchanged. Integer and float64 targets
        keep their type. The result is that of the wrapped loss; half-precision losses are added in float32.

    Raises:
        TypeError: if the loss is not callable, or if an argument is neither a tensor nor a list of tensors.
        ValueError: if there is no level; if the number of weights or targets is not that of the levels; if weights are
            negative, infinite, NaN or all 0; if a mode is unknown; if unreduced losses have different shapes.
        AssertionError: if input and target have different numbers of items. The error is also a ValueError.

    Reference:
        Lee, C. et al. (2015) Deeply-supervised nets, AISTATS.
        Isensee, F. et al. (2021) nnU-Net: a self-configuring method for deep learning-based biomedical image
        segmentation, Nature Methods.

    Example:
        >>> import torch
        >>> from twinloss.fast import DiceLoss
        >>> loss = DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True))
        >>> loss([torch.zeros(1, 2, 4), torch.zeros(1, 2, 2)], torch.tensor([[[0, 0, 1, 1]]]))
        tensor(0.7500)
    """

    option_checks: ClassVar = {
        "reduction": fixed("mean"),
        "loss": checked_loss,
        "weight_mode": one_of("exp", "same", "two"),
        "weights": _checked_weights,
        "interp_mode": one_of("nearest-exact", "nearest"),
        "stacked": checked_flag,
    }

    def __init__(
        self,
        loss: Callable[..., Tensor],
        weight_mode: str = "exp",
        weights: Sequence[float] | None = None,
        *,
        interp_mode: str = "nearest-exact",
        stacked: bool = False,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weight_mode = weight_mode
        self.weights: Any = weights
        self.interp_mode = interp_mode
        self.stacked = stacked

    @entry_point
    def forward(
        self,
        input: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        mask: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        levels = self._levels(input)
        given = [_OnGrids(target, "target", levels), *([] if mask is None else [_OnGrids(mask, "mask", levels)])]
        losses = []
        for k, (level, weight) in enumerate(zip(levels, self._weights(len(levels)), strict=True)):
            if weight == 0:
                losses.append(level[:0].sum())  # an empty sum, whose gradient is exactly 0
                continue
            # Losses in half precision would be rounded before they are added.
            x = dispatch.widened(level) if dispatch.result_type(level) in dispatch.HALVES else level
            losses.append(times(weight, _one_value(self.loss(x, *(each.at(k, self.interp_mode) for each in given)))))
        shapes = {tuple(loss.shape) for loss in losses if loss.ndim > 0}
        if len(shapes) > 1:
            raise ValueError(
                f"the losses of the levels have the shapes {sorted(shapes)}, which cannot be added: choose a reduction "
                'of the wrapped loss other than "none"'
            )
        return total(losses).to(reduce(torch.promote_types, map(dispatch.result_type, levels)))

    def _levels(self, input: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return the checked outputs of all levels."""
        _check_levels(input, "input")
        if self.stacked:
            if not isinstance(input, Tensor):
                raise TypeError(f"input must be a single tensor if stacked=True, got {type(input).__name__}")
            if input.ndim < 3:
                raise ShapeError(f"stacked levels must be (batch, levels, classes, *spatial), got {tuple(input.shape)}")
            levels = list(input.unbind(1))
        else:
            levels = [input] if isinstance(input, Tensor) else [unwrapped(level) for level in input]
        if not levels:
            raise ValueError("input must hold the output of at least one level, got none")
        if any(level.ndim == 0 for level in levels):
            raise ShapeError("the output of a level must be (batch, classes, *spatial), got a number without axes")
        return levels

    def _weights(self, count: int) -> tuple[float, ...]:
        """Return the weight of each level."""
        if self.weights is None:
            below = {"exp": 0.5, "same": 1.0, "two": 0.5}[self.weight_mode]
            return tuple(below ** (k if self.weight_mode == "exp" else k > 0) for k in range(count))
        if len(self.weights) != count:
            raise ValueError(f"weights has {len(self.weights)} values for {count} levels: give one for each level")
        weights: tuple[float, ...] = self.weights
        return weights


class _OnGrids:
    """A target or mask for all levels: a list with one for each level, or one on a grid at least as fine as theirs."""

    def __init__(self, given: Tensor | Sequence[Tensor], name: str, levels: Sequence[Tensor]) -> None:
        self.given, self.name, self.levels = given, name, levels
        if isinstance(given, (list, tuple)) and len(given) != len(levels):
            raise ValueError(
                f"{name} has {len(given)} entries for {len(levels)} levels: give one for each level, or one tensor"
            )
        _check_levels(given, name)

    def at(self, k: int, mode: str) -> Tensor:
        """Return the target or mask of level k."""
        if not isinstance(self.given, Tensor):
            found: Tensor = unwrapped(self.given[k])
            return found
        made, level = self.given, self.levels[k]
        shapes = f"{self.name} has shape {tuple(made.shape)} and the input of level {k} {tuple(level.shape)}"
        if made.ndim < level.ndim - 1 or len(made) not in (len(level), 1 if self.name == "mask" else len(level)):
            raise ShapeError(f"{shapes}: they must have the same numbers of items and of spatial axes")
        for axis in range(2 - level.ndim, 0):
            fine, size = made.shape[axis], level.shape[axis]
            if fine < size:
                raise ShapeError(
                    f"{shapes}: the {self.name} must be on a grid at least as fine. If the levels are stacked along "
                    "axis 1 of the input, pass stacked=True"
                )
            if 0 < size < fine:
                made = _sampled(made, axis, size, mode == "nearest-exact")
        return made


def _sampled(tensor: Tensor, axis: int, size: int, exact: bool) -> Tensor:
    """Return `size` of the voxels along an axis; a view if the length of the axis is a multiple of `size`."""
    fine = tensor.shape[axis]
    if fine % size == 0:
        step = fine // size
        return tensor.movedim(axis, -1)[..., step // 2 if exact else 0 :: step].movedim(-1, axis)
    i = torch.arange(size, device=tensor.device)
    return tensor.index_select(axis, (2 * i + 1) * fine // (2 * size) if exact else i * fine // size)
