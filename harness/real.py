"""Cases on a real brain at full size; the reference computes in float64 there, once for all types under test.

Logits are float32: what float32 and float64 hold alike, so both are judged by one truth.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twinloss.harness.trial import Trial, examine
from twinloss.harness.truth import Truth
from twinloss.harness.twin import Array, Case, Operand, Twin

if TYPE_CHECKING:
    from twinloss.harness.brain import Brain


@dataclass(frozen=True)
class RealCase:
    """A case on real images: where its arguments come from, and its options."""

    name: str
    operands: Callable[[Brain], Mapping[str, Array]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def having(self, name: str | None = None, **options: Any) -> RealCase:
        """The same arguments with just these options."""
        return RealCase(name or self.name, self.operands, options)


def _labels(brain: Brain) -> dict[str, Array]:
    return {"input": brain.logits, "target": brain.labels}


def _soft_labels(brain: Brain) -> dict[str, Array]:
    return {"input": brain.logits, "target": brain.soft_labels}


def _labels_in_mask(brain: Brain) -> dict[str, Array]:
    return {**_labels(brain), "mask": brain.mask}


def _soft_labels_in_mask(brain: Brain) -> dict[str, Array]:
    return {**_soft_labels(brain), "mask": brain.mask}


HARD = {"softmax": True, "to_onehot_y": True}
SOFT = {"softmax": True, "include_background": False}
LABELS = RealCase("labels", _labels, HARD)
SOFT_LABELS = RealCase("soft labels", _soft_labels, SOFT)
LABELS_IN_MASK = RealCase("labels, mask", _labels_in_mask, HARD)
SOFT_LABELS_IN_MASK = RealCase("soft labels, mask", _soft_labels_in_mask, SOFT)


@cache
def brain() -> Brain:
    """The brain, loaded once."""
    from twinloss.harness.brain import load_brain

    return load_brain()


# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

# The types that hold the float32 numbers of the images exactly.
EXACT = ("float32", "float64")


def make_case(found: RealCase, dtype: str) -> Case:
    """The case in a type under test; only the input is rounded to it."""
    arrays = dict(found.operands(brain()))
    first = next(iter(arrays))
    if dtype not in EXACT:
        rounded = torch.from_numpy(arrays[first]).to(getattr(torch, dtype))
        arrays[first] = rounded.float().numpy()
    operands = {name: Operand(values, dtype if name == first else str(values.dtype)) for name, values in arrays.items()}
    return Case(operands, found.options, traits={"image": found.name})


def keep_memory() -> None:
    """Have glibc reuse the memory of arrays of hundreds of megabytes; to be called before threads have arenas.

    Fresh pages for each take longer than the arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(parameter, value)


def trials(twin: Twin, dtypes: Iterable[str]) -> Iterator[Trial]:
    """A trial of each real case in each type; types that hold the same numbers share what the reference says."""
    ordered = sorted(dtypes, key=lambda dtype: dtype not in EXACT)
    for found in twin.real:
        exact: Truth | None = None
        for dtype in ordered:
            case = make_case(found, dtype)
            truth = exact.known_for(case) if exact and dtype in EXACT else Truth(twin, case, np.float64)
            yield examine(twin, case, truth)
            if dtype in EXACT:
                exact = truth


def script(twin: Twin, trial: Trial) -> str:
    """A script that repeats a real case."""
    return (
        f'"""{twin.name}, {trial.case.dtype}, {trial.case.traits["image"]}: {trial.message}."""\n\n'
        "import sys\n\n"
        "from twinloss.harness.catalogue import find\n"
        "from twinloss.harness.real import trials\n\n"
        f"failed = [trial for trial in trials(find({twin.name!r}), [{trial.case.dtype!r}]) if trial.kind]\n"
        "for trial in failed:\n"
        '    print(trial.case.traits["image"], trial.message, sep=": ")\n'
        "sys.exit(bool(failed))\n"
    )
