"""The command `twinloss migration`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from twinloss.harness.cli import app, console, writable

EPILOG = """
[bold]Examples[/]

twinloss migration

pip install --no-deps --target old monai==0.5.3 && twinloss migration --with old

twinloss migration --with old --out reports --readme README.md     also write the report and the table in README.md
"""


@app.command("migration", epilog=EPILOG)
def show_migration(
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="FOLDER", exists=True, help="A folder with another release of MONAI; repeatable."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for migration.md.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, help="A file whose table is written anew.")
    ] = None,
) -> None:
    """Show where twinloss and MONAI differ, by examples that are run with both."""
    from twinloss.harness import migration

    folder = writable(out) if out else None
    try:
        rows = migration.compare(with_ or ())
    except ImportError as error:
        raise typer.BadParameter("MONAI is not installed: pip install monai") from error
    table = Table("loss", "here", *rows[0].answers)
    for row in rows:
        table.add_row(row.difference.loss, row.difference.here, *row.answers.values())
    console.print(table)
    if folder:
        (folder / "migration.md").write_text(migration.as_markdown(rows), encoding="utf-8")
        console.print(f"wrote {folder / 'migration.md'}")
    if readme:
        made = migration.put_into(readme.read_text(encoding="utf-8"), migration.as_table(rows))
        readme.write_text(made, encoding="utf-8")
        console.print(f"wrote the table of {readme}")
