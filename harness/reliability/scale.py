"""Volumes as large as they come: time per voxel, memory, indices beyond 32 bits."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from twinloss import fast
from twinloss.harness.bench.memory import status
from twinloss.harness.real import keep_memory
from twinloss.harness.reliability import Row, line
from twinloss.harness.reliability.everyday import step

GIB = 2**30
# One loss of each kind of kernel, with how many channels the first argument has.
LARGE: tuple[tuple[str, torch.nn.Module, int, int], ...] = (
    ("Dice + CE, 4 channels", fast.DiceCELoss(softmax=True, to_onehot_y=True), 4, 256),
    ("LNCC, k = 9", fast.LocalNormalizedCrossCorrelationLoss(kernel_size=9), 1, 512),
    ("mutual information", fast.GlobalMutualInformationLoss(), 1, 512),
)


def volumes(channels: int, size: int) -> list[torch.Tensor]:
    """Logits and labels, or two images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, channels, size, size, size, generator=generator)
    if channels > 1:
        return [x, torch.randint(channels, (1, 1, size, size, size), generator=generator, dtype=torch.uint8)]
    return [x, torch.rand(x.shape, generator=generator)]


def seconds_of(loss: torch.nn.Module, channels: int, size: int, least: float) -> float:
    """Time of forward and backward, the median of as many as fill some time."""
    arguments = volumes(channels, size)
    taken: list[float] = []
    step(loss, arguments)
    while sum(taken) < least or len(taken) < 3:
        start = time.perf_counter()
        step(loss, arguments)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


@line("Scale")
def large_volumes(quick: bool) -> Iterator[Row]:
    """Time for each voxel of a large volume beside that at 96³."""
    keep_memory()
    for name, loss, channels, large in LARGE:
        size = 112 if quick else large
        small = seconds_of(loss, channels, 96, 0.5 if quick else 2.0) / 96**3
        big = seconds_of(loss, channels, size, 0.1) / size**3
        peak = status("VmHWM") / GIB
        yield Row(
            f"{name}, {size}³, forward and backward",
            f"{big * 1e9:.1f} ns for each voxel, {big / small:.2f} of that at 96³; {peak:.1f} GiB of memory in all",
            quick or (big / small <= 1.3 and peak < 24),
        )


@line("Scale")
def beyond_32_bits(quick: bool) -> Iterator[Row]:
    """More than 2³¹ numbers, all but the last few of which are zeros, in pages that take no memory."""
    voxels, last = (2**20 if quick else 2**31) + 4096, 100
    x, y = torch.zeros(1, 1, voxels), torch.zeros(1, 1, voxels, dtype=torch.uint8)
    x[..., -last:], y[..., -last:] = 0.5, 1
    value = float(fast.DiceLoss(smooth_nr=0, smooth_dr=0)(x, y))
    yield Row(f"Dice, {voxels} numbers", f"{value:.6f}, by hand {1 / 3:.6f}", abs(value - 1 / 3) < 1e-6)
    x.requires_grad_()  # no copy of it, as `step` makes
    (gradient,) = torch.autograd.grad(fast.DiceLoss(smooth_nr=0, smooth_dr=0)(x, y), x)
    slopes = float(gradient[0, 0, -1]), float(gradient[0, 0, 0])
    # L = 1 - 2 I / D, I = 50, D = 150: dL/dp = -2 g / D + 2 I / D².
    wanted = -2 / 150 + 100 / 150**2, 100 / 150**2
    good = all(abs(a - b) < 1e-8 for a, b in zip(slopes, wanted, strict=True))
    yield Row(f"Dice backward, {voxels} numbers", "the slopes of the first and the last are right", good)
    del gradient, x, y
    edge = 90 if quick else 1291
    u = torch.zeros(1, 1, edge, edge, edge)
    u[..., -1, -1, -2:] = 1.0
    u[..., -2, -2, -2] = 1.0
    energy = float(fast.BendingEnergyLoss(reduction="sum")(u))
    small = float(fast.BendingEnergyLoss(reduction="sum")(u[..., -8:, -8:, -8:].contiguous()))
    yield Row(f"bending energy, {edge}³ = {edge**3} numbers", f"{energy:.4f}, as a crop's {small:.4f}", energy == small)
    del u
    a = torch.zeros(1, voxels)
    a[..., -last:] = 1.0
    loss = fast.GlobalMutualInformationLoss(num_bins=2, sigma_ratio=0.05, smooth_nr=0, smooth_dr=0)
    got, share = -float(loss(a, a)), last / voxels
    wanted_entropy = -share * np.log(share) - (1 - share) * np.log1p(-share)
    good = abs(got - wanted_entropy) < 1e-3 * wanted_entropy
    yield Row(f"mutual information, {voxels} numbers", f"{got:.4e}, the entropy is {wanted_entropy:.4e}", good)
