"""The command `twinloss reliability`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from twinloss.harness.cli.app import app, console, progress, writable

EPILOG = """
[bold]Sections[/]: mixed precision, NaN and infinity, determinism, concurrency, torch.compile, torch.library.opcheck,
torch.export, torch.func, double backward, state, distributed, scale, cold start, fuzz, real training. The beginning
of a name is enough: [bold]twinloss reliability cold fuzz[/].

[bold]Exit status[/]: 0 if all passed, 1 if a test failed, 2 usage error.
"""


@app.command(epilog=EPILOG)
def reliability(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION]...", help="The sections; all by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use small sizes: takes minutes instead of an hour.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the report; sections that are not run keep their results."),
    ] = None,
) -> None:
    """Test the fast losses under conditions that break real training runs."""
    folder = writable(out) if out else None
    from twinloss.harness import reliability as trials
    from twinloss.harness.reliability.registry import Row
    from twinloss.harness.reliability.report import update
    from twinloss.harness.reliability.training import Curve, plot

    known = list(trials.lines())
    chosen = [line for line in known if not names or any(line.lower().startswith(name.lower()) for name in names)]
    for name in names or ():
        if not any(line.lower().startswith(name.lower()) for line in known):
            raise typer.BadParameter(f"no section begins with {name!r}: the sections are {', '.join(known)}")
    rows: dict[str, list[Row]] = {}
    curves: list[Curve] = []
    with progress() as tick:
        for line in chosen:
            found, drawn = trials.run([line], quick, lambda what: tick(what, 1))
            rows |= found
            curves += drawn
            if folder:
                update(folder, found, quick)  # after each section, so that an interruption loses none
    made = Table("section", "test", "result", "", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for line, of_line in rows.items():
        for row in of_line:
            style, word = ("green", "passed") if row.passed else ("red", "FAILED")
            made.add_row(
                line,
                escape(f"{row.loss}, {row.tried}" if row.loss else row.tried),
                escape(row.outcome),
                f"[{style}]{word}[/]",
            )
    console.print(made)
    if folder:
        console.print(f"wrote {folder / 'reliability.md'}")
        if curves:
            plot(curves, folder / "training.png")
            console.print(f"wrote {folder / 'training.png'}")
    raise typer.Exit(not all(row.passed for of_line in rows.values() for row in of_line))
