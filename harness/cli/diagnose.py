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
[bold]The files[/] hold the arguments of the loss by name: input, target and mask, or pred and target, or the names that
MONAI and nnU-Net use. They are one .npz, or a .pt with a dictionary of tensors, or one image per argument, .nii.gz or
.npy, with the argument as the name of the file. The input of a loss is the output of the network. Other contents are
ignored, and no code in a file is run. To save a batch whose loss is NaN:

torch.save({"input": logits, "target": target}, "batch.pt")

[bold]Examples[/]

twinloss diagnose batch.npz --as dice

twinloss diagnose batch.pt --as dice_ce --map input=logits --option include_background=False

twinloss diagnose pred.nii.gz target.nii.gz --as lncc
"""


@app.command(epilog=EPILOG)
def diagnose(
    files: Annotated[list[Path], typer.Argument(help="The files of your batch.")],
    like: Annotated[str, typer.Option("--as", metavar="LOSS", help="The loss; see twinloss list.")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the loss; repeat for several.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="The name of an argument in the file.")
    ] = None,
) -> None:
    """Find out what is wrong with your own batch, and how to fix it."""
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
    verdict = "Problems, and how to fix them" if made.findings else "Verdict"
    for heading, sentences in (
        ("Input", made.notes), (verdict, made.findings or [made.fine]), ("Further hints", made.hints),
    ):  # fmt: skip
        if sentences:
            grid = Table.grid(padding=(0, 1))
            for sentence in sentences:
                grid.add_row("•", Text(sentence))
            console.print(Text(heading, style="bold"))
            console.print(grid)
            console.print()
