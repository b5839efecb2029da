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
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from twinloss import __version__
from twinloss.harness.model.device import Device
from twinloss.harness.model.operand import DTYPES
from twinloss.harness.model.twin import Twin

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
    int | None, typer.Option(min=1, metavar="N", help="Number of parallel processes. Default: 2, or 1 for check.")
]
Cluster = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, tcp://…, whose workers do the work.")
]
OnDevice = Annotated[
    Device,
    typer.Option("--device", help="Where the losses run; interpreter: the kernels for GPUs, in Triton's interpreter."),
]
REPORT = Path("twinloss-report")
SILENCE = 10.0  # the least time, in seconds, between two lines about compilation
console = Console()
if not console.is_terminal:
    console = Console(width=110)  # a file or a pipe has no width, and the tables need more than 80 columns


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
    from twinloss.harness.losses.catalogue import UnknownLossError, catalogue, find

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


def usable(device: Device) -> str:
    """Return the name of a device, after a check that it can be used here."""
    from twinloss.harness.model.device import DeviceError, use

    try:
        use(device.value)
    except DeviceError as error:
        raise typer.BadParameter(str(error)) from error
    return str(device.value)


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
def progress(unit: str = "cases", total: int | None = None, exact: bool = True) -> Iterator[Callable[[str, int], None]]:
    """Show how far a command is; yield a function that takes the name of the current step and the number of new units.

    There is a bar if the total number of units is known, exactly or roughly. If the output is a file or a pipe, nothing
    is drawn. Then lines of text report steps if the total is known, and else only compilation, which takes minutes.
    There is at most one line every `SILENCE` seconds.
    """
    os.environ.setdefault("TWINLOSS_QUIET", "1")  # the bar itself says which kernels are being compiled
    of = "" if total is None else f" of {total}" if exact else f" of about {total}"
    columns = [SpinnerColumn(), *[BarColumn(30)] * (total is not None), TextColumn(f"{{task.completed}}{of} {unit},")]
    said = time.monotonic() - SILENCE
    with Progress(
        *columns, TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("starting", total=total)

        def tick(what: str, units: int) -> None:
            nonlocal said
            bar.update(task, description=escape(what), advance=units)
            told = total is not None or what.startswith("compiling")
            if not console.is_terminal and told and time.monotonic() - said >= SILENCE:
                said = time.monotonic()
                done = "" if total is None else f"{bar.tasks[0].completed:.0f}{of} {unit}: "
                console.print(f"{done}{what}", markup=False, highlight=False, soft_wrap=True)

        yield tick


def with_extra(*modules: str) -> None:
    """Exit with a message about the extra `reports`, if one of these modules is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        console.print(
            f'missing modules: {", ".join(missing)}. Run: pip install "twinloss[reports]"', style="red", markup=False
        )
        raise typer.Exit(1)
