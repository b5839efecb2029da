"""The command `twinloss warmup`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from twinloss.harness.cli.app import Dtype, Losses, app, chosen_types, console, named_twins, progress


@app.command()
def warmup(
    losses: Losses = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option(help="Dtype; repeat for several. Default: float32, float64.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of parallel processes. Default: one for each core.")
    ] = None,
) -> None:
    """Compile the kernels in advance, for example while building a container; later processes read Numba's cache."""
    from twinloss.harness.hunting.jobs import Job, Work
    from twinloss.harness.hunting.parallel import run_jobs
    from twinloss.harness.hunting.warmup import KERNELS

    dtypes = chosen_types(dtype, ("float32", "float64"))
    # Between them, those that come first need all kernels: no two processes compile the same ones at the same time.
    twins = sorted(named_twins(losses), key=lambda twin: not twin.compiles_first)
    parts = [Job(twin, (each,), "warmup", 0, 0) for twin in twins for each in dtypes]
    kernels = 0
    with progress("kernels", None if losses else KERNELS * len(dtypes), exact=False) as tick:

        def compiled(what: str, _: int) -> None:
            nonlocal kernels
            begun = what.startswith("compiling")
            kernels += begun
            tick(what, int(begun))

        run_jobs(Work(), parts, compiled, jobs or os.cpu_count() or 1)
    console.print(f"compiled {kernels} kernels" if kernels else "all kernels were in the cache already")
