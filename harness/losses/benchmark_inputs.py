"""The inputs of the benchmark, as float32 arguments on a cube, and losses of other libraries for the same task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from twinloss.harness.model.benchmark_spec import BenchmarkSpec, LeastWork, LossFunction

BATCH, CLASSES = 2, 4
Options = Callable[[int], Mapping[str, Any]]
Others = Callable[[int], Mapping[str, Callable[[], LossFunction]]]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def segmentation(size: int, batch: int = BATCH, classes: int = CLASSES) -> tuple[torch.Tensor, ...]:
    """Return logits and labels; with one class, the labels are foreground or background."""
    generator, cube = _generator(), (size, size, size)
    logits = torch.randn(batch, classes, *cube, generator=generator)
    return logits, torch.randint(max(classes, 2), (batch, 1, *cube), generator=generator)


def masked_segmentation(size: int, batch: int = BATCH, classes: int = CLASSES) -> tuple[torch.Tensor, ...]:
    """Return logits, labels and a mask of half the voxels."""
    mask = torch.randint(2, (batch, 1, size, size, size), generator=_generator()).float()
    return *segmentation(size, batch, classes), mask


def soft_segmentation(size: int, batch: int = BATCH, classes: int = CLASSES) -> tuple[torch.Tensor, ...]:
    """Return logits and a soft target, which adds up to 1 over the classes."""
    logits, _ = segmentation(size, batch, classes)
    return logits, torch.randn(logits.shape, generator=_generator()).softmax(1)


def images(size: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    """Return two images with intensities in [0, 1] that share half of their variation."""
    shared, first, second = torch.rand(3, batch, 1, size, size, size, generator=_generator())
    return (shared + first) / 2, (shared + second) / 2


def displacement(size: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    """Return a field with displacements of about one voxel."""
    return (torch.randn(batch, 3, size, size, size, generator=_generator()),)


def of_monai(name: str, options: Mapping[str, Any]) -> Callable[[Any], LossFunction]:
    """Return a function that makes MONAI's loss of a name from the module of its losses."""

    def build(losses: Any) -> LossFunction:
        made: LossFunction = getattr(losses, name)(**options)
        return made

    return build


def bench(
    operands: Callable[..., tuple[torch.Tensor, ...]], monai: str, options: Mapping[str, Any], **more: Any
) -> BenchmarkSpec:
    """Make a benchmark of a loss for which MONAI has the same options."""
    return BenchmarkSpec(operands, options, of_monai(monai, options), **more)


def usual(classes: int) -> Mapping[str, Any]:
    """Return the options for logits and labels: with a softmax, or with a sigmoid for one class."""
    return {"softmax": True, "to_onehot_y": True} if classes > 1 else {"sigmoid": True}


def no_others(classes: int) -> Mapping[str, Callable[[], LossFunction]]:
    """Return no losses, for a loss that no other library but MONAI has."""
    return {}


def labelled(
    monai: str | Callable[[int], Callable[[Any], LossFunction]] | None,
    ours: Options = usual,
    theirs: Options | None = None,
    *,
    others: Others = no_others,
    masked: bool = False,
    passes: int = 2,
    classes: int = CLASSES,
    note: str = "",
    memory: float = 1.2,
) -> BenchmarkSpec:
    """Make a benchmark of a segmentation loss, with options that depend on the number of classes.

    MONAI's loss is given by its name, or by a function that makes it for a number of classes. The benchmark counts two
    passes over the logits, or one if the gradient needs no sum over them.
    """
    return BenchmarkSpec(
        partial(masked_segmentation if masked else segmentation, classes=classes),
        ours(classes),
        of_monai(monai, (theirs or ours)(classes)) if isinstance(monai, str) else monai and monai(classes),
        note=note,
        others=others(classes),
        work=_work_of_labels(classes, masked, passes),
        batch=BATCH,
        classes=classes,
        memory=memory,
        of_classes=lambda n: labelled(
            monai, ours, theirs, others=others, masked=masked, passes=passes, classes=n, note=note, memory=memory
        ),
    )


def counted(name: str, monai: str, options: Mapping[str, Any], *, soft: bool = False) -> BenchmarkSpec:
    """Make a benchmark whose memory traffic is counted, but which is not timed."""
    operands = soft_segmentation if soft else segmentation
    return bench(operands, monai, options, name=name, batch=BATCH, classes=CLASSES, timed=False)


def _work_of_labels(classes: int, masked: bool, passes: int) -> LeastWork:
    read = f"logits read {'twice' if passes == 2 else 'once'}, gradient written, int64 labels read once"
    formula = f"{read}{', and a float32 mask' if masked else ''}; {passes} C exponentials"
    return LeastWork((passes + 1) * classes, 8 + 4 * masked, passes * classes, formula)
