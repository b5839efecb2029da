"""The command `twinloss compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from twinloss.harness.cli.app import app, console


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="A report that twinloss verify --save wrote.")],
    new: Annotated[Path, typer.Argument(help="A later report of the same hunts.")],
    bits: Annotated[float, typer.Option(min=0, help="The accuracy, in bits, that a result may lose.")] = 1.0,
) -> None:
    """Show what got worse between two verifications; exit with 1 if anything did."""
    from twinloss.harness.commands import compare as regressions
    from twinloss.harness.hunting.report_file import ReportError, read

    try:
        before, after = read(old), read(new)
    except ReportError as error:
        raise typer.BadParameter(str(error)) from error
    if before.get("seed") != after.get("seed"):
        console.print(
            f"the seeds {before.get('seed')} and {after.get('seed')} differ, so the cases differ", style="yellow"
        )
    losses = regressions.compare(before, after, bits)
    made = Table("loss", "dtype", "data", "what", "old", "new", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for each in losses:
        made.add_row(each.loss, each.dtype, each.data, escape(each.what), each.old, each.new)
    console.print(made if losses else f"nothing got worse, in {len(before['rows'])} rows")
    raise typer.Exit(bool(losses))
