"""Docstrings in Google style, with the math syntax of Sphinx, as HTML."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from twinloss.harness.site import formulas
from twinloss.harness.site.code import session
from twinloss.harness.site.formulas import display, mathml

TITLES = (
    "Args", "Attributes", "Example", "Examples", "Raises", "Reference", "Returns", "Shape", "Warns", "Yields",
)  # fmt: skip
LISTS = ("Args", "Attributes", "Raises", "Warns")  # sections with entries of the form `name: text`
_TITLE = re.compile(rf"({'|'.join(TITLES)}):$")
_ENTRY = re.compile(r"(\*{0,2}[\w.]+):\s+(.*)")
_RULE = re.compile(r"=+(\s+=+)+$")
_INLINE = re.compile(
    r":math:`(?P<math>[^`]+)`|:\w+:`~?(?P<role>[^`]+)`|``(?P<literal>[^`]+)``|`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>[^*\s][^*]*)\*\*|(?P<url>https?://[^\s,;)]+[^\s,;).])"
)


@dataclass(frozen=True)
class DocstringSection:
    """A section of a docstring. The text before the first section has an empty title."""

    title: str
    lines: tuple[str, ...]

    @property
    def entries(self) -> list[tuple[str, str]]:
        """The names that the section lists, each with its text."""
        found: list[tuple[str, str]] = []
        for line in self.lines:
            entry = _ENTRY.match(line)
            if entry and not line.startswith(" "):
                found.append((entry[1], entry[2]))
            elif found and line.strip():
                found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        return found


def sections(thing: Any) -> list[DocstringSection]:
    """Return the sections of an object's docstring, or of a text."""
    doc = inspect.cleandoc(thing) if isinstance(thing, str) else inspect.getdoc(thing) or ""
    made: list[tuple[str, list[str]]] = [("", [])]
    for line in doc.splitlines():
        title = _TITLE.match(line)
        if title:
            made.append((title[1], []))
        elif line and not line.startswith((" ", ">>>", "...")) and made[-1][0]:
            made.append(("", [line]))
        else:
            made[-1][1].append(line)
    return [
        DocstringSection(title, tuple(inspect.cleandoc("\n" + "\n".join(lines)).splitlines())) for title, lines in made
    ]


def section(thing: Any, title: str) -> DocstringSection | None:
    """Return the section with a title."""
    return next((each for each in sections(thing) if each.title == title), None)


def summary(thing: Any) -> str:
    """Return the first paragraph as one line."""
    lines = sections(thing)[0].lines
    return " ".join(" ".join(lines).split("  ")[0].split()) if not lines else " ".join(_until_blank(lines))


def equations(thing: Any) -> list[str]:
    """Return the LaTeX of the displayed formulas."""
    return [text for kind, text in blocks([line for each in sections(thing) for line in each.lines]) if kind == "math"]


def html(thing: Any, link: Callable[[str], str | None] = lambda name: None, without: Sequence[str] = ()) -> str:
    """Return a docstring as HTML, except the sections with the titles in `without`."""
    return "".join(_section_html(each, link) for each in sections(thing) if each.title not in without)


def body(thing: Any) -> str:
    """Return the text before the first section, without doctests and the reference to a paper."""
    made = [(kind, text) for kind, text in blocks(sections(thing)[0].lines) if kind != "session"]
    return "".join(_block_html(kind, text) for kind, text in made if not text.startswith("Reference:"))


def example(thing: Any) -> str:
    """Return the doctests."""
    lines = [line for each in sections(thing) for line in each.lines]
    return "".join(session(text) for kind, text in blocks(lines) if kind == "session")


def paper(thing: Any) -> str:
    """Return the paragraph that begins with `Reference:` as HTML."""
    found = [text for kind, text in blocks(_all_lines(thing)) if kind == "text" and text.startswith("Reference:")]
    return " ".join(inline(text.removeprefix("Reference:").strip()) for text in found)


def _all_lines(thing: Any) -> list[str]:
    return [line for each in sections(thing) for line in (*each.lines, "")]


def blocks(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Split lines into blocks and yield the kind and text of each.

    The kinds are paragraphs ("text"), formulas ("math"), doctests ("session"), list items ("item"), and tables or
    indented lines ("code").
    """
    left = list(lines)
    while left:
        line = left[0]
        if not line.strip():
            left.pop(0)
        elif line.startswith(".. math::"):
            block = [left.pop(0).removeprefix(".. math::")]
            while left and (not left[0].strip() or left[0].startswith(" ")):
                block.append(left.pop(0))
            yield "math", " ".join(" ".join(block).split())
        elif line.startswith(">>>"):
            yield "session", "\n".join(_take(left, lambda each: bool(each.strip())))
        elif _RULE.match(line):  # a table, whose columns are already aligned
            yield "code", "\n".join(_take(left, lambda each: bool(each.strip())))
        elif line.startswith(" "):
            yield "code", inspect.cleandoc("\n" + "\n".join(_take(left, lambda each: each.startswith(" "))))
        elif line.startswith("* "):
            first = left.pop(0).removeprefix("* ")
            rest = _take(left, lambda each: each.startswith(" "))
            yield "item", " ".join([first, *(each.strip() for each in rest)])
        else:
            paragraph = _take(left, lambda each: bool(each.strip()) and not each.startswith((".. math", ">>>")))
            yield "text", " ".join(each.strip() for each in paragraph)


def _take(left: list[str], wanted: Callable[[str], bool]) -> list[str]:
    taken = []
    while left and wanted(left[0]):
        taken.append(left.pop(0))
    return taken


def _until_blank(lines: Sequence[str]) -> list[str]:
    return _take(list(lines), lambda each: bool(each.strip()))


def inline(text: str, link: Callable[[str], str | None] = lambda name: None) -> str:
    """Return the text of a paragraph as HTML."""
    made, end = [], 0
    for found in _INLINE.finditer(text):
        made.append(escape(text[end : found.start()].replace("\\*", "*")))
        made.append(_marked(found, link))
        end = found.end()
    return "".join([*made, escape(text[end:].replace("\\*", "*"))])


def plain(text: str) -> str:
    """Return the text of a paragraph without markup."""
    return _INLINE.sub(lambda found: _bare(found[found.lastgroup or 0], found.lastgroup), text).replace("\\*", "*")


def _bare(text: str, kind: str | None) -> str:
    return formulas.plain(text) if kind == "math" else text.rpartition(".")[2] if kind == "role" else text


def _marked(found: re.Match[str], link: Callable[[str], str | None]) -> str:
    kind = found.lastgroup or ""
    text = found[kind]
    if kind == "math":
        return mathml(text)
    if kind == "url":
        return f'<a href="{escape(text)}">{escape(text.removeprefix("https://"))}</a>'
    if kind == "strong":
        return f"<strong>{escape(text)}</strong>"
    name = text.rpartition(".")[2] if kind == "role" else text
    target = link(name)
    code = f"<code>{escape(name)}</code>"
    return f'<a href="{target}">{code}</a>' if target else code


def _section_html(part: DocstringSection, link: Callable[[str], str | None]) -> str:
    title = f'<p class="part">{part.title}</p>' if part.title else ""
    if part.title in LISTS and part.entries:
        rows = "".join(f"<dt><code>{escape(n)}</code></dt><dd>{inline(t, link)}</dd>" for n, t in part.entries)
        return f"{title}<dl>{rows}</dl>"
    return title + "".join(_block_html(kind, text, link) for kind, text in blocks(part.lines))


def _block_html(kind: str, text: str, link: Callable[[str], str | None] = lambda name: None) -> str:
    match kind:
        case "math":
            return display(text)
        case "session":
            return session(text)
        case "code":
            return f'<pre tabindex="0">{escape(text)}</pre>'
        case "item":
            return f"<ul><li>{inline(text, link)}</li></ul>"
    return f"<p>{inline(text, link)}</p>"
