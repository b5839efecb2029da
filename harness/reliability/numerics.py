"""Tests of half precision, autocast, NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.runtime import dispatch
from twinloss.harness.judging.trial import examine
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.operand import HALVES, Array, Operand
from twinloss.harness.model.twin import Case
from twinloss.harness.reliability.everyday import Everyday, everyday, step
from twinloss.harness.reliability.registry import Row, line


def hard_case(each: Everyday, size: int, dtype: str) -> Case:
    """Return a case that is difficult in low precision.

    Segmentations have a class of one voxel, an absent class and logits of ±1e4. Images are mostly background. The
    values of the input are numbers that both half-precision types represent, so that one reference serves both.
    """
    values: list[Array] = [x[:1].numpy().copy() for x in each.arguments(size)]
    if not each.twin.of_registration:
        logits, labels = values[:2]
        labels[labels > 1] = 0
        labels[0, 0, size // 2, size // 2, size // 2] = 2
        far = logits[..., : size // 4]
        far *= 1e4 / np.abs(far).max()
    elif each.twin.of_images:
        for image in values:
            image[..., size // 3 :] = 0
    values[0] = torch.from_numpy(values[0]).bfloat16().half().float().numpy()
    operands = {
        name: Operand(value, str(value.dtype) if n else dtype)
        for n, (name, value) in enumerate(zip(each.twin.operands, values, strict=True))
    }
    return Case(operands, each.options)


@line("Mixed precision")
def halves(quick: bool) -> Iterator[Row]:
    """Large volumes in half precision, compared with the reference within the error bounds of the hunt."""
    size = 24 if quick else 256
    for each in everyday():
        truth = None
        for dtype in HALVES:
            case = hard_case(each, size, dtype)
            # The reference takes most of the time.
            truth = truth.known_for(case) if truth else Truth(each.twin, case, np.float64)
            trial = examine(each.twin, case, truth)
            assert trial.answer is not None
            finite = np.isfinite(trial.answer.value).all() and np.isfinite(trial.answer.gradient).all()
            worst = max(found.ratio for found in trial.findings)
            yield Row(
                f"{dtype}, {size}³",
                trial.message or f"finite, error {worst:.2f} × bound",
                trial.kind is None and bool(finite),
                each.name,
            )


@line("Mixed precision")
def autocast(quick: bool) -> Iterator[Row]:
    """Under autocast, a loss returns the same value as without it, in float32, and has a finite gradient."""
    size = 8 if quick else 48
    for dtype in (torch.bfloat16, torch.float16):
        worst = 0.0
        for each in everyday():
            x, *rest = (operand.tensor() for operand in hard_case(each, size, "float32").operands.values())
            layer, forms = torch.nn.Conv3d(x.shape[1], x.shape[1], 1), []
            for form in ("kernel", "plain"):
                with dispatch.forced(form):
                    loss = each.module()
                    with torch.autocast("cpu", dtype):
                        made = layer(x)
                        if each.twin.of_images:
                            made = made.sigmoid()
                        value = loss(made, *rest)
                    outside = loss(made.detach(), *rest)
                    (slope,) = torch.autograd.grad(value, layer.weight)
                    near = torch.allclose(value, outside.float(), rtol=torch.finfo(dtype).eps)
                    forms += [value.dtype == torch.float32, near, bool(torch.isfinite(slope).all())]
            worst += not all(forms)
        yield Row(
            f"all losses, {size}³, after a convolution, torch.autocast {dtype}, kernel and plain form",
            f"{worst:.0f} losses fail" if worst else "float32, the value without autocast, finite gradients",
            not worst,
        )


@line("NaN and infinity")
def not_numbers(quick: bool) -> Iterator[Row]:
    """A NaN or an infinity in the input reaches the output, unless the formula excludes it."""
    size = 8 if quick else 40
    for each in everyday():
        outcomes = []
        for bad in (math.nan, math.inf, -math.inf):
            arguments = each.arguments(size)
            arguments[0][0, 0, size // 2, size // 2, size // 2] = bad
            if "mask" in each.twin.operands:
                arguments[2][0, 0, size // 2, size // 2, size // 2] = 1
            operands = {
                name: Operand(value.numpy(), str(value.numpy().dtype))
                for name, value in zip(each.twin.operands, arguments, strict=True)
            }
            trial = examine(each.twin, Case(operands, each.options))
            assert trial.truth is not None
            got, wanted = float(step(each.module(), arguments)[0]), float(trial.truth.value)
            if math.isfinite(wanted):
                outcomes.append(trial.kind is None)
            else:
                outcomes.append(math.isnan(got) if math.isnan(bad) else not math.isfinite(got))
        told = "non-finite where the reference is; otherwise value and gradient match it"
        good = all(outcomes)
        yield Row(f"one voxel NaN, inf or -inf, {size}³", told if good else "unlike the reference", good, each.name)


@line("NaN and infinity")
def silenced(quick: bool) -> Iterator[Row]:
    """Masked or ignored voxels may hold any value."""
    size = 8 if quick else 40
    for each in everyday():
        if "ignore_index" not in each.twin.options:
            continue
        good = True
        for bad in (math.nan, math.inf, -math.inf):
            x, target, *mask = each.arguments(size)
            ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.2
            if mask:
                mask, options = [mask[0].masked_fill(ignored, 0)], each.options
            else:
                target, options = target.masked_fill(ignored, 255), {**each.options, "ignore_index": 255}
            loss = each.twin.fast(**options)
            clean = step(loss, [x, target, *mask])
            value, gradient = step(loss, [x.masked_fill(ignored, bad), target, *mask])
            nothing = not bool(gradient[ignored.expand_as(gradient)].any())
            good &= bool(value == clean[0]) and bool((gradient == clean[1]).all()) and nothing
        how = "masked" if "mask" in each.twin.operands else "ignored"
        yield Row(
            f"a fifth of the voxels {how}, all NaN, inf or -inf",
            "bitwise independent of them; their gradient is 0" if good else "they change the result",
            good,
            each.name,
        )


def relative(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest number."""
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300))
