"""The command `twinloss explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from twinloss.harness.cli.app import app, console, named_twins, with_extra


@app.command()
def explain(
    loss: Annotated[str, typer.Argument(help="The loss; see twinloss list.")],
) -> None:
    """Show a summary of a loss: formula, symbols, paper, gradient, options, when to use it."""
    with_extra("latex2mathml", "pygments")
    (twin,) = named_twins([loss])
    from twinloss.harness.site.explain import explain as told
    from twinloss.harness.site.record import ContentError, record

    try:
        known = record(twin)
    except ContentError as error:
        raise typer.BadParameter(str(error)) from error
    for part in told(known):
        console.print(part)
        console.print()
