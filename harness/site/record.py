"""What is written by hand about a loss: `content/<name>.toml`; all else on its page is drawn from the code.

A file has:

* `title`, and `line`: what the loss is, in a sentence;
* `symbols`: pairs of LaTeX and what it stands for;
* `use`: five lines, `{ good, text, source }`, where `source` is a key of `sources.toml`, and one that has none follows
  from the formula;
* `[beside]`: a piece of the reference's code, and the LaTeX of the equation that this line implements;
* `[effects]`: what an option does to the formula; those of `options.toml` need not be repeated;
* `figures`, and `curves` that the figure "overlap" shows first: see `static/`;
* `formula_of`: further functions of the reference whose formula this one builds on;
* `reference` and `fast`, where the twin of the catalogue wraps the functions that people call.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from twinloss import fast, reference
from twinloss.harness.model.twin import Twin

CONTENT = Path(__file__).parent / "content"


class ContentError(ValueError):
    """Something that is written by hand is missing, or does not fit the code."""


@dataclass(frozen=True)
class Use:
    """When a loss is the right one, or not, and who says so."""

    good: bool
    text: str
    source: str = ""


@dataclass(frozen=True)
class Record:
    """What is known of a loss: its twin, and what is written by hand."""

    twin: Twin
    title: str
    line: str
    symbols: list[tuple[str, str]]
    use: list[Use]
    figures: list[str]
    beside: Mapping[str, str]
    effects: Mapping[str, str] = field(default_factory=dict)
    curves: list[str] = field(default_factory=list)
    formula_of: list[str] = field(default_factory=list)
    reference: str = ""
    fast: str = ""

    @property
    def name(self) -> str:
        """How commands call it."""
        return self.twin.name

    @property
    def value(self) -> Callable[..., Any]:
        """The reference."""
        return getattr(reference, self.reference) if self.reference else self.twin.value

    @property
    def gradient(self) -> Callable[..., Any]:
        """Its gradient in closed form."""
        return getattr(reference, f"{self.reference}_gradient") if self.reference else self.twin.gradient

    @property
    def module(self) -> ModuleType:
        """Where the reference stands."""
        found = inspect.getmodule(self.value)
        assert found is not None
        return found

    @property
    def loss(self) -> type[Any]:
        """The fast loss, as people call it."""
        made: type[Any] = getattr(fast, self.fast) if self.fast else self.twin.fast
        return made


@cache
def table(name: str) -> dict[str, Any]:
    """A file of `content/`.

    Raises:
        ContentError: if it is not there, or is no TOML.
    """
    path = CONTENT / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ContentError(
            f"no page can be made of '{name}': {path} is missing; write it after the model of its neighbours, as "
            "twinloss/harness/site/record.py says"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ContentError(f"{path} is no TOML: {error}") from error


def record(twin: Twin) -> Record:
    """What is known of a twin.

    Raises:
        ContentError: if its file is missing, or lacks or has too much of something.
    """
    found = dict(table(twin.name))
    try:
        found["use"] = [Use(**each) for each in found["use"]]
        found["symbols"] = [(symbol, meaning) for symbol, meaning in found["symbols"]]
        made = Record(twin=twin, **found)
    except (KeyError, TypeError, ValueError) as error:
        raise ContentError(f"content/{twin.name}.toml does not fit harness/site/record.py: {error}") from error
    unknown = {each.source for each in made.use} - {"", *table("sources")}
    if unknown:
        raise ContentError(f"content/{twin.name}.toml cites what sources.toml does not have: {', '.join(unknown)}")
    return made
