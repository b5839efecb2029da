"""Cases of registration losses, as Hypothesis strategies: a pair of images, or a displacement field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from twinloss.harness.drawing import input_kinds
from twinloss.harness.drawing.draft import (
    Draft,
    cotangent,
    differing,
    narrowed,
    needed,
    options,
    size,
    spatial_shape,
)
from twinloss.harness.model.operand import Array, PerCase, Sizes, label
from twinloss.harness.model.twin import Case, Ground, Law, Twin

SMALL = (
    (1,), (2,), (3,), (5,), (7,), (1, 2), (3, 1), (2, 3), (5, 7), (1, 1, 2), (2, 3, 2), (3, 1, 5), (13,), (1, 1),
    (3, 5, 7),
)  # fmt: skip
LARGE = ((1031,), (37, 41), (11, 13, 17))
# More than a hundred of the blocks in which kernels sum.
MANY = ((30_011,), (173, 174), (31, 31, 32))
# Shapes of fields, by the number of voxels that differences need along each axis.
FIELDS = {
    2: ((2,), (3,), (4,), (7,), (2, 2), (2, 5), (3, 4), (5, 7), (2, 2, 2), (2, 3, 4), (5, 4, 3), (13,)),
    3: ((3,), (4,), (5,), (7,), (3, 3), (3, 5), (5, 7), (3, 3, 3), (3, 4, 5), (5, 7, 6), (13,)),
    5: ((5,), (6,), (7,), (5, 5), (6, 7), (5, 5, 5), (7, 6, 5), (13,)),
}

# The number of voxels that first and second differences need, by stencil.
FIRST, SECOND = {"compact": 2, "wide": 3}, {"compact": 3, "wide": 5}

# The largest number of voxels of an image if the loss returns a value for each.
FEW = 35

# The relation of the second image to the first.
RELATIONS = ("another", "affine", "equal")


@st.composite
def image_pair(
    draw: st.DrawFn, twin: Twin, dtype: str, given: Mapping[str, Any], law: Law | None = None, large: bool = False
) -> Case:
    """Draw a case of a loss of two images, with the options in `given` and those that a law needs."""
    shapes = MANY if twin.ground.equal else LARGE if large else SMALL
    draft, chosen, law = _draft(draw, twin, dtype, given, law, shapes)
    first = _numbers(draft, "input", twin.ground)
    relation = draft.pick("relation", RELATIONS)
    second = _numbers(draft, "target", Ground(equal=twin.ground.equal)) if relation == "another" else first.copy()
    if relation == "affine":
        second = input_kinds.rounded(second / 2 + 0.25, dtype)
    made = {
        name: draft.operand(name, numbers, first=numbers is first)
        for name, numbers in zip(twin.operands, (first, second), strict=True)
    }
    return Case(made, differing(twin, chosen, draft.options), cotangent(draft), draft.traits, law)


@st.composite
def displacements(
    draw: st.DrawFn,
    twin: Twin,
    dtype: str,
    given: Mapping[str, Any],
    law: Law | None = None,
    large: bool = False,
    least: Mapping[str, int] = SECOND,
) -> Case:
    """Draw a case of a loss of a displacement field; `least` is the minimum size of an axis, by stencil."""
    shapes = MANY if twin.ground.equal else LARGE if large else ()
    draft, chosen, law = _draft(draw, twin, dtype, given, law, shapes, least)
    made = {name: draft.operand(name, _numbers(draft, "input", twin.ground), first=True) for name in twin.operands}
    return Case(made, differing(twin, chosen, draft.options), cotangent(draft), draft.traits, law)


def _draft(
    draw: st.DrawFn,
    twin: Twin,
    dtype: str,
    given: Mapping[str, Any],
    law: Law | None,
    shapes: tuple[tuple[int, ...], ...],
    least: Mapping[str, int] = SECOND,
) -> tuple[Draft, dict[str, Any], Law | None]:
    if law is None and not given:
        law = draw(st.sampled_from((None, *twin.laws_for(dtype))))
    chosen = draw(options(twin, {**given, **needed(twin, law)}))
    shapes = shapes or FIELDS[least[chosen.get("stencil", "compact")]]
    most = 1 if twin.ground.equal else 3
    if chosen["reduction"] == "none" and "target" in twin.operands:
        # The judge may need the conditioning of each value, which takes a gradient for each.
        shapes, most = tuple(shape for shape in SMALL if math.prod(shape) <= FEW), 2
    spatial = spatial_shape(draw, twin, shapes)
    # A field that is normalised by its extents has one component for each axis.
    channels = len(spatial) if chosen.get("normalize") else size(draw, 1, most, twin.ground.channels)
    sizes = Sizes(size(draw, 1, most, twin.ground.items), channels, channels, False, len(spatial))
    concrete = {k: v.make(sizes) if isinstance(v, PerCase) else v for k, v in chosen.items()}
    traits = {name: label(value) for name, value in chosen.items()}
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return Draft(draw, rng, dtype, sizes, spatial, concrete, traits, activated=False), chosen, law


def suitable(options: Mapping[str, Any]) -> Sequence[str]:
    """Return the kinds of numbers that lie in the domain of the options."""
    # Without smooth_dr, the rounding of its mean decides whether a flat window is 0/0.
    return ("normal",) if options.get("smooth_dr") == 0 else tuple(input_kinds.IMAGES)


def _numbers(draft: Draft, trait: str, ground: Ground) -> Array:
    """Make the numbers of an image or a field; `ground` restricts their kind."""
    kinds = suitable(draft.options)
    if ground.equal and "constant" in kinds:
        kinds = tuple(input_kinds.EQUAL)
    make = (input_kinds.IMAGES | input_kinds.EQUAL)[draft.pick(trait, narrowed(kinds, ground.numbers))]
    return input_kinds.rounded(make(draft.rng, draft.shape, draft.dtype), draft.dtype)
