"""Findings for a batch of a segmentation loss: activation, labels, classes, ignored and masked voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from twinloss.harness.diagnosis.batch import ROUNDING, Batch, are_whole, extremes, sum_to_one
from twinloss.harness.model.operand import Array

SHOWN = 5  # the largest number of values or items that a sentence lists
LARGE = 1000  # logits beyond this are a sign of a problem


def of_segmentation(batch: Batch) -> Iterator[str]:
    """Check input, target and mask."""
    yield from _activation(batch)
    yield from _single_channel(batch)
    wrong = list(wrong_labels(batch) if batch.labels else ())
    yield from wrong
    if not batch.labels:
        yield from _dense_target(batch)
    yield from _ignored(batch)
    if not wrong:
        yield from _absent_classes(batch)
    yield from _mask(batch)


def _activation(batch: Batch) -> Iterator[str]:
    """Check whether the input is what the activation expects: logits rather than probabilities."""
    low, high = batch.range
    if batch.is_hard:
        yield from _hard_input(batch)
        return
    makers = list(_activations(batch))
    name = batch.twin.fast.__name__
    if batch.is_probability and low < high:
        sums = batch.classes > 1 and sum_to_one(batch.input)
        for maker, takes in makers:
            if takes == "sigmoid" or sums:
                also = " and sums to 1 over the channels" if sums else ""
                fix = f", or remove {maker}" if "=" in maker else ""
                yield (
                    f"The input lies in [0, 1]{also}: it seems to hold probabilities, but {maker} expects logits and "
                    f"applies another {takes}, so no probability comes near 0 or 1. Pass the logits to {name}, "
                    f"that is, the output of the network before its last activation{fix}."
                )
                return
    if makers and (largest := max(abs(low), abs(high))) > LARGE and low <= high:
        yield (
            f"The logits reach {largest:.4g}, but rarely exceed 100 in healthy training: check for a learning rate "
            "that is too high, gradients that are not clipped, or images that are not normalised."
        )
    activated = any(maker.endswith("=True") for maker, _ in makers) or batch.option("other_act") is not None
    if "softmax" in batch.twin.options and not activated and not batch.is_probability and low <= high:
        option = "sigmoid=True" if batch.classes == 1 else "softmax=True, or sigmoid=True if classes overlap"
        yield (
            f"The input ranges from {low:.4g} to {high:.4g}, outside [0, 1]: it seems to hold logits, but without an "
            f"activation {name} takes it as probabilities. Pass {option}."
        )


def _hard_input(batch: Batch) -> Iterator[str]:
    low, high = batch.range
    text = f"The input holds only whole numbers from {low:g} to {high:g}"
    if not are_whole(batch.target):
        yield (
            f"{text}, as labels do, and the target holds fractions: they seem to be swapped. The prediction comes "
            "first: loss(prediction, target)."
        )
    else:
        yield (
            f"{text}: it seems to hold labels, or a prediction after argmax or a threshold, which have no gradient. "
            "Pass logits or probabilities to the loss."
        )


def _activations(batch: Batch) -> Iterator[tuple[str, str]]:
    """Yield the option or loss that applies an activation to the input, and the activation."""
    several = batch.classes > 1
    if batch.option("softmax") and several:
        yield "softmax=True", "softmax"
    if batch.option("sigmoid"):
        yield "sigmoid=True", "sigmoid"
    if "dist_matrix" in batch.twin.options:
        yield batch.twin.fast.__name__, "softmax"
    if "lambda_ce" in batch.twin.options and batch.option("lambda_ce"):
        yield "the cross entropy", "softmax" if several else "sigmoid"
    if "use_softmax" in batch.twin.options and batch.option("lambda_focal", 1.0):
        yield "the focal term", "softmax" if several and batch.option("use_softmax") else "sigmoid"


def _single_channel(batch: Batch) -> Iterator[str]:
    if batch.classes > 1:
        return
    for option, fix in (
        ("softmax", "pass sigmoid=True, or add a channel for the background"),
        ("to_onehot_y", "remove it: the target is 1 in the foreground and 0 elsewhere"),
    ):
        if batch.option(option):
            yield f"{option}=True is ignored, because the input has only one channel: {fix}."
    if batch.option("include_background") is False:
        yield "include_background=False is ignored, because the input has only one channel: remove it."


def wrong_labels(batch: Batch) -> Iterator[str]:
    """Report labels that are not channel numbers, for which the loss raises an error."""
    classes, ignore = batch.classes, batch.option("ignore_index")
    counts: dict[float, int] = {}
    for item in batch.target:
        item = item.astype(np.uint8) if item.dtype == bool else item
        wrong: Array = ~((item >= 0) & (item < classes) & (item == np.rint(item)))
        if ignore is not None:
            wrong &= item != ignore
        for value, n in zip(*np.unique(item[wrong], return_counts=True), strict=True):
            counts[float(value)] = counts.get(float(value), 0) + int(n)
    if not counts:
        return
    values = sorted(counts)
    text = ", ".join(f"{v:g} ({counts[v]} voxel{'s' * (counts[v] > 1)})" for v in values[:SHOWN])
    more = f" and {len(values) - SHOWN} more values" if len(values) > SHOWN else ""
    yield (
        f"Labels must be whole numbers in [0, {classes}), one for each channel of the input, but the target holds "
        f"{text}{more}: {_fix_for_labels(batch, values)}. The loss raises an error for such labels, so it was not "
        "computed."
    )


def _fix_for_labels(batch: Batch, wrong: Sequence[float]) -> str:
    classes = batch.classes
    if any(v != round(v) for v in wrong if np.isfinite(v)):
        return "fractions result from interpolating labels, so resample them by nearest neighbour (mode='nearest')"
    if wrong == [255] and classes == 2 and not (batch.target == 1).any():
        return "the mask is 0 and 255, so divide it by 255, or compare it with a threshold, target > 0"
    if wrong == [classes] and not (batch.target == 0).any():
        return "they seem to start at 1, so subtract 1"
    if wrong in ([255], [-1], [-100]):
        return f"if {wrong[0]:g} marks voxels to ignore, pass ignore_index={wrong[0]:g}, otherwise change these labels"
    return "change them, give the input a channel for each class, or pass a label to ignore as ignore_index=…"


def _dense_target(batch: Batch) -> Iterator[str]:
    target = batch.target
    ignore = batch.option("ignore_index")
    if ignore is not None and batch.classes == 1:
        target = np.where(target == ignore, 0, target)
    low, high = extremes(target)
    if low < 0 or high > 1:
        yield (
            f"The target ranges from {low:.4g} to {high:.4g}, but must lie in [0, 1]: otherwise the loss and its "
            f"gradient are meaningless. {_fix_for_target(batch, target, low, high)}."
        )
    elif batch.classes > 1 and any(takes == "softmax" for _, takes in _activations(batch)):
        yield from _uneven_target(batch)


def _fix_for_target(batch: Batch, target: Array, low: float, high: float) -> str:
    if not are_whole(target):
        return "Divide it by its maximum" if low >= 0 else "Map it to [0, 1], for example by clipping"
    if not ((target != low) & (target != high)).any():
        by = f"Divide it by {high:g}" if low == 0 else "Rescale it"
        return f"{by}, or compare it with a threshold, target > 0"
    if batch.classes > 1:
        return "If these are labels, keep one channel of them, (B, 1, *S), and pass to_onehot_y=True"
    return (
        "If these are labels, select one class, target == 1, or give the input a channel for each class and pass "
        "to_onehot_y=True; if it is a grey image, compare it with a threshold"
    )


def _uneven_target(batch: Batch) -> Iterator[str]:
    """Report voxels whose classes do not sum to 1, as the probabilities of a softmax do."""
    count, first, kept = 0, None, _kept(batch)
    for b, item in enumerate(batch.target):
        sums = item.sum(0, dtype=np.float64)
        off = (np.abs(sums - 1) > 4 * ROUNDING) & kept[b, 0]
        if first is None and off.any():
            at = tuple(int(i) for i in np.argwhere(off)[0])
            first = f"the first is voxel {at} of item {b}, with {sums[at]:g}"
        count += int(off.sum())
    if count:
        yield (
            f"In {count} voxels the target does not sum to 1 over its channels ({first}), but the softmax "
            "probabilities of the input do. For classes that overlap pass sigmoid=True instead of softmax=True (or "
            "use_softmax=False); if these voxels belong to no class, add a channel for the background."
        )


def _kept(batch: Batch) -> Array:
    """Return a mask of the voxels that are not ignored, (B, 1, *S)."""
    ignore, target = batch.option("ignore_index"), batch.target
    if ignore is None:
        return np.broadcast_to(np.True_, (len(target), 1, *target.shape[2:]))
    if batch.labels or batch.classes == 1:
        return np.asarray(target != ignore)
    return np.asarray(target[:, ignore : ignore + 1] != 1)  # the loss rejects an index that is not a channel


def _ignored(batch: Batch) -> Iterator[str]:
    hidden = [b for b, item in enumerate(_kept(batch)) if not item.any()]
    if hidden:
        yield (
            f"ignore_index={batch.option('ignore_index')} excludes every voxel of {items(hidden)}, so nothing is "
            "learned from it. Check which label is to be ignored, or sample patches that hold other labels."
        )


def _absent_classes(batch: Batch) -> Iterator[str]:
    """Report classes without a voxel in the target; up to smoothing, their overlap is 0 / 0."""
    if "smooth_nr" not in batch.twin.options:
        return
    kept, pooled = _kept(batch), bool(batch.option("batch"))
    present = {b: _present_classes(batch, b, kept[b]) for b in range(len(batch.target)) if kept[b].any()}
    if pooled and present:
        present = {0: [any(of_class) for of_class in zip(*present.values(), strict=True)]}
    pooling = ", or pool the items by batch=True" if "batch" in batch.twin.options and not pooled else ""
    exclusive = batch.labels or (batch.classes > 1 and any(takes == "softmax" for _, takes in _activations(batch)))
    empty = [b for b, row in present.items() if not any(row[int(exclusive) :])]
    if empty:
        what = "holds only background" if exclusive else "is empty, without a foreground voxel"
        yield (
            f"The target of {'the batch' if pooled else items(empty)} {what}: an overlap loss can only learn to "
            "predict nothing there, with a gradient that depends on smooth_nr and "
            f"smooth_dr.{_generalized_note(batch)} Such patches may be intended; if not, check how the target is made, "
            f"or sample patches with foreground{pooling}."
        )
    by_class: dict[tuple[int, ...], list[int]] = {}
    for b, row in present.items():
        absent = tuple(c for c in range(_first_class(batch), batch.classes) if not row[c])
        if absent and b not in empty:
            by_class.setdefault(absent, []).append(b)
    for absent, where in by_class.items():
        who = "The batch has" if pooled else f"{items(where).capitalize()} {'has' if len(where) == 1 else 'have'}"
        yield (
            f"{who} no voxel of class {', '.join(map(str, absent))}: any prediction of this class is false, and "
            "without one the loss of this class depends only on smooth_nr and smooth_dr. If this is not intended, "
            f"check the labels, or sample patches with this class{pooling}."
        )


def _first_class(batch: Batch) -> int:
    """Return the first class that counts."""
    return int(batch.option("include_background") is False and batch.classes > 1)


def _generalized_note(batch: Batch) -> str:
    if batch.option("w_type", "uniform") == "uniform" or (_first_class(batch) == 0 and batch.classes > 1):
        return ""
    return " Generalised Dice then is 1 - smooth_nr / smooth_dr, with a gradient of 0."


def _present_classes(batch: Batch, b: int, kept: Array) -> list[bool]:
    target = batch.target[b]
    if batch.labels:
        return [bool(((target == c) & kept).any()) for c in range(batch.classes)]
    return [bool(((channel != 0) & kept[0]).any()) for channel in target]


def _mask(batch: Batch) -> Iterator[str]:
    mask = batch.arrays.get("mask")
    if mask is None:
        return
    low, high = extremes(mask)
    if low < 0 or high > 1:
        yield (
            f"The mask ranges from {low:.4g} to {high:.4g}, but must lie in [0, 1]: divide it by its maximum, or "
            "compare it with a threshold, mask > 0."
        )
    hidden = [b for b, item in enumerate(mask) if not item.any()]
    if hidden:
        yield f"The mask of {items(hidden)} is 0 everywhere, so nothing is learned from it. Check how the mask is made."


def items(which: Sequence[int]) -> str:
    """Return the numbers of items as words for a sentence."""
    if len(which) == 1:
        return f"item {which[0]}"
    more = f" and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
    return f"items {', '.join(map(str, which[:SHOWN]))}{more}"
