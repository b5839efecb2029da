"""A short description of a loss for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from twinloss import reference
from twinloss.harness.site import docstrings, formulas
from twinloss.harness.site.options import meaning, options
from twinloss.harness.site.record import Record, table


def explain(record: Record) -> Iterator[RenderableType]:
    """Yield the parts of the description."""
    yield Text.assemble((record.title, "bold"), f"  twinloss.fast.{record.loss.__name__}", f"\n{record.line}")
    yield _formulas("Formula", [record.value, *(getattr(reference, name) for name in record.formula_of)])
    yield _pairs([(formulas.plain(symbol), told) for symbol, told in record.symbols])
    yield _formulas("Gradient", [record.gradient])
    yield Text.assemble(("Paper", "bold"), f"\n{_paper(record)}")
    yield _options(record)
    yield _use(record)
    yield Text(f"`twinloss report` builds a page about it; `twinloss verify {record.name}` tests it.", style="dim")


def _formulas(title: str, functions: list[object]) -> RenderableType:
    """Show the formulas, one per line, or the first sentence of a function without a formula."""
    lines = []
    for function in functions:
        parts = [part for latex in docstrings.equations(function) for part in formulas.parts_of(latex)]
        lines += [formulas.plain(part) for part in parts] or [docstrings.plain(docstrings.summary(function))]
    return Text.assemble((title, "bold"), *(f"\n  {line}" for line in lines))


def _pairs(rows: list[tuple[str, str]]) -> RenderableType:
    made = Table.grid(padding=(0, 2))
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return Padding(made, (0, 2))


def _paper(record: Record) -> str:
    lines = docstrings.sections(record.module)[0].lines
    said, formula, _ = " ".join(lines[1:]).partition(" .. math")
    told = [formulas.plain(latex) for latex in docstrings.equations(record.module)] if formula else []
    return " ".join([docstrings.plain(said).strip(), *told])


def _options(record: Record) -> RenderableType:
    made = Table("option", "default", "effect", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for option in options(record):
        made.add_row(option.name, Text(option.default), Text(docstrings.plain(meaning(record.loss, option.name))))
    return made


def _use(record: Record) -> RenderableType:
    sources = table("sources")
    made = Table.grid(padding=(0, 1))
    for use in record.use:
        cited = sources[use.source]["text"].partition(")")[0] + ")" if use.source else "follows from the formula"
        mark = Text("✓", style="green") if use.good else Text("✗", style="red")
        made.add_row(mark, Text.assemble(use.text, (f"  {cited}", "dim")))
    return made
