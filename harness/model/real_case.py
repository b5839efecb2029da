"""A case on real images, before its arrays are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twinloss.harness.model.operand import Array


@dataclass(frozen=True)
class RealCase:
    """A case on real images: a function that returns its arguments, and its options."""

    name: str
    operands: Callable[[], Mapping[str, Array]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def having(self, name: str | None = None, **options: Any) -> RealCase:
        """Return a case with the same arguments and only these options."""
        return RealCase(name or self.name, self.operands, options)
