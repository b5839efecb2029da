"""The command `twinloss verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinloss.harness.cli.app import (
    REPORT,
    Cluster,
    Dtype,
    Jobs,
    Losses,
    app,
    chosen_types,
    drawn_seed,
    named_twins,
    progress,
    remembers,
    with_dask,
    writable,
)
from twinloss.harness.model.operand import DTYPES

EPILOG = """
[bold]Examples[/]

twinloss verify                          all losses, float32 and float64, generated cases and real images

twinloss verify dice --examples 2000     a longer hunt

twinloss verify dice --dtype bfloat16 --no-real --seed 7

twinloss verify --report out             report.json, and a script for each counterexample, in out/

twinloss verify --repeat 40 --no-real    40 seeds, one after the other: a soak

[bold]Exit status[/]: 0 none failed, 1 a twin or the check itself failed, 2 usage, 130 interrupted (what
was found is kept). A degraded twin is shown and does not fail.
"""


@app.command(epilog=EPILOG)
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
    from twinloss.harness.cli.verify_output import files, finished, outcome
    from twinloss.harness.commands.verify import verify as run
    from twinloss.harness.hunting.hunt import EXAMPLES
    from twinloss.harness.hunting.parallel import PROCESSES

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
