"""The files of evidence that commands have written into `reports/`, as pages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The files that the navigation knows by name, and how to make each; any other .md has a page, too.
KNOWN = {
    "zoo": "twinloss zoo --seed 0 --out reports",
    "benchmarks": "twinloss bench --out reports",
    "reliability": "twinloss reliability --out reports",
    "errata": "twinloss audit monai --seed 0 --out reports",
    "errata-kornia": "twinloss audit kornia --seed 0 --out reports",
    "errata-segmentation_models_pytorch": "twinloss audit segmentation_models_pytorch --seed 0 --out reports",
}
TITLES = {
    "zoo": "The zoo: which judgement kills which wrong loss",
    "benchmarks": "Speed and memory",
    "reliability": "Reliability",
    "errata": "MONAI beside the papers",
}
# Words that stand in a cell by themselves, and get a colour by their first.
VERDICTS = ("passed", "failed", "agrees", "agrees as the defaults do", "differs", "raises", "imprecise", "not there")


@dataclass(frozen=True)
class Table:
    """A table of a report: its head, how each column is aligned, and its rows, each cell HTML."""

    head: list[str]
    aligned: list[str]
    rows: list[list[str]]

    def about(self, name: str) -> Table:
        """The rows whose first or second cell names a loss, alone or before a comma."""
        named = re.compile(rf"(?:<[^>]+>)*{re.escape(name)}(?:<|,|$)")
        return Table(self.head, self.aligned, [row for row in self.rows if any(named.match(cell) for cell in row[:2])])


@dataclass(frozen=True)
class Book:
    """A report, or that there is none: HTML of all of it, and its tables."""

    name: str
    title: str
    command: str
    html: str
    tables: list[Table]

    @property
    def file(self) -> str:
        """The page."""
        return f"reports/{self.name}.html"

    def about(self, name: str) -> list[Table]:
        """What its tables say of a loss."""
        return [found for table in self.tables if (found := table.about(name)).rows]


def load(folder: Path | None) -> list[Book]:
    """All reports of a folder, those that are known first."""
    found = sorted(folder.glob("*.md")) if folder else []
    names = list(dict.fromkeys([*KNOWN, *(path.stem for path in found)]))
    return [_book(name, folder / f"{name}.md" if folder else None) for name in names]


def copy_images(folder: Path | None, out: Path) -> None:
    """Put the images of the reports beside their pages."""
    for suffix in ("png", "svg", "json"):
        for path in sorted(folder.glob(f"*.{suffix}")) if folder else ():
            shutil.copyfile(path, out / path.name)


def where() -> Path | None:
    """The folder `reports`: of the working directory, or of the repository that the code lies in; none from a wheel."""
    beside = Path(__file__).resolve().parents[2]
    places = (Path("reports"), beside / "reports") if (beside / "pyproject.toml").exists() else (Path("reports"),)
    return next((place for place in places if place.is_dir()), None)


def _book(name: str, path: Path | None) -> Book:
    title = TITLES.get(name, name.replace("errata-", "").replace("_", " ").capitalize())
    title = f"{name.removeprefix('errata-')} beside the papers" if name.startswith("errata-") else title
    if path is None or not path.exists():
        return Book(name, title, KNOWN.get(name, ""), "", [])
    text = path.read_text(encoding="utf-8")
    made = re.search(r"[Mm]ade by `([^`]+)`", text)
    tokens, html = _rendered(re.sub(r"^# .*\n", "", text, count=1))
    return Book(name, title, made[1] if made else KNOWN.get(name, ""), html, list(_tables(tokens)))


def _rendered(text: str) -> tuple[list[Any], str]:
    """Markdown as tokens and as HTML; links to another report lead to its page, wide tables scroll."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    for token in tokens:
        for child in token.children or ():
            href = child.attrGet("href")
            if isinstance(href, str) and href.endswith(".md"):
                child.attrSet("href", f"{Path(href).stem}.html")
    html = str(reader.renderer.render(tokens, reader.options, {}))
    html = html.replace("<table>", '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>')
    html = html.replace("</table>", "</table></div>")
    html = re.sub(r' style="text-align:\s*(left|right|center)"', r' class="\1"', html)
    html = html.replace("<th></th>", "<td></td>")  # a head that says nothing is no head
    words = "|".join(VERDICTS)
    html = re.sub(rf"<td>({words})</td>", lambda found: f'<td class="{coloured(found[1])}">{found[1]}</td>', html)
    return tokens, html


def coloured(cell: str) -> str:
    """The classes of a cell that holds a verdict, else nothing."""
    return f"verdict {cell.split()[0]}" if cell in VERDICTS else ""


def _tables(tokens: list[Any]) -> Iterator[Table]:
    """The tables among tokens."""
    from markdown_it import MarkdownIt

    inline = MarkdownIt("commonmark", {"html": False})
    rows: list[list[str]] = []
    aligned: list[str] = []
    for token in tokens:
        if token.type == "table_open":
            rows, aligned = [], []
        elif token.type == "th_open":
            aligned.append("right" if "right" in str(token.attrGet("style")) else "")
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(inline.renderInline(token.content))
        elif token.type == "table_close":
            yield Table(rows[0], aligned, rows[1:])
            rows = []
