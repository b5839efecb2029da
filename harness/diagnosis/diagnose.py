"""`twinloss diagnose`: check a user's own batch, and say in plain words what is wrong and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twinloss.harness.diagnosis.batch import Batch, arguments, extremes, guessed, told
from twinloss.harness.diagnosis.batch_answers import (
    answer,
    broken,
    costs,
    loss,
    precisions,
    smoothing,
    teaches_nothing,
    truth,
    windows,
)
from twinloss.harness.diagnosis.batch_files import BatchError, LoadedBatch, listed
from twinloss.harness.diagnosis.batch_part import part
from twinloss.harness.diagnosis.batch_shapes import reshaped
from twinloss.harness.diagnosis.findings import findings
from twinloss.harness.diagnosis.segmentation_findings import wrong_labels
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.operand import DTYPES, Array
from twinloss.harness.model.twin import Twin
from twinloss.reference.steps.activation import sigmoid, softmax

# The largest number of rows in the table of classes.
ROWS = 48


@dataclass
class Diagnosis:
    """The results of a diagnosis.

    Attributes:
        twin: the loss.
        options: options that were given or guessed.
        tables: tables, each with a title, a head, and rows of texts.
        notes: sentences on the arrays and options that were used.
        findings: sentences on problems, each with a fix.
        hints: sentences on other dtypes than the batch's own.
        own: the dtype of the batch.
    """

    twin: Twin
    options: dict[str, Any]
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    own: str = "float32"

    @property
    def fine(self) -> str:
        """The sentence for a batch without findings."""
        return f"Nothing is wrong with this batch: reference and fast loss agree in {self.own}."

    @property
    def verdict(self) -> list[str]:
        """All sentences, in reading order."""
        return [*self.notes, *(self.findings or [self.fine]), *self.hints]


def diagnose(like: str, found: LoadedBatch | Mapping[str, Any], options: Mapping[str, Any] | None = None,
             names: Mapping[str, str] | None = None) -> Diagnosis:  # fmt: skip
    """Diagnose a batch.

    Args:
        like: the name of the loss, as `twinloss list` shows it.
        found: the result of `load`, or arrays or tensors by name.
        options: options of the loss; others are guessed from shapes and numbers, and the guesses are reported.
        names: maps our names of the arguments to the names of the arrays.

    Returns:
        The tables and the sentences of the diagnosis.

    Raises:
        BatchError: if an argument is missing, or the loss rejects the batch; the message says why.
    """
    with np.errstate(all="ignore"):  # the batch may hold NaN and infinity
        return _diagnose(find(like), found, options or {}, names or {})


def _diagnose(twin: Twin, found: LoadedBatch | Mapping[str, Any], given: Mapping[str, Any],
              names: Mapping[str, str]) -> Diagnosis:  # fmt: skip
    found = found if isinstance(found, LoadedBatch) else LoadedBatch.of(found)
    used = arguments(twin, found, names)
    notes = [*_used_and_unused(used, found)]
    if "mask" in twin.operands and "mask" not in used:
        notes.append("There is no mask, so MaskedDiceLoss equals DiceLoss.")
        twin = find("dice")
    arrays, misshapen = reshaped(twin, {operand: found.arrays[name] for operand, name in used.items()})
    chosen = guessed(twin, arrays, given)
    types = {operand: found.types[name] for operand, name in used.items()}
    asking = {operand for operand, name in used.items() if name in found.asking}
    batch = Batch(twin, {**chosen, **given}, arrays, types, asking)
    own = next(iter(types.values()))
    made = Diagnosis(twin, dict(batch.options), notes=notes, own=own if own in DTYPES else "float32")
    made.notes += told(chosen, batch)
    if not batch.has_classes and batch.input.dtype.kind != "f":
        made.notes.append(f"pred has dtype {own}, which has no gradient: the loss was computed on pred.float().")
    made.tables.append(("arrays", ["", "shape", "type", "least", "largest", "NaN", "infinite"], _arrays(batch)))
    _check_arguments(batch)
    made.findings += [*misshapen, *findings(batch)]
    if not (batch.has_classes and batch.labels and any(wrong_labels(batch))):
        try:
            _compute(batch, made)
        except BatchError as refusal:
            if not made.findings:
                raise
            made.findings.append(f"{refusal}.")  # one of the findings explains it
    return made


def _check_arguments(batch: Batch) -> None:
    """Raise BatchError if options are invalid or shapes do not match."""
    loss(batch)
    if not _fits(batch):
        if batch.has_classes:
            answer(batch, "float32")  # raises an error that explains the mismatch
        first = next(iter(batch.arrays))
        raise BatchError(
            f"target has shape {batch.target.shape} and {first} {batch.input.shape}: they must have the same shape"
        )


def _compute(batch: Batch, made: Diagnosis) -> None:
    """Compute value and gradient, and add what they show."""
    batch, of_part = part(batch)
    if of_part:
        made.notes.append(of_part)
    answers = {dtype: answer(batch, dtype) for dtype in DTYPES}
    exact, own = truth(batch), answers[made.own]
    made.tables.append(("value and gradient", ["", "value", "its error", "largest gradient", "its error"],
                        precisions(answers, exact)))  # fmt: skip
    made.findings += [
        *broken(batch, exact), *costs(batch, made.own, own, exact), *teaches_nothing(batch, own, exact),
    ]  # fmt: skip
    if batch.has_classes:
        made.findings += smoothing(batch, exact[0])
    elif "denominator" in batch.twin.options and np.isfinite(exact[0]).all():
        decides, flat = windows(batch)
        made.findings += decides
        made.hints += flat
    if batch.option("kernel_type") == "b-spline":
        made.hints.append(
            "With kernel_type='b-spline' only pred has a gradient; that of target is exactly 0. The moving image must "
            "be the first argument: loss(warped, fixed)."
        )
    for dtype in ("float32", "float16", "bfloat16"):
        if dtype != made.own:
            made.hints += costs(batch, dtype, answers[dtype], exact)
    if rows := _classes(batch, exact[1]):
        head = ["item", "class", "voxels", "predicted", "overlap", "Dice", "largest gradient"]
        more = f", the first {ROWS} of {len(rows)}" if len(rows) > ROWS else ""
        made.tables.append(("classes" + more, head, rows[:ROWS]))


def _used_and_unused(used: Mapping[str, str], found: LoadedBatch) -> Iterator[str]:
    if any(operand != name for operand, name in used.items()):
        yield "Arguments: " + ", ".join(f"{name} as {operand}" for operand, name in used.items()) + "."
    others = {name: f"array {values.shape}" for name, values in found.arrays.items() if name not in used.values()}
    if others or found.left_out:
        yield f"Not used: {listed({**others, **found.left_out})}."


def _arrays(batch: Batch) -> list[list[str]]:
    rows = []
    for name, values in batch.arrays.items():
        ends = [f"{end:.4g}" if np.isfinite(end) else "" for end in extremes(values)]
        counts = [str(sum(int(test(item).sum()) for item in values)) for test in (np.isnan, np.isinf)]
        rows.append([name, str(values.shape), batch.types.get(name, str(values.dtype)), *ends, *counts])
    return rows


def _fits(batch: Batch) -> bool:
    """Return whether the shapes match, and ignore_index, if it refers to a channel, is one."""
    shape, ignore = batch.input.shape, batch.option("ignore_index")
    if batch.has_classes and not (ignore is None or batch.labels or batch.classes == 1 or 0 <= ignore < shape[1]):
        return False
    expected = (shape[0], 1, *shape[2:]) if batch.has_classes and batch.labels else shape
    return "target" not in batch.arrays or batch.target.shape == expected


def _classes(batch: Batch, gradient: Array) -> list[list[str]]:
    """Return table rows with the volumes, overlap and gradient of each item and class of a segmentation loss."""
    if not batch.has_classes:
        return []
    x, target = batch.input.astype(np.float64), batch.target
    # Losses without an option for the activation take logits.
    exclusive = batch.option("softmax", batch.option("use_softmax", True)) and batch.classes > 1
    binary = not exclusive and batch.option("sigmoid", "softmax" not in batch.twin.options)
    p = softmax(x) if exclusive else sigmoid(x) if binary else x
    channels = np.arange(batch.classes).reshape(-1, *[1] * (x.ndim - 2))
    g = target == channels if batch.labels else target
    rows = []
    for b, c in np.ndindex(*x.shape[:2]):
        volume, predicted, overlap = float(g[b, c].sum()), float(p[b, c].sum()), float((p[b, c] * g[b, c]).sum())
        dice = f"{2 * overlap / (volume + predicted):.4f}" if volume + predicted > 0 else ""
        numbers = [f"{volume:.6g}", f"{predicted:.6g}", f"{overlap:.6g}", dice, f"{np.abs(gradient[b, c]).max():.3g}"]
        rows.append([str(b), str(c), *numbers])
    return rows
