"""The harness: it hunts for an input on which a fast loss differs from its reference.

`check` runs the hunt on a user's own loss, and `verify` on the losses of the catalogue. `find` returns the record of a
loss, a `Twin`. README.md in this folder says what each subpackage holds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinloss.harness.commands.check import Check, check, check_pair
    from twinloss.harness.commands.verify import Verification, verify
    from twinloss.harness.hunting.pairs import replay
    from twinloss.harness.judging import pair_laws as laws
    from twinloss.harness.losses.catalogue import catalogue, find
    from twinloss.harness.model.pair import Pair, PairError, arrays
    from twinloss.harness.model.twin import Case, Law, Twin

__all__ = [
    "Case", "Check", "Law", "Pair", "PairError", "Twin", "Verification", "arrays", "catalogue", "check", "check_pair",
    "find", "laws", "replay", "verify",
]  # fmt: skip

_MODULES = {
    "Case": "model.twin",
    "Check": "commands.check",
    "Law": "model.twin",
    "Pair": "model.pair",
    "PairError": "model.pair",
    "Twin": "model.twin",
    "Verification": "commands.verify",
    "arrays": "model.pair",
    "catalogue": "losses.catalogue",
    "check": "commands.check",
    "check_pair": "commands.check",
    "find": "losses.catalogue",
    "replay": "hunting.pairs",
    "verify": "commands.verify",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the help of the command does not wait for torch."""
    if name == "laws":
        return import_module(f"{__name__}.judging.pair_laws")
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
