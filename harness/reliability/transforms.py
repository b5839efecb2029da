"""Tests of torch.compile, opcheck, export, functional transforms and double backward."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from twinloss.fast.kernels.contract import ROWS
from twinloss.harness.judging.answers import expected_warnings_silent
from twinloss.harness.reliability.everyday import Everyday, everyday, step
from twinloss.harness.reliability.numerics import relative
from twinloss.harness.reliability.registry import Row, line

# The tolerated relative difference of compiled code, which rounds differently.
CLOSE = 1e-5


class Training(torch.nn.Module):
    """A small network followed by a loss, as one module."""

    def __init__(self, each: Everyday) -> None:
        super().__init__()
        channels = each.arguments(4)[0].shape[1]
        self.layer, self.loss = torch.nn.Conv3d(channels, channels, 1), each.module()
        self.image = each.twin.of_images

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        """Return the loss of the network's output."""
        made = self.layer(x)
        value: Tensor = self.loss(made.sigmoid() if self.image else made, *rest)
        return value


def _trained(training: Any, arguments: list[Tensor]) -> tuple[Tensor, Tensor]:
    training.zero_grad()
    value = training(*arguments)
    value.backward()
    weight = next(training.parameters())
    assert weight.grad is not None
    return value.detach(), weight.grad.clone()


@line("torch.compile")
def compiled(quick: bool) -> Iterator[Row]:
    """A training step compiles to a single graph, also for changing sizes."""
    importlib.import_module("torch._dynamo")
    backend = "eager" if quick else "inductor"
    for each in everyday():
        torch.manual_seed(0)
        training = Training(each)
        told, off = "", 0.0
        for dynamic in (True,) if quick else (False, True):
            torch.compiler.reset()
            with expected_warnings_silent():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch raises these while it traces
                fast: Any = torch.compile(training, fullgraph=True, dynamic=dynamic, backend=backend)
                try:
                    for size in (12, 14) if dynamic else (12,):
                        arguments = each.arguments(size)
                        expected, got = _trained(training, arguments), _trained(fast, arguments)
                        off = max(off, *(relative(a, b) for a, b in zip(got, expected, strict=True)))
                except Exception as error:
                    told = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        yield Row(
            f"network + loss, fullgraph, {backend}, {'changing' if quick else 'fixed and changing'} sizes",
            told or f"value and gradient match eager mode, difference {off:.0e}",
            not told and off <= CLOSE,
            each.name,
        )


def operator_samples() -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield sample arguments of every operator."""
    plan = ("softmax", "product", "target", 2.0, True, None)
    x = torch.randn(2, 3, 50, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (2, 1, 50))
    yield "voxel_sums", (x, y, None, None, *plan)
    yield (
        "voxel_sums",
        (x, torch.rand(2, 3, 50), torch.rand(2, 1, 50), None, "sigmoid", "minimum", "none", 0.0, False, 1),
    )
    matrix = torch.rand(3, 3, dtype=torch.float64)
    yield "voxel_sums", (x, y, None, matrix, "softmax", "none", "none", 0.0, True, None)
    yield "voxel_sums_backward", (torch.rand(len(ROWS), 2, 3, dtype=torch.float64), x.detach(), y, None, None, *plan)
    image, other = (torch.rand(2, 6, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for asked, images in enumerate(((image.detach(), other.detach()), (image, other.detach()), (image, other))):
        yield "local_correlation", (*images, 3, "gaussian", 3, 0.0, 1e-5, False, False, asked)
    kept, more = torch.rand(2, 3, 6, 7, 8, dtype=torch.float64), torch.rand(2, 2, 6, 7, 8, dtype=torch.float64)
    up = torch.rand(2, dtype=torch.float64)
    yield (
        "local_correlation_backward",
        (up, image.detach(), other.detach(), kept, more, 3, "gaussian", 3, 0.0, 1e-5, False),
    )
    pair = (torch.rand(2, 90, dtype=torch.float64, requires_grad=True) for _ in range(2))
    yield "joint_histogram", (*pair, 8, 0.5, "gaussian")
    flat = (torch.rand(2, 90, dtype=torch.float64) for _ in range(2))
    yield "joint_histogram_backward", (torch.rand(2, 8, 8, dtype=torch.float64), *flat, 8, 0.5, "gaussian")
    weights = torch.rand(1, 6, dtype=torch.float64)
    yield "bending_energy", (image, weights, 1, False)
    yield "bending_energy", (image, weights, 1, True)
    yield "bending_energy_backward", (up[0], image.detach(), weights, 1)
    yield "diffusion", (image, weights[:, :3], 0, False)
    yield "diffusion", (image, weights[:, :3], 1, True)
    yield "diffusion_backward", (up[0], image.detach(), weights[:, :3], 0)
    yield "smooth", (image, [0.25, 0.5, 0.25], 3)


@line("torch.library.opcheck")
def operators(quick: bool) -> Iterator[Row]:
    """Schema, fake tensors, autograd registration and tracing of every operator."""
    samples: dict[str, list[tuple[object, ...]]] = {}
    for name, arguments in operator_samples():
        samples.setdefault(name, []).append(arguments)
    for name, calls in samples.items():
        told = []
        for arguments in calls:
            try:
                torch.library.opcheck(getattr(torch.ops.twinloss, name).default, arguments)
            except Exception as error:
                told.append(f"{type(error).__name__}: {str(error)[:160]}")
        yield Row(
            f"twinloss::{name}, {len(calls)} sample call{'s' * (len(calls) > 1)}",
            "; ".join(told) or "all tests pass",
            not told,
        )


@line("torch.export")
def exported(quick: bool) -> Iterator[Row]:
    """A loss can be exported, and the program returns the same value."""
    for each in everyday():
        arguments = each.arguments(8)
        with expected_warnings_silent():
            try:
                program = torch.export.export(each.module(), tuple(arguments))
                same = bool(program.module()(*arguments) == each.module()(*arguments))
                told = "the same value" if same else "another value"
            except Exception as error:
                same, told = False, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        yield Row("export and call", told, same, each.name)


@line("torch.func")
def functional(quick: bool) -> Iterator[Row]:
    """`grad`, and `vmap` over items, which use the plain form."""
    for each in everyday():
        arguments, outcomes = each.arguments(6, torch.float64), []
        loss = each.module()
        with expected_warnings_silent():
            try:
                gradient = torch.func.grad(partial(_with_rest, loss, arguments[1:]))(arguments[0])
                off = relative(gradient, step(loss, arguments)[1])
                outcomes.append((f"grad {off:.0e}", off <= 1e-10))
                several = [torch.stack([a, a.flip(-1)]) for a in arguments]
                values = torch.func.vmap(loss)(*several)
                wanted = torch.stack([loss(*(a[k] for a in several)) for k in range(2)])
                off = relative(values, wanted)
                outcomes.append((f"vmap {off:.0e}", off <= 1e-10))
            except Exception as error:
                outcomes.append((f"{type(error).__name__}: {str(error).splitlines()[0][:140]}", False))
        told = ", ".join(told for told, _ in outcomes)
        yield Row("relative difference of grad and vmap", told, all(passed for _, passed in outcomes), each.name)


@line("Double backward")
def second_derivatives(quick: bool) -> Iterator[Row]:
    """Second derivatives by gradgradcheck in float64."""
    for each in everyday():
        x, *rest = each.arguments(8 if each.name == "multi_scale" else 4, torch.float64)
        if each.name != "multi_scale":
            x, rest = x[..., :3].contiguous(), [argument[..., :3].contiguous() for argument in rest]
        good, told = True, "passes"
        with expected_warnings_silent():
            try:
                loss = partial(_with_rest, each.module(), rest)
                torch.autograd.gradgradcheck(loss, x.requires_grad_(), fast_mode=quick or x.numel() > 200)
            except Exception as error:
                good, told = False, str(error).splitlines()[0][:160]
        yield Row(f"gradgradcheck, {tuple(x.shape)}", told, good, each.name)


def _with_rest(loss: torch.nn.Module, rest: list[Tensor], x: Tensor) -> Tensor:
    value: Tensor = loss(x, *rest)
    return value
