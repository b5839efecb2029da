"""The description of a benchmark: what to time, the competitors, and the least work that the loss has to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class LeastWork:
    """The least work of a loss for each voxel of an item, forward and backward.

    Attributes:
        reals: the number of values in the input's dtype that are read from memory or written to it.
        others: the number of bytes of labels and masks that are read.
        exponentials: the number of exponentials.
        formula: the same in words.
    """

    reals: float
    others: float
    exponentials: float
    formula: str


LossFunction = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark of a loss.

    Attributes:
        operands: makes the float32 arguments from the edge length of a cube of voxels and the number of items; the same
            arguments in every call.
        options: the options of the fast loss.
        peer: makes MONAI's loss of the same task, given the module `monai.losses`; or None.
        name: distinguishes the benchmarks of one loss.
        note: describes in which way the competitors compute something else.
        others: makes the losses of other libraries, by the name of the library; one that raises ImportError is left
            out.
        work: the least work, for the roofline.
        batch: the default number of items.
        classes: the number of classes, or None without classes.
        of_classes: makes the same benchmark for another number of classes.
        memory: the most memory that a step may take, as a multiple of the gradient.
        swept: whether the sweep varies this benchmark; otherwise only the base case is timed.
        timed: whether it is timed at all; otherwise only its memory traffic is counted.
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
    timed: bool = True
