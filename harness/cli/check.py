"""The command `twinloss check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.syntax import Syntax

from twinloss.harness.cli.app import (
    REPORT,
    Cluster,
    Dtype,
    Jobs,
    OnDevice,
    app,
    chosen_types,
    console,
    drawn_seed,
    progress,
    remembers,
    usable,
    with_dask,
    writable,
)
from twinloss.harness.model.device import Device

if TYPE_CHECKING:
    from twinloss.harness.commands.check import Check

EPILOG = """
[bold]The target[/]: package.module:attr or path/file.py:attr; a class, an instance or a function, of torch, NumPy or
Numba. An option of the loss (see [bold]twinloss list[/]) is passed to the target if it has such a parameter. All other
options keep their defaults; use --option if your loss computes something else.

[bold]Examples[/]

twinloss check monai.losses:DiceLoss --as dice

twinloss check my/losses.py:FastDice --as dice --option softmax=True --map input=logits --rank 3

twinloss check my/kernel.py:dice --gradient my/kernel.py:dice_gradient --as dice     functions of arrays

twinloss check my/losses.py:FastDice --as dice --xfails known.toml     with known deviations

twinloss check my/losses.py:LabelDice --as dice --option softmax=True --labels-without-channel

twinloss check --pair mykernels.pairs:PAIR --dtype float32 --dtype bfloat16     any two functions

[bold]Conventions[/]: papers leave open how to treat one channel where classes are expected, inputs without spatial
axes, soft targets, and targets of another dtype. A loss that differs only there passes, unless --strict is given.

[bold]Exit status[/]: 0 if the loss agrees, or differs only by rounding or a convention; 1 if it differs, a known
deviation no longer occurs, or --strict is given and it differs by rounding or a convention; 2 usage error, also if the
target cannot be called; 130 interrupted.
"""


@app.command(epilog=EPILOG)
def check(
    target: Annotated[
        str | None, typer.Argument(help="Your loss: package.module:attr or path/file.py:attr; see below.")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--as", metavar="LOSS", help="The loss with the same formula.", show_default=False)
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option(metavar="PAIR", help="Instead of a loss: a pair of any functions, package.module:PAIR."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A fixed value of an option; repeat for several.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OURS=THEIRS", help="Your name of an option or argument; repeat for several."),
    ] = None,
    gradient: Annotated[
        str | None, typer.Option(metavar="TARGET", help="For a loss of arrays: the function that returns its gradient.")
    ] = None,
    value_only: Annotated[bool, typer.Option("--value-only", help="Do not judge the gradient.")] = False,
    rank: Annotated[list[int] | None, typer.Option(min=0, max=3, help="Spatial rank; repeat for several.")] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="The number of channels of your loss. Default: one and several.")
    ] = None,
    hard_targets: Annotated[
        bool, typer.Option("--hard-targets", help="Your loss takes only targets of 0 and 1.")
    ] = False,
    labels_without_channel: Annotated[
        bool, typer.Option("--labels-without-channel", help="Your loss takes labels (B, *S), not (B, 1, *S).")
    ] = False,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="Dtype under test; repeat for several. Default: float32, float64.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Cases per dtype.")] = 150,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draws. Default: random, and printed.")] = None,
    xfails: Annotated[Path | None, typer.Option(metavar="FILE", help="Known deviations, in TOML.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also fail if the loss differs only by rounding or a convention.")
    ] = False,
    report: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for report.json and a script for each counterexample.")
    ] = REPORT,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save report.json to this file.")] = None,
    device: OnDevice = Device.cpu,
    explain_bound: Annotated[
        bool, typer.Option("--explain-bound", help="For a pair: print what the bounds rest on.")
    ] = False,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Hunt for an input on which your own loss differs from the reference."""
    folder, where = writable(report), usable(device)
    if save:
        writable(save.parent)
    _refuse_what_does_not_go_together(target, like, pair, explain_bound)
    from twinloss.harness.commands.arguments import ArgumentError, pairs, value
    from twinloss.harness.commands.check import check as run
    from twinloss.harness.commands.check import check_pair
    from twinloss.harness.hunting.deviations import DeviationsError
    from twinloss.harness.hunting.loading import TargetError
    from twinloss.harness.losses.catalogue import UnknownLossError
    from twinloss.harness.model.pair import PairError

    dtypes = chosen_types(dtype, ("float32", "float64"))
    hunting = {
        "dtypes": dtypes, "examples": examples, "seed": drawn_seed(seed), "xfails": xfails, "strict": strict,
        "processes": jobs or 1, "cluster": with_dask(dask), "remember": remembers(),
    }  # fmt: skip
    with progress() as tick:
        try:
            if pair is not None:
                made = check_pair(pair, device=where, tick=tick, **hunting)  # type: ignore[arg-type]
                tell(made, folder, save, explain_bound)
                raise typer.Exit(made.exit_code)
            assert target is not None
            assert like is not None
            given = {name: value(text) for name, text in pairs(option, "--option").items()}
            made = run(
                target, like, options=given, names=pairs(names, "--map"), gradient=gradient, value_only=value_only,
                ranks=rank, channels=channels, hard_targets=hard_targets,
                labels_without_channel=labels_without_channel,
                tick=tick, device=where, **hunting,  # type: ignore[arg-type]
            )  # fmt: skip
        except (ArgumentError, TargetError, UnknownLossError, DeviationsError, PairError) as error:
            raise typer.BadParameter(str(error)) from error
    tell(made, folder, save)
    raise typer.Exit(made.exit_code)


def _refuse_what_does_not_go_together(
    target: str | None, like: str | None, pair: str | None, explain_bound: bool
) -> None:
    if pair is None and (target is None or like is None):
        raise typer.BadParameter("give your loss and --as LOSS, or --pair package.module:PAIR")
    if pair is not None and (target is not None or like is not None):
        raise typer.BadParameter("--pair names both functions: leave out the loss and --as")
    if pair is None and explain_bound:
        raise typer.BadParameter("--explain-bound is for --pair")


def tell(made: Check, folder: Path, save: Path | None = None, explain_bound: bool = False) -> None:
    """Print the table and the results in words, and write the files."""
    from twinloss.harness.commands import report as reports
    from twinloss.harness.commands.check import story
    from twinloss.harness.hunting.report_file import LEGEND, LEGEND_OF_PAIR
    from twinloss.harness.hunting.snippet import shortened

    console.print(
        reports.table(made, f"twinloss check {made.twin.fast.__name__} as {made.twin.name}, seed {made.seed}")
    )
    console.print(LEGEND_OF_PAIR if made.twin.pair else LEGEND, style="dim", soft_wrap=True)
    if not made.twin.differentiable:
        console.print("The gradient was not judged.", style="yellow")
    if made.held:
        held = ", ".join(f"{name}={text}" for name, text in made.held.items())
        console.print(f"Options with a fixed value: {held}", style="dim", markup=False, soft_wrap=True)
    for text, style in story(made):
        console.print(text, style=style, markup=False, soft_wrap=True)
    worst = next((row for row in made.rows if row.counterexample and row.verdict == made.verdict), None)
    if worst and worst.counterexample:
        console.print("This script shows the failure, and fails until the loss is fixed:")
        console.print(Syntax(shortened(worst.counterexample.snippet), "python", word_wrap=True))
        console.print("To accept it as a known deviation, put this into a file for --xfails:")
        console.print(Syntax(worst.counterexample.xfail, "toml", word_wrap=True))
    for row in made.rows if explain_bound else ():
        for part, finding in row.worst.items():
            console.print(f"{row.dtype}, worst {part} {finding.of}: {finding.basis or 'no bound'}", markup=False)
    for path in [*reports.write(made, folder), *write_conventions(made, folder)]:
        console.print(f"wrote {path}")
    if save:
        save.write_bytes((folder / "report.json").read_bytes())
        console.print(f"saved {save}")


def write_conventions(made: Check, folder: Path) -> list[Path]:
    """Write for each convention a script that shows an example, and return the paths."""
    paths = []
    for name, found in made.conventions.items():
        words = "_".join("".join(c if c.isalnum() else " " for c in name).split())
        paths.append(folder / f"{made.twin.name}_convention_{words}.py")
        paths[-1].write_text(found.snippet, encoding="utf-8")
    return paths
