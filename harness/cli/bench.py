"""The command `twinloss bench`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinloss.harness.cli.app import Losses, OnDevice, app, console, named_twins, progress, usable, writable
from twinloss.harness.model.device import Device

if TYPE_CHECKING:
    from twinloss.harness.bench.cases import BenchmarkCase
    from twinloss.harness.bench.records import BenchmarkRun
    from twinloss.harness.bench.roofline import Rates
    from twinloss.harness.bench.traffic import Comparison
    from twinloss.harness.model.twin import Twin


EPILOG = """
[bold]Examples[/]

twinloss bench dice                                  the base case: 96³ voxels, 2 items, 4 classes, all threads

twinloss bench --sweep --out reports                 all cases of all losses, and the report with its figures

twinloss bench --sweep --out reports --resume        only the cases that an interrupted run did not reach

twinloss bench dice --size 32 --threads 1 --no-compiled --no-memory --budget 1      a quick look

twinloss bench --device cuda --out reports           gpu.md: correctness, time and memory on a GPU, in eight minutes

twinloss bench --traffic --out reports               traffic.md: bytes, launches, waits and memory, without a GPU

[bold]Files[/]: benchmarks.json keeps all results; new results replace those of the same case. It is written after each
case, so Ctrl-C loses only the current case. benchmarks.md is made from it.
"""


@app.command(epilog=EPILOG)
def bench(
    losses: Losses = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also vary size, classes, items, dtype and number of threads.")
    ] = False,
    budget: Annotated[float, typer.Option(min=0.01, help="Time, in seconds, to spend on each case.")] = 4.0,
    size: Annotated[int, typer.Option(min=8, help="Edge length, in voxels, of the cube in the base case.")] = 96,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads in the base case. Default: torch's.")] = None,
    device: OnDevice = Device.cpu,
    compiled: Annotated[bool, typer.Option(help="Also time torch.compile of the losses, which takes minutes.")] = True,
    memory: Annotated[bool, typer.Option(help="Also measure peak memory, each in its own process.")] = True,
    traffic: Annotated[
        bool, typer.Option("--traffic", help="Count bytes, launches, waits and memory on a device without kernels.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip cases whose results are in the --out folder.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace results in the --out folder even by noisier ones.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the report and benchmarks.json.")] = None,
) -> None:
    """Measure the time of forward and backward, and the memory, of the losses and of those of other libraries."""
    twins, folder, where = named_twins(losses), writable(out) if out else None, usable(device)
    if device is Device.interpreter:
        raise typer.BadParameter("Triton's interpreter shows whether kernels are right; their times mean nothing")
    if traffic:
        _count(twins, size, folder)
        return
    if device is Device.cuda and not sweep:
        _on_gpu(twins, budget, folder)
        return
    import torch

    from twinloss.harness.bench import cases as made
    from twinloss.harness.bench import report
    from twinloss.harness.bench.records import Records, load
    from twinloss.harness.bench.session import Session

    count = threads or torch.get_num_threads()
    kind = "base" if size == made.BASE and count == torch.get_num_threads() else "custom"
    wanted = (made.sweep if sweep else made.base_cases)(twins, count, size, where, kind)
    stem = "benchmarks" if where == "cpu" else f"benchmarks-{where}"
    path = folder / f"{stem}.json" if folder else None
    records = load(path) if path else Records()
    if resume:
        wanted = [case for case in wanted if not records.has(case)]
    with progress(total=len(wanted)) as tick:
        tick("measuring the machine", 0)
        run = _run(wanted)
        host = f"{run.machine['cpu']}, {run.machine['cores']} cores"
        console.print(f"on {host}{report.conditions(run)}", markup=False, highlight=False, soft_wrap=True)
        session = Session(run, records, budget, compiled, memory, tick, path, force)
        finished = session.go(wanted)
        if finished:
            tick("measuring the machine again", 0)
            session.finish(_rates(wanted))
    console.print(report.screen([each for each in records.outcomes if each.run == session.run]))
    console.print(f"on {host}{report.conditions(session.run)}", markup=False, highlight=False, soft_wrap=True)
    for case in session.dropped:
        console.print(f"kept the earlier result of {case}, which is less noisy; --force replaces it", style="magenta")
    for line in report.summary(records):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for written in [path, *report.write(records, folder, stem)] if folder else ():
        console.print(f"wrote {written}")
    if not finished:
        console.print("interrupted: the results so far are kept", style="magenta")
        raise typer.Exit(130)


def _on_gpu(twins: list[Twin], budget: float, folder: Path | None) -> None:
    """Check the losses on the GPU, measure them, print the report and write it."""
    from twinloss.harness.bench import on_gpu

    with progress() as tick:
        session = on_gpu.Session(twins, seconds=budget / 16, tick=tick, checked=_checked_on_gpu(twins, tick))
        session.go(folder)
    console.print(on_gpu.as_markdown(session), markup=False, highlight=False, soft_wrap=True)
    if folder:
        console.print(f"wrote {on_gpu.write(session, folder)}")


def _checked_on_gpu(
    twins: list[Twin], tick: Callable[[str, int], None], limit: float = 150, device: str = "cuda"
) -> list[str]:
    """Return what a short hunt on the GPU has found, in lines; it ends after some seconds."""
    from rich.text import Text

    from twinloss.harness.commands.report import line
    from twinloss.harness.commands.verify import verify

    end = time.monotonic() + limit

    def tick_in_time(what: str, cases: int) -> None:
        tick(what, cases)
        if time.monotonic() > end:
            raise KeyboardInterrupt

    processes = min(os.cpu_count() or 1, 8)
    seen = verify(twins, ["float32"], 0, 20, False, tick_in_time, processes=processes, device=device)
    ended = ["The hunt was ended, as its time was up."] if seen.interrupted else []
    return [*(Text.from_markup(line(row)).plain for row in seen.rows), *ended]


def _count(twins: list[Twin], size: int, folder: Path | None) -> None:
    """Count the traffic of the base cases, print a table, and write the report."""
    from rich import box
    from rich.table import Table

    from twinloss.harness.bench import traffic
    from twinloss.harness.bench.cases import counted_cases

    with progress() as tick:
        comparisons = []
        for case in counted_cases(twins, size):
            tick(str(case), 0)
            comparisons.append(traffic.compare(case))
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(traffic.COLUMNS):
        made.add_column(column, justify="right" if i else "left", no_wrap=i == 0)
    for each in comparisons:
        made.add_row(*traffic.row(each))
    console.print(made)
    for each in comparisons:
        if each.beyond:
            console.print(f"{each.case}: {', '.join(each.beyond)}", style="magenta")
    if folder:
        console.print(f"wrote {traffic.write(comparisons, folder, _estimates(comparisons))}")


def _estimates(comparisons: list[Comparison]) -> list[str]:
    """Return the lines of the report with the estimate for GPUs, if Triton is installed."""
    from twinloss.harness.bench import estimate

    if find_spec("triton") is None:
        return []
    return estimate.as_markdown([estimate.estimate(each.case, each.monai) for each in comparisons])


def _run(cases: list[BenchmarkCase]) -> BenchmarkRun:
    """Return the description of this run: command, machine, versions, and the machine's speed by number of threads."""
    from twinloss.harness.bench.competitors import versions_of_others
    from twinloss.harness.bench.records import BenchmarkRun
    from twinloss.harness.system.machine import load, machine, versions

    command, busy = shlex.join(["twinloss", *sys.argv[1:]]), load()
    return BenchmarkRun(command, machine(), {**versions(), **versions_of_others()}, _rates(cases), load=busy)


def _rates(cases: list[BenchmarkCase]) -> dict[str, Rates]:
    """Measure the rates of the machine for each number of threads."""
    from twinloss.harness.bench.roofline import measured

    counts = sorted({case.threads for case in cases if case.device == "cpu"})
    return {str(count): measured(count) for count in counts}
