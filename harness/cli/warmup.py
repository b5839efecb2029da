"""The command `twinloss warmup`."""

from __future__ import annotations

from typing import Annotated

import typer

from twinloss.harness.cli.app import Dtype, Jobs, Losses, app, chosen_types, console, named_twins, progress


@app.command()
def warmup(
    losses: Losses = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="Dtype; repeat for several. Default: float32, float64.")
    ] = None,
    jobs: Jobs = None,
) -> None:
    """Compile the kernels in advance, for example while building a container; later processes read Numba's cache."""
    from twinloss.harness.hunting.jobs import Job, Work
    from twinloss.harness.hunting.parallel import PROCESSES, run_jobs

    dtypes = chosen_types(dtype, ("float32", "float64"))
    parts = [Job(twin, (each,), "warmup", 0, 0) for twin in named_twins(losses) for each in dtypes]
    with progress() as tick:
        run_jobs(Work(), parts, tick, jobs or PROCESSES)
    console.print("compiled")
