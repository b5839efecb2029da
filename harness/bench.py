"""`twinloss bench`: forward and backward of the fast losses, MONAI's, and MONAI's under torch.compile.

Timings of the competitors alternate round by round in one run, so that what else the machine does hits all alike.
Memory is measured for each in a process of its own, after a warm-up: the high-water mark above what the process held
before forward, in multiples of the gradient's size, of which one is the gradient itself.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch.utils.benchmark import Timer

from twinloss.harness.answers import expected_warnings_silent
from twinloss.harness.report import machine, versions
from twinloss.harness.twin import Bench, Twin
from twinloss.harness.workload import BATCH, CLASSES

# Steps of each before it is timed: the allocator gets used to the sizes, which helps who allocates much.
WARM_UP = 5
FAST, EAGER, COMPILED = "twinloss", "MONAI", "MONAI compiled"


@dataclass(frozen=True)
class Result:
    """One competitor's figures on one loss."""

    loss: str
    competitor: str
    best_ms: float
    median_ms: float
    low_ms: float
    high_ms: float
    memory: float | None


def loss_of(twin: Twin, line: Bench, competitor: str) -> Callable[..., torch.Tensor]:
    """The module that a competitor brings.

    Raises:
        ImportError: if it is MONAI's and MONAI is not there.
    """
    if competitor == FAST:
        return twin.fast(**line.options)
    import monai.losses  # type: ignore[import-untyped, unused-ignore]

    assert line.peer is not None
    peer = line.peer(monai.losses)
    return torch.compile(peer) if competitor == COMPILED else peer


def step(loss: Callable[..., torch.Tensor], operands: Sequence[torch.Tensor]) -> None:
    """One forward and one backward."""
    x, *rest = operands
    torch.autograd.grad(loss(x.requires_grad_(), *rest), x)


def run(twins: Sequence[Twin], size: int, rounds: int, compiled: bool) -> list[Result]:
    """Time and weigh every competitor on every line of every loss."""
    competitors = (FAST, EAGER, COMPILED) if compiled else (FAST, EAGER)
    results = []
    for twin, line in [(each, line) for each in twins for line in each.benches]:
        taking_part = competitors if line.peer else (FAST,)
        torch.compiler.reset()
        times = _times(twin, line, taking_part, size, rounds)
        for competitor in taking_part:
            best, low, median, high = (float(t) * 1e3 for t in np.percentile(times[competitor], (0, 25, 50, 75)))
            memory = memory_of(twin, line, competitor, size)
            results.append(Result(title(twin, line), competitor, best, median, low, high, memory))
    return results


def title(twin: Twin, line: Bench) -> str:
    """How a line of the benchmark is called."""
    return f"{twin.name}, {line.name}" if line.name else twin.name


def _times(twin: Twin, line: Bench, competitors: Sequence[str], size: int, rounds: int) -> dict[str, list[float]]:
    operands = line.operands(size)
    times: dict[str, list[float]] = {name: [] for name in competitors}
    with expected_warnings_silent():
        losses = {name: loss_of(twin, line, name) for name in competitors}
        timers = {
            name: Timer("step(loss, operands)", globals={"step": step, "loss": loss, "operands": operands},
                        num_threads=torch.get_num_threads())
            for name, loss in losses.items()
        }  # fmt: skip
        for loss in WARM_UP * list(losses.values()):
            step(loss, operands)
        for _ in range(rounds):
            for name, timer in timers.items():
                times[name].append(timer.timeit(2).mean)
    return times


def memory_of(twin: Twin, line: Bench, competitor: str, size: int) -> float | None:
    """Peak extra memory in multiples of the gradient, measured in another process; None where that cannot be."""
    question = f"{twin.name!r}, {twin.benches.index(line)}, {competitor!r}, {size}"
    code = f"from twinloss.harness.bench import weigh; print(weigh({question}))"
    # Large blocks go back to the system as soon as they are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def weigh(loss: str, index: int, competitor: str, size: int) -> float:
    """Peak extra memory of this process, Linux only."""
    from twinloss.harness.catalogue import find

    twin = find(loss)
    line = twin.benches[index]
    operands, module = line.operands(size), loss_of(twin, line, competitor)
    with expected_warnings_silent():
        step(module, operands)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status("VmRSS")
        step(module, operands)
    return (_status("VmHWM") - before) / (operands[0].numel() * 4)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _cells(result: Result, results: Sequence[Result]) -> list[str]:
    fast = next(r for r in results if r.loss == result.loss and r.competitor == FAST)
    spread = f"{result.low_ms:.1f} to {result.high_ms:.1f}"
    memory = "" if result.memory is None else f"{result.memory:.1f}"
    ratio = f"{result.median_ms / fast.median_ms:.1f}"
    times = [f"{result.best_ms:.1f}", f"{result.median_ms:.1f}", spread]
    return [result.loss, result.competitor, *times, ratio, memory]


COLUMNS = (
    "loss",
    "implementation",
    "best ms",
    "median ms",
    "quartiles ms",
    "median / twinloss's",
    "peak memory / gradient",
)


def table(results: Sequence[Result], size: int) -> Table:
    """The figures for people."""
    made = Table(title=f"forward + backward, float32, {size}³ voxels, {torch.get_num_threads()} threads")
    for i, column in enumerate(COLUMNS):
        made.add_column(column, justify="left" if i < 2 else "right")
    for result in results:
        made.add_row(*_cells(result, results))
    return made


def _notes(results: Sequence[Result]) -> list[tuple[str, str]]:
    """What the competitors on a loss do not compute alike."""
    from twinloss.harness.catalogue import TWINS

    timed = {result.loss for result in results}
    lines = [(title(twin, line), line.note) for twin in TWINS for line in twin.benches]
    return [(name, note) for name, note in lines if note and name in timed]


def write(results: Sequence[Result], size: int, folder: Path) -> list[Path]:
    """Write benchmarks.md and benchmarks.json."""
    where: dict[str, Any] = {"machine": machine(), "versions": versions(), "size": size}
    lines = [
        "# Benchmarks",
        "",
        f"Made by `twinloss bench --out {folder.name}`: forward and backward, float32, rounds of the implementations",
        f"alternating in one run, on {size}³ voxels: {BATCH} items of {CLASSES} classes, a pair of images, or a field",
        "of displacements. Peak memory is what a step takes beyond what the process held before it, in multiples of",
        "the gradient's size; one of them is the gradient.",
        "",
        f"{where['machine']['cpu']}, {where['machine']['threads']} threads; torch {where['versions']['torch']}, "
        f"numba {where['versions']['numba']}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * 2 + "---:|" * 5,
        *("| " + " | ".join(_cells(result, results)) + " |" for result in results),
        "",
        *(f"{loss}: {note}.\n" for loss, note in _notes(results)),
    ]
    paths = [folder / "benchmarks.md", folder / "benchmarks.json"]
    paths[0].write_text("\n".join(lines), encoding="utf-8")
    made = {**where, "results": [asdict(result) for result in results]}
    paths[1].write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return paths
