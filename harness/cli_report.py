"""The commands `twinloss report` and `twinloss explain`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from twinloss.harness.cli import REPORT, app, console, named_twins, progress, writable

EPILOG = """
[bold]Contents[/]: the results of a run are taken from twinloss-report/, where [bold]twinloss verify[/] writes them, and
other evidence from reports/. If something is missing, its page names the command that makes it.

[bold]Examples[/]

twinloss report                      site/index.html, to open in a browser

twinloss report --out public --run ci-run --no-real
"""
NEEDED = ("jinja2", "latex2mathml", "markdown_it", "matplotlib", "pygments")


def _require(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        console.print(
            f'missing modules: {", ".join(missing)}. Run: pip install "twinloss[reports]"', style="red", markup=False
        )
        raise typer.Exit(1)


@app.command(epilog=EPILOG)
def report(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the site.")] = Path("site"),
    run: Annotated[Path, typer.Option(metavar="DIR", help="The folder with verify's report.json.")] = REPORT,
    evidence: Annotated[
        Path | None, typer.Option("--reports", metavar="DIR", help="The folder with other evidence. Default: reports.")
    ] = None,
    real: Annotated[bool, typer.Option(help="Also show figures of a real brain.")] = True,
) -> None:
    """Build a static site with a page for each loss, the evidence, and the API."""
    _require(*NEEDED)
    if evidence is not None and not evidence.is_dir():
        raise typer.BadParameter(f"--reports {evidence}: there is no such folder")
    folder = writable(out)
    from twinloss.harness.ledger import LedgerError
    from twinloss.harness.site import books
    from twinloss.harness.site.build import Plan, build
    from twinloss.harness.site.record import ContentError

    try:
        with progress() as tick:
            first = build(Plan(folder, run, evidence or books.where(), real), tick)
    except (ContentError, LedgerError) as error:
        raise typer.BadParameter(str(error)) from error
    console.print(f"wrote {first}")


@app.command()
def explain(
    loss: Annotated[str, typer.Argument(help="The loss; see twinloss list.")],
) -> None:
    """Show a summary of a loss: formula, symbols, paper, gradient, options, when to use it."""
    _require("latex2mathml", "pygments")
    (twin,) = named_twins([loss])
    from twinloss.harness.site.explain import explain as told
    from twinloss.harness.site.record import record

    for part in told(record(twin)):
        console.print(part)
        console.print()
