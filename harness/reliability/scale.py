"""Large volumes: time per voxel, and memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator

import numpy as np
import torch

from twinloss import fast
from twinloss.harness.reliability.everyday import step
from twinloss.harness.reliability.registry import Row, line
from twinloss.harness.system.memory import process_status

GIB = 2**30
# One loss for each kind of kernel: name, loss, number of channels, edge length of the volume.
LARGE: tuple[tuple[str, torch.nn.Module, int, int], ...] = (
    ("Dice + CE, 4 channels", fast.DiceCELoss(softmax=True, to_onehot_y=True), 4, 256),
    ("LNCC, k = 9", fast.LocalNormalizedCrossCorrelationLoss(kernel_size=9), 1, 512),
    ("mutual information", fast.GlobalMutualInformationLoss(), 1, 512),
)


# Constants from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """Make glibc keep and reuse the memory of large arrays. Call this before any thread has an arena.

    Otherwise, fresh pages for arrays of hundreds of megabytes take longer than the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(parameter, value)


def volumes(channels: int, size: int) -> list[torch.Tensor]:
    """Create logits and labels, or two images if there is one channel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, channels, size, size, size, generator=generator)
    if channels > 1:
        return [x, torch.randint(channels, (1, 1, size, size, size), generator=generator, dtype=torch.uint8)]
    return [x, torch.rand(x.shape, generator=generator)]


def seconds_of(loss: torch.nn.Module, channels: int, size: int, least: float) -> float:
    """Return the median time of a forward and backward pass, repeated for at least `least` seconds."""
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
    """Time per voxel of a large volume, relative to that at 96³."""
    keep_memory()
    for name, loss, channels, large in LARGE:
        size = 112 if quick else large
        small = seconds_of(loss, channels, 96, 0.5 if quick else 2.0) / 96**3
        big = seconds_of(loss, channels, size, 0.1) / size**3
        peak = process_status("VmHWM") / GIB
        yield Row(
            f"{name}, {size}³, forward and backward",
            f"{big * 1e9:.1f} ns per voxel, {big / small:.2f} × that at 96³; {peak:.1f} GiB peak memory",
            quick or (big / small <= 1.3 and peak < 24),
        )
