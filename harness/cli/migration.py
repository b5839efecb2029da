"""The command `twinloss migration`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from twinloss.harness.cli.app import app, console, writable

EPILOG = """
[bold]Examples[/]

twinloss migration

pip install --no-deps --target old monai==0.5.3 && twinloss migration --with old

twinloss migration --with old --out reports --readme README.md     also write the report and the README's table
"""


@app.command("migration", epilog=EPILOG)
def show_migration(
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="FOLDER", exists=True, help="A folder with another release of MONAI. Repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write migration.md and compat-monai.md to.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, help="A file whose table of differences to update.")
    ] = None,
) -> None:
    """Show where twinloss, and its drop-in for MONAI 1.6, differ from MONAI, with examples that run in all of them."""
    from twinloss.harness.commands import migration, migration_compat

    folder = writable(out) if out else None
    try:
        rows, kept = migration.compare(with_ or ()), migration_compat.compare()
    except ImportError as error:
        raise typer.BadParameter("MONAI is not installed: pip install monai") from error
    table = Table("loss", "in twinloss", *rows[0].answers)
    for row in rows:
        table.add_row(row.difference.loss, row.difference.here, *row.answers.values())
    console.print(table)
    table = Table("loss", "in twinloss.compat.monai", *kept[0].answers)
    for row in kept:
        table.add_row(row.difference.loss, row.difference.here, *row.answers.values())
    console.print(table)
    if folder:
        pages = {"migration.md": migration.as_markdown(rows), "compat-monai.md": migration_compat.as_markdown(kept)}
        for name, page in pages.items():
            (folder / name).write_text(page, encoding="utf-8")
            console.print(f"wrote {folder / name}")
    if readme:
        made = migration.put_into(readme.read_text(encoding="utf-8"), migration.as_table(migration.that_bite(rows)))
        readme.write_text(made, encoding="utf-8")
        console.print(f"wrote the table of {readme}")
