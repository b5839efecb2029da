"""An answer of one of the two versions of a loss."""

from __future__ import annotations

from dataclasses import dataclass

from twinloss.harness.model.operand import Array


@dataclass(frozen=True)
class Answer:
    """Value and gradient as the fast twin returned them; float16 and bfloat16 become float32."""

    value: Array
    gradient: Array
