"""The answer of one of the two versions of a loss."""

from __future__ import annotations

from dataclasses import dataclass

from twinloss.harness.model.operand import Array


@dataclass(frozen=True)
class Answer:
    """Value and gradient of either twin; float16 and bfloat16 results of the fast twin become float32."""

    value: Array
    gradient: Array
