"""Findings from values and gradients of a user's batch, in every dtype and compared with the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from twinloss.harness.diagnosis.batch import Batch
from twinloss.harness.diagnosis.batch_files import BatchError
from twinloss.harness.model.operand import HALVES, Array, widened

# The relative change of the value at which smoothing is reported, and the relative error at which rounding is reported.
DECIDES, COSTS = 0.01, 1e-3
# Beyond this absolute value of a logit, the slope of a sigmoid is less than 1e-6.
SATURATED = 15

Answer = tuple[Array, Array]  # value and gradient


def loss(batch: Batch) -> torch.nn.Module:
    """Return the fast loss of a batch.

    Raises:
        BatchError: if the loss rejects its options.
    """
    try:
        return batch.twin.fast(**batch.options)
    except (ValueError, TypeError, AssertionError) as error:
        raise BatchError(f"{batch.twin.fast.__name__} rejects its options: {error}") from error


def answer(batch: Batch, dtype: str) -> Answer:
    """Return the fast loss's answer in a dtype; its warnings are dropped, as the findings cover them.

    Raises:
        BatchError: if the loss rejects the batch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [torch.from_numpy(values) for values in batch.arrays.values()]
        x = tensors[0].to(getattr(torch, dtype)).detach().requires_grad_()
        try:
            value = loss(batch)(x, *tensors[1:])
            (gradient,) = torch.autograd.grad(value.sum(), x)
        except (ValueError, TypeError, AssertionError, RuntimeError) as error:
            raise BatchError(f"{batch.twin.fast.__name__} rejects the batch: {error}{_hint(batch)}") from error
    return widened(value).astype(np.float64), widened(gradient).astype(np.float64)


def _hint(batch: Batch) -> str:
    if "target" not in batch.arrays or (batch.target.shape == batch.input.shape and not batch.labels):
        return ""
    if batch.target.shape == batch.input.shape and batch.option("to_onehot_y"):
        return ". The target already has a channel for each class: remove to_onehot_y."
    if batch.target.shape[2:] == batch.input.shape[:1:-1]:
        return (
            ". The spatial axes are in opposite order: arrays from SimpleITK and nnU-Net are (z, y, x), those from "
            "nibabel are (x, y, z). Transpose one of them."
        )
    if batch.target.shape[2:] != batch.input.shape[2:]:
        return ". Crop both in the same way, or resample one to the grid of the other (labels by nearest neighbour)."
    return ""


def truth(batch: Batch) -> Answer:
    """Return the reference's answer, in float64."""
    value = value_of(batch, {})
    return value, np.asarray(batch.twin.gradient(*_lifted(batch), cotangent=np.ones(value.shape), **batch.options))


def value_of(batch: Batch, options: Mapping[str, Any]) -> Array:
    """Return the reference's value, in float64, with some of the batch's options replaced."""
    return np.asarray(batch.twin.value(*_lifted(batch), **{**batch.options, **options}))


def _lifted(batch: Batch) -> list[Array]:
    x, *rest = batch.arrays.values()
    return [x.astype(np.float64), *(v.astype(np.float64) if v.dtype.kind == "f" else v for v in rest)]


def precisions(answers: Mapping[str, Answer], truth: Answer) -> list[list[str]]:
    """Return table rows with value and gradient by dtype, and their errors."""
    value, gradient = truth
    rows = [["reference", f"{value.mean():.8g}", "", f"{np.abs(gradient).max():.4g}", ""]]
    for dtype, (v, g) in answers.items():
        errors = [f"{relative(a, b):.1e}" for a, b in ((v, value), (g, gradient))]
        rows.append([dtype, f"{v.mean():.8g}", errors[0], f"{np.abs(g).max():.4g}", errors[1]])
    return rows


def relative(got: Array, want: Array) -> float:
    """Return the largest difference, relative to the largest number."""
    both = np.isnan(got) & np.isnan(want) | (got == want)
    off = np.max(np.where(both, 0, np.abs(got - want)), initial=0)
    return float(off / max(np.abs(want).max(initial=0), np.finfo(float).tiny)) if off else 0.0


def broken(batch: Batch, truth: Answer) -> Iterator[str]:
    """Report whether the exact value or gradient is NaN or infinite."""
    broken = [name for name, exact in zip(("value", "gradient"), truth, strict=True) if not np.isfinite(exact).all()]
    if broken:
        at = ""
        if "gradient" in broken:
            at = f", the gradient first at {tuple(int(i) for i in np.argwhere(~np.isfinite(truth[1]))[0])}"
        if not all(np.isfinite(values).all() for values in batch.arrays.values()):
            why = "the batch itself contains NaN or infinite numbers, see above"
        else:
            zeros = [n for n in ("smooth_nr", "smooth_dr") if batch.option(n) == 0]
            fix = f", for example 0 / 0: set {' and '.join(zeros)} to a small number such as 1e-5" if zeros else ""
            why = f"all numbers of the batch are finite, so the formula itself produces it{fix}"
        yield f"The {' and the '.join(broken)} would be NaN or infinite in any precision{at}: {why}."


def costs(batch: Batch, dtype: str, got: Answer, truth: Answer) -> Iterator[str]:
    """Report the error due to rounding in a dtype."""
    limits = torch.finfo(getattr(torch, dtype))
    largest = max(map(abs, batch.range))
    advice = "compute the loss in float32, loss(x.float(), target), outside autocast"
    if dtype not in HALVES:
        advice = "scale the data to about 1, or compute the loss in float64, loss(x.double(), target)"
    for name, of, a, exact in zip(("value", "gradient"), ("", " of its largest number"), got, truth, strict=True):
        if not np.isfinite(exact).all():
            continue
        if not np.isfinite(a).all():
            why = f"the input reaches {largest:.4g}, and {dtype} has no number above {limits.max:.6g}"
            why = why if largest > limits.max else f"{dtype} overflows"
            yield f"In {dtype} the {name} is NaN or infinite, but its exact value is not: {why}. To fix it, {advice}."
        elif (off := relative(a, exact)) > max(COSTS, 4 * limits.eps):  # more than the rounding of the result
            yield f"In {dtype} the {name} is off by {off:.1%}{of} due to rounding. If that matters, {advice}."


def teaches_nothing(batch: Batch, answer: Answer, truth: Answer) -> Iterator[str]:
    """Report whether the gradient is 0, exactly or in the batch's own dtype."""
    if (truth[1].any() and answer[1].any()) or not np.isfinite(truth[1]).all():
        return
    largest = max(map(abs, batch.range))
    why = ""
    if batch.has_classes and largest > SATURATED and not batch.is_probability:
        why = (
            f" The logits reach {largest:.4g}, where sigmoid and softmax are flat: check for a "
            "learning rate that is too high, or a missing normalisation."
        )
    yield f"The gradient is 0 everywhere, so the network learns nothing from this batch.{why}"


def smoothing(batch: Batch, value: Array) -> Iterator[str]:
    """Report whether a smoothing term dominates the value of an overlap loss, or keeps it from being 0 / 0."""
    fix = "use a smaller value"
    if "normalize_weights" in batch.twin.options:
        fix += ", or pass normalize_weights=True"
    for name in ("smooth_nr", "smooth_dr"):
        if not np.isfinite(value).all() or not batch.option(name):
            continue
        without = value_of(batch, {name: 0.0})
        if not np.isfinite(without).all():
            yield (
                f"Without {name} the value would be NaN or infinite, because some structure is absent from both target "
                f"and prediction: keep {name} above 0."
            )
        elif _differ(value, without):
            yield (
                f"{name} dominates the value: without it the value is {without.mean():.4g} instead of "
                f"{value.mean():.4g}. If this is not intended, {fix}."
            )


def _differ(value: Array, without: Array) -> bool:
    return bool(np.abs(without - value).max() > DECIDES * max(np.abs(value).max(), DECIDES))


def windows(batch: Batch) -> tuple[list[str], list[str]]:
    """Report the effect of smoothing on LNCC: findings if it dominates windows with contrast, hints on flat windows."""
    each = np.asarray(value_of(batch, {"reduction": "none"}))
    without = np.asarray(value_of(batch, {"reduction": "none", "smooth_nr": 0.0, "smooth_dr": 0.0}))
    flat = ~np.isfinite(without)
    found, hints = [], []
    if not flat.all() and _differ(each[~flat].mean(), without[~flat].mean()):
        found.append(
            "smooth_nr and smooth_dr dominate the value: without them the mean over windows with contrast is "
            f"{without[~flat].mean():.4g} instead of {each[~flat].mean():.4g}. Scale both images so that their "
            "contrast is about 1, or use smaller values."
        )
    if flat.any():
        hints.append(
            f"{flat.mean():.1%} of the windows are flat, as in air: each contributes {each[flat].mean():.4g}, "
            "whatever the images show elsewhere, and has no gradient. Crop the images to have fewer flat windows."
        )
    return found, hints
