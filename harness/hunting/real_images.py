"""Cases on real brain images: the reference judges a part of the volume, and the fast twin also runs on all of it.

The intermediate results of a reference are many times as large as its arguments, so it gets only a block of planes
around the centre of the brain, in float64. Logits are float32 numbers, which float32 and float64 represent exactly, so
one run of the reference judges both dtypes. Errors that need a whole volume, such as an index overflow, are looked for
in two more ways. A loss that can ignore voxels gets the whole volume with everything except the block ignored, which
must not change the answer. A loss of images gets the whole volume in a smaller dtype, and is judged by the fast twin in
float64.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from twinloss.harness.data import brain, warp
from twinloss.harness.judging.trial import Trial, examine
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.operand import Array, Operand, widened
from twinloss.harness.model.real_case import RealCase
from twinloss.harness.model.twin import Case, Twin

# The dtypes that represent the float32 numbers of the images exactly.
EXACT = ("float32", "float64")


Box = tuple[slice, slice, slice]

# The margin around the brain in voxels, and the number of axial planes that the reference gets.
MARGIN = 4
PLANES = 56

# The label outside the block. It is not a class, and fits uint8.
IGNORED = 255


def block_of_brain(mask: Array) -> Box:
    """Return the box around the voxels of a mask (…, *S), with a margin, cut to the planes around its middle."""
    mask = mask.reshape(mask.shape[-3:])
    made: list[slice] = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        made.append(slice(max(int(inside[0]) - MARGIN, 0), min(int(inside[-1]) + 1 + MARGIN, mask.shape[axis])))
    spare = max(made[2].stop - made[2].start - PLANES, 0)
    first = made[2].start + spare // 2
    return made[0], made[1], slice(first, min(first + PLANES, made[2].stop))


def make_case(found: RealCase, dtype: str, box: Box | None = None) -> Case:
    """Make the case of a block, or of the whole volume, in a dtype under test; only the input is rounded to it."""
    place = (..., *box) if box else ...
    arrays = {name: np.ascontiguousarray(values[place]) for name, values in found.operands().items()}
    first = next(iter(arrays))
    if dtype not in EXACT:
        rounded = torch.from_numpy(arrays[first]).to(getattr(torch, dtype))
        arrays[first] = rounded.float().numpy()
    operands = {name: Operand(values, dtype if name == first else str(values.dtype)) for name, values in arrays.items()}
    return Case(operands, found.options, traits={"image": found.name})


# A twin, a case for it, and the truth by which its answer is judged.
Question = tuple[Twin, Case, Truth]


def questions(twin: Twin, dtypes: Iterable[str]) -> Iterator[Question]:
    """Yield all questions on real images; dtypes that hold the same numbers share the results of the reference."""
    whole, block = brain.load_brain().mask.shape[-3:], block_of_brain(brain.load_brain().mask)
    part = "x".join(str(side.stop - side.start) for side in block)
    volume = "x".join(map(str, whole))
    ordered = sorted(dtypes, key=lambda dtype: dtype not in EXACT)
    if "input" in twin.operands:
        warp.load_warped.cache_clear()  # frees 200 MB of images that segmentation losses do not use
    for found in twin.real:
        exact: Truth | None = None
        for dtype in ordered:
            case = make_case(found, dtype, block)
            truth = exact.known_for(case) if exact and dtype in EXACT else Truth(twin, case, np.float64)
            yield twin, _described(case, f"{part} voxels"), truth
            if can_ignore(twin, case):
                embedded = replace(twin, fast=within_ignored(twin, whole, block))
                yield embedded, _described(case, f"{part} voxels in {volume}, the others ignored"), truth
            if dtype in EXACT:
                exact = truth
            del truth
        del exact, case  # free the memory before the whole volume is loaded
        for dtype in ordered:
            # Smoothing a whole volume takes minutes and gigabytes, so the wrapper is left out; LNCC itself gets a
            # volume.
            if dtype != "float64" and "input" not in twin.operands and "scales" not in twin.options:
                case = _described(make_case(found, dtype), f"{volume} voxels by the fast twin in float64")
                yield twin, case, Truth(judged_by_itself(twin), case, np.float64)
                del case


def _described(case: Case, judged: str) -> Case:
    return replace(case, traits={**case.traits, "judged": judged})


def can_ignore(twin: Twin, case: Case) -> bool:
    """Return whether voxels can be ignored by a label that is not a class, and do not decide which ones are sampled."""
    if "interp_mode" in twin.options:
        return False
    return len(twin.options.get("ignore_index", ())) > 1 and case.operands["target"].values.shape[1] == 1


def within_ignored(twin: Twin, whole: tuple[int, ...], block: Box) -> type[torch.nn.Module]:
    """Make a loss that puts its block into a whole volume, in which all other voxels have the label to ignore."""

    class WithinIgnored(torch.nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.loss = twin.fast(**options, ignore_index=IGNORED)

        def forward(self, input: torch.Tensor, target: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
            """Take the arguments of the block."""
            loss: torch.Tensor = self.loss(put(input, 0.0), put(target, IGNORED), *(put(each, 1) for each in mask))
            return loss

    def put(values: torch.Tensor, outside: float) -> torch.Tensor:
        made = values.new_full((*values.shape[:2], *whole), outside)
        made[(..., *block)] = values
        return made

    return WithinIgnored


def judged_by_itself(twin: Twin) -> Twin:
    """Return the twin with its own fast form, in float64, in place of the reference.

    This form always computes in float64, even if the judge asks for the plain formula in float32. Otherwise, the judge
    would excuse an error of the fast form in float32 as an error of the plain formula.
    """

    def loss_of(operands: Iterable[Array], options: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        x, *rest = (torch.from_numpy(a.astype(np.float64, copy=False) if a.dtype.kind == "f" else a) for a in operands)
        return x.requires_grad_(), twin.fast(**options)(x, *rest)

    def value(*operands: Array, **options: Any) -> Array:
        return widened(loss_of(operands, options)[1])

    def gradient(*operands: Array, cotangent: Array, **options: Any) -> Array:
        x, loss = loss_of(operands, options)
        return widened(torch.autograd.grad(loss, x, torch.from_numpy(np.asarray(cotangent)))[0])

    return replace(twin, value=value, gradient=gradient)


def trials(twin: Twin, dtypes: Iterable[str]) -> Iterator[Trial]:
    """Yield a trial of each question, and keep none of them, since the arrays are large."""
    for question in questions(twin, dtypes):
        yield examine(*question)
        del question


def release_memory() -> None:
    """Return unused memory to the operating system, because the C library would keep more and more of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
    if trim is not None:
        trim(0)


def script(twin: Twin, trial: Trial) -> str:
    """Return a script that repeats a real case."""
    return (
        f'"""{twin.name}, {trial.case.dtype}, {trial.case.traits["image"]}: {trial.message}."""\n\n'
        "import sys\n\n"
        "from twinloss.harness.hunting.real_images import trials\n"
        "from twinloss.harness.losses.catalogue import find\n\n"
        f"failed = [trial for trial in trials(find({twin.name!r}), [{trial.case.dtype!r}]) if trial.kind]\n"
        "for trial in failed:\n"
        '    print(trial.case.traits["image"], trial.case.traits["judged"], trial.message, sep=": ")\n'
        "sys.exit(bool(failed))\n"
    )
