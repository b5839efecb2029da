"""`twinloss verify`: hunts on generated cases and trials on real images, loss by loss and type by type."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from twinloss.harness import real
from twinloss.harness.hunt import Counterexample, Hunt, hunt
from twinloss.harness.twin import Twin

EXAMPLES = 150


@dataclass
class Verification:
    """All that was seen; rows are there from the moment they begin, so an interruption loses nothing."""

    seed: int
    rows: list[Hunt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> bool:
        """Whether any row failed."""
        return any(row.verdict == "fail" for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 if all passed, 1 if any failed, 130 if it was interrupted."""
        return 130 if self.interrupted else int(self.failed)


def verify(
    twins: Sequence[Twin],
    dtypes: Sequence[str],
    seed: int,
    examples: int = EXAMPLES,
    with_real: bool = True,
    tick: Callable[[str], None] = lambda what: None,
) -> Verification:
    """Hunt each twin in each type; `tick` is told what is being looked at, case by case."""
    seen = Verification(seed)
    if with_real:
        real.keep_memory()
    try:
        for twin in twins:
            for dtype in dtypes:
                _generated(seen, twin, dtype, examples, tick)
                if seen.interrupted:
                    return seen
            if with_real and twin.real:
                _real(seen, twin, dtypes, tick)
    except KeyboardInterrupt:
        seen.interrupted = True
    return seen


@contextmanager
def _timed(row: Hunt) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        row.seconds += time.perf_counter() - start


def _generated(seen: Verification, twin: Twin, dtype: str, examples: int, tick: Callable[[str], None]) -> None:
    row = Hunt(twin, dtype)
    seen.rows.append(row)
    with _timed(row):
        hunt(twin, dtype, examples, seen.seed, lambda: tick(f"{twin.name} {dtype}"), row)
    seen.interrupted |= row.interrupted


def _real(seen: Verification, twin: Twin, dtypes: Sequence[str], tick: Callable[[str], None]) -> None:
    rows = {dtype: Hunt(twin, dtype, "real") for dtype in dtypes}
    tick(f"{twin.name} real images")
    try:
        real.brain()
    except ImportError as error:
        note = f"real images left out: {error}"
        seen.notes += [note] if note not in seen.notes else []
        return
    trials = real.trials(twin, dtypes)
    while True:
        start = time.perf_counter()
        trial = next(trials, None)
        if trial is None:
            return
        row = rows[trial.case.dtype]
        if row not in seen.rows:
            seen.rows.append(row)
        row.seconds += time.perf_counter() - start
        row.note(trial)
        if trial.kind is not None:
            row.counterexample = Counterexample(trial.kind, trial.message, real.script(twin, trial))
        tick(f"{twin.name} {row.dtype} {trial.case.traits['image']}")
