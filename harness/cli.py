"""The command `twinloss`."""

from __future__ import annotations

import importlib.util
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from twinloss import __version__
from twinloss.harness.twin import DTYPES, Twin, label

app = typer.Typer(
    name="twinloss",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    help="Loss functions that are written twice, and a hunt for an input on which the two versions differ.",
    epilog="Start with [bold]twinloss list[/], then [bold]twinloss verify dice[/].",
)
Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]
Losses = Annotated[list[str] | None, typer.Argument(help="The losses; all by default.", show_default=False)]
Jobs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of parallel processes. Default: 2; of check: 1.")
]
Cluster = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, tcp://…, whose workers do the work.")
]
REPORT = Path("twinloss-report")
SILENCE = 10.0  # the least time, in seconds, between two lines about compilation
console = Console()
if not console.is_terminal:
    console = Console(width=110)  # a file or a pipe has no width, and the tables need more than 80 columns


def main() -> None:
    """Run the command."""
    with_all_commands()()


def with_all_commands() -> typer.Typer:
    """Return the program, after importing the modules that register the commands."""
    from twinloss.harness import (  # noqa: F401
        cli_bench,
        cli_check,
        cli_diagnose,
        cli_migration,
        cli_reliability,
        cli_report,
    )

    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twinloss {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def named_twins(names: list[str] | None) -> list[Twin]:
    """Return the losses of these names, or all losses if no name is given."""
    from twinloss.harness.catalogue import UnknownLossError, catalogue, find

    try:
        return [find(name) for name in dict.fromkeys(names)] if names else list(catalogue().values())
    except UnknownLossError as error:
        raise typer.BadParameter(str(error)) from error


def writable(folder: Path) -> Path:
    """Create a folder if it does not exist, check that it is writable, and return it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise typer.BadParameter(f"cannot write into {folder}: {error.strerror or error}") from error
    return folder


def chosen_types(given: list[Dtype] | None, default: Sequence[str]) -> list[str]:
    """Return the requested dtypes without duplicates, or the default ones."""
    return list(dict.fromkeys(str(d.value) for d in given)) if given else list(default)


def with_dask(address: str | None) -> str | None:
    """Return the address of a cluster, after a check that dask.distributed is installed."""
    if address is not None and importlib.util.find_spec("distributed") is None:
        raise typer.BadParameter("--dask needs dask.distributed: pip install 'twinloss[cluster]'")
    return address


def remembers() -> bool:
    """Return whether failing cases are kept for the next hunt; not in CI, where runs are independent."""
    return not os.environ.get("CI")


def drawn_seed(given: int | None) -> int:
    """Return the given seed, or a random one; in CI it is 0, so that an unrelated change does not fail by chance."""
    return given if given is not None else 0 if os.environ.get("CI") else secrets.randbelow(2**31)


@contextmanager
def progress() -> Iterator[Callable[[str, int], None]]:
    """Show a progress bar; yield a function that takes the name of the current step and the number of new cases.

    If the output is a file or a pipe, there is no bar. Since compilation takes minutes, some lines report it.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed} cases"))
    said = time.monotonic() - SILENCE
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def tick(what: str, cases: int) -> None:
            nonlocal said
            bar.update(task, description=what, advance=cases)
            if not console.is_terminal and what.startswith("compiling") and time.monotonic() - said >= SILENCE:
                said = time.monotonic()
                console.print(what, markup=False)

        yield tick


VERIFY_EPILOG = """
[bold]Examples[/]

twinloss verify                          all losses, float32 and float64, generated cases and real images

twinloss verify dice --examples 2000     a longer hunt

twinloss verify dice --dtype bfloat16 --no-real --seed 7

twinloss verify --report out             report.json, and a script for each counterexample, in out/

twinloss verify --repeat 40 --no-real    40 seeds, one after the other: a soak

[bold]Exit status[/]: 0 if no loss failed, 1 if a loss or the check itself failed, 2 usage error, 130 interrupted (the
results so far are kept). A degraded result is shown but is no failure.
"""


@app.command(epilog=VERIFY_EPILOG)
def verify(
    losses: Losses = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Cases per loss and dtype. Default: 150.")] = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="Dtype under test; repeat for several. Default: float32, float64.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draws. Default: random, and printed.")] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Ten times as many cases, and all four dtypes.")] = False,
    report: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for report.json and a script for each counterexample.")
    ] = REPORT,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save report.json to this file.")] = None,
    real: Annotated[bool, typer.Option(help="Also test on real brain images at full size.")] = True,
    repeat: Annotated[
        int, typer.Option(min=1, metavar="N", help="Soak: N seeds from --seed on; real images only with the first.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for soak.md, with --repeat.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, help="A file whose marked cells get the soak's result.")
    ] = None,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Hunt for an input on which a fast loss differs from its reference."""
    twins, folder = named_twins(losses), writable(report)
    if save:
        writable(save.parent)
    if (out or readme) and repeat == 1:
        raise typer.BadParameter("--out and --readme are for a soak: add --repeat N, with N of 2 or more")
    from twinloss.harness.telling import files, finished, outcome
    from twinloss.harness.verify import EXAMPLES, PROCESSES
    from twinloss.harness.verify import verify as run

    dtypes = chosen_types(dtype, DTYPES if thorough else DTYPES[:2])
    count = examples or EXAMPLES * (10 if thorough else 1)
    with progress() as tick:
        seen = run(
            twins, dtypes, drawn_seed(seed), count, real, tick, jobs or PROCESSES, with_dask(dask),
            remember=remembers(), repeat=repeat, told=finished(only_marked=repeat > 1),
        )  # fmt: skip
    outcome(seen)
    files(seen, folder, save, writable(out) if out else None, readme)
    raise typer.Exit(seen.exit_code)


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
