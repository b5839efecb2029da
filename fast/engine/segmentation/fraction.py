"""The fraction that Dice, Tversky and their generalisations compute, and losses that consist only of it.

The reference has the formula in each of `dice.py`, `tversky.py`, `generalized_dice.py` and
`generalized_wasserstein_dice.py`. This code is independent of it, and `fast` never imports `reference`.

The statistics are only a few numbers, so that each node of the autograd graph costs more than its arithmetic. The
fraction is therefore one node. If it is not traced, the whole loss, from logits to mean, is one node.
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
    ROWS,
    TP,
    TP_LESS_FN,
    VOLUME,
    Distances,
    FractionPlan,
    InvalidVoxelsError,
    Terms,
    VoxelInputs,
    VoxelKernels,
)
from twinloss.fast.runtime.constants import accumulator, constant
from twinloss.fast.runtime.dispatch import full_precision
from twinloss.fast.runtime.torch_operator import Computation, InputsAndValue, apply, by_numpy, on_arrays, save


def fraction(stack: Tensor, terms: Terms, *weights: Tensor) -> Tensor:
    """Return 1 - (overlap + ν) / (overlap + errors + δ) as one fraction, because 1 - (…) cancels if the loss is small.

    Args:
        stack: the statistics, (ROWS, B, C).
        terms: the terms of overlap and errors.
        weights: class weights (1 or B, C') of overlap and of errors, or one for both, if the classes are pooled.

    Returns:
        (B, C'), or (B, 1) if the classes are pooled; B is 1 with `batch`.
    """
    made: Tensor = _fraction(stack, *[*weights, None, None][:2], terms)
    return made


def volumes(volume: Any, terms: Terms) -> Any:
    """Return the volumes of the included classes, (B or 1, C'), given those of all classes, (B, C)."""
    volume = volume[:, terms.first :]
    return volume.sum(axis=0, keepdims=True) if terms.batch else volume


def shares(stack: Tensor, terms: Terms, *weights: Tensor) -> Tensor:
    """Return the share of each class in a fraction that pools the classes, (B or 1, C'); their sum is the fraction."""
    overlap, errors = (w * part for w, part in zip((weights[0], weights[-1]), _by_class(stack, terms), strict=True))
    errors = errors + (terms.smooth_dr - terms.smooth_nr) / errors.shape[1]
    made: Tensor = errors / ((overlap + errors).sum(1, keepdim=True) + terms.smooth_nr)
    return made


# The class weights of overlap and of errors, (1 or B, C'), or None. If only the second is None, the first is for both.
Weights = tuple[Tensor | None, Tensor | None]


class _Fraction(torch.autograd.Function):
    """Compute (errors + δ - ν) / (overlap + errors + δ), with a gradient without cancellation.

    The derivative with respect to the errors is (overlap + ν)/M², where M is the denominator. Autograd would compute
    it as 1/M - errors/M², which cancels if the errors are almost all of M.
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
        """Return the directional derivative along tangents of the statistics and the weights."""
        stack, w_overlap, w_errors, loss = ctx.saved_tensors
        return _slope_along(tangents[:3], stack, (w_overlap, w_errors), loss, ctx.terms)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weighted = any(ctx.needs_input_grad[1:3])
        stack, w_overlap, w_errors, loss = ctx.saved_tensors
        weights = w_overlap, w_errors
        of_weights = _slopes_of_weights(upstream[0], stack, weights, loss, ctx.terms) if weighted else (None, None)
        return _slopes(upstream[0], stack, w_overlap, w_errors, loss, ctx.terms), *of_weights, None


_fraction = apply(_Fraction)


def _by_class(stack: Any, terms: Terms) -> tuple[Any, Any]:
    rows = stack[:, :, terms.first :] if terms.first else stack  # torch cannot vmap a slice of everything
    if terms.batch:
        rows = rows.sum(axis=1, keepdims=True)
    overlap, errors = (sum(factor * rows[row] for row, factor in part) for part in (terms.overlap, terms.errors))
    return overlap, errors


def _pooled(overlap: Any, errors: Any, w_overlap: Tensor | None, w_errors: Tensor | None) -> tuple[Any, Any]:
    if w_overlap is None:
        return overlap, errors
    w_errors = w_overlap if w_errors is None else w_errors
    return (w_overlap * overlap).sum(axis=1, keepdims=True), (w_errors * errors).sum(axis=1, keepdims=True)


def _value(stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, terms: Terms) -> Tensor:
    made: Tensor = (_value_by_numpy if by_numpy(stack) else _value_by_torch)(stack, w_overlap, w_errors, terms)
    return made


@on_arrays
def _value_by_numpy(stack: Any, w_overlap: Any, w_errors: Any, terms: Terms) -> Any:
    overlap, errors = _pooled(*_by_class(stack, terms), w_overlap, w_errors)
    return (errors + (terms.smooth_dr - terms.smooth_nr)) / (overlap + errors + terms.smooth_dr)


def _value_by_torch(stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, terms: Terms) -> Tensor:
    parts = parts_of(stack, (w_overlap, w_errors), terms)
    return parts[1] / parts[2]


def _slopes_of_parts(
    upstream: Tensor, overlap: Tensor, errors: Tensor, loss: Tensor, terms: Terms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dL/d(overlap), dL/d(errors), the denominator, and the upstream gradient divided by it."""
    denominator = overlap + errors + terms.smooth_dr
    by_denominator = upstream / denominator
    in_errors = by_denominator * ((overlap + terms.smooth_nr) / denominator)
    return -by_denominator * loss, in_errors, denominator, by_denominator


def _slopes(
    upstream: Tensor, stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, loss: Tensor, terms: Terms
) -> Tensor:
    """Return the derivatives with respect to the statistics.

    The derivatives with respect to TP and FN may cancel. If the two are complementary, the row of TP holds their
    difference, and the row of the volume holds that of FN. Otherwise, the row `TP_LESS_FN` holds the rounding error of
    their difference.
    """
    slopes = _slopes_by_numpy if by_numpy(upstream) else _slopes_by_torch
    made: Tensor = slopes(upstream, stack, w_overlap, w_errors, loss, terms)
    return made


@on_arrays
def _slopes_by_numpy(upstream: Any, stack: Any, w_overlap: Any, w_errors: Any, loss: Any, terms: Terms) -> Any:
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
    slopes = np.zeros_like(stack)
    w_errors = w_overlap if w_errors is None else w_errors
    of_overlap = [TP_LESS_FN, *(row for row, _ in terms.overlap)]
    for row, slope in by_row.items():
        weight = w_overlap if row in of_overlap else w_errors
        slopes[row, :, terms.first :] = slope if weight is None else weight * slope
    return slopes


def _slopes_by_torch(
    upstream: Tensor, stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, loss: Tensor, terms: Terms
) -> Tensor:
    parts = parts_of(stack, (w_overlap, w_errors), terms)
    rows = slopes_of_parts(upstream / parts[2], parts, (w_overlap, w_errors), _mixing(terms))
    if TP in dict(terms.overlap) and not terms.complementary:
        lost = rows[TP_LESS_FN] - (rows[TP] - 2 * rows[FN])
        rows = torch.cat([rows[:TP_LESS_FN], lost.unsqueeze(0)])
    return torch.nn.functional.pad(rows.expand(-1, stack.shape[1], -1), (terms.first, 0))


def parts_of(stack: Tensor, weights: Weights, terms: Terms) -> Tensor:
    """Return overlap + ν, errors + δ - ν, and their sum, the denominator, (3, B or 1, C' or 1)."""
    used = [row for row, _ in (*terms.overlap, *terms.errors)]
    first, count = min(used), max(used) - min(used) + 1  # not all rows: other rows may be infinite
    rows = stack.narrow(0, first, count).narrow(2, terms.first, stack.shape[2] - terms.first)
    if terms.batch:
        rows = rows.sum(1, keepdim=True)
    factors = tuple(
        tuple(dict(part).get(row, 0.0) for row in range(first, first + count)) for part in (terms.overlap, terms.errors)
    )
    with full_precision(stack):
        parts = (constant(factors, stack) @ rows.reshape(count, -1)).reshape(-1, *rows.shape[1:])
    if weights[0] is not None:
        both = weights[0] if weights[1] is None else torch.stack([weights[0], weights[1]])
        parts = (parts * both).sum(2, keepdim=True)
    added = (((terms.smooth_nr,),), ((terms.smooth_dr - terms.smooth_nr,),), ((terms.smooth_dr,),))
    return torch.cat([parts, parts.sum(0, keepdim=True)]) + constant(added, stack)


def slopes_of_parts(
    by_denominator: Tensor, parts: Tensor, weights: Weights, mixing: tuple[tuple[float, float], ...]
) -> Tensor:
    """Return slopes in statistics, (rows, B or 1, C').

    With the overlap A + ν, the errors B + δ - ν and the denominator M, the slope in the overlap is -(B + δ - ν)/M², and
    that in the errors is (A + ν)/M².

    Args:
        by_denominator: the upstream gradient divided by the denominator.
        parts: the result of `parts_of`.
        weights: the class weights of overlap and of errors.
        mixing: for each row, the factors of A + ν and of B + δ - ν.
    """
    both = parts[:2] / parts[2]
    if weights[0] is not None:
        both = both * (weights[0] if weights[1] is None else torch.stack([weights[1], weights[0]]))
    both = both * by_denominator
    with full_precision(both):
        return (constant(mixing, both) @ both.reshape(2, -1)).reshape(-1, *both.shape[1:])


def _mixing(terms: Terms) -> tuple[tuple[float, float], ...]:
    """Return how the slopes of all rows mix the parts of a fraction, see `slopes_of_parts`."""
    mixed = {row: (factor, 0.0) for row, factor in terms.errors} | {
        row: (0.0, -factor) for row, factor in terms.overlap
    }
    if TP in mixed:
        lost, hit = mixed[FN], mixed[TP]
        if terms.complementary:
            mixed |= {TP: (-lost[0], hit[1]), FN: (0.0, 0.0), VOLUME: lost}
        else:
            mixed[TP_LESS_FN] = -2 * lost[0], hit[1]
    return tuple(mixed.get(row, (0.0, 0.0)) for row in range(len(ROWS)))


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


def reduced_fraction(kernels: VoxelKernels, asked: FractionPlan) -> Computation:
    """Return the computation of the mean or the sum of the fraction by kernels, from x, target and mask."""
    plan = asked.plan

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

    return Computation(value, gradient, plain)


def distance_matrix(distances: Distances | None, like: Tensor) -> Tensor | None:
    """Return distances between classes as a tensor on the device of `like`."""
    return None if distances is None else constant(distances, like, accumulator(like.device))
