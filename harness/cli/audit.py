"""The command `twinloss audit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from twinloss.harness.cli.app import Cluster, Jobs, app, console, named_twins, progress, with_dask, writable

if TYPE_CHECKING:
    from twinloss.harness.auditing.erratum import Audited
    from twinloss.harness.commands.audit_functions import Checked


@app.command()
def audit(
    library: Annotated[
        str,
        typer.Argument(
            help="monai, kornia, segmentation_models_pytorch, neurite, torch, scipy, torchvision or liger_kernel."
        ),
    ],
    losses: Annotated[
        list[str] | None,
        typer.Argument(help="Our losses whose counterparts to audit, or functions of torch, …; all by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for errata.md.")] = None,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Find what is wrong in the losses of another library, or in functions of torch, scipy and others."""
    folder = writable(out) if out else None
    from twinloss.harness.commands import audit as audits
    from twinloss.harness.commands import audit_functions as functions
    from twinloss.harness.hunting.parallel import PROCESSES

    with progress() as tick:
        try:
            if library in functions.LIBRARIES:
                rows = functions.audit_functions(library, losses or (), seed, tick)
                made, page = _of_functions(rows), functions.as_markdown(library, rows, seed)
            else:
                names = [twin.name for twin in named_twins(losses)] if losses else []
                found = audits.audit(library, names, seed, tick, jobs or PROCESSES, with_dask(dask))
                made, page = _of_losses(found), audits.as_markdown(library, found, seed)
        except audits.LibraryError as error:
            raise typer.BadParameter(str(error)) from error
    console.print(made)
    if folder:
        path = folder / ("errata.md" if library == "monai" else f"errata-{library}.md")
        path.write_text(page, encoding="utf-8")
        console.print(f"wrote {path}")


def _of_losses(found: Sequence[Audited]) -> Table:
    made = Table("loss", "class", "what", "also in", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    styles = {"defect": "red", "precision": "yellow"}
    for each in (erratum for part in found for erratum in part.errata):
        sort = f"[{styles.get(each.sort, 'dim')}]{each.sort}[/]"
        made.add_row(each.loss, sort, escape(each.what), ", ".join(each.also))
    return made


def _of_functions(rows: Sequence[Checked]) -> Table:
    made = Table("function", "dtype", "verdict", "what", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    styles = {"differs": "red", "imprecise": "yellow"}
    for row in rows:
        verdict = f"[{styles.get(row.verdict, 'green')}]{row.verdict}[/]"
        made.add_row(row.function, row.dtype, verdict, escape(row.what))
    return made
