"""Conventions that papers leave open: traits of a case on which a loss may differ from ours and still be right.

If a failure disappears once such a trait is removed from the case, it is due to a convention, not to the formula.
`check` reports it separately, and the hunt goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from twinloss.harness.drawing.input_kinds import HARD, rounded
from twinloss.harness.drawing.segmentation_options import has_labels, is_activated
from twinloss.harness.judging.trial import Examine, Trial, examine
from twinloss.harness.model.operand import Array, Operand, PerCase, Sizes, label
from twinloss.harness.model.twin import Case, Twin

TOGETHER = " + "


@dataclass(frozen=True)
class Convention:
    """A convention that papers leave open.

    Attributes:
        name: the trait of the cases that the convention is about.
        ours: what our losses do with such cases.
        applies: whether a failed trial has the trait and the hunt may also draw cases without it. If the user asks for
            the trait, for example by `--rank 0`, such a failure is reported like any other.
        neutral: returns the case without the trait.
    """

    name: str
    ours: str
    applies: Callable[[Twin, Trial], bool]
    neutral: Callable[[Twin, Case], Case]


def _options(twin: Twin, case: Case) -> dict[str, Any]:
    return twin.defaults() | dict(case.options)


def _is_segmentation(twin: Twin) -> bool:
    return twin.operands[0] == "input"


def _free_channels(twin: Twin, wanted: int) -> bool:
    """Return whether the hunt draws cases with `wanted` channels as well as others."""
    return twin.ground.channels is None or (wanted in twin.ground.channels and len(twin.ground.channels) > 1)


def expects_classes(options: Mapping[str, Any]) -> bool:
    """Return whether the options ask for several classes."""
    several = options.get("softmax") or options.get("use_softmax") or options.get("to_onehot_y")
    return bool(several) or not options.get("include_background", True)


def _one_channel(twin: Twin, trial: Trial) -> bool:
    of_several = expects_classes(_options(twin, trial.case)) or "lambda_ce" in twin.options
    one = trial.case.input.values.shape[1] == 1
    return _is_segmentation(twin) and one and of_several and _free_channels(twin, 1)


def _with_second_channel(twin: Twin, case: Case) -> Case:
    """Return the case with two classes, the second one the complement of the first."""
    case = replace(case, law=None) if case.law and "ignore_index" in case.law.needs else case
    poisoned = case.options.get("ignore_index") is not None
    case = case.having(ignore_index=None)
    options, target = _options(twin, case), case.operands["target"]
    x = np.nan_to_num(case.input.values) if poisoned else case.input.values
    g = np.clip(target.values, 0, 1)
    logits = "softmax" not in twin.options or is_activated(options, 2)
    other = np.zeros_like(x) if logits else rounded(1 - x, case.dtype)
    labels = has_labels(twin, options)
    both = (g >= 0.5).astype(np.int64) if labels else np.concatenate([g, _complement(g, target.dtype)], 1)
    made = case.with_operand("input", Operand(np.concatenate([x, other], 1), case.dtype))
    made = made.with_operand("target", Operand(both, target.dtype))
    kept = 2 if options.get("include_background", True) else 1
    return replace(made, options=_options_for_sizes(twin, case, Sizes(len(x), 2, kept, labels, x.ndim - 2)))


def _complement(g: Array, dtype: str) -> Array:
    return 1 - g if g.dtype.kind in "iub" else rounded(1 - g, dtype)


def _options_for_sizes(twin: Twin, case: Case, sizes: Sizes) -> dict[str, Any]:
    """Return the options of a case; those that depend on its sizes are made again for the new sizes."""
    made = dict(case.options)
    for name in made:
        for tried in twin.options.get(name, ()):
            if isinstance(tried, PerCase) and label(tried) == case.traits.get(name):
                made[name] = tried.make(sizes)
    return made


def _no_axes(twin: Twin, trial: Trial) -> bool:
    return trial.case.input.values.ndim == 2 and any(twin.ranks)


def _with_an_axis(twin: Twin, case: Case) -> Case:
    return case.each(lambda numbers: numbers[..., np.newaxis])


def _of_exclusive_classes(twin: Twin, options: dict[str, Any]) -> bool:
    """Return whether the formula has terms that assume one class per voxel."""
    return bool(options.get("softmax") or options.get("use_softmax") or "lambda_ce" in twin.options)


def _soft_target(twin: Twin, trial: Trial) -> bool:
    options, ground = _options(twin, trial.case), twin.ground.targets
    asked_for = options.get("soft_label") or not (ground is None or set(ground) & set(HARD))
    labels = has_labels(twin, options) and trial.case.input.values.shape[1] > 1
    if not _is_segmentation(twin) or asked_for or labels:
        return False
    g = _counted_target(trial.case, options)
    exclusive = g.shape[1] == 1 or not _of_exclusive_classes(twin, options) or bool((g.sum(1) == 1).all())
    return not (np.isin(g, (0, 1)).all() and exclusive)


def _counted_target(case: Case, options: dict[str, Any]) -> Array:
    """Return the target; voxels of a one-channel target with the value ignore_index become 0."""
    g = case.operands["target"].values
    return np.where(g == options.get("ignore_index"), 0, g) if g.shape[1] == 1 else g


def _with_hard_target(twin: Twin, case: Case) -> Case:
    target, options = case.operands["target"], _options(twin, case)
    g = target.values
    if g.shape[1] == 1:
        hard = np.where(g == options.get("ignore_index"), g, g >= 0.5).astype(np.int64)
    else:
        hard = (g.argmax(1)[:, np.newaxis] == np.arange(g.shape[1]).reshape(-1, *[1] * (g.ndim - 2))).astype(np.int64)
    return case.with_operand("target", replace(target, values=hard, layout="contiguous"))


def _other_types(twin: Twin, trial: Trial) -> bool:
    """Return whether a trial failed by an error with mixed dtypes, or has another argument of a narrower float type."""
    if trial.kind == "error":
        plain = of_one_type(twin, trial.case).operands
        return any(o.dtype != plain[name].dtype for name, o in trial.case.operands.items())
    widths = [torch.finfo(t).bits for o in trial.case.operands.values() if (t := _type(o)).is_floating_point]
    return min(widths) < widths[0]


def _type(operand: Operand) -> torch.dtype:
    made: torch.dtype = getattr(torch, operand.dtype)
    return made


def of_one_type(twin: Twin, case: Case) -> Case:
    """Return the case with all arguments in the input's dtype, but labels in int64."""
    labels = _is_segmentation(twin) and has_labels(twin, _options(twin, case))
    for name, operand in case.operands.items():
        whole = bool((operand.values == np.round(operand.values)).all())
        dtype = "int64" if labels and whole and name == "target" else case.dtype
        case = case.with_operand(name, replace(operand, dtype=dtype))
    return case


def _components_are_not_axes(twin: Twin, trial: Trial) -> bool:
    x = trial.case.input.values
    return len(twin.operands) == 1 and x.shape[1] != x.ndim - 2 and twin.ground.channels is None


def _component_for_each_axis(twin: Twin, case: Case) -> Case:
    rank = case.input.values.ndim - 2
    return case.each(lambda u: u[:, np.arange(rank) % u.shape[1]])


def _image_of_channels(twin: Twin, trial: Trial) -> bool:
    pair = not _is_segmentation(twin) and len(twin.operands) == 2
    return pair and trial.case.input.values.shape[1] > 1 and twin.ground.channels is None


def _first_channel(twin: Twin, case: Case) -> Case:
    return case.each(lambda image: image[:, :1])


CONVENTIONS = (
    Convention(
        "a target of another dtype",
        "a target of any dtype is accepted, and the result has the dtype of the input",
        _other_types, of_one_type,
    ),
    Convention(
        "no spatial axes",
        "(B, C) is taken as (B, C, 1)",
        _no_axes, _with_an_axis,
    ),
    Convention(
        "one channel where classes are expected",
        "one channel is a binary problem: softmax, one-hot encoding and include_background are ignored",
        _one_channel, _with_second_channel,
    ),
    Convention(
        "a target other than 0 and 1 with one class per voxel",
        "the formula uses a soft target as it is",
        _soft_target, _with_hard_target,
    ),
    Convention(
        "a field without exactly one component per axis",
        "any number of components is accepted",
        _components_are_not_axes, _component_for_each_axis,
    ),
    Convention(
        "images of several channels",
        "each channel is compared with the same channel of the other image",
        _image_of_channels, _first_channel,
    ),
)  # fmt: skip


def convention(
    twin: Twin, failed: Trial, passes: Callable[[Trial], bool], again: Examine = examine
) -> tuple[str, Trial] | None:
    """Return the smallest set of conventions that explains a failure, and the passing trial; or None.

    A set explains a failure if the case passes without the traits of these conventions, when `again` examines it.

    The conventions are returned as one string of names, joined by `TOGETHER`.
    """
    silent = [each for each in CONVENTIONS if each.applies(twin, failed)]
    for count in range(1, len(silent) + 1):
        for chosen in combinations(silent, count):
            made = again(twin, _neutral(twin, failed.case, chosen))
            if passes(made):
                return TOGETHER.join(each.name for each in chosen), made
    return None


def ordinary(twin: Twin, failed: Trial, passes: Callable[[Trial], bool], again: Examine = examine) -> Trial:
    """Return the trial without all traits that papers leave open if it still fails, else the failed trial itself."""
    silent = [each for each in CONVENTIONS if each.applies(twin, failed)]
    made = again(twin, _neutral(twin, failed.case, silent)) if silent else failed
    return failed if passes(made) else made


def ours(name: str) -> str:
    """Return what our losses do; `name` is a string of conventions from `convention`."""
    return "; ".join(each.ours for each in CONVENTIONS if each.name in name.split(TOGETHER))


def told(names: Iterable[str]) -> list[str]:
    """Return the names that are not combinations of other names in the list."""
    known = set(names)
    return sorted(n for n in known if TOGETHER not in n or not set(n.split(TOGETHER)) <= known)


def _neutral(twin: Twin, case: Case, chosen: Iterable[Convention]) -> Case:
    for each in chosen:
        case = each.neutral(twin, case)
    return case
