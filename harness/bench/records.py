"""Benchmark results, stored in a JSON file that later runs update, and summary statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.bench.competitors import FAST, NO_COMPETITORS
from twinloss.harness.bench.roofline import Rates
from twinloss.harness.bench.timing import NOISY, Times

# Below this size of the gradient in bytes, page granularity and stacks distort the measurement of memory.
MEASURABLE = 8 * 2**20


@dataclass(frozen=True)
class BenchmarkRun:
    """The command, machine and package versions that produced a result, and the measured rates of the machine.

    Attributes:
        rates: before the run, by number of threads.
        after: after the run, or empty if the run was interrupted.
        load: the load average before the run, or None if the system does not tell.
    """

    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rates: Mapping[str, Rates] = field(default_factory=dict)
    after: Mapping[str, Rates] = field(default_factory=dict)
    load: float | None = None

    @property
    def drift(self) -> float | None:
        """The largest change of a rate during the run, as a share of the rate, or None if it was not measured."""
        changes = [
            abs(rate / asdict(self.rates[count])[name] - 1)
            for count, later in self.after.items()
            for name, rate in asdict(later).items()
        ]
        return max(changes, default=None)


@dataclass(frozen=True)
class Outcome:
    """The result of a case: times and memory by implementation, and why the others were left out."""

    case: BenchmarkCase
    run: BenchmarkRun
    times: Mapping[str, Times]
    memory: Mapping[str, float | None] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def fastest(self) -> str | None:
        """The competitor with the smallest median time."""
        rivals = [name for name in self.times if name not in NO_COMPETITORS]
        return min(rivals, key=lambda name: self.times[name].median_ms, default=None)

    @property
    def speed_up(self) -> float | None:
        """The median time of the fastest competitor divided by that of twinloss."""
        if self.fastest is None or FAST not in self.times:
            return None
        return self.times[self.fastest].median_ms / self.times[FAST].median_ms

    @property
    def noise(self) -> float:
        """The larger spread of the two times that the speed-up compares; infinite if twinloss was not timed."""
        if FAST not in self.times:
            return math.inf
        return max(self.times[name].spread for name in (FAST, self.fastest) if name is not None)

    @property
    def gradient_bytes(self) -> int:
        """The size of the gradient in bytes."""
        channels = self.case.classes or (3 if self.case.loss == "bending_energy" else 1)
        return self.case.voxels * channels * self.case.dtype_of_torch.itemsize

    @property
    def exceeds_memory_limit(self) -> bool:
        """Whether twinloss uses more memory than its benchmark allows.

        False if memory was not measured, or if the gradient is too small for a reliable measurement.
        """
        taken = self.memory.get(FAST)
        return taken is not None and self.gradient_bytes >= MEASURABLE and taken > self.case.line.memory


def rates_of(each: Outcome) -> Rates | None:
    """Return the rates of the machine for the number of threads of a case, if they were measured."""
    return each.run.rates.get(str(each.case.threads))


def key(case: BenchmarkCase) -> tuple[Any, ...]:
    """Return what identifies a case: all its fields except its kind."""
    return tuple(value for name, value in asdict(case).items() if name != "kind")


@dataclass
class Records:
    """An ordered list of outcomes, with one outcome per case."""

    outcomes: list[Outcome] = field(default_factory=list)

    def put(self, outcome: Outcome, force: bool = False) -> bool:
        """Add an outcome, or replace the outcome of the same case, whose kind is kept.

        A noisy outcome does not replace a less noisy one, unless `force` is given. Returns whether it was added.
        """
        places = [i for i, known in enumerate(self.outcomes) if key(known.case) == key(outcome.case)]
        if not places:
            self.outcomes.append(outcome)
            return True
        known = self.outcomes[places[0]]
        if not force and outcome.noise > max(NOISY, known.noise):
            return False
        self.outcomes[places[0]] = replace(outcome, case=replace(outcome.case, kind=known.case.kind))
        return True

    def with_run(self, before: BenchmarkRun, run: BenchmarkRun) -> Records:
        """Return the records with another description of a run."""
        return Records([replace(each, run=run) if each.run == before else each for each in self.outcomes])

    def has(self, case: BenchmarkCase) -> bool:
        """Return whether there is an outcome of a case."""
        return any(key(known.case) == key(case) for known in self.outcomes)

    def of_kind(self, *kinds: str) -> list[Outcome]:
        """Return the outcomes of the given kinds."""
        return [each for each in self.outcomes if each.case.kind in kinds]

    @property
    def base(self) -> list[Outcome]:
        """The outcomes of the base cases, or of custom cases if there are no base cases."""
        return self.of_kind("base") or self.of_kind("custom")

    def base_of(self, case: BenchmarkCase) -> Outcome | None:
        """Return the outcome of the base case that belongs to a case."""
        return next((each for each in self.base if each.case.title == case.title), None)

    def save(self, path: Path) -> None:
        """Write all outcomes to a file. The file is replaced atomically."""
        runs: list[BenchmarkRun] = []
        for each in self.outcomes:
            if each.run not in runs:
                runs.append(each.run)
        rows = [{**asdict(each), "run": runs.index(each.run)} for each in self.outcomes]
        text = json.dumps({"runs": [asdict(run) for run in runs], "outcomes": rows}, indent=1)
        part = path.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)


def load(path: Path) -> Records:
    """Load the outcomes from a file; return no outcomes if it does not exist or has an older format."""
    if not path.exists():
        return Records()
    made = json.loads(path.read_text(encoding="utf-8"))
    if "runs" not in made:
        return Records()
    runs = [_run(run) for run in made["runs"]]
    return Records([_outcome(row, runs) for row in made["outcomes"]])


def _run(made: Mapping[str, Any]) -> BenchmarkRun:
    """Make a run of what a file holds; older files have only the rates before the run."""
    rates = {when: {count: Rates(**of) for count, of in made.get(when, {}).items()} for when in ("rates", "after")}
    return BenchmarkRun(**{**made, **rates})


def _outcome(row: Mapping[str, Any], runs: Sequence[BenchmarkRun]) -> Outcome:
    times = {name: Times(**of) for name, of in row["times"].items()}
    return Outcome(BenchmarkCase(**row["case"]), runs[row["run"]], times, row["memory"], row["left_out"])


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of one or more positive numbers."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def by_loss(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Return the speed-up of each loss: the geometric mean over its benchmarks."""
    lines: dict[str, list[float]] = {}
    for each in outcomes:
        if each.speed_up is not None:
            lines.setdefault(each.case.loss, []).append(each.speed_up)
    return {loss: geometric_mean(values) for loss, values in lines.items()}
