"""A case that is being drawn, and the draws that cases of all losses share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from twinloss.harness.drawing import input_kinds
from twinloss.harness.model.operand import LAYOUTS, Array, Operand, Sizes
from twinloss.harness.model.twin import Law, Twin

TARGET_TYPES = (
    "float32", "uint8", "int64", "bool", "float64", "int32", "int16", "int8", "float16", "bfloat16",
)  # fmt: skip


@dataclass
class Draft:
    """A case that is being drawn."""

    draw: st.DrawFn
    rng: np.random.Generator
    dtype: str
    sizes: Sizes
    spatial: tuple[int, ...]
    options: dict[str, Any]
    traits: dict[str, str]
    activated: bool
    poisoned: bool = False

    def pick(self, trait: str, kinds: Any) -> str:
        """Draw one of the names in `kinds`, and record it as a trait."""
        name: str = self.draw(st.sampled_from(list(kinds)))
        self.traits[trait] = name
        return name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the input."""
        return (self.sizes.batch, self.sizes.classes, *self.spatial)

    def operand(self, name: str, numbers: Array, first: bool) -> Operand:
        """Make an argument in a drawn layout; all but the first also have a drawn dtype that fits their numbers."""
        layout = self.pick(f"{name}_layout", LAYOUTS)
        rank = {"channels_last": 2, "channels_last_3d": 3}.get(layout, len(self.spatial))
        # Copying one item to the others could move NaN from excluded voxels to voxels that count.
        if rank != len(self.spatial) or (layout == "expanded" and self.poisoned):
            layout = self.traits[f"{name}_layout"] = "contiguous"
        if layout == "expanded":
            numbers = np.broadcast_to(numbers[:1], numbers.shape).copy()
        if first:
            return Operand(numbers, self.dtype, layout)
        types = input_kinds.fitting(numbers, TARGET_TYPES, self.dtype)
        return Operand(numbers, self.pick(f"{name}_type", types), layout)


def needed(twin: Twin, law: Law | None) -> dict[str, Any]:
    """Return the options that a law needs, as far as the loss has them."""
    return {name: value for name, value in law.needs.items() if name in twin.options} if law else {}


def differing(twin: Twin, chosen: Mapping[str, Any], concrete: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options to pass: all that differ from the defaults, and those that are required."""
    return {k: concrete[k] for k, v in chosen.items() if v is not twin.options[k][0] or k in twin.required}


def cotangent(draft: Draft) -> tuple[float, ...] | None:
    """Draw an upstream gradient: None, or some weights."""
    return tuple(draft.rng.integers(-8, 9, 7) / 4) if draft.draw(st.booleans()) else None


def size(draw: st.DrawFn, low: int, high: int, wanted: tuple[int, ...] | None) -> int:
    """Draw a size between `low` and `high`, or one of the wanted sizes."""
    return draw(st.sampled_from(wanted) if wanted else st.integers(low, high))


def spatial_shape(draw: st.DrawFn, twin: Twin, shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Draw a shape with a rank of the loss and, if its ground requires one, with an axis of size 1."""
    fitting = [shape for shape in shapes if len(shape) in twin.ranks]
    unit = twin.ground.unit_axis
    narrower = [shape for shape in fitting if unit is None or (1 in shape) == unit]
    return draw(st.sampled_from(narrower or fitting))


def narrowed(kinds: Sequence[str], wanted: tuple[str, ...] | None) -> Sequence[str]:
    """Return the wanted kinds, or all kinds if none of them is wanted."""
    return [kind for kind in kinds if wanted is None or kind in wanted] or kinds


@st.composite
def options(draw: st.DrawFn, twin: Twin, given: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a value for each option; options that are given are kept."""
    chosen = twin.defaults() | dict(given)
    for name, tried in twin.options.items():
        if name not in given:
            fitting = [value for value in tried if twin.allowed(chosen | {name: value})]
            chosen[name] = draw(st.sampled_from(fitting or [tried[0]]))
    return chosen
