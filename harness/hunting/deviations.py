"""Known and accepted deviations: an xfails file in TOML.

Each entry describes the failures that it accepts; a field that is left out accepts anything:

    [[xfail]]
    reason = "our clamp is part of the loss"    # required
    kind = "value"                              # value, gradient, law, differences, error
    dtype = "float32"
    message = "some of the words of the message"
    when = {softmax = "True", input = "saturated"}   # options, and kinds of input, as the report shows them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from twinloss.harness.judging.trial import Trial
from twinloss.harness.model.operand import label
from twinloss.harness.model.twin import Twin
from twinloss.harness.system.toml import tomllib


class DeviationsError(ValueError):
    """An xfails file cannot be read, or has an invalid entry."""


@dataclass(frozen=True)
class Deviation:
    """One entry of the file; see the module's docstring."""

    reason: str
    kind: str | None = None
    dtype: str | None = None
    message: str = ""
    when: Mapping[str, str] = field(default_factory=dict)

    def met_by(self, twin: Twin, trial: Trial) -> bool:
        """Return whether a failure matches this entry."""
        known = traits(twin, trial)
        return (
            self.kind in (None, trial.kind)
            and self.dtype in (None, trial.case.dtype)
            and self.message in trial.message
            and all(known.get(name) == text for name, text in self.when.items())
        )


def traits(twin: Twin, trial: Trial) -> dict[str, str]:
    """Return how a case was made; options have their values after shrinking."""
    case = trial.case
    options = {
        name: case.traits.get(name, label(case.options[name])) if name in case.options else label(values[0])
        for name, values in twin.options.items()
    }
    return {**case.traits, **options}


def read(path: Path) -> tuple[Deviation, ...]:
    """Read the entries of a file.

    Raises:
        DeviationsError: if the file cannot be read, or an entry has no reason or an unknown field.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("xfail", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DeviationsError(f"cannot read {path}: {error}") from error
    return tuple(_deviation(path, n, entry) for n, entry in enumerate(entries, 1))


def _deviation(path: Path, n: int, entry: Any) -> Deviation:
    names = {each.name for each in fields(Deviation)}
    if not isinstance(entry, dict) or not entry.get("reason") or not set(entry) <= names:
        raise DeviationsError(f"entry {n} of {path}: a reason is required; fields are {', '.join(sorted(names))}")
    when = entry.get("when", {})
    if not isinstance(when, dict) or not all(isinstance(text, str) for text in when.values()):
        raise DeviationsError(f'entry {n} of {path}: when = {{option = "value", …}}, every value a string')
    return Deviation(**entry)


def entry(twin: Twin, trial: Trial) -> str:
    """Return the text of an entry that matches a failure, to be copied into a file."""
    known = traits(twin, trial)
    shown = [name for name in trial.case.options if len(twin.options[name]) > 1] or ["input"]
    when = ", ".join(f"{name} = {_quoted(known[name])}" for name in shown if name in known)
    kind, dtype = trial.kind, trial.case.dtype
    return f'[[xfail]]\nreason = "…"\nkind = "{kind}"\ndtype = "{dtype}"\nwhen = {{{when}}}\n'


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
