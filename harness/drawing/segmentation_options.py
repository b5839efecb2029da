"""Options that segmentation losses share, with the values to test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from twinloss.harness.model.operand import Array, Elementwise, PerCase, Sizes
from twinloss.harness.model.twin import Case, Twin

# An activation whose values are in [0, 1], where the losses are defined. Unlike the derivative of tanh, 1 - tanh^2, its
# derivative has no cancellation where it saturates, so that errors come from the loss and not from the activation.
BELL = Elementwise("1 / (1 + x * x)", "1 / (1 + x * x)", "-2 * x / (1 + x * x) ** 2")


def _last_class(sizes: Sizes) -> int:
    return sizes.classes - 1


def _outside(sizes: Sizes) -> int:
    return 255 if sizes.labels or sizes.classes == 1 else 0


def _further(sizes: Sizes) -> int:
    return 255 if sizes.labels else sizes.classes


def _per_class(sizes: Sizes) -> list[float]:
    return [0.25 * (k + 1) for k in range(sizes.taking_part)]


def _per_channel(sizes: Sizes) -> list[float]:
    return [0.25 * (k + 1) for k in range(sizes.classes)]


def _per_share(sizes: Sizes) -> list[float]:
    return [(k + 1) / 8 for k in range(sizes.taking_part)]


def _exponents(sizes: Sizes) -> list[float]:
    return [0.5 * (k % 4 + 1) for k in range(sizes.taking_part)]


def _distances(sizes: Sizes, distance: Callable[[int, int], float]) -> list[list[float]]:
    classes = range(sizes.classes)
    return [[distance(i, j) if i != j else 0.0 for j in classes] for i in classes]


def _equal_distances(sizes: Sizes) -> list[list[float]]:
    return _distances(sizes, lambda i, j: 1.0)


def _tree(sizes: Sizes) -> list[list[float]]:
    return _distances(sizes, lambda i, j: 4.0 if 0 in (i, j) else 1.0 + (i + j) % 3)


def _ordered(sizes: Sizes) -> list[list[float]]:
    return _distances(sizes, lambda i, j: float(abs(i - j)))


LAST_CLASS = PerCase("the last class", _last_class)
OUTSIDE = PerCase("255", _outside)
FURTHER = PerCase("a further channel", _further)
PER_CLASS = PerCase("one per class", _per_class)
PER_CHANNEL = PerCase("one per channel", _per_channel)
PER_SHARE = PerCase("one share per class", _per_share)
EXPONENTS = PerCase("one exponent per class", _exponents)
EQUAL_DISTANCES = PerCase("all 1", _equal_distances)
TREE = PerCase("1 to the background, less between others", _tree)
ORDERED = PerCase("|i - j|", _ordered)

TARGET = {"include_background": (True, False), "to_onehot_y": (False, True)}
ACTIVATION = {"sigmoid": (False, True), "softmax": (False, True), "other_act": (None, BELL)}
SMOOTHING = {"smooth_nr": (1e-5, 0.0, 1.0), "smooth_dr": (1e-5, 0.0, 1.0)}
REDUCTION = {"reduction": ("mean", "sum", "none")}
BATCH = {"batch": (False, True)}
WEIGHT = {"weight": (None, 2.0, PER_CLASS)}
SOFT_LABEL = {"soft_label": (False, True)}
IGNORE_LABEL = {"ignore_index": (None, LAST_CLASS, OUTSIDE)}
IGNORE = {"ignore_index": (None, LAST_CLASS, OUTSIDE, FURTHER)}
FOCAL: dict[str, tuple[Any, ...]] = {
    "gamma": (2.0, 0.0, 0.5, 1.0, 3.5),
    "use_softmax": (True, False),
    "alpha": (None, 0.25, PER_SHARE),
}
LAMBDAS = (1.0, 0.5, 0.0)


def has_labels(twin: Twin, options: Mapping[str, Any]) -> bool:
    """Return whether the target holds labels: as `to_onehot_y` says, or always if the loss has no such option."""
    return bool(options.get("to_onehot_y", "to_onehot_y" not in twin.options))


def slopes_of_arguments(twin: Twin, case: Case) -> tuple[str, ...]:
    """Return the further arguments that have a gradient: a target that holds no labels, and a mask."""
    dense = case.input.values.shape[1] == 1 or not has_labels(twin, case.options)
    smooth = dense and not _weights_jump(twin, case)
    return tuple(name for name in twin.operands[1:] if name == "mask" or smooth)


def _weights_jump(twin: Twin, case: Case) -> bool:
    """Return whether the weight of a class jumps if the target moves.

    In generalised Dice, it is a power of the inverse volume, but that of another class where the volume is 0. The fast
    twin gives the slope for constant weights there.
    """
    options = {**twin.defaults(), **case.options}
    if options.get("w_type", "uniform") == "uniform":
        return False
    target, index = case.operands["target"].values, options.get("ignore_index")
    kept = target if index is None else np.where(is_ignored(target, index), 0, target)
    volumes = kept.reshape(*kept.shape[:2], -1).sum(-1)
    return bool(((volumes.sum(0) if options["batch"] else volumes) == 0).any())


def is_ignored(target: Array, index: int) -> Array:
    """Return the voxels that `ignore_index` excludes, (B, 1, *S): by a label, or by a channel of a dense target."""
    return np.asarray(target == index if target.shape[1] == 1 else target[:, index : index + 1] == 1)


def one_activation(options: Mapping[str, Any]) -> bool:
    """Return whether at most one activation is requested."""
    return bool(options["sigmoid"]) + bool(options["softmax"]) + (options["other_act"] is not None) <= 1


def ties_matter(options: Mapping[str, Any]) -> bool:
    """Return whether the loss contains |p - g|, which has a kink where the two are equal."""
    return bool(options.get("soft_label")) and not options.get("squared_pred")


def power_has_kinks(options: Mapping[str, Any]) -> bool:
    """Return whether a power of the loss has a kink: at ties, at a loss of 0 for a small exponent, or by a clamp."""
    gamma = options.get("gamma", 0.75)
    smallest = min(gamma) if isinstance(gamma, list) else gamma
    clamped = options.get("smooth_nr", 1e-5) > options.get("smooth_dr", 1e-5)
    return ties_matter(options) or smallest < 2 or clamped


def logits_in(options: Mapping[str, Any]) -> bool:
    """Return whether the input is logits, to which an exponential is applied."""
    return bool(options.get("sigmoid") or options.get("softmax"))


def one_activation_and_one_weight(options: Mapping[str, Any]) -> bool:
    """Return whether a compound loss has at most one activation and one option for weights, and no contradiction."""
    given = [options.get(name) is not None for name in ("weight", "ce_weight", "focal_weight")]
    regions = not options.get("multilabel") or options["sigmoid"] or options["other_act"] is not None
    return bool(one_activation(options) and sum(given) <= 1 and regions)


def is_activated(options: Mapping[str, Any], classes: int) -> bool:
    """Return whether an activation is applied to the input; for one channel, softmax is none."""
    return bool(options.get("sigmoid") or options.get("other_act") or (options.get("softmax") and classes > 1))


def probabilities_if_not_activated(case: Case) -> bool:
    """Return whether an input without activation lies in [0, 1], up to tiny numbers; NaN passes."""
    x = case.input.values
    return is_activated(case.options, x.shape[1]) or not ((x < -1e-30) | (x > 1)).any()
