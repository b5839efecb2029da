"""The command `twinloss audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from twinloss.harness.cli.app import Cluster, Jobs, app, console, named_twins, progress, with_dask, writable


@app.command()
def audit(
    library: Annotated[str, typer.Argument(help="monai, kornia, segmentation_models_pytorch, or torch.")],
    losses: Annotated[
        list[str] | None,
        typer.Argument(help="Our losses whose counterparts to audit, or torch functions; all by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for errata.md.")] = None,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Compare the losses of another library with the papers, option by option, or functions of torch with its docs."""
    folder = writable(out) if out else None
    from twinloss.harness.commands import audit as audits
    from twinloss.harness.commands import audit_torch
    from twinloss.harness.hunting.parallel import PROCESSES

    with progress() as tick:
        try:
            if library == "torch":
                rows = audit_torch.audit_torch(losses or (), seed, tick)
            else:
                names = [twin.name for twin in named_twins(losses)] if losses else []
                rows = audits.audit(library, names, seed, tick, jobs or PROCESSES, with_dask(dask))
        except audits.LibraryError as error:
            raise typer.BadParameter(str(error)) from error
    made = Table("loss", "option", "verdict", "what", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    styles = {"differs": "red", "raises": "red", "not there": "dim"}
    for row in rows:
        made.add_row(row.loss, row.option, f"[{styles.get(row.verdict, 'green')}]{row.verdict}[/]", escape(row.what))
    console.print(made)
    if folder:
        path = folder / ("errata.md" if library == "monai" else f"errata-{library}.md")
        made_page = (
            audit_torch.as_markdown(rows, seed) if library == "torch" else audits.as_markdown(library, rows, seed)
        )
        path.write_text(made_page, encoding="utf-8")
        console.print(f"wrote {path}")
