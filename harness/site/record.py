"""The hand-written content about a loss, in `content/<name>.toml`. The rest of its page is generated from the code.

A file contains:

* `title`, and `line`, which describes the loss in a sentence;
* `symbols`: pairs of a LaTeX symbol and its meaning;
* `use`: five items `{ good, text, source }`. `source` is a key of `sources.toml`; an item without one follows from the
  formula;
* `[beside]`: maps a piece of the reference's code to the LaTeX of the equation that its line implements;
* `[effects]`: the effect of an option on the formula, unless `options.toml` describes it already;
* `figures`, and the `curves` that the figure "overlap" shows at first, see `static/`;
* `formula_of`: further functions of the reference whose formula this loss builds on;
* `reference` and `fast`, if the twin of the catalogue wraps the public functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from twinloss import fast, reference
from twinloss.harness.model.twin import Twin
from twinloss.harness.system.toml import tomllib

CONTENT = Path(__file__).parent / "content"


class ContentError(ValueError):
    """Hand-written content is missing or does not fit the code."""


@dataclass(frozen=True)
class Use:
    """A reason to use a loss, or not to use it, and the source of this advice."""

    good: bool
    text: str
    source: str = ""


@dataclass(frozen=True)
class Record:
    """A loss: its twin, and its hand-written content."""

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
        """The name of the loss on the command line."""
        return self.twin.name

    @property
    def value(self) -> Callable[..., Any]:
        """The public function of the reference."""
        return getattr(reference, self.reference) if self.reference else self.twin.value

    @property
    def gradient(self) -> Callable[..., Any]:
        """The function of its gradient in closed form."""
        found: Callable[..., Any] = self.twin.gradient
        return getattr(reference, f"{self.reference}_gradient") if self.reference else found

    @property
    def module(self) -> ModuleType:
        """The module that contains the reference."""
        found = inspect.getmodule(self.value)
        assert found is not None
        return found

    @property
    def loss(self) -> type[Any]:
        """The public class of the fast loss."""
        made: type[Any] = getattr(fast, self.fast) if self.fast else self.twin.fast
        return made


@cache
def table(name: str) -> dict[str, Any]:
    """Load a file of `content/`.

    Raises:
        ContentError: if it does not exist or is not valid TOML.
    """
    path = CONTENT / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ContentError(
            f"cannot build the page of '{name}': {path} is missing; write it like its neighbours, as described in "
            "twinloss/harness/site/record.py"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ContentError(f"{path} is not valid TOML: {error}") from error


def record(twin: Twin) -> Record:
    """Return the record of a twin.

    Raises:
        ContentError: if its file is missing, incomplete, or has unknown keys.
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
        raise ContentError(f"content/{twin.name}.toml cites sources missing in sources.toml: {', '.join(unknown)}")
    return made
