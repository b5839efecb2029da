"""The command `twinloss zoo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinloss.harness.cli.app import app, console, progress, writable


@app.command("zoo")
def show_zoo(
    names: Annotated[
        list[str] | None, typer.Argument(help="Mutants, or losses whose mutants to test; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for zoo.md.")] = None,
) -> None:
    """Test the harness on mutants, that is, losses with deliberate bugs, and show which checks kill each."""
    folder = writable(out) if out else None
    from twinloss.harness.zoo import kills, zoo

    known = zoo()
    unknown = set(names or ()) - {name for mutant in known for name in (mutant.name, mutant.of)}
    if unknown:
        raise typer.BadParameter(f"the zoo has no {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in known if not names or {mutant.name, mutant.of} & set(names)]
    with progress() as tick:
        rows = kills.matrix(mutants, seed, tick)
    console.print(kills.table(rows))
    for judgement, alone in kills.only_killers(rows).items():
        console.print(f"only {judgement}: {', '.join(alone) or 'none'}", soft_wrap=True)
    alive = kills.alive(rows)
    console.print(f"{len(rows) - len(alive)} of {len(rows)} killed", style="red" if alive else "green")
    for name in alive:
        console.print(f"alive: {name}", style="red")
    if folder:
        (folder / "zoo.md").write_text(kills.as_markdown(rows, seed), encoding="utf-8")
        console.print(f"wrote {folder / 'zoo.md'}")
    raise typer.Exit(bool(alive))
