"""The command `twinloss diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from twinloss.harness.cli import app, console
from twinloss.harness.cli_check import pairs, value

EPILOG = """
[bold]The files[/] hold the arguments of the loss by name (input, target, mask; or pred, target): one .npz, or a .pt
with a dictionary of tensors; or an image each, .nii.gz or .npy, whose names are those of the arguments. Nothing in them
is run.

[bold]Examples[/]

twinloss diagnose batch.npz --as dice

twinloss diagnose batch.pt --as dice_ce --map input=logits --option include_background=False

twinloss diagnose pred.nii.gz target.nii.gz --as lncc
"""


@app.command(epilog=EPILOG)
def diagnose(
    files: Annotated[list[Path], typer.Argument(help="Your batch.")],
    like: Annotated[str, typer.Option("--as", metavar="LOSS", help="Which loss: see twinloss list.")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the loss; repeat for several.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="The name of an argument in the file.")
    ] = None,
) -> None:
    """Look at a batch of your own: values, precision, classes, smoothing, NaN; and what to make of it."""
    from twinloss.harness import diagnose as doctor
    from twinloss.harness.batch_files import BatchError, load
    from twinloss.harness.catalogue import UnknownLossError

    try:
        found = load(*files)
        given = {name: value(text) for name, text in pairs(option, "--option").items()}
        made = doctor.diagnose(like, found, given, pairs(names, "--map"))
    except (BatchError, UnknownLossError, TypeError) as error:
        raise typer.BadParameter(str(error)) from error
    for title, head, rows in made.tables:
        shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for n, column in enumerate(head):
            shown.add_column(column, justify="left" if n == 0 else "right")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        console.print()
    for sentence in made.verdict:
        console.print(sentence, markup=False, soft_wrap=True)
