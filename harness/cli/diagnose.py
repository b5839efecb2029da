"""The command `twinloss diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from twinloss.harness.cli.app import app, console

EPILOG = """
[bold]The files[/] hold the arguments of the loss by name (input, target, mask; or pred, target; or what MONAI and
nnU-Net call them): one .npz, or a .pt with a dictionary of tensors; or an image each, .nii.gz or .npy, whose names are
those of the arguments. The input of a loss is what the network puts out. What else a file holds is left out, and
nothing in it is run. To save a batch where the loss turns NaN:

torch.save({"input": logits, "target": target}, "batch.pt")

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
    """Look at a batch of your own, and say what is wrong with it and how to mend it."""
    from twinloss.harness.commands.arguments import ArgumentError, pairs, value
    from twinloss.harness.diagnosis import diagnose as doctor
    from twinloss.harness.diagnosis.batch_files import BatchError, load
    from twinloss.harness.losses.catalogue import UnknownLossError

    try:
        found = load(*files)
        given = {name: value(text) for name, text in pairs(option, "--option").items()}
        made = doctor.diagnose(like, found, given, pairs(names, "--map"))
    except (ArgumentError, BatchError, UnknownLossError, TypeError) as error:
        raise typer.BadParameter(str(error)) from error
    for title, head, rows in made.tables:
        shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for n, column in enumerate(head):
            shown.add_column(column, justify="left" if n == 0 else "right")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        console.print()
    verdict = "What is wrong, and how to mend it" if made.findings else "Verdict"
    for heading, sentences in (
        ("What was looked at", made.notes), (verdict, made.findings or [made.fine]), ("Besides", made.hints),
    ):  # fmt: skip
        if sentences:
            grid = Table.grid(padding=(0, 1))
            for sentence in sentences:
                grid.add_row("•", Text(sentence))
            console.print(Text(heading, style="bold"))
            console.print(grid)
            console.print()
