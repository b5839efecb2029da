"""The command `twinloss list`."""

from __future__ import annotations

from rich.table import Table

from twinloss.harness.cli.app import Losses, app, console, named_twins
from twinloss.harness.model.operand import label


@app.command("list")
def list_losses(losses: Losses = None) -> None:
    """Show the losses with the default and the other tested values of each option."""
    for twin in named_twins(losses):
        made = Table(
            "option", "default", "also tried", title=f"{twin.name} ({twin.fast.__name__})", title_justify="left"
        )
        for name, values in twin.options.items():
            made.add_row(name, label(values[0]), ", ".join(label(value) for value in values[1:]))
        console.print(made)
    if not losses:
        _list_pairs()


def _list_pairs() -> None:
    """Show the pairs of installed packages, if there are any."""
    from twinloss.harness.hunting.pairs import GROUP, installed

    pairs = installed()
    if pairs:
        made = Table("pair", "place", title=f"Pairs of installed packages ({GROUP})", title_justify="left")
        for name, entry in pairs.items():
            made.add_row(name, entry.value)
        console.print(made)
