"""Cases of segmentation losses, as a Hypothesis strategy.

A case is drawn as a few names and numbers (shape, kinds of values, a seed), from which its arrays are made. So it
shrinks towards one voxel, default options, contiguous memory and simple numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from twinloss.harness.drawing import input_kinds
from twinloss.harness.drawing.draft import Draft, cotangent, differing, narrowed, needed, options, size, spatial_shape
from twinloss.harness.drawing.segmentation_options import has_labels, is_activated
from twinloss.harness.model.operand import Array, PerCase, Sizes, label
from twinloss.harness.model.twin import Case, Ground, Law, Twin

SMALL = (
    (1,), (2,), (3,), (), (5,), (7,), (1, 2), (3, 1), (2, 3), (5, 7), (1, 1, 2), (2, 3, 2), (3, 1, 5), (13,), (1, 1),
    (11, 13), (3, 5, 7),
)  # fmt: skip
# Larger than one tile of 1024 voxels and than one chunk of about 10^4. These are slow, so the hunt draws only a few.
LARGE = ((1031,), (37, 41), (11, 13, 17), (40009,))
# Hundreds of the blocks in which kernels sum, and more than one of the chunks that they divide among threads.
MANY = ((70_001,), (264, 266), (41, 41, 42))

# The kind of input that equals the target.
PERFECT = "perfect"


@st.composite
def segmentation(
    draw: st.DrawFn, twin: Twin, dtype: str, given: Mapping[str, Any], law: Law | None = None, large: bool = False
) -> Case:
    """Draw a case of a segmentation loss, with the options in `given` and those that a law needs."""
    if law is None and not given:
        law = draw(st.sampled_from((None, *twin.laws_for(dtype))))
    chosen = draw(options(twin, {**given, **needed(twin, law)}))
    draft = _draft(draw, twin, chosen, dtype, MANY if twin.ground.equal else LARGE if large else SMALL)
    y = _target(draft, twin.ground)
    kinds = narrowed(suitable(twin, draft.options, draft.sizes.classes), twin.ground.numbers)
    x = _input(draft, y, ["equal"] if twin.ground.equal else kinds)
    operands = {"input": x, "target": y}
    if "mask" in twin.operands:
        operands["mask"] = _mask(draft, x)
    operands["target"] = _ignore(draft, x, y)
    made = {name: draft.operand(name, operands[name], first=name == "input") for name in twin.operands}
    return Case(made, differing(twin, chosen, draft.options), cotangent(draft), draft.traits, law)


def _draft(
    draw: st.DrawFn, twin: Twin, chosen: Mapping[str, Any], dtype: str, shapes: tuple[tuple[int, ...], ...]
) -> Draft:
    batch, classes = size(draw, 1, 3, twin.ground.items), size(draw, twin.channels, 5, twin.ground.channels)
    spatial = spatial_shape(draw, twin, shapes)
    kept = classes if classes == 1 or chosen.get("include_background", True) else classes - 1
    sizes = Sizes(batch, classes, kept, has_labels(twin, chosen) and classes > 1, len(spatial))
    concrete = {k: v.make(sizes) if isinstance(v, PerCase) else v for k, v in chosen.items()}
    traits = {name: label(value) for name, value in chosen.items()}
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return Draft(draw, rng, dtype, sizes, spatial, concrete, traits, _takes_logits(twin, concrete, classes))


def _target(draft: Draft, ground: Ground) -> Array:
    sizes = draft.sizes
    shape = (sizes.batch, 1, *draft.spatial)
    # A single channel has the labels 0 and 1 of a binary problem.
    classes = max(sizes.classes, 2)
    # A lone voxel of a class has a term of its own, whose error no other term hides.
    kinds = narrowed(list(input_kinds.LABELS), ("one_voxel",) if ground.equal else None)
    labels = input_kinds.LABELS[draft.pick("labels", kinds)](draft.rng, shape, classes)
    if sizes.labels:
        return labels
    kind = draft.pick("target", narrowed(ground.targets or input_kinds.TARGETS, ("one_hot",) if ground.equal else None))
    if sizes.classes == 1 and kind in input_kinds.HARD:
        return labels
    return input_kinds.target(draft.rng, kind, labels, sizes.classes, draft.dtype)


def _input(draft: Draft, target: Array, kinds: Sequence[str]) -> Array:
    """Make an input of a drawn kind; the kind `perfect` agrees with the target as well as possible."""
    kind = draft.pick("input", kinds)
    if kind == PERFECT:
        channels = np.arange(draft.sizes.classes).reshape(-1, *[1] * len(draft.spatial))
        hit = target == channels if draft.sizes.labels else target > 0.5
        logits = draft.activated and draft.options.get("other_act") is None
        return np.where(hit, 20.0, -20.0) if logits else hit.astype(np.float64)
    make = (input_kinds.NUMBERS | input_kinds.EQUAL)[kind]
    return input_kinds.rounded(make(draft.rng, draft.shape, draft.dtype), draft.dtype)


def suitable(twin: Twin, options: Mapping[str, Any], classes: int) -> list[str]:
    """Return the kinds of numbers that lie in the domain of the options."""
    kinds = input_kinds.NUMBERS if _takes_logits(twin, options, classes) else input_kinds.WITHIN_UNIT
    # Without smooth_dr, underflow decides whether a class with tiny probabilities is 0/0.
    vanishing = input_kinds.VANISHING if options.get("smooth_dr") == 0 else ()
    undecided = () if twin.infinite else ("infinite",)
    return [*(kind for kind in kinds if kind not in (*vanishing, *undecided)), PERFECT]


def _takes_logits(twin: Twin, options: Mapping[str, Any], classes: int) -> bool:
    """Return whether an activation is applied to the input; without an option for it, the loss takes logits."""
    return "softmax" not in twin.options or is_activated(options, classes)


def _mask(draft: Draft, x: Array) -> Array:
    items = draft.draw(st.sampled_from((draft.sizes.batch, 1)))
    kind = draft.pick("mask", input_kinds.MASKS)
    mask = input_kinds.mask(draft.rng, kind, (items, 1, *draft.spatial))
    _poison(draft, x, np.broadcast_to(mask == 0, (draft.sizes.batch, 1, *draft.spatial)), "masked")
    return mask


def _ignore(draft: Draft, x: Array, target: Array) -> Array:
    """Give some voxels the label to ignore, or set the channel that says so, and return the target."""
    index = draft.options.get("ignore_index")
    if index is None:
        return target
    chosen = draft.rng.random((draft.sizes.batch, 1, *draft.spatial)) < 0.3
    if index == x.shape[1] and not draft.sizes.labels:
        target = np.concatenate([target, chosen.astype(target.dtype)], axis=1)
        ignored = chosen
    elif target.shape[1] == 1:
        target[chosen] = index
        ignored = target == index
    else:
        own = (np.arange(target.shape[1]) == index).reshape(-1, *[1] * len(draft.spatial))
        target[...] = np.where(chosen, own, target)
        ignored = target[:, index : index + 1] == 1
    _poison(draft, x, ignored, "ignored")
    return target


def _poison(draft: Draft, x: Array, voxels: Array, trait: str) -> None:
    """Put NaN into voxels that must not be read."""
    poisoned = draft.draw(st.booleans())
    draft.traits[f"{trait}_nan"] = str(poisoned)
    if poisoned:
        draft.poisoned = True
        x[np.broadcast_to(voxels, x.shape)] = np.nan
