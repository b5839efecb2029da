"""Run benchmark cases one after the other, and save each result as soon as it is available."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.bench.competitors import FAST, PLAIN, PLAIN_COMPILED, names
from twinloss.harness.bench.memory import memory_of
from twinloss.harness.bench.records import BenchmarkRun, Outcome, Records
from twinloss.harness.bench.roofline import Rates
from twinloss.harness.bench.timing import TOO_SLOW, stderr_kept, times

# The limit in bytes for the memory of a step, as predicted from the base case: a fifth of the machine's memory. A step
# may need several times the prediction, and if the system kills the process for lack of memory, the run is lost.
_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 25 * 10**9
MOST_MEMORY = _MEMORY // 5
# The plain forms are timed only in the base case if they are slower there than the fastest competitor by this factor.
FAR_BEHIND = 2.0


@dataclass
class Session:
    """The settings and the results of a benchmark run.

    Attributes:
        run: the command, machine and versions to store with each result.
        records: the results so far, to which new outcomes are added.
        budget: seconds of timing for each case.
        compiled: whether to include torch.compile.
        weighed: whether to measure memory.
        tick: a progress callback, which receives a message and the number of newly finished cases.
        path: the file to save after each case.
        force: whether noisy results replace less noisy ones.
        dropped: the cases whose earlier results were kept, because the new ones were noisier.
    """

    run: BenchmarkRun
    records: Records
    budget: float
    compiled: bool = True
    weighed: bool = True
    tick: Callable[[str, int], None] = lambda what, cases: None
    path: Path | None = None
    force: bool = False
    dropped: list[BenchmarkCase] = field(default_factory=list)

    def go(self, cases: Sequence[BenchmarkCase]) -> bool:
        """Run all cases and return whether they finished; results so far are kept after a KeyboardInterrupt."""
        try:
            for case in cases:
                with stderr_kept():
                    outcome = self.outcome(case)
                if not self.records.put(outcome, self.force):
                    self.dropped.append(case)
                if self.path:
                    self.records.save(self.path)
                self.tick(str(case), 1)
        except KeyboardInterrupt:
            return False
        return True

    def finish(self, after: Mapping[str, Rates]) -> None:
        """Store the rates of the machine after the run with the results of the run."""
        run = replace(self.run, after=after)
        self.records.outcomes = self.records.with_run(self.run, run).outcomes
        self.run = run
        if self.path and any(each.run == run for each in self.records.outcomes):
            self.records.save(self.path)

    def outcome(self, case: BenchmarkCase) -> Outcome:
        """Time one case and measure its memory.

        The memory of competitors is measured only in base and custom cases.
        """
        everyone = names(case, self.compiled)
        skipped = {name: why for name in everyone if (why := self.reason_to_skip(case, name))}
        taking_part = [name for name in everyone if name not in skipped]
        taken, left_out = times(case, taking_part, self.budget, lambda what: self.tick(what, 0))
        torch.compiler.reset()
        gc.collect()
        timed = Outcome(case, self.run, taken, {}, {**skipped, **left_out})
        memory = {name: self._memory(case, name) for name in self._weighed(timed)}
        return Outcome(case, self.run, taken, memory, timed.left_out)

    def _weighed(self, timed: Outcome) -> list[str]:
        if not self.weighed:
            return []
        return [name for name in timed.times if timed.case.kind in ("base", "custom") or name == FAST]

    def _memory(self, case: BenchmarkCase, name: str) -> float | None:
        self.tick(f"{case}: memory of {name}", 0)
        return memory_of(case, name)

    def reason_to_skip(self, case: BenchmarkCase, name: str) -> str | None:
        """Return a reason to skip an implementation, predicted from its base case, or None."""
        base = self.records.base_of(case)
        if case.kind in ("base", "custom") or base is None or name not in base.times:
            return None
        larger = case.voxels * (case.classes or 1) / (base.case.voxels * (base.case.classes or 1))
        seconds = base.times[name].median_ms * 1e-3 * larger
        taken = (base.memory.get(name) or 0) * base.gradient_bytes * larger
        if seconds > TOO_SLOW:
            return f"a step would take about {seconds:.0f} s"
        if taken > MOST_MEMORY:
            return f"a step would take about {taken / 1e9:.0f} GB"
        fastest = base.fastest
        behind = base.times[name].median_ms / base.times[fastest].median_ms if fastest else 0
        if name in (PLAIN, PLAIN_COMPILED) and behind > FAR_BEHIND:
            return f"{behind:.1f} times as slow as {fastest} at the base case"
        return None
