"""`twinloss verify`: hunts on generated cases and trials on real images, for each loss and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinloss.harness.hunting.hunt import EXAMPLES, Hunt
from twinloss.harness.hunting.jobs import Job, Tick, Work
from twinloss.harness.hunting.parallel import run_jobs
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.model.twin import Twin

# The losses whose kernels compile in seconds. They come first, so that the first rows appear soon.
QUICK = ("bending_energy", "diffusion", "mutual_information", "lncc", "multi_scale")


@dataclass
class Verification:
    """The results; `asked` holds the arguments as the command line names them, with an empty list for all losses."""

    seed: int
    asked: dict[str, Any] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    interrupted: bool = False

    @property
    def rows(self) -> list[Hunt]:
        """One row for each hunt."""
        return self.work.rows

    @property
    def notes(self) -> list[str]:
        """Further notes for the user."""
        return self.work.notes

    @property
    def failed(self) -> bool:
        """Whether a row failed."""
        return any(row.verdict == "fail" for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 if all passed, 1 if a row failed, 130 if the run was interrupted."""
        return 130 if self.interrupted else int(self.failed)


def verify(
    twins: Sequence[Twin],
    dtypes: Sequence[str],
    seed: int,
    examples: int = EXAMPLES,
    with_real: bool = True,
    tick: Tick = lambda what, cases: None,
    *,
    processes: int = 1,
    cluster: str | None = None,
    remember: bool = False,
    repeat: int = 1,
    device: str = "cpu",
    told: Callable[[Hunt], None] = lambda row: None,
) -> Verification:
    """Hunt each loss in each dtype.

    Args:
        twins: the losses.
        dtypes: the dtypes under test.
        seed: the seed of the draws.
        examples: the number of cases for each loss and dtype.
        with_real: whether to run the cases on real images, too.
        tick: called with the name of the current step and the number of new cases.
        processes: the number of jobs that run at a time.
        cluster: the address of a Dask scheduler whose workers run the jobs.
        remember: first retry the cases that failed last time in the same folder.
        repeat: the number of hunts of each loss and dtype, with seeds `seed`, `seed + 1`, …; real images run only once.
        device: "cpu", "cuda" or "interpreter".
        told: called with each finished row.

    Returns:
        The results; also those of an interrupted run.
    """
    names = [twin.name for twin in twins]
    losses = [] if names == [twin.name for twin in TWINS] else names
    asked = {"losses": losses, "dtypes": list(dtypes), "examples": examples, "real": with_real}
    asked |= {"repeat": repeat} if repeat > 1 else {}
    asked |= {"device": device} if device != "cpu" else {}
    seen = Verification(seed, asked, Work(told=told))
    ordered = sorted(twins, key=lambda twin: QUICK.index(twin.name) if twin.name in QUICK else len(QUICK))
    remember = remember and repeat == 1  # in a soak, the failures of one seed would hide those of other seeds
    hunts = list(_hunts(ordered, dtypes, range(seed, seed + 1), examples, remember, device))
    real = [Job(twin, tuple(dtypes), "real", examples, seed, {}, device) for twin in ordered if with_real and twin.real]
    others = list(_hunts(ordered, dtypes, range(seed + 1, seed + repeat), examples, remember, device))
    try:
        # Real images get new processes: those of the hunts still hold what the compiler has allocated.
        for jobs in filter(None, (hunts, real, others)):
            run_jobs(seen.work, jobs, tick, processes, cluster)
    except KeyboardInterrupt:
        seen.interrupted = True
    seen.rows.sort(key=lambda row: (row.seed, names.index(row.twin.name), row.data == "real", dtypes.index(row.dtype)))
    return seen


def _hunts(
    twins: Sequence[Twin], dtypes: Sequence[str], seeds: Sequence[int], examples: int, remember: bool, device: str
) -> Iterator[Job]:
    for seed in seeds:
        for twin in twins:
            for dtype in dtypes:
                yield Job(twin, (dtype,), "generated", examples, seed, {"remember": remember}, device)
