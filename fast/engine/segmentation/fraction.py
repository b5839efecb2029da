"""The fraction that Dice, Tversky and their generalisations are, and the whole of a loss that is no more than this.

The reference has the formula in each of `dice.py`, `tversky.py`, `generalized_dice.py` and
`generalized_wasserstein_dice.py`; nothing here is taken from there, and `fast` never imports `reference`.

On the few numbers that statistics are, every node of the graph costs more than its arithmetic: so the fraction is one
node, and the whole loss, from logits to its mean, is one too where nobody looks into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.segmentation.statistics import Plan, flat, gradient_of_voxels, plain_sums, sums_of_voxels
from twinloss.fast.kernels.statistic_rows import FN, ROWS, TP, TP_LESS_FN, VOLUME
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.memory import scalar
from twinloss.fast.runtime.torch_operator import apply, looked_into, on_arrays, save, slopes_by_torch

# What makes of `volumes`, in an array or a tensor, the weights that `fraction` takes.
Weigh = Callable[[Any], Sequence[Any]]
# Between classes, (C, C), as Python numbers.
Distances = tuple[tuple[float, ...], ...]


class Terms(NamedTuple):
    """What the fraction is made of.

    Attributes:
        overlap: rows of the statistics, and the factor of each.
        errors: likewise.
        smooth_nr: ν.
        smooth_dr: δ.
        first: the first class that takes part.
        batch: whether the items are pooled.
        complementary: whether TP + FN is the volume: what moves TP then moves FN the other way.
    """

    overlap: tuple[tuple[int, float], ...]
    errors: tuple[tuple[int, float], ...]
    smooth_nr: float
    smooth_dr: float
    first: int = 0
    batch: bool = False
    complementary: bool = False


def fraction(stack: Tensor, terms: Terms, *weights: Tensor) -> Tensor:
    """One minus (overlap + ν) / (overlap + errors + δ), as one fraction: 1 - (…) would cancel in a good prediction.

    Args:
        stack: the statistics, (ROWS, B, C).
        terms: see there.
        weights: if the classes are pooled, those of the classes, (1 or B, C'): of overlap and errors, or one for both.

    Returns:
        (B, C'), or (B, 1) if the classes are pooled; B is 1 with `batch`.
    """
    return _fraction(stack, *[*weights, None, None][:2], terms)


def volumes(volume: Any, terms: Terms) -> Any:
    """Those of the classes that take part, (B or 1, C'), of all, (B, C)."""
    volume = volume[:, terms.first :]
    return volume.sum(axis=0, keepdims=True) if terms.batch else volume


class _Fraction(torch.autograd.Function):
    """(errors + δ - ν) / (overlap + errors + δ), whose gradient no difference of two large terms spoils.

    Autograd would take 1/M - errors/M² for the slope (overlap + ν)/M², M the denominator, and lose all digits of it
    where the errors are nearly all there is.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, terms: Terms) -> Tensor:
        return _value(stack, w_overlap, w_errors, terms)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.terms = inputs
        save(ctx, *tensors, output)

    @staticmethod
    def along(ctx: Any, *tangents: Any) -> Tensor:
        """The slope of the loss along tangents of the statistics and the weights."""
        return _slope_along(tangents[:3], *ctx.saved_tensors, ctx.terms)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weighted = any(ctx.needs_input_grad[1:3])
        of_weights = _slopes_of_weights(upstream[0], *ctx.saved_tensors, ctx.terms) if weighted else (None, None)
        return _slopes(upstream[0], *ctx.saved_tensors, ctx.terms), *of_weights, None


_fraction = apply(_Fraction)


def _by_class(stack: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    rows = stack[:, :, terms.first :] if terms.first else stack  # a slice of all has no rule for batches in torch
    if terms.batch:
        rows = rows.sum(axis=1, keepdims=True)
    overlap, errors = (sum(factor * rows[row] for row, factor in part) for part in (terms.overlap, terms.errors))
    return overlap, errors


def _pooled(
    overlap: Tensor, errors: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None
) -> tuple[Tensor, Tensor]:
    if w_overlap is None:
        return overlap, errors
    w_errors = w_overlap if w_errors is None else w_errors
    return (w_overlap * overlap).sum(axis=1, keepdims=True), (w_errors * errors).sum(axis=1, keepdims=True)


@on_arrays
def _value(stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, terms: Terms) -> Tensor:
    overlap, errors = _pooled(*_by_class(stack, terms), w_overlap, w_errors)
    return (errors + (terms.smooth_dr - terms.smooth_nr)) / (overlap + errors + terms.smooth_dr)


def _slopes_of_parts(
    upstream: Tensor, overlap: Tensor, errors: Tensor, loss: Tensor, terms: Terms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The slopes in overlap and errors; the denominator, and the slope by it."""
    denominator = overlap + errors + terms.smooth_dr
    by_denominator = upstream / denominator
    in_errors = by_denominator * ((overlap + terms.smooth_nr) / denominator)
    return -by_denominator * loss, in_errors, denominator, by_denominator


@on_arrays
def _slopes(
    upstream: Tensor, stack: Tensor, w_overlap: Tensor | None, w_errors: Tensor | None, loss: Tensor, terms: Terms
) -> Tensor:
    """The slopes in the statistics.

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
    upstream: Tensor, stack: Tensor, w_overlap: Tensor, w_errors: Tensor | None, loss: Tensor, terms: Terms
) -> tuple[Tensor, Tensor | None]:
    overlap, errors = _by_class(stack, terms)
    pooled = _pooled(overlap, errors, w_overlap, w_errors)
    in_overlap, in_errors, *_ = _slopes_of_parts(upstream, *pooled, loss, terms)
    in_overlap, in_errors = in_overlap * overlap, in_errors * errors
    return (in_overlap + in_errors, None) if w_errors is None else (in_overlap, in_errors)


def _slope_along(
    tangents: Sequence[Tensor | None],
    stack: Tensor,
    w_overlap: Tensor | None,
    w_errors: Tensor | None,
    loss: Tensor,
    terms: Terms,
) -> Tensor:
    along, *of_weights = tangents
    parts, weights = _by_class(stack, terms), (w_overlap, w_overlap if w_errors is None else w_errors)
    if w_errors is None:
        of_weights = [of_weights[0], of_weights[0]]
    in_overlap, in_errors, *_ = _slopes_of_parts(torch.ones_like(loss), *_pooled(*parts, *weights), loss, terms)
    moved = _pooled(*_by_class(torch.zeros_like(stack) if along is None else along, terms), *weights)
    by_weights = [
        0 if tangent is None else (tangent * part).sum(1, keepdim=True)
        for tangent, part in zip(of_weights, parts, strict=True)
    ]
    return in_overlap * (moved[0] + by_weights[0]) + in_errors * (moved[1] + by_weights[1])


def reduced_fraction(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    distances: Distances | None,
    plan: Plan,
    terms: Terms,
    weigh: Weigh,
    mean: bool,
    dtype: torch.dtype,
) -> Tensor | None:
    """The mean, or sum, of `fraction` of the statistics of `plan`, as one node; None where somebody looks into it.

    Tensors are those of `statistics`, but with any axes of space; the loss has the type `dtype`.
    """
    tensors = x, target, mask
    if dispatch.choose(*tensors, halves=True) == "kernel" and not looked_into(tensors):
        ahead = torch.is_grad_enabled() and x.requires_grad
        matrix = None if distances is None else np.array(distances)
        loss: Tensor = _ReducedFraction.apply(*tensors, matrix, plan, terms, weigh, mean, dtype, ahead)
        return loss
    return None


@lru_cache
def _factors(part: tuple[tuple[int, float], ...]) -> np.ndarray:
    """The factor of each row of the statistics; NaN for those that are no part of it, as 0 NaN is not 0."""
    factors = np.full(len(ROWS), np.nan)
    for row, factor in part:
        factors[row] = factor
    return factors


_NO_WEIGHTS = np.zeros((0, 0))


class _ReducedFraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, matrix, plan, terms, weigh, mean, dtype, ahead = arguments
        sums, ctx.kept = sums_of_voxels(*tensors, matrix, plan, ahead)
        with np.errstate(all="ignore"):
            weights = weigh(volumes(sums[VOLUME], terms)) or (_NO_WEIGHTS,)
        slopes, smooth = np.zeros(sums.shape), (terms.smooth_nr, terms.smooth_dr)
        options = smooth, terms.first, terms.batch, terms.complementary, weights[0], weights[-1], mean
        factors = _factors(terms.overlap), _factors(terms.errors)
        total = dispatch.kernels("fraction").fraction(sums, *factors, *options, slopes)
        ctx.save_for_backward(*tensors)
        ctx.rest = matrix, plan, terms, weigh, mean, slopes
        return scalar(total, dtype, "cpu")

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        matrix, plan, terms, weigh, mean, slopes = ctx.rest
        kept, ctx.kept = ctx.kept, None  # or else it would live as long as the loss
        if dispatch.by_torch(upstream[0]):

            def loss() -> Tensor:
                voxels = [None if each is None else flat(each) for each in tensors]
                sums = plain_sums(*voxels, None if matrix is None else torch.from_numpy(matrix), plan)
                by_item = fraction(sums, terms, *weigh(volumes(sums[VOLUME].detach(), terms)))
                return by_item.mean() if mean else by_item.sum()

            (gradient,) = slopes_by_torch(loss, tensors[:1], upstream[0])
        else:
            gradient = gradient_of_voxels(slopes, upstream[0].item(), *tensors, matrix, plan, kept)
        return gradient, *[None] * 9
