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
    help="Losses written twice, and a hunt for an input on which the two differ.",
    epilog="Start with [bold]twinloss list[/], then [bold]twinloss verify dice[/].",
)
Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]
Losses = Annotated[list[str] | None, typer.Argument(help="Which losses; all if none is named.", show_default=False)]
Jobs = Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes at a time. [default: 2]")]
Cluster = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, tcp://…, whose workers do it.")]
REPORT = Path("twinloss-report")
SILENCE = 10.0  # seconds between two lines on compilation
console = Console()
if not console.is_terminal:
    console = Console(width=110)  # a file or a pipe has no width; the tables need more than 80 columns


def main() -> None:
    """Run the command."""
    with_all_commands()()


def with_all_commands() -> typer.Typer:
    """The program, once the modules of its commands have registered themselves."""
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
    """Those of these names, or all if none is named."""
    from twinloss.harness.catalogue import UnknownLossError, catalogue, find

    try:
        return [find(name) for name in dict.fromkeys(names)] if names else list(catalogue().values())
    except UnknownLossError as error:
        raise typer.BadParameter(str(error)) from error


def writable(folder: Path) -> Path:
    """The folder, made if need be, once a file has been written into it and removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise typer.BadParameter(f"cannot write into {folder}: {error.strerror or error}") from error
    return folder


def chosen_types(given: list[Dtype] | None, default: Sequence[str]) -> list[str]:
    """The types that were asked for, each once, or those by default."""
    return list(dict.fromkeys(str(d.value) for d in given)) if given else list(default)


def with_dask(address: str | None) -> str | None:
    """The address, once it is sure that there is something to reach it with."""
    if address is not None and importlib.util.find_spec("distributed") is None:
        raise typer.BadParameter("--dask needs dask.distributed: pip install 'twinloss[cluster]'")
    return address


def remembers() -> bool:
    """Whether failing cases are kept for the next hunt: not in CI, where each run is like the last."""
    return not os.environ.get("CI")


def drawn_seed(given: int | None) -> int:
    """The seed that was asked for, or a fresh one; CI must not fail by chance on a change that is not to blame."""
    return given if given is not None else 0 if os.environ.get("CI") else secrets.randbelow(2**31)


@contextmanager
def progress() -> Iterator[Callable[[str, int], None]]:
    """A bar that says what is looked at; it is told that, and how many cases more.

    A file or a pipe has no bar. It gets a line now and then while kernels are compiled, as that takes minutes.
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

[bold]Exit status[/]: 0 none failed, 1 a twin or the check itself failed, 2 usage, 130 interrupted (what
was found is kept). A degraded twin is shown and does not fail.
"""


@app.command(epilog=VERIFY_EPILOG)
def verify(
    losses: Losses = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Cases per loss and type. [default: 150]")] = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="Type under test; repeat for several. [default: float32, float64]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the draw; a fresh one, which is shown.")] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Ten times the cases, and all four types.")] = False,
    report: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write report.json, and a script for each counterexample.")
    ] = REPORT,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save report.json under this name.")] = None,
    real: Annotated[bool, typer.Option(help="Also a real brain at full size.")] = True,
    repeat: Annotated[
        int, typer.Option(min=1, metavar="N", help="Soak: N seeds from --seed on; real images with the first alone.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write soak.md, with --repeat.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, help="A file whose marked cells get the soak's outcome.")
    ] = None,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Look for an input on which a fast loss differs from its reference."""
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
    """Show the losses, and for each option the default and the other values that are tried."""
    for twin in named_twins(losses):
        made = Table(
            "option", "default", "also tried", title=f"{twin.name} ({twin.fast.__name__})", title_justify="left"
        )
        for name, values in twin.options.items():
            made.add_row(name, label(values[0]), ", ".join(label(value) for value in values[1:]))
        console.print(made)
