"""The records of the losses that wrap a segmentation loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinloss import fast, reference
from twinloss.fast.runtime import dispatch
from twinloss.harness.drawing import segmentation_options as seg
from twinloss.harness.losses import bounds, gradient_term_sizes
from twinloss.harness.losses import wrapper_laws as laws
from twinloss.harness.losses.benchmark_inputs import labelled, usual
from twinloss.harness.losses.module_laws import PROTOCOL
from twinloss.harness.losses.real_cases import LABELS, LABELS_IN_MASK, SOFT_LABELS, SOFT_LABELS_IN_MASK
from twinloss.harness.losses.segmentation import OF_COMPOUND, OF_OVERLAP
from twinloss.harness.model.benchmark_spec import LossFunction
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Twin

# The number of levels, unless weights say otherwise.
LEVELS = 3


def _places(n: int, level: int, interp_mode: str, range_of: Callable[[int], Any]) -> Any:
    """Return which of n voxels along an axis a level has, as the wrapped loss chooses those of its target."""
    m = -(-n // (level + 1))
    i = range_of(m)
    return i * n // m if interp_mode == "nearest" else (2 * i + 1) * n // (2 * m)


class DeepSupervision(torch.nn.Module):
    """Deep supervision of the Dice loss, whose outputs are made from a single one.

    Level l has each (l + 1)-th voxel along each axis; stacked levels have all voxels, and the classes in another order.
    """

    def __init__(
        self,
        weight_mode: str = "exp",
        weights: list[float] | None = None,
        interp_mode: str = "nearest-exact",
        stacked: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.deep: Any = fast.DeepSupervisionLoss(
            fast.DiceLoss(**options), weight_mode, weights, interp_mode=interp_mode, stacked=stacked
        )

    def levels(self, input: Tensor) -> Tensor | list[Tensor]:
        """Return the outputs of all levels."""
        count = LEVELS if self.deep.weights is None else len(self.deep.weights)
        if self.deep.stacked:
            return torch.stack([input.roll(level, 1) for level in range(count)], 1)
        levels = []
        for level in range(count):
            x = input
            for axis in range(2, input.ndim if level else 2):
                x = self._sampled(x.movedim(axis, -1), level).movedim(-1, axis)
            levels.append(x)
        return levels

    def _sampled(self, x: Tensor, level: int) -> Tensor:
        """Return the voxels of a level along the last axis; slices take less time than the loss."""
        n = x.shape[-1]
        if n % (level + 1) == 0:
            return x[..., (level + 1) // 2 if self.deep.interp_mode == "nearest-exact" else 0 :: level + 1]
        range_of = partial(torch.arange, device=x.device)
        return x.index_select(-1, _places(n, level, self.deep.interp_mode, range_of))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the levels, which are float32 for a half, so that the sum of their slopes is rounded."""
        levels = self.levels(dispatch.widened(input)) if isinstance(input, Tensor) else input
        loss: Tensor = self.deep(levels, target)
        return loss.to(dispatch.result_type(input))


def deep_supervision(
    input: Array,
    target: Array,
    *,
    weight_mode: str = "exp",
    weights: list[float] | None = None,
    interp_mode: str = "nearest-exact",
    stacked: bool = False,
    **options: Any,
) -> Array:
    """Return the reference's value of the same levels."""
    levels = [level for level, _ in _levels(input, weights, interp_mode, stacked)]
    return reference.deep_supervision_loss(
        np.stack(levels, 1) if stacked else levels, target, partial(reference.dice_loss, **options),
        weight_mode=weight_mode, weights=weights, interp_mode=interp_mode, stacked=stacked,
    )  # fmt: skip


def deep_supervision_gradient(
    input: Array,
    target: Array,
    *,
    weight_mode: str = "exp",
    weights: list[float] | None = None,
    interp_mode: str = "nearest-exact",
    stacked: bool = False,
    cotangent: Array | float = 1.0,
    **options: Any,
) -> Array:
    """Return the gradient with respect to the input that all levels are made from."""
    made = list(_levels(input, weights, interp_mode, stacked))
    levels = [level for level, _ in made]
    gradients = reference.deep_supervision_loss_gradient(
        np.stack(levels, 1) if stacked else levels, target, partial(reference.dice_loss_gradient, **options),
        weight_mode=weight_mode, weights=weights, interp_mode=interp_mode, stacked=stacked, cotangent=cotangent,
    )  # fmt: skip
    total = np.zeros_like(input)
    for gradient, (_, place) in zip(
        np.moveaxis(np.asarray(gradients), 1, 0) if stacked else gradients, made, strict=True
    ):
        total[place] += gradient
    return total


def _levels(
    input: Array, weights: list[float] | None, interp_mode: str, stacked: bool
) -> Iterator[tuple[Array, tuple[Any, ...]]]:
    """Yield each level, and the places of its numbers in the input."""
    items, classes, *spatial = input.shape
    for level in range(LEVELS if weights is None else len(weights)):
        if stacked:
            place = np.ix_(range(items), (np.arange(classes) - level) % classes, *map(range, spatial))
        else:
            along = (_places(n, level, interp_mode, np.arange) for n in spatial)
            place = np.ix_(range(items), range(classes), *along)
        yield input[place], place


def monai_deep_supervision(classes: int) -> Callable[[Any], LossFunction]:
    """Return a function that makes MONAI's loss of the same levels from the module of its losses."""

    def build(losses: Any) -> LossFunction:
        ours = DeepSupervision()
        theirs = losses.DeepSupervisionLoss(losses.DiceLoss(**usual(classes)))
        # It samples no integers.
        return lambda input, target: theirs(ours.levels(input), target.to(input.dtype))

    return build


def monai_masked(classes: int) -> Callable[[Any], LossFunction]:
    """Return a function that makes MONAI's wrapper around Dice + CE from the module of its losses."""

    def build(losses: Any) -> LossFunction:
        made: LossFunction = losses.MaskedLoss(losses.DiceCELoss(**usual(classes)))
        return made

    return build


DEEP_SUPERVISION = Twin(
    name="deep_supervision",
    fast=DeepSupervision,
    wraps=fast.DeepSupervisionLoss,
    value=deep_supervision,
    gradient=deep_supervision_gradient,
    operands=("input", "target"),
    options={
        "weight_mode": ("exp", "same", "two"),
        "weights": (None, [1.0], [0.5, 2.0], [0.0, 1.0], [1.0, 0.25, 0.0, 0.5]),
        "interp_mode": ("nearest-exact", "nearest"),
        "stacked": (False, True),
    } | seg.TARGET | seg.ACTIVATION | seg.REDUCTION | seg.SMOOTHING | seg.BATCH | seg.IGNORE,
    **OF_OVERLAP,
    allowed=seg.one_activation,
    logits=seg.logits_in,
    terms=gradient_term_sizes.dice_loss,
    bounds=bounds.deep_supervision,
    laws=laws.DEEP_SUPERVISION + PROTOCOL,
    real=(LABELS, SOFT_LABELS),
    benches=(
        labelled(
            monai_deep_supervision, memory=2.0,
            note="Dice of three levels, sampled from one output; MONAI gets labels as floating-point numbers",
        ),
    ),
)  # fmt: skip

# Losses of sums over voxels, and those that have a mean of the values of voxels as well.
WRAPPED: dict[str, tuple[type[torch.nn.Module], Callable[..., Array], Callable[..., Array]]] = {
    "dice_ce": (fast.DiceCELoss, reference.dice_ce_loss, reference.dice_ce_loss_gradient),
    "dice_focal": (fast.DiceFocalLoss, reference.dice_focal_loss, reference.dice_focal_loss_gradient),
    "tversky": (fast.TverskyLoss, reference.tversky_loss, reference.tversky_loss_gradient),
}


class Masked(torch.nn.Module):
    """The wrapper around a segmentation loss, which gets those of the options that it has."""

    def __init__(self, loss: str = "dice_ce", **options: Any) -> None:
        super().__init__()
        made = WRAPPED[loss][0]
        self.masked = fast.MaskedLoss(made(**_of(made, options)))

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Call the wrapper."""
        loss: Tensor = self.masked(input, target, mask)
        return loss


def masked(input: Array, target: Array, mask: Array, *, loss: str = "dice_ce", **options: Any) -> Array:
    """Return the reference's value for the wrapper around a segmentation loss."""
    value = WRAPPED[loss][1]
    return reference.masked_loss(input, target, mask, partial(value, **_of(value, options)))


def masked_gradient(
    input: Array, target: Array, mask: Array, *, loss: str = "dice_ce", cotangent: Array | float = 1.0, **options: Any
) -> Array:
    """Return the gradient with respect to the input."""
    gradient = WRAPPED[loss][2]
    wrapped = partial(gradient, **_of(gradient, options))
    return reference.masked_loss_gradient(input, target, mask, wrapped, cotangent=cotangent)


def _of(loss: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a loss has."""
    return {name: value for name, value in options.items() if name in inspect.signature(loss).parameters}


def _allowed(options: Mapping[str, Any]) -> bool:
    """Return whether the wrapped loss takes the options: cross entropy has no value for a voxel."""
    return seg.one_activation_and_one_weight(options) and (options["loss"], options["reduction"]) != ("dice_ce", "none")


MASKED = Twin(
    name="masked",
    fast=Masked,
    wraps=fast.MaskedLoss,
    value=masked,
    gradient=masked_gradient,
    operands=("input", "target", "mask"),
    options={"loss": tuple(WRAPPED)} | seg.TARGET | seg.ACTIVATION | seg.REDUCTION | seg.SMOOTHING
    | seg.BATCH | seg.IGNORE | {
        "lambda_dice": seg.LAMBDAS, "lambda_ce": seg.LAMBDAS, "lambda_focal": seg.LAMBDAS,
        "label_smoothing": (0.0, 0.25), "multilabel": (False, True),
        "use_softmax": (True, False), "gamma": (2.0, 0.0, 0.5),
    },
    **OF_COMPOUND | {"allowed": _allowed},
    laws=laws.MASKED_LOSS + PROTOCOL,
    real=(LABELS_IN_MASK, SOFT_LABELS_IN_MASK),
    benches=(
        labelled(
            monai_masked, masked=True, memory=2.0, note="Dice + CE; MONAI masks the logits",
        ),
    ),
)  # fmt: skip
