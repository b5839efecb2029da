"""The options of a loss, each with what it does to the formula."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from twinloss import fast
from twinloss.harness.model.operand import label
from twinloss.harness.site.docstrings import inline, section
from twinloss.harness.site.record import Record, table

SHORTEST = 4  # letters: one that only names a symbol says nothing beside the formula
_SEE = re.compile(r"see (\w+)\.?$")


@dataclass(frozen=True)
class Option:
    """A row: the name, the default, the other values that `twinloss verify` tries, and HTML of what it does."""

    name: str
    default: str
    tried: list[str]
    meaning: str
    effect: str


def options(record: Record) -> list[Option]:
    """Those of the fast loss in their order, then those that only the harness has."""
    signature = inspect.signature(record.loss)
    tried = record.twin.options
    names = list(dict.fromkeys([*signature.parameters, *tried]))
    effects = {**table("options"), **record.effects}
    made = []
    for name in names:
        values = [label(value) for value in tried.get(name, ())]
        default = _default(signature.parameters.get(name), values)
        shown = values[1:] if values[:1] == [default] else values
        told = meaning(record.loss, name)
        told = "" if len(told) < SHORTEST and name in effects else _capital(told)
        made.append(Option(name, default, shown, inline(told), inline(effects.get(name, ""))))
    return made


def _capital(text: str) -> str:
    """With a capital letter, unless it begins with a symbol."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text


def _default(parameter: inspect.Parameter | None, values: list[str]) -> str:
    if parameter is None:
        return values[0]
    return "required" if parameter.default is parameter.empty else label(parameter.default)


def meaning(loss: type[Any], name: str) -> str:
    """What the docstring says of an option; that of another loss where it says so, or that of a base class."""
    for cls in loss.__mro__:
        args = section(cls.__doc__ or "", "Args")
        text = dict(args.entries).get(name, "") if args else ""
        see = _SEE.match(text)
        if see:
            return meaning(getattr(fast, see[1]), name)
        if text:
            return text
    return ""
