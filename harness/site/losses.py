"""The content of a loss's page."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from twinloss import reference
from twinloss.harness.site import books, code, docstrings
from twinloss.harness.site.books import Book
from twinloss.harness.site.options import Option, options
from twinloss.harness.site.record import ContentError, Record, Use, table
from twinloss.harness.site.run import VerifyRun


@dataclass(frozen=True)
class LossPage:
    """The data for the template of a loss's page. Texts are HTML."""

    record: Record
    summary: str
    formulas: list[str]
    symbols: list[tuple[str, str]]
    paper: str
    cited: str
    lines: list[code.CodeLine]
    helpers: list[str]
    gradient: str
    example: str
    options: list[Option]
    use: list[tuple[Use, str, str]]
    verdict: str
    tables: dict[str, list[books.ReportTable]]
    parts: dict[str, str]

    @property
    def file(self) -> str:
        """The path of the page."""
        return f"losses/{self.record.name}.html"


def loss_page(record: Record, run: VerifyRun, reports: Sequence[Book]) -> LossPage:
    """Return the page of a loss.

    Raises:
        ContentError: if an equation belongs to a line that does not exist.
    """
    source = source_of(record)
    lost = code.unused(source, record.beside)
    if lost:
        raise ContentError(f"content/{record.name}.toml: no line of {record.module.__name__} has {', '.join(lost)}")
    further = [getattr(reference, name) for name in record.formula_of]
    cite = table("sources")
    return LossPage(
        record=record,
        summary=docstrings.inline(docstrings.summary(record.loss)),
        formulas=[docstrings.body(function) for function in (record.value, *further)],
        symbols=[(docstrings.inline(f":math:`{symbol}`"), meaning) for symbol, meaning in record.symbols],
        paper=docstrings.html(record.module, lambda name: None),
        cited=" ".join(filter(None, (docstrings.paper(function) for function in (record.value, *further)))),
        lines=code.lines(source, record.beside),
        helpers=_helpers(source),
        gradient=docstrings.body(record.gradient),
        example=docstrings.example(record.value),
        options=options(record),
        use=[(u, cite[u.source]["text"], cite[u.source]["url"]) if u.source else (u, "", "") for u in record.use],
        verdict=run.verdict(record.name),
        tables={book.name: found for book in reports if (found := book.about(record.name))},
        parts={book.name: part for book in reports if (part := book.part(record.name, record.loss.__name__))},
    )


def source_of(record: Record) -> str:
    """Return the source code of the module that contains the reference."""
    return inspect.getsource(record.module)


def _helpers(source: str) -> list[str]:
    """Return the modules of the reference that this module imports steps from."""
    found = {
        node.module.rpartition(".")[2]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("twinloss.reference.")
    }
    return sorted(found)
