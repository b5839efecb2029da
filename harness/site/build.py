"""Builds the site: renders each page from its template and data."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinloss import __version__, reference
from twinloss.harness.hunting.report_file import LEGEND
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.site import api, books, code, run
from twinloss.harness.site.losses import loss_page
from twinloss.harness.site.pictures import Pictures, pictures
from twinloss.harness.site.record import record, table

HERE = Path(__file__).parent
_TAG = re.compile(r"<annotation.*?</annotation>|<script.*?</script>|<[^>]+>", re.DOTALL)


@dataclass(frozen=True)
class SitePlan:
    """The settings of a site.

    Attributes:
        out: the folder to write.
        run: the folder with the report of a run.
        reports: the folder with the other reports, or None.
        real: whether to draw figures of a real brain.
    """

    out: Path
    run: Path
    reports: Path | None
    real: bool = True


class Site:
    """A site while it is being written, page by page."""

    def __init__(self, plan: SitePlan) -> None:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        self.plan = plan
        self.index: list[dict[str, str]] = []
        self.run = run.load(plan.run)
        self.books = books.load(plan.reports)
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self.records = [record(twin) for twin in TWINS]
        self.templates.globals.update(
            records=self.records, books=self.books, run=self.run, version=__version__, error=run.error,
            histograms=run.histograms, pairs=run.pairs, wings=api.WINGS, coloured=books.coloured,
        )  # fmt: skip

    def page(self, file: str, template: str, title: str, kind: str, summary: str = "", **shown: Any) -> None:
        """Write a page and add it to the search index."""
        path = self.plan.out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        root = "../" * file.count("/")
        made = self.templates.get_template(template).render(root=root, here=file, title=title, **shown)
        path.write_text(made, encoding="utf-8")
        self.index.append({"title": title, "url": file, "kind": kind, "text": summary or _text(made)[:400]})

    def write_index(self) -> None:
        """Write the search index as JSON, and as a script, because a page opened from disk cannot load JSON."""
        made = json.dumps(self.index, ensure_ascii=False, separators=(",", ":"))
        (self.plan.out / "search-index.json").write_text(made, encoding="utf-8")
        (self.plan.out / "search-index.js").write_text(f"window.twinlossIndex={made};\n", encoding="utf-8")


def build(plan: SitePlan, tick: Callable[[str, int], None] = lambda what, done: None) -> Path:
    """Write the site and return the path of its first page.

    Raises:
        ContentError: if content written by hand does not fit the code.
        ReportError: if the run cannot be read.
    """
    site = Site(plan)
    _assets(site)
    tick("figures", 0)
    drawn = pictures(site.records, plan.out / "figures", plan.real)
    for each in site.records:
        tick(each.name, 1)
        _loss(site, each.name, drawn)
    tick("evidence", 1)
    _evidence(site)
    tick("API reference", 1)
    _api(site)
    tutorial = books.tutorial()
    site.page("pairs.html", "book.html", tutorial.title, "page", book=tutorial)
    site.page("index.html", "index.html", "Overview", "page")
    site.write_index()
    return plan.out / "index.html"


def _assets(site: Site) -> None:
    static = site.plan.out / "static"
    shutil.copytree(HERE / "static", static, dirs_exist_ok=True)
    (static / "code.css").write_text(code.styles(), encoding="utf-8")


def _loss(site: Site, name: str, drawn: Pictures) -> None:
    found = next(each for each in site.records if each.name == name)
    page = loss_page(found, site.run, site.books)
    summary = f"{found.line} {found.value.__name__} {found.loss.__name__}"
    site.page(page.file, "loss.html", found.title, "loss", summary, page=page, drawn=drawn)
    for option in page.options:
        entry = {"title": f"{option.name} of {found.loss.__name__}", "url": f"{page.file}#option-{option.name}"}
        site.index.append({**entry, "kind": "option", "text": _text(option.meaning)})


def _evidence(site: Site) -> None:
    report = site.run.report
    shown = {"report": report, "legend": LEGEND, "kinds": ("drawn", "real")}
    site.page(
        "evidence.html", "evidence.html", "Evidence", "evidence", "verdicts, errors in bits, option pairs", **shown
    )
    books.copy_others(site.plan.reports, site.plan.out / "reports")
    for book in site.books:
        site.page(book.file, "book.html", book.title, "evidence", book=book)


def _api(site: Site) -> None:
    names = api.names()
    for wing, line in api.WINGS.items():
        modules = api.wing(wing, names.get)
        file = f"api/{wing}.html"
        site.page(file, "api.html", f"twinloss.{wing}", "api", line, wing=wing, modules=modules)
        for module in modules:
            for each in module.entries:
                entry = {"title": each.name, "url": f"{file}#{each.anchor}", "kind": "api", "text": each.summary}
                site.index.append(entry)
    _code(site)


def _code(site: Site) -> None:
    for found in pkgutil.walk_packages(reference.__path__, "twinloss.reference."):
        if found.ispkg:
            continue
        module, name = importlib.import_module(found.name), found.name.rpartition(".")[2]
        beside = next((each.beside for each in site.records if each.module is module), table("steps").get(name, {}))
        lines = code.lines(inspect.getsource(module), beside)
        title = f"{found.name.removeprefix('twinloss.').replace('.', '/')}.py"
        site.page(f"code/{name}.html", "code.html", title, "code", lines=lines, name=name)


def _text(html: str) -> str:
    """Return the text of a page without markup."""
    inside = html.partition("<main")[2] or f">{html}"
    return " ".join(_TAG.sub(" ", inside.partition(">")[2]).split())
