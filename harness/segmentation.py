"""Options that segmentation losses share, with the values to test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from twinloss.harness.twin import Array, Case, Elementwise, PerCase, Sizes, Twin
from twinloss.reference.activation import softmax

# An activation whose values are in [0, 1], where the losses are defined. In contrast to that of tanh, 1 - tanh^2, its
# derivative loses no digits where it saturates, so a test of it tests the loss and not the activation.
BELL = Elementwise("1 / (1 + x * x)", "1 / (1 + x * x)", "-2 * x / (1 + x * x) ** 2")

if TYPE_CHECKING:
    from twinloss.harness.truth import Truth


def _last_class(sizes: Sizes) -> int:
    return sizes.classes - 1


def _outside(sizes: Sizes) -> int:
    return 255 if sizes.labels or sizes.classes == 1 else 0


def _per_class(sizes: Sizes) -> list[float]:
    return [0.25 * (k + 1) for k in range(sizes.taking_part)]


def _per_channel(sizes: Sizes) -> list[float]:
    return [0.25 * (k + 1) for k in range(sizes.classes)]


def _per_share(sizes: Sizes) -> list[float]:
    return [(k + 1) / 8 for k in range(sizes.taking_part)]


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
PER_CLASS = PerCase("one per class", _per_class)
PER_CHANNEL = PerCase("one per channel", _per_channel)
PER_SHARE = PerCase("one share per class", _per_share)
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
IGNORE = {"ignore_index": (None, LAST_CLASS, OUTSIDE)}
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
    return tuple(name for name in twin.operands[1:] if name == "mask" or dense)


def one_activation(options: Mapping[str, Any]) -> bool:
    """Return whether at most one activation is requested."""
    return bool(options["sigmoid"]) + bool(options["softmax"]) + (options["other_act"] is not None) <= 1


def ties_matter(options: Mapping[str, Any]) -> bool:
    """Return whether the loss contains |p - g|, which has a kink where the two are equal."""
    return bool(options.get("soft_label")) and not options.get("squared_pred")


def logits_in(options: Mapping[str, Any]) -> bool:
    """Return whether the input is logits, to which an exponential is applied."""
    return bool(options.get("sigmoid") or options.get("softmax"))


def one_activation_and_one_weight(options: Mapping[str, Any]) -> bool:
    """Return whether a compound loss has at most one activation, and at most one option for weights."""
    given = [options.get(name) is not None for name in ("weight", "ce_weight", "focal_weight")]
    return one_activation(options) and sum(given) <= 1


def dice_slope(truth: Truth) -> Array | None:
    """Return dL/dp of the Dice term if p is the softmax of the input, else None."""
    case = truth.case
    x = case.input.lifted(truth.real)
    if not case.options.get("softmax") or x.shape[1] == 1:
        return None
    other_terms = {name: 0.0 for name in ("lambda_ce", "lambda_focal") if name in truth.twin.options}
    return truth.gradient_of(case.having(softmax=None, **other_terms).with_values(input=softmax(x)))


def wasserstein_slope(truth: Truth) -> Array:
    """Return |dL/dp| of Wasserstein Dice as if its terms did not cancel: M[y, c] |dL/dW|.

    The loss is L = 1 - N / Z, where N and Z are sums over the distances W of all voxels.
    """
    case, given = truth.case, truth.twin.defaults() | dict(truth.case.options)
    x = case.input.lifted(truth.real)
    p = softmax(x).reshape(*x.shape[:2], -1)
    labels = case.operands["target"].values.reshape(len(x), -1)
    kept = labels != given["ignore_index"]
    y = np.where(kept, labels, 0).astype(np.intp)
    distances = np.asarray(given["dist_matrix"], truth.real)
    to_label = np.stack([(distances[:, c] / distances.max())[y] for c in range(x.shape[1])], 1)
    w, alpha = np.where(kept, (to_label * p).sum(1), 0), kept * (y > 0).astype(truth.real)
    by_gdl = given["weighting_mode"] == "GDL"
    if by_gdl:
        volumes = np.stack([(kept & (y == c)).sum(1) for c in range(x.shape[1])], 1)
        alpha = kept * np.take_along_axis(1 / (volumes + truth.real(1)), y, 1)
    overlap = 2 * (alpha * (1 - w)).sum(1, keepdims=True)
    n = overlap + given["smooth_nr"]
    z = given["smooth_dr"] + ((alpha * (2 - w)) if by_gdl else 2 * alpha * (1 - w) + w).sum(1, keepdims=True)
    slope_z = alpha if by_gdl else np.abs(1 - 2 * alpha)
    by_w = kept * (np.abs(n / z) * slope_z + 2 * alpha) / np.abs(z)
    upstream = np.abs(case.weights(truth.value.shape)).reshape(-1, 1) / (len(x) if given["reduction"] == "mean" else 1)
    return np.asarray((upstream * by_w)[:, np.newaxis] * to_label).reshape(x.shape)


def is_activated(options: Mapping[str, Any], classes: int) -> bool:
    """Return whether an activation is applied to the input; for one channel, softmax is none."""
    return bool(options.get("sigmoid") or options.get("other_act") or (options.get("softmax") and classes > 1))


def probabilities_if_not_activated(case: Case) -> bool:
    """Return whether an input without activation lies in [0, 1], up to tiny numbers; NaN passes."""
    x = case.input.values
    return is_activated(case.options, x.shape[1]) or not ((x < -1e-30) | (x > 1)).any()
