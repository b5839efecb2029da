"""The benchmark on a GPU: one run of at most eight minutes, which saves its report before it is complete.

The stages, in the order of their importance: all cases at 96³, the other sizes, CUDA graphs, volumes of 512³, and
MONAI's losses compiled, which takes longest. A stage ends when the time is up.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinloss.harness.bench.cases import BASE, BenchmarkCase, base_cases
from twinloss.harness.bench.competitors import COMPILED, FAST, Step, names, step_of, versions_of_others
from twinloss.harness.bench.roofline import needed
from twinloss.harness.bench.timing import quiet
from twinloss.harness.model.twin import Twin
from twinloss.harness.system.machine import machine, versions

SIZES = (32, 64, 128, 192, 256)
LARGE = 512
# The losses whose time and memory are measured at `LARGE`, where there are 2³¹ bytes of logits.
OF_LARGE = ("dice", "dice_ce", "bending_energy", "lncc")
# Seconds for all stages; a compilation is not started in the last of them.
LIMIT, COMPILATION = 400.0, 60.0
LEAST_STEPS, MOST_STEPS = 5, 200
# The number of bytes of the tensor whose copy is timed.
COPIED = 2**30


@dataclass(frozen=True)
class Measured:
    """One step of an implementation.

    Attributes:
        ms: the median time from step to step.
        host_ms: the time in which the host starts a step.
        peak: the largest memory beyond the arguments, as a multiple of the gradient's size; None if it is unknown.
    """

    ms: float
    host_ms: float
    peak: float | None


@dataclass
class Session:
    """A run on a device.

    Attributes:
        twins: the losses.
        device: "cuda", or "cpu" for a test of this code.
        seconds: the time of each measurement.
        limit: the time of all stages.
        base: the edge length that comes first.
        sizes: the other edge lengths.
        large: the edge length of the large volumes.
        tick: called with the name of each step.
        checked: lines that say what `twinloss verify` has found on the device.
    """

    twins: Sequence[Twin]
    device: str = "cuda"
    seconds: float = 0.25
    limit: float = LIMIT
    base: int = BASE
    sizes: Sequence[int] = SIZES
    large: int = LARGE
    tick: Callable[[str, int], None] = lambda what, cases: None
    checked: Sequence[str] = ()
    copy: float = 0.0
    found: dict[BenchmarkCase, dict[str, Measured]] = field(default_factory=dict)
    graphs: dict[BenchmarkCase, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def go(self, folder: Path | None = None) -> None:
        """Run all stages, and write the report before the long ones and at the end."""
        self._end = time.perf_counter() + self.limit
        self.copy = bandwidth(self.device)
        cases = base_cases(self.twins, 1, self.base, self.device)
        others = [each for size in self.sizes for each in base_cases(self.twins, 1, size, self.device)]
        large = [each for each in base_cases(self.twins, 1, self.large, self.device) if each.loss in OF_LARGE]
        self._times(cases)
        self._saved(folder)
        self._times(others)
        self._captures(cases)
        self._times([replace(each, batch=1) for each in large], (FAST,))
        self._saved(folder)
        self._compiled(cases)
        self._saved(folder)

    def _saved(self, folder: Path | None) -> None:
        if folder:
            write(self, folder)

    def _in_time(self, cases: Sequence[BenchmarkCase], least: float = 0.0) -> Iterator[BenchmarkCase]:
        for case in cases:
            if time.perf_counter() > self._end - least:
                self.failed.append(f"{case}: not run, as the time was up")
                continue
            self.tick(str(case), 1)
            yield case

    def _times(self, cases: Sequence[BenchmarkCase], only: Sequence[str] | None = None) -> None:
        for case in self._in_time(cases):
            with self._attempt(case, "arguments"):
                operands = case.operands()
                for name in only or names(case, compiled=False):
                    with self._attempt(case, name):
                        self._measure(case, name, operands)

    def _compiled(self, cases: Sequence[BenchmarkCase]) -> None:
        for case in self._in_time([case for case in cases if case.line.peer], COMPILATION):
            with self._attempt(case, COMPILED):
                self._measure(case, COMPILED, case.operands())
            torch.compiler.reset()

    def _captures(self, cases: Sequence[BenchmarkCase]) -> None:
        for case in self._in_time(cases if self.device == "cuda" else ()):
            with self._attempt(case, "CUDA graph"):
                self.graphs[case] = captured(step_of(case, FAST, case.operands()), self.seconds)

    def _measure(self, case: BenchmarkCase, name: str, operands: Sequence[torch.Tensor]) -> None:
        with quiet():
            made = measured(step_of(case, name, operands), self.device, self.seconds, operands[0].nbytes)
        self.found.setdefault(case, {})[name] = made

    @contextmanager
    def _attempt(self, case: BenchmarkCase, name: str) -> Iterator[None]:
        """Note what fails within a block, for example for lack of memory, and go on."""
        try:
            yield
        except Exception as error:  # another library may fail in any way
            first = next(iter(str(error).strip().splitlines()), "")
            self.failed.append(f"{case}, {name}: {type(error).__name__}: {first[:160]}")
        gc.collect()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: str, size: int | None = None) -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.ones((size or (COPIED if device == "cuda" else 2**24)) // 4, device=device)
    made = torch.empty_like(source)
    best = min(_intervals(lambda: made.copy_(source), device, 10)[0])
    return 2 * source.nbytes / best


def measured(step: Step, device: str, seconds: float, gradient: int) -> Measured:
    """Measure a step within some seconds, after a few steps that do not count."""
    for _ in range(3):
        step()
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    count = int(np.clip(seconds / (time.perf_counter() - start), LEAST_STEPS, MOST_STEPS))
    intervals, host = _intervals(step, device, count)
    peak = None
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = (torch.cuda.max_memory_allocated() - before) / gradient
    return Measured(float(np.median(intervals)) * 1e3, host * 1e3, peak)


def _intervals(step: Step, device: str, count: int) -> tuple[list[float], float]:
    """Return the seconds of each step, and the mean time in which the host starts one."""
    if device != "cuda":
        marks = [time.perf_counter()]
        for _ in range(count):
            step()
            marks.append(time.perf_counter())
        return list(np.diff(marks)), (marks[-1] - marks[0]) / count
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    host = (time.perf_counter() - start) / count
    torch.cuda.synchronize()
    return [one.elapsed_time(other) * 1e-3 for one, other in pairwise(events)], host


def captured(step: Callable[[], Any], seconds: float) -> str:
    """Capture a step in a CUDA graph, compare its gradient with that of the step, and return what came."""
    aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient = step()[0]
    expected = step()[0]
    graph.replay()
    torch.cuda.synchronize()
    same = "the same gradient" if torch.equal(gradient, expected) else "another gradient"
    return f"{same}, {measured(graph.replay, 'cuda', seconds, 1).ms:.3f} ms for a replay"


COLUMNS = (
    "case",
    "implementation",
    "ms",
    "host ms",
    "peak / gradient",
    "time / twinloss",
    "share of a copy's bandwidth",
)

INTRODUCTION = """
A step is one forward and one backward pass in float32. The time is the median from step to step, and the host time is
that in which Python and torch start a step: where it is the larger one, the GPU waits. The share of a copy's bandwidth
is that of the bytes that no implementation can avoid; where all fits into the cache of the GPU, it may exceed 100 %.
"""


def _rows(case: BenchmarkCase, found: dict[str, Measured], copy: float) -> Iterator[list[str]]:
    ours = found.get(FAST)
    for name, of in found.items():
        share = needed(case)[0] / copy / of.ms * 1e3 if case.line.work else None
        yield [
            str(case), name, f"{of.ms:.3f}", f"{of.host_ms:.3f}", "" if of.peak is None else f"{of.peak:.2f}",
            f"{of.ms / ours.ms:.2f}" if ours else "", "" if share is None else f"{share:.0%}",
        ]  # fmt: skip


def as_markdown(session: Session) -> str:
    """Render the report as Markdown."""
    device = torch.cuda.get_device_name() if session.device == "cuda" else machine()["cpu"]
    packages = ", ".join(f"{name} {number}" for name, number in {**versions(), **versions_of_others()}.items())
    lines = ["# Benchmark on a GPU", INTRODUCTION, f"{device}; {packages}. Copy: {session.copy / 1e9:.0f} GB/s.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for case, found in session.found.items():
        lines += ["| " + " | ".join(row) + " |" for row in _rows(case, found, session.copy)]
    sections = (
        ("Correctness, by `twinloss verify`", session.checked),
        ("CUDA graphs", [f"{case}: {what}" for case, what in session.graphs.items()]),
        ("Not measured", session.failed),
    )
    for title, items in sections:
        lines += ["", f"## {title}", "", *(f"* {item}" for item in items)] if items else []
    return "\n".join(lines).rstrip() + "\n"


def write(session: Session, folder: Path) -> Path:
    """Write the report."""
    path = folder / "gpu.md"
    path.write_text(as_markdown(session), encoding="utf-8")
    return path
