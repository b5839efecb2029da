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
    OnDevice,
    app,
    chosen_types,
    drawn_seed,
    named_twins,
    progress,
    remembers,
    usable,
    with_dask,
    writable,
)
from twinloss.harness.model.device import Device
from twinloss.harness.model.operand import DTYPES

EPILOG = """
[bold]Examples[/]

twinloss verify                          all losses, float32 and float64, generated cases and real images

twinloss verify dice --examples 2000     a longer hunt

twinloss verify dice --dtype bfloat16 --no-real --seed 7

twinloss verify --report out             report.json, and a script for each counterexample, in out/

twinloss verify --repeat 40 --no-real    40 seeds, one after the other: a soak

twinloss verify --device cuda            the kernels for GPUs; --device interpreter: the same, on a CPU

[bold]Exit status[/]: 0 if no loss failed, 1 if a loss or the check itself failed, 2 usage error, 130 interrupted (the
results so far are kept). A degraded result is shown, but is not a failure.
"""


@app.command(epilog=EPILOG)
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
    device: OnDevice = Device.cpu,
    jobs: Jobs = None,
    dask: Cluster = None,
) -> None:
    """Hunt for an input on which a fast loss differs from its reference."""
    twins, folder, where = named_twins(losses), writable(report), usable(device)
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
            twins, dtypes, drawn_seed(seed), count, real, tick, processes=jobs or PROCESSES,
            cluster=with_dask(dask), remember=remembers(), repeat=repeat, device=where,
            told=finished(only_marked=repeat > 1),
        )  # fmt: skip
    outcome(seen)
    files(seen, folder, save, writable(out) if out else None, readme)
    raise typer.Exit(seen.exit_code)
