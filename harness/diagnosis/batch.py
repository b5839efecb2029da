"""A user's batch as the arguments and options of a loss: find out which array is which, and guess options by shape."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np

from twinloss.harness.diagnosis.batch_files import BatchError, LoadedBatch, listed
from twinloss.harness.drawing.segmentation_options import has_labels
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Twin

# Names of the arguments in files, the most certain name first. "image" and "data" are the network's input in MONAI and
# nnU-Net, so they do not stand for an argument of a segmentation loss.
ALIASES = {
    "input": (
        "input", "logits", "pred", "preds", "prediction", "predictions", "y_pred", "output", "outputs", "probabilities",
        "probs", "softmax", "x",
    ),
    "pred": (
        "pred", "prediction", "y_pred", "input", "warped", "warped_image", "pred_image", "moved", "moving",
        "moving_image", "displacement", "ddf", "dvf", "flow", "x",
    ),
    "target": (
        "target", "targets", "label", "labels", "seg", "segmentation", "gt", "ground_truth", "y_true", "true", "fixed",
        "fixed_image", "y", "g",
    ),
    "mask": ("mask", "weight_map"),
}  # fmt: skip
NETWORK_INPUTS = {"image", "images", "data"}
# The tolerance for the rounding of a probability.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Batch:
    """The arguments of a loss, in order, and its options.

    Attributes:
        twin: the loss.
        options: options that were given or guessed; `option` also knows the defaults.
        arrays: the arguments by the names that the loss uses.
        types: the dtype of each array in its file.
        asking: the arguments with requires_grad.
    """

    twin: Twin
    options: Mapping[str, Any]
    arrays: Mapping[str, Array]
    types: Mapping[str, str] = field(default_factory=dict)
    asking: Collection[str] = ()

    def option(self, name: str, default: Any = None) -> Any:
        """Return the value of an option, or `default` if the loss has no such option."""
        return self.options[name] if name in self.options else self.twin.options.get(name, (default,))[0]

    @property
    def input(self) -> Array:
        """The first argument."""
        return next(iter(self.arrays.values()))

    @property
    def target(self) -> Array:
        """The argument `target`."""
        return self.arrays["target"]

    @property
    def classes(self) -> int:
        """The number of channels of the input."""
        return int(self.input.shape[1])

    @property
    def has_classes(self) -> bool:
        """Whether the loss is a segmentation loss."""
        return "input" in self.twin.operands

    @property
    def labels(self) -> bool:
        """Whether the target holds labels."""
        return has_labels(self.twin, self.options) and self.classes > 1

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest finite number of the input."""
        return extremes(self.input)

    @property
    def is_probability(self) -> bool:
        """Whether the input lies in [0, 1]."""
        low, high = self.range
        return low >= -ROUNDING and high <= 1 + ROUNDING

    @property
    def is_hard(self) -> bool:
        """Whether the input holds labels or thresholded numbers: whole numbers that are not all equal."""
        low, high = self.range
        return 0 <= low < high and are_whole(self.input) and (high <= 1 or self.input.dtype.kind in "iu")


def extremes(values: Array) -> tuple[float, float]:
    """Return the smallest and largest finite number, or (inf, -inf) without any; item by item, to save memory."""
    low, high = np.inf, -np.inf
    for item in values:
        ends = item.min(), item.max()
        if not np.isfinite(ends).all():
            finite = item[np.isfinite(item)]
            if not finite.size:
                continue
            ends = finite.min(), finite.max()
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return low, high


def are_whole(values: Array) -> bool:
    """Return whether all numbers are whole."""
    return values.dtype.kind in "bui" or all(bool((item == np.rint(item)).all()) for item in values)


def sum_to_one(values: Array) -> bool:
    """Return whether the channels of each voxel add up to 1."""
    return all(bool((np.abs(item.sum(0, dtype=np.float64) - 1) <= 4 * ROUNDING).all()) for item in values)


def arguments(twin: Twin, found: LoadedBatch, names: Mapping[str, str]) -> dict[str, str]:
    """Find the arrays of a batch that are the arguments of a loss, and return their names.

    If the loss has one argument and the batch one array, the name of the array does not matter.

    Raises:
        BatchError: if an argument is missing or empty.
    """
    made: dict[str, str] = {}
    for operand in names:
        if operand not in twin.operands:
            raise BatchError(f"{twin.name} has no argument {operand}: its arguments are {', '.join(twin.operands)}")
    lower = {name.lower(): name for name in reversed(found.arrays)}
    for operand in twin.operands:
        aliases = ALIASES[operand]
        if operand == "target" and "mask" not in twin.operands:
            aliases = (*aliases, "mask", "masks")
        wanted = [names[operand]] if operand in names else [lower.get(alias, "") for alias in aliases]
        name = next((key for key in wanted if key in found.arrays), None)
        if name is None and len(twin.operands) == len(found.arrays) == 1:
            name = next(iter(found.arrays))
        if name is not None:
            made[operand] = name
        elif operand != "mask" or operand in names:
            raise BatchError(_missing(operand, found, wanted[0] if operand in names else None))
    for operand, name in made.items():
        if found.arrays[name].size == 0:
            raise BatchError(f"{operand} is empty: its shape is {found.arrays[name].shape}")
    return made


def _missing(operand: str, found: LoadedBatch, asked: str | None) -> str:
    have = ", ".join(f"{name} {values.shape}" for name, values in found.arrays.items()) or "no arrays"
    text = f"no {operand} among {have}" if asked is None else f"no array {asked} for {operand} among {have}"
    if found.left_out:
        text += f"; left out: {listed(found.left_out)}"
    fix = f": give its name by --map {operand}=NAME"
    if operand == "input" and NETWORK_INPUTS & {name.lower() for name in found.arrays}:
        fix += ". The input of a loss is the output of the network: save that, too, as 'logits'"
    return text + fix


def guessed(twin: Twin, arrays: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Any]:
    """Guess options from shapes and numbers.

    Raises:
        BatchError: if an option is given that the loss does not have.
    """
    for name in given:
        if name not in twin.options:
            near = get_close_matches(name, twin.options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its options are {', '.join(twin.options)}"
            raise BatchError(f"{twin.name} has no option {name}: {hint}")
    x, target = next(iter(arrays.values())), arrays.get("target")
    made: dict[str, Any] = {}
    if "ndim" in twin.options and "ndim" not in given:
        made["ndim"] = x.ndim - 2
    if x.ndim < 2:
        return made
    if "dist_matrix" in twin.options and "dist_matrix" not in given:
        made["dist_matrix"] = [[float(i != j) for j in range(x.shape[1])] for i in range(x.shape[1])]
    if "to_onehot_y" in twin.options and "to_onehot_y" not in given and target is not None:
        if target.ndim >= 2 and target.shape[1] == 1 < x.shape[1]:
            made["to_onehot_y"] = True
    if "softmax" in twin.options and not {"softmax", "sigmoid", "other_act"} & set(given):
        batch = Batch(twin, given, arrays)
        if not batch.is_probability and not batch.is_hard:
            dense = target is not None and target.shape == x.shape
            overlap = x.shape[1] == 1 or (dense and target is not None and not sum_to_one(target))
            made["sigmoid" if overlap else "softmax"] = True
    return made


def told(made: Mapping[str, Any], batch: Batch) -> Iterator[str]:
    """Yield sentences about the guessed options and the reason for each guess."""
    if made:
        options = ", ".join(f"{name}={value}" for name, value in made.items() if name != "dist_matrix")
        if "dist_matrix" in made:
            options = "dist_matrix, with a distance of 1 between all classes"
        yield f"Assumed options: {options}. If your loss has other options, set them by --option."
    for name in {"softmax", "sigmoid"} & set(made):
        low, high = batch.range
        yield (
            f"{name}=True is assumed, because the input ranges from {low:.4g} to {high:.4g} and so holds logits. If "
            f"your loss has no activation, this is the mistake: without one, {batch.twin.fast.__name__} takes the "
            "input as probabilities."
        )
