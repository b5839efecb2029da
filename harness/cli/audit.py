"""The command `twinloss audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from twinloss.harness.cli.app import Cluster, Jobs, app, console, progress, with_dask, writable


@app.command()
def audit(
    library: Annotated[str, typer.Argument(help="monai, kornia, segmentation_models_pytorch or neurite (VoxelMorph).")],
    losses: Annotated[
        list[str] | None, typer.Argument(help="Our losses whose counterparts to audit; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for errata.md.")] = None,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Find what is wrong in another library's losses, by its documentation and the papers, and show it."""
    folder = writable(out) if out else None
    from twinloss.harness.commands import audit as audits
    from twinloss.harness.hunting.parallel import PROCESSES

    with progress() as tick:
        try:
            found = audits.audit(library, losses or (), seed, tick, jobs or PROCESSES, with_dask(dask))
        except audits.LibraryError as error:
            raise typer.BadParameter(str(error)) from error
    made = Table("loss", "class", "what", "also in", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    styles = {"defect": "red", "precision": "yellow"}
    for each in (erratum for part in found for erratum in part.errata):
        sort = f"[{styles.get(each.sort, 'dim')}]{each.sort}[/]"
        made.add_row(each.loss, sort, escape(each.what), ", ".join(each.also))
    console.print(made)
    if folder:
        path = folder / ("errata.md" if library == "monai" else f"errata-{library}.md")
        path.write_text(audits.as_markdown(library, found, seed), encoding="utf-8")
        console.print(f"wrote {path}")
