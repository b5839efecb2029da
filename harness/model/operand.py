"""Arguments and option values of a loss: arrays in a dtype and a memory layout, and values that depend on the case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twinloss.harness.model import device

Array = npt.NDArray[Any]

HALVES = ("float16", "bfloat16")
DTYPES = ("float32", "float64", *HALVES)

# Memory layouts of a tensor, each as the source of an expression in the contiguous tensor `x`, so that a snippet prints
# exactly the code that was run. channels_last falls back to contiguous if the rank does not fit.
LAYOUTS = {
    "contiguous": "x",
    "transposed": "x.mT.contiguous().mT",
    "sliced": "torch.stack([x, x], -1)[..., 1]",
    "expanded": "x[:1].expand_as(x)",
    "channels_last": "x.contiguous(memory_format=torch.channels_last)",
    "channels_last_3d": "x.contiguous(memory_format=torch.channels_last_3d)",
}

# Further layouts for the arrays of a pair, which may have any rank.
PAIR_LAYOUTS = {
    **LAYOUTS,
    "offset": "torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)",
    "stepped": "x.repeat_interleave(2, 0)[::2]",
}


@cache
def function(source: str, names: str = "x") -> Callable[..., Any]:
    """Compile the expression `source` to a function of the arguments `names`; torch and np are in scope."""
    made: Callable[..., Any] = eval(f"lambda {names}: {source}", {"torch": torch, "np": np})
    return made


@dataclass(frozen=True)
class Elementwise:
    """An elementwise function of x, kept as three source expressions so that snippets print the code that was run."""

    torch: str
    numpy: str
    derivative: str

    def __str__(self) -> str:
        """Return the text that option tables show."""
        return self.torch


@dataclass(frozen=True)
class Sizes:
    """The properties of a case that an option value may depend on: its sizes, and whether the target holds labels."""

    batch: int
    classes: int
    taking_part: int
    labels: bool
    rank: int = 0


@dataclass(frozen=True)
class PerCase:
    """An option value that depends on the case, such as one weight per class."""

    name: str
    make: Callable[[Sizes], Any]

    def __str__(self) -> str:
        """Return the text that option tables show."""
        return self.name


@dataclass(frozen=True)
class Operand:
    """One argument of a loss: its exact values, and the dtype and memory layout in which the fast twin gets them."""

    values: Array
    dtype: str
    layout: str = "contiguous"

    def tensor(self, on: torch.device | None = None) -> torch.Tensor:
        """Return the values as a new tensor on a device, by default the one under test."""
        made = torch.tensor(self.values, device=on or device.current()).to(getattr(torch, self.dtype))
        laid: torch.Tensor = function(PAIR_LAYOUTS[self.layout])(made)
        return laid

    def lifted(self, real: type[np.floating[Any]]) -> Array:
        """Return the values for the reference, in dtype `real`; integers and booleans keep their dtype."""
        whole = self.values.dtype.kind in "iub"
        return self.values if whole else self.values.astype(real, copy=False)


def widened(tensor: torch.Tensor) -> Array:
    """Convert a tensor to an array; half precision becomes float32, as NumPy has no bfloat16."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    made: Array = (tensor.float() if half else tensor).detach().cpu().numpy()
    return made


def label(value: Any) -> str:
    """Return the text for an option value in tables and in the coverage report."""
    return str(value) if isinstance(value, (PerCase, Elementwise, str)) else repr(value)
