"""What the benchmark feeds to losses: float32 arguments on a cube of voxels, and MONAI's loss of the same task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from twinloss.harness.twin import Bench

BATCH, CLASSES = 2, 4


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def segmentation(size: int) -> tuple[torch.Tensor, ...]:
    """Logits of two items and four classes, and labels."""
    generator, cube = _generator(), (size, size, size)
    logits = torch.randn(BATCH, CLASSES, *cube, generator=generator)
    return logits, torch.randint(CLASSES, (BATCH, 1, *cube), generator=generator)


def masked_segmentation(size: int) -> tuple[torch.Tensor, ...]:
    """The same, and a mask of half the voxels."""
    mask = torch.randint(2, (BATCH, 1, size, size, size), generator=_generator()).float()
    return *segmentation(size), mask


def images(size: int) -> tuple[torch.Tensor, ...]:
    """Two images with intensities in [0, 1] that have half their variation in common."""
    shared, first, second = torch.rand(3, 1, 1, size, size, size, generator=_generator())
    return (shared + first) / 2, (shared + second) / 2


def displacement(size: int) -> tuple[torch.Tensor, ...]:
    """A field of displacements of about a voxel."""
    return (torch.randn(1, 3, size, size, size, generator=_generator()),)


def of_monai(name: str, options: Mapping[str, Any]) -> Callable[[Any], Callable[..., torch.Tensor]]:
    """How to build MONAI's loss of a name from its module of losses."""

    def build(losses: Any) -> Callable[..., torch.Tensor]:
        made: Callable[..., torch.Tensor] = getattr(losses, name)(**options)
        return made

    return build


def bench(
    operands: Callable[[int], tuple[torch.Tensor, ...]],
    monai: str,
    options: Mapping[str, Any],
    monai_options: Mapping[str, Any] | None = None,
    **more: str,
) -> Bench:
    """A line of the benchmark, the peer's options being ours where they do not go by other names."""
    theirs = options if monai_options is None else monai_options
    return Bench(operands, options, of_monai(monai, theirs), **more)
