"""Arguments of commands that come as text: `name=value`, and values that are Python literals."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any


class ArgumentError(ValueError):
    """A text that is not `name=value`."""


def pairs(given: Iterable[str] | None, option: str) -> dict[str, str]:
    """Parse texts of the form name=value.

    Raises:
        ArgumentError: if a text has no name or no equals sign; the message names the option.
    """
    made = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ArgumentError(f"{option} takes name=value, got {text!r}")
        made[name.strip()] = value.strip()
    return made


def value(text: str) -> Any:
    """Parse a Python literal; other text is returned as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
