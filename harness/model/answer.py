"""The answer of one of the two versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twinloss.harness.model.operand import Array


@dataclass(frozen=True)
class Answer:
    """Value and gradient of either twin; float16 and bfloat16 results of the fast twin become float32.

    A pair may have several outputs, and gradients with respect to several inputs. Its `value` and `gradient` hold all
    their numbers in a row.
    """

    value: Array
    gradient: Array
    outputs: tuple[Array, ...] = ()
    gradients: Mapping[str, Array] = field(default_factory=dict)

    @property
    def all_outputs(self) -> tuple[Array, ...]:
        """All outputs; those of our losses are the value."""
        return self.outputs or (self.value,)

    @property
    def all_gradients(self) -> tuple[Array, ...]:
        """The gradients with respect to all inputs under test."""
        return tuple(self.gradients.values()) or (self.gradient,)
