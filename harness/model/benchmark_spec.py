"""A line of the benchmark: what of a loss is timed, beside what, and the least that it has to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class LeastWork:
    """The least that a loss has to do for each voxel of an item, forward and backward.

    Attributes:
        reals: numbers of the input's type that are read from memory or written to it.
        others: bytes of labels and masks that are read.
        exponentials: how many are computed.
        formula: that in words.
    """

    reals: float
    others: float
    exponentials: float
    formula: str


LossFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class BenchmarkSpec:
    """A line of the benchmark.

    Attributes:
        operands: the float32 arguments for a cube of voxels of that edge and so many items, the same in every call.
        options: of the fast loss.
        peer: MONAI's loss of the same task, given the module `monai.losses`; or None.
        name: what tells it from other lines of the same loss.
        note: what the competitors do not compute alike, in words.
        others: what makes the losses of other libraries, by the library's name; an ImportError leaves one out.
        work: what the roofline counts.
        batch: how many items the arguments have if no number is asked for.
        classes: how many there are, or None where there is no such thing.
        of_classes: the same line for another number of classes.
        memory: the multiple of the gradient that a step may take at most.
        swept: whether the sweep varies it, or it is timed at the base case alone.
    """

    operands: Callable[..., tuple[torch.Tensor, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: Callable[[Any], LossFunction] | None = None
    name: str = ""
    note: str = ""
    others: Mapping[str, Callable[[], LossFunction]] = field(default_factory=dict)
    work: LeastWork | None = None
    batch: int = 1
    classes: int | None = None
    of_classes: Callable[[int], BenchmarkSpec] | None = None
    memory: float = 1.2
    swept: bool = True
