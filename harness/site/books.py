"""The reports that commands have written into `reports/`, as pages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from twinloss.harness.site.code import block

# Reports that always have a page, and the commands that create them. Any other .md file gets a page, too.
KNOWN = {
    "zoo": "twinloss zoo --seed 0 --out reports",
    "benchmarks": "twinloss bench --out reports",
    "reliability": "twinloss reliability --out reports",
    "errata": "twinloss audit monai --seed 0 --out reports",
    "errata-kornia": "twinloss audit kornia --seed 0 --out reports",
    "errata-segmentation_models_pytorch": "twinloss audit segmentation_models_pytorch --seed 0 --out reports",
    "errata-neurite": "twinloss audit neurite --seed 0 --out reports",
    "errata-torch": "twinloss audit torch --seed 0 --out reports",
    "errata-scipy": "twinloss audit scipy --seed 0 --out reports",
    "errata-torchvision": "twinloss audit torchvision --seed 0 --out reports",
    "errata-liger_kernel": "twinloss audit liger_kernel --seed 0 --out reports",
}
TITLES = {
    "zoo": "The zoo: which check detects which mutant",
    "benchmarks": "Speed and memory",
    "reliability": "Reliability",
    "errata": "MONAI compared with its documentation and the papers",
}
# Cells that hold exactly one of these verdicts are coloured. The first word of the verdict is the CSS class.
VERDICTS = ("passed", "failed", "agrees", "agrees as the defaults do", "differs", "raises", "imprecise", "not there")


@dataclass(frozen=True)
class ReportTable:
    """A table of a report: its head, the alignment of each column, and its rows. Each cell is HTML."""

    head: list[str]
    aligned: list[str]
    rows: list[list[str]]

    def about(self, name: str) -> ReportTable:
        """Return the rows about a loss.

        The first or second cell of such a row begins with its name, followed by nothing or by a comma.
        """
        named = re.compile(rf"(?:<[^>]+>)*{re.escape(name)}(?:<|,|$)")
        return ReportTable(
            self.head, self.aligned, [row for row in self.rows if any(named.match(cell) for cell in row[:2])]
        )


@dataclass(frozen=True)
class Book:
    """A report, or a placeholder for one that does not exist.

    It holds the HTML of the whole report, its tables, and the HTML below each heading.
    """

    name: str
    title: str
    command: str
    html: str = ""
    tables: tuple[ReportTable, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The path of the page."""
        return f"reports/{self.name}.html"

    def about(self, name: str) -> list[ReportTable]:
        """Return the table rows about a loss."""
        return [found for table in self.tables if (found := table.about(name)).rows]

    def part(self, *names: str) -> str:
        """Return the HTML below the headings with one of these names."""
        return "".join(self.parts.get(name, "") for name in names)


def load(folder: Path | None) -> list[Book]:
    """Load all reports of a folder, the known ones first."""
    found = sorted(folder.glob("*.md")) if folder else []
    names = list(dict.fromkeys([*KNOWN, *(path.stem for path in found)]))
    return [_book(name, folder / f"{name}.md" if folder else None) for name in names]


def tutorial() -> Book:
    """Return the tutorial for a user's own pair of functions; its page is pairs.html."""
    return _book("pairs", Path(__file__).parents[1] / "PAIRS.md")


def copy_others(folder: Path | None, out: Path) -> None:
    """Copy the images and other files that the reports refer to."""
    if folder:
        shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md"))


def where() -> Path | None:
    """Return the folder `reports` of the working directory or else of the repository.

    Returns None if neither exists. A package that was installed from a wheel has no such folder.
    """
    beside = Path(__file__).resolve().parents[2]
    places = (Path("reports"), beside / "reports") if (beside / "pyproject.toml").exists() else (Path("reports"),)
    return next((place for place in places if place.is_dir()), None)


def _book(name: str, path: Path | None) -> Book:
    if path is None or not path.exists():
        title = (
            f"{name.removeprefix('errata-')} compared with its documentation and the papers"
            if name.startswith("errata-")
            else TITLES[name]
        )
        return Book(name, title, KNOWN[name])
    text = path.read_text(encoding="utf-8")
    heading = re.match(r"# (.*)\n", text)
    title = TITLES.get(name) or (heading[1] if heading else name)
    made = re.search(r"[Mm]ade by `([^`]+)`", text)
    reader = _reader()
    tokens = _within(reader.parse(text.removeprefix(heading[0] if heading else "")), path.parent)
    parts = {title: _html(reader, found) for title, found in _parts(tokens)}
    command = made[1] if made else KNOWN.get(name, "")
    return Book(name, title, command, _html(reader, tokens), tuple(_tables(tokens)), parts)


def _reader() -> Any:
    from markdown_it import MarkdownIt

    def highlight(source: str, language: str, _: str) -> str:
        return block(source) if language == "python" else ""

    return MarkdownIt("commonmark", {"html": False, "highlight": highlight}).enable("table")


def _within(tokens: list[Any], folder: Path) -> list[Any]:
    """Point links between reports to their pages, and remove links to files that the site does not have."""
    for token in (child for each in tokens for child in each.children or ()):
        href = token.attrGet("href")
        if token.type == "link_open" and isinstance(href, str) and not re.match(r"https?://|#", href):
            here = (folder / href).exists() and "/" not in href
            token.attrs = {"href": f"{Path(href).stem}.html" if href.endswith(".md") else href} if here else {}
    return tokens


def _parts(tokens: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield each heading with the tokens up to the next heading."""
    starts = [n for n, token in enumerate(tokens) if token.type == "heading_open"]
    for start, end in pairwise([*starts, len(tokens)]):
        yield tokens[start + 1].content, tokens[start + 3 : end]


def _html(reader: Any, tokens: list[Any]) -> str:
    """Render tokens as HTML. Wide tables can scroll, and verdicts are coloured."""
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":  # the anchor that GitHub generates, which links within a report use
            opening.attrSet("id", re.sub(r"[^\w -]", "", inline.content.lower()).replace(" ", "-"))
    html = str(reader.renderer.render(tokens, reader.options, {}))
    html = html.replace("<table>", '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>')
    html = html.replace("</table>", "</table></div>")
    html = re.sub(r' style="text-align:\s*(left|right|center)"', r' class="\1"', html)
    html = re.sub(r"<th[^>]*></th>", "<td></td>", html)  # an empty header cell is not a header for screen readers
    words = "|".join(VERDICTS)
    return re.sub(rf"<td>({words})</td>", lambda found: f'<td class="{coloured(found[1])}">{found[1]}</td>', html)


def coloured(cell: str) -> str:
    """Return the CSS classes of a cell that holds a verdict, or an empty string."""
    return f"verdict {cell.split()[0]}" if cell in VERDICTS else ""


def _tables(tokens: list[Any]) -> Iterator[ReportTable]:
    """Yield the tables among the tokens."""
    reader = _reader()
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
            rows[-1].append(reader.renderer.renderInline(token.children, reader.options, {}))
        elif token.type == "table_close":
            yield ReportTable(rows[0], aligned, rows[1:])
            rows = []
