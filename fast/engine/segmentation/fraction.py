"""The fraction that Dice, Tversky and their generalisations compute, and losses that consist of it alone.

The reference has the formula in each of `dice.py`, `tversky.py`, `generalized_dice.py` and
`generalized_wasserstein_dice.py`; nothing here is taken from there, and `fast` never imports `reference`.

The statistics are so few numbers that every node of the graph costs more than its arithmetic: so the fraction is one
node, and the whole loss, from logits to its mean, is one too where nobody traces it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.segmentation.labels import raise_invalid
from twinloss.fast.engine.segmentation.plain import plain_sums
from twinloss.fast.kernels.contract import (
    FN,
    TP,
    TP_LESS_FN,
    VOLUME,
    VOXELS,
    Distances,
    FractionPlan,
    InvalidVoxelsError,
    Terms,
    VoxelInputs,
)
from twinloss.fast.runtime.torch_operator import Computation, InputsAndValue, apply, on_arrays, one_node, save


def fraction(stack: Tensor, terms: Terms, *weights: Tensor) -> Tensor:
    """Return 1 - (overlap + ν) / (overlap + errors + δ) as one fraction, as 1 - (…) would cancel in a good prediction.

    Args:
        stack: the statistics, (ROWS, B, C).
        terms: see there.
        weights: if the classes are pooled, those of the classes, (1 or B, C'): of overlap and errors, or one for both.

    Returns:
        (B, C'), or (B, 1) if the classes are pooled; B is 1 with `batch`.
    """
    made: Tensor = _fraction(stack, *[*weights, None, None][:2], terms)
    return made


def volumes(volume: Any, terms: Terms) -> Any:
    """Return the volumes of the classes that take part, (B or 1, C'), given those of all, (B, C)."""
    volume = volume[:, terms.first :]
    return volume.sum(axis=0, keepdims=True) if terms.batch else volume


# Those of overlap and errors, (1 or B, C'), or None; where only those of errors are None, one serves both.
Weights = tuple[Tensor | None, Tensor | None]


class _Fraction(torch.autograd.Function):
    """Compute (errors + δ - ν) / (overlap + errors + δ); no difference of two large terms spoils its gradient.

    Autograd would take 1/M - errors/M² for the slope (overlap + ν)/M², M the denominator, and lose all digits of it
    where the errors are nearly all there is.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, terms: Terms) -> Tensor:
        made: Tensor = _value(stack, w_overlap, w_errors, terms)
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.terms = inputs
        save(ctx, *tensors, output)

    @staticmethod
    def along(ctx: Any, *tangents: Any) -> Tensor:
        """Return the slope of the loss along tangents of the statistics and the weights."""
        stack, w_overlap, w_errors, loss = ctx.saved_tensors
        return _slope_along(tangents[:3], stack, (w_overlap, w_errors), loss, ctx.terms)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weighted = any(ctx.needs_input_grad[1:3])
        stack, w_overlap, w_errors, loss = ctx.saved_tensors
        weights = w_overlap, w_errors
        of_weights = _slopes_of_weights(upstream[0], stack, weights, loss, ctx.terms) if weighted else (None, None)
        return _slopes(upstream[0], *ctx.saved_tensors, ctx.terms), *of_weights, None


_fraction = apply(_Fraction)


def _by_class(stack: Any, terms: Terms) -> tuple[Any, Any]:
    rows = stack[:, :, terms.first :] if terms.first else stack  # a slice of all has no rule for batches in torch
    if terms.batch:
        rows = rows.sum(axis=1, keepdims=True)
    overlap, errors = (sum(factor * rows[row] for row, factor in part) for part in (terms.overlap, terms.errors))
    return overlap, errors


def _pooled(overlap: Any, errors: Any, w_overlap: Tensor | None, w_errors: Tensor | None) -> tuple[Any, Any]:
    if w_overlap is None:
        return overlap, errors
    w_errors = w_overlap if w_errors is None else w_errors
    return (w_overlap * overlap).sum(axis=1, keepdims=True), (w_errors * errors).sum(axis=1, keepdims=True)


@on_arrays
def _value(stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, terms: Terms) -> Tensor:
    overlap, errors = _pooled(*_by_class(stack, terms), w_overlap, w_errors)
    loss: Tensor = (errors + (terms.smooth_dr - terms.smooth_nr)) / (overlap + errors + terms.smooth_dr)
    return loss


def _slopes_of_parts(
    upstream: Tensor, overlap: Tensor, errors: Tensor, loss: Tensor, terms: Terms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the slopes in overlap and errors, the denominator, and the upstream slope divided by it."""
    denominator = overlap + errors + terms.smooth_dr
    by_denominator = upstream / denominator
    in_errors = by_denominator * ((overlap + terms.smooth_nr) / denominator)
    return -by_denominator * loss, in_errors, denominator, by_denominator


@on_arrays
def _slopes(
    upstream: Tensor, stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, loss: Tensor, terms: Terms
) -> Tensor:
    """Return the slopes in the statistics.

    The slopes in TP and in FN may cancel. Where the two are complementary, the row of TP holds the slope of both, and
    the volume takes that of FN. Elsewhere the row `TP_LESS_FN` holds what the rounding of their difference loses.
    """
    overlap, errors = _pooled(*_by_class(stack, terms), w_overlap, w_errors)
    in_overlap, in_errors, denominator, by_denominator = _slopes_of_parts(upstream, overlap, errors, loss, terms)
    by_row = {row: factor * in_errors for row, factor in terms.errors}
    by_row.update((row, factor * in_overlap) for row, factor in terms.overlap)
    if TP in by_row:
        a, b = dict(terms.overlap)[TP], dict(terms.errors)[FN] * (1 if terms.complementary else 2)
        both = (a * (errors + terms.smooth_dr) + b * overlap + (b - a) * terms.smooth_nr) / denominator
        if terms.complementary:
            by_row[TP], by_row[VOLUME] = -by_denominator * both, by_row.pop(FN)
        else:
            by_row[TP_LESS_FN] = -by_denominator * both - (by_row[TP] - 2 * by_row[FN])
    if isinstance(stack, np.ndarray):
        slopes = np.zeros_like(stack)
    else:  # under torch.func they must be batched as what is written into them
        slopes = torch.zeros_like(stack) + torch.zeros_like(in_errors).sum()
    w_errors = w_overlap if w_errors is None else w_errors
    of_overlap = [TP_LESS_FN, *(row for row, _ in terms.overlap)]
    for row, slope in by_row.items():
        weight = w_overlap if row in of_overlap else w_errors
        slopes[row, :, terms.first :] = slope if weight is None else weight * slope
    return slopes


def _slopes_of_weights(
    upstream: Tensor, stack: Tensor, weights: Weights, loss: Tensor, terms: Terms
) -> tuple[Tensor, Tensor | None]:
    overlap, errors = _by_class(stack, terms)
    pooled = _pooled(overlap, errors, *weights)
    in_overlap, in_errors, *_ = _slopes_of_parts(upstream, *pooled, loss, terms)
    in_overlap, in_errors = in_overlap * overlap, in_errors * errors
    return (in_overlap + in_errors, None) if weights[1] is None else (in_overlap, in_errors)


def _slope_along(
    tangents: Sequence[Tensor | None], stack: Tensor, given: Weights, loss: Tensor, terms: Terms
) -> Tensor:
    along, *of_weights = tangents
    parts, weights = _by_class(stack, terms), (given[0], given[0] if given[1] is None else given[1])
    if given[1] is None:
        of_weights = [of_weights[0], of_weights[0]]
    in_overlap, in_errors, *_ = _slopes_of_parts(torch.ones_like(loss), *_pooled(*parts, *weights), loss, terms)
    moved = _pooled(*_by_class(torch.zeros_like(stack) if along is None else along, terms), *weights)
    by_weights = [
        0 if tangent is None else (tangent * part).sum(1, keepdim=True)
        for tangent, part in zip(of_weights, parts, strict=True)
    ]
    slope: Tensor = in_overlap * (moved[0] + by_weights[0]) + in_errors * (moved[1] + by_weights[1])
    return slope


def reduced_fraction(tensors: tuple[Tensor, Tensor, Tensor | None], asked: FractionPlan) -> Tensor:
    """Return the mean, or sum, of the fraction of the statistics by kernels, as one node.

    The tensors are x, target and mask of `VoxelInputs`.
    """
    kernels, plan = VOXELS.kernels(tensors[0]), asked.plan

    def value(tensors: tuple[Any, ...], ahead: bool) -> tuple[Tensor, object]:
        inputs = VoxelInputs(*tensors)
        try:
            return kernels.loss(inputs, asked, ahead)
        except InvalidVoxelsError:
            raise_invalid(inputs, plan.ignore_index)

    def gradient(upstream: Tensor, kept: object, *tensors: Any) -> Tensor:
        return kernels.loss_gradient(upstream, VoxelInputs(*tensors), asked, kept)

    def plain(*tensors: Any) -> InputsAndValue:
        x, target, mask = tensors
        matrix = distance_matrix(asked.distances, x)
        sums = plain_sums(VoxelInputs(x, target, mask, matrix), plan)
        by_item = fraction(sums, asked.terms, *asked.weigh(volumes(sums[VOLUME].detach(), asked.terms)))
        return (x,), by_item.mean() if asked.mean else by_item.sum()

    return one_node(Computation(value, gradient, plain), *tensors)


def distance_matrix(distances: Distances | None, like: Tensor) -> Tensor | None:
    """Return distances between classes as a tensor on the device of another."""
    return None if distances is None else torch.tensor(distances, dtype=torch.float64, device=like.device)
