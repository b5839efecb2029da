"""The harness: it hunts for an input on which a fast loss differs from its reference.

`check` does this for a user's own loss.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinloss.harness.checking import Check, check

__all__ = ["Check", "check"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that the command's help does not wait for torch."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("twinloss.harness.checking"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
