"""The API reference: every public name of the four packages, from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from types import ModuleType
from typing import Any

from twinloss.harness.site.docstrings import html, plain, summary

WINGS = {
    "reference": "The losses as the papers define them, in NumPy, each with its gradient in closed form.",
    "fast": "The losses for training, in torch, with Numba kernels.",
    "compat": "The losses for training, with the arguments of MONAI 1.6 and of nnU-Net.",
    "harness": "The test harness, which searches for inputs on which the two differ.",
}
# Only `fast` calls the kernels, the losses of the zoo have deliberate bugs, and no program needs the code of the site.
LEFT_OUT = ("twinloss.fast.kernels", "twinloss.harness.zoo.", "twinloss.harness.site")


@dataclass(frozen=True)
class Entry:
    """A public name in the API reference."""

    name: str
    anchor: str
    kind: str
    signature: str
    summary: str
    html: str
    members: list[Entry] = field(default_factory=list)


@dataclass(frozen=True)
class Module:
    """A module and the names that it defines; `label` is the path to import them from."""

    label: str
    html: str
    entries: list[Entry]


def wing(name: str, link: Callable[[str], str | None]) -> list[Module]:
    """Return the exported names of a package, followed by those that only its modules define."""
    package = importlib.import_module(f"twinloss.{name}")
    exported = [(each, getattr(package, each)) for each in package.__all__]
    known = {id(thing) for _, thing in exported}
    first = [_entry(each, each, thing, link) for each, thing in exported]
    made = [Module(package.__name__, html(package, link), first)]
    for module in _modules(package):
        found = [(each, thing) for each, thing in _defined(module) if id(thing) not in known]
        if found:
            entries = [_entry(each, _anchor(module, each), thing, link) for each, thing in found]
            made.append(Module(module.__name__, html(module, link), entries))
    return made


def names() -> dict[str, str]:
    """Return the page and anchor of every public name; if several packages have a name, the first one wins."""
    made: dict[str, str] = {}
    for each in WINGS:
        package = importlib.import_module(f"twinloss.{each}")
        for name in package.__all__:
            made.setdefault(name, f"{each}.html#{name}")
        for module in _modules(package):
            for name, _ in _defined(module):
                made.setdefault(name, f"{each}.html#{_anchor(module, name)}")
    return made


def _anchor(module: ModuleType, name: str) -> str:
    """Return the anchor of a name that is not exported, which several modules may define."""
    return f"{module.__name__.split('.', 2)[2]}.{name}"


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.startswith(LEFT_OUT):
            yield importlib.import_module(found.name)


def _defined(module: ModuleType) -> list[tuple[str, Any]]:
    """Return the public classes and functions that a module defines, in the order of its code."""
    return [
        (name, thing)
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isroutine(thing))
        and getattr(thing, "__module__", None) == module.__name__
        and getattr(thing, "__name__", None) == name
    ]


def _entry(name: str, anchor: str, thing: Any, link: Callable[[str], str | None]) -> Entry:
    kind = "class" if inspect.isclass(thing) else "property" if isinstance(thing, property) else "function"
    if inspect.isclass(thing) and thing.__name__ != name:
        alias = f'<p>Alias of <a href="#{thing.__name__}"><code>{thing.__name__}</code></a>.</p>'
        return Entry(name, anchor, "alias", escape(name), f"alias of {thing.__name__}", alias)
    methods = _methods(thing) if inspect.isclass(thing) else []
    members = [_entry(each, f"{anchor}.{each}", part, link) for each, part in methods]
    return Entry(name, anchor, kind, _signature(name, thing), plain(summary(thing)), html(thing, link), members)


def _methods(cls: type[Any]) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class itself defines and documents."""
    return [
        (name, getattr(cls, name))
        for name, part in vars(cls).items()
        if not name.startswith("_")
        and isinstance(part, property | classmethod | staticmethod | type(_methods))
        and inspect.getdoc(getattr(cls, name))
    ]


def _signature(name: str, thing: Any) -> str:
    """Return a signature as HTML that can wrap after commas."""
    if isinstance(thing, property):
        return f"<b>{escape(name)}</b>"
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return escape(name)
    shown = [str(each) for each in signature.parameters.values()]
    kinds = [each.kind for each in signature.parameters.values()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    if keyword in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(keyword), "*")
    inside = ", ".join(f'<span class="parameter">{_unquoted(each)}</span>' for each in shown)
    returns = signature.return_annotation
    given = (
        ""
        if returns is signature.empty or inspect.isclass(thing)
        else f" → {_unquoted(inspect.formatannotation(returns))}"
    )
    return f"<b>{escape(name)}</b>({inside}){given}"


def _unquoted(text: str) -> str:
    """Return an annotation as HTML, without the quotes that annotations have in most modules."""
    text = re.sub(r"<\S+ (\S+) at 0x[0-9a-f]+>", r"\1", text)  # addresses change from run to run
    return escape(re.sub(r"(?<=: )'([^']*)'|^'([^']*)'$", r"\1\2", text))
