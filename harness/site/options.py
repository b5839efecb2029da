"""The options of a loss, each with its effect on the formula."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from twinloss import fast
from twinloss.harness.model.operand import label
from twinloss.harness.site.docstrings import inline, section
from twinloss.harness.site.record import Record, table

SHORTEST = 4  # in characters: a shorter meaning only names a symbol, which the formula shows anyway
_SEE = re.compile(r"see (\w+)\.?$")


@dataclass(frozen=True)
class Option:
    """An option: its name, its default, the other values that `twinloss verify` tries, and its effect as HTML."""

    name: str
    default: str
    tried: list[str]
    meaning: str
    effect: str


def options(record: Record) -> list[Option]:
    """Return the options of the fast loss in their order, followed by those that only the harness has."""
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
    """Capitalise the text, unless it begins with a symbol."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text


def _default(parameter: inspect.Parameter | None, values: list[str]) -> str:
    if parameter is None:
        return values[0]
    return "required" if parameter.default is parameter.empty else label(parameter.default)


def meaning(loss: type[Any], name: str) -> str:
    """Return the documentation of an option, which may come from a base class or from a loss that it refers to."""
    for cls in loss.__mro__:
        args = section(cls.__doc__ or "", "Args")
        text = dict(args.entries).get(name, "") if args else ""
        see = _SEE.match(text)
        if see:
            return meaning(getattr(fast, see[1]), name)
        if text:
            return text
    return ""
