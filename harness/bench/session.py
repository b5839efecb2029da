"""Run cases one after the other; each is written down when it is done."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from twinloss.harness.bench.cases import Case
from twinloss.harness.bench.competitors import FAST, PLAIN, PLAIN_COMPILED, names
from twinloss.harness.bench.memory import memory_of
from twinloss.harness.bench.records import Outcome, Records, Run
from twinloss.harness.bench.timing import TOO_SLOW, times

# Bytes that a step may take, by what it took at the base case, which may come to several times as much: a fifth of the
# machine's memory, as a process that the system ends for want of it takes the run with it.
_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 25 * 10**9
MOST_MEMORY = _MEMORY // 5
# How many times slower than the fastest competitor a plain form may be at the base case to be timed elsewhere too.
FAR_BEHIND = 2.0


@dataclass
class Session:
    """How cases are run.

    Attributes:
        run: where the figures come from.
        records: what is known, to which outcomes are added.
        budget: seconds of timing for each case.
        compiled: whether torch.compile takes part.
        weighed: whether memory is measured.
        tick: is told what is done, and how many cases more.
        path: the file that is written after each case.
    """

    run: Run
    records: Records
    budget: float
    compiled: bool = True
    weighed: bool = True
    tick: Callable[[str, int], None] = lambda what, cases: None
    path: Path | None = None

    def go(self, cases: Sequence[Case]) -> bool:
        """Run them all, and say whether no interruption came; what is done when one comes is kept."""
        try:
            for case in cases:
                self.records.put(self.outcome(case))
                if self.path:
                    self.records.save(self.path)
                self.tick(str(case), 1)
        except KeyboardInterrupt:
            return False
        return True

    def outcome(self, case: Case) -> Outcome:
        """Time one case, and measure memory: of all at the base case, else of twinloss."""
        everyone = names(case, self.compiled)
        excuses = {name: why for name in everyone if (why := self.excuse(case, name))}
        taking_part = [name for name in everyone if name not in excuses]
        taken, left_out = times(case, taking_part, self.budget, lambda what: self.tick(what, 0))
        torch.compiler.reset()
        gc.collect()
        timed = Outcome(case, self.run, taken, {}, {**excuses, **left_out})
        memory = {name: self._memory(case, name) for name in self._weighed(timed)}
        return Outcome(case, self.run, taken, memory, timed.left_out)

    def _weighed(self, timed: Outcome) -> list[str]:
        if not self.weighed:
            return []
        return [name for name in timed.times if timed.case.kind in ("base", "custom") or name == FAST]

    def _memory(self, case: Case, name: str) -> float | None:
        self.tick(f"{case}: memory of {name}", 0)
        return memory_of(case, name)

    def excuse(self, case: Case, name: str) -> str | None:
        """Why a competitor need not be tried, by what came of it at the base case."""
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
