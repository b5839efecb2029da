"""Jobs: the parts of the work that can run independently, and the record of their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from twinloss.harness.data import brain
from twinloss.harness.hunting import real_images
from twinloss.harness.hunting.hunt import Counterexample, Hunt, hunt
from twinloss.harness.hunting.pairs import PairPlace
from twinloss.harness.hunting.target import Wiring
from twinloss.harness.hunting.warmup import warm_up
from twinloss.harness.losses.catalogue import catalogue
from twinloss.harness.model import device
from twinloss.harness.model.twin import Twin

# Called with the name of the current step and the number of new cases.
Tick = Callable[[str, int], None]

# The name, wiring or place from which another process makes a twin.
Key = str | Wiring | PairPlace


@dataclass(frozen=True)
class Job:
    """A part of the work: a hunt, the trials on real images in all dtypes, or the compilation of the kernels.

    Attributes:
        twin: the loss.
        dtypes: the dtypes under test; only one, except for real images.
        data: "generated", "real" or "warmup".
        examples: the number of cases of a hunt.
        seed: the seed of a hunt.
        hunting: further arguments of a hunt, see `Hunt`.
        device: "cpu", "cuda" or "interpreter".
    """

    twin: Twin
    dtypes: tuple[str, ...]
    data: str
    examples: int
    seed: int
    hunting: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.twin.name} {self.data if self.data == 'real' else self.dtypes[0]}"

    @property
    def key(self) -> Key | None:
        """The name, wiring or place from which another process can make the twin, or None if it cannot make it."""
        return self.twin.origin or (self.twin.name if catalogue().get(self.twin.name) is self.twin else None)


@dataclass
class Work:
    """The results of all jobs. A row is added when its hunt begins, so an interruption loses nothing.

    `told` is called with each finished row.
    """

    rows: list[Hunt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    told: Callable[[Hunt], None] = lambda row: None

    def take(self, rows: Sequence[Hunt], notes: Sequence[str]) -> None:
        """Add the results of a job."""
        self.rows += rows
        self.note(*notes)
        self.tell(rows)

    def note(self, *notes: str) -> None:
        """Add the notes that are new."""
        self.notes += [note for note in notes if note not in self.notes]

    def tell(self, rows: Sequence[Hunt]) -> None:
        """Pass the finished rows to `told`."""
        for row in rows:
            if not row.interrupted:
                self.told(row)


def do_job(work: Work, job: Job, tick: Tick) -> None:
    """Run a job, and add its results to `work`."""
    device.use(job.device)
    if job.data == "warmup":
        warm_up(job.twin, job.dtypes[0])
        return
    if job.data == "real":
        _run_real_trials(work, job, tick)
        return
    row = Hunt(job.twin, job.dtypes[0], seed=job.seed, **job.hunting)
    work.rows.append(row)
    with _timed(row):
        hunt(row.twin, row.dtype, job.examples, job.seed, lambda: tick(str(job), 1), row)


@contextmanager
def _timed(row: Hunt) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        row.seconds += time.perf_counter() - start


def _run_real_trials(work: Work, job: Job, tick: Tick) -> None:
    tick(str(job), 0)
    try:
        brain.load_brain()
    except ImportError as error:
        work.note(f"real images were skipped: {error}")
        return
    rows = {dtype: Hunt(job.twin, dtype, job.data, seed=job.seed) for dtype in job.dtypes}
    trials = real_images.trials(job.twin, job.dtypes)
    while True:
        start = time.perf_counter()
        trial = next(trials, None)
        if trial is None:
            return
        row = rows[trial.case.dtype]
        if row not in work.rows:
            work.rows.append(row)
        row.seconds += time.perf_counter() - start
        row.note(trial)
        if trial.kind is not None:
            row.counterexample = Counterexample(trial.kind, trial.message, real_images.script(job.twin, trial))
        tick(f"{job} {row.dtype} {trial.case.traits['image']}", 1)
        del trial  # its arrays are large
        real_images.release_memory()
