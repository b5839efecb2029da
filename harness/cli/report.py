"""The command `twinloss report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinloss.harness.cli.app import REPORT, app, console, progress, with_extra, writable

EPILOG = """
[bold]Contents[/]: the results of a run are taken from twinloss-report/, where [bold]twinloss verify[/] writes them, and
other evidence from reports/. If something is missing, its page names the command that makes it.

[bold]Examples[/]

twinloss report                      site/index.html, to open in a browser

twinloss report --out public --run ci-run --no-real
"""
NEEDED = ("jinja2", "latex2mathml", "markdown_it", "matplotlib", "pygments")


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
    with_extra(*NEEDED)
    if evidence is not None and not evidence.is_dir():
        raise typer.BadParameter(f"--reports {evidence}: there is no such folder")
    folder = writable(out)
    from twinloss.harness.hunting.report_file import ReportError
    from twinloss.harness.site import books
    from twinloss.harness.site.build import SitePlan, build
    from twinloss.harness.site.record import ContentError

    try:
        with progress() as tick:
            first = build(SitePlan(folder, run, evidence or books.where(), real), tick)
    except (ContentError, ReportError) as error:
        raise typer.BadParameter(str(error)) from error
    console.print(f"wrote {first}")
