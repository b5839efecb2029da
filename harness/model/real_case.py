"""A case on real images, before its arrays are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twinloss.harness.model.operand import Array


@dataclass(frozen=True)
class RealCase:
    """A case on real images: where its arguments come from, and its options."""

    name: str
    operands: Callable[[], Mapping[str, Array]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def having(self, name: str | None = None, **options: Any) -> RealCase:
        """The same arguments with just these options."""
        return RealCase(name or self.name, self.operands, options)
