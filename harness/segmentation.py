"""Options that segmentation losses share, and the values of them that are tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinloss.harness.twin import Case, Elementwise, PerCase, Sizes

# In [0, 1], where the losses are defined, and with a derivative that torch itself does not lose to cancellation where
# it saturates, as it does that of tanh, 1 - tanh^2: what is under test is the loss, not its caller's activation.
BELL = Elementwise("1 / (1 + x * x)", "1 / (1 + x * x)", "-2 * x / (1 + x * x) ** 2")


def _last_class(sizes: Sizes) -> int:
    return sizes.classes - 1


def _outside(sizes: Sizes) -> int:
    return 255 if sizes.labels or sizes.classes == 1 else 0


def _per_class(sizes: Sizes) -> list[float]:
    return [0.25 * (k + 1) for k in range(sizes.taking_part)]


LAST_CLASS = PerCase("the last class", _last_class)
OUTSIDE = PerCase("255", _outside)
PER_CLASS = PerCase("one per class", _per_class)

TARGET = {"include_background": (True, False), "to_onehot_y": (False, True)}
ACTIVATION = {"sigmoid": (False, True), "softmax": (False, True), "other_act": (None, BELL)}
SMOOTHING = {"smooth_nr": (1e-5, 0.0, 1.0), "smooth_dr": (1e-5, 0.0, 1.0)}
REDUCTION = {"reduction": ("mean", "sum", "none")}
BATCH = {"batch": (False, True)}
WEIGHT = {"weight": (None, 2.0, PER_CLASS)}
SOFT_LABEL = {"soft_label": (False, True)}
IGNORE = {"ignore_index": (None, LAST_CLASS, OUTSIDE)}


def one_activation(options: Mapping[str, Any]) -> bool:
    """Whether at most one activation is asked for."""
    return bool(options["sigmoid"]) + bool(options["softmax"]) + (options["other_act"] is not None) <= 1


def ties_matter(options: Mapping[str, Any]) -> bool:
    """Whether |p - g| stands in the loss, which has a kink where they are equal."""
    return bool(options.get("soft_label")) and not options.get("squared_pred")


def logits_in(options: Mapping[str, Any]) -> bool:
    """Whether the input is logits, of which exponentials are taken."""
    return bool(options.get("sigmoid") or options.get("softmax"))


def is_activated(options: Mapping[str, Any], classes: int) -> bool:
    """Whether the input is anything but the probabilities themselves; one channel knows no softmax."""
    return bool(options.get("sigmoid") or options.get("other_act") or (options.get("softmax") and classes > 1))


def probabilities_if_not_activated(case: Case) -> bool:
    """Whether an input that stands for p itself lies in [0, 1], give or take the smallest numbers; NaN passes."""
    x = case.input.values
    return is_activated(case.options, x.shape[1]) or not ((x < -1e-30) | (x > 1)).any()
