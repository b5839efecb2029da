"""`twinloss verify`: hunts on generated cases and trials on real images, loss by loss and type by type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinloss.harness.hunting.hunt import EXAMPLES, Hunt
from twinloss.harness.hunting.jobs import Job, Tick, Work
from twinloss.harness.hunting.parallel import run_jobs
from twinloss.harness.losses.catalogue import TWINS
from twinloss.harness.model.twin import Twin

# The losses whose kernels are compiled in seconds, which come first, so that the first rows do not wait for the others.
QUICK = ("bending_energy", "diffusion", "mutual_information", "lncc", "multi_scale")


@dataclass
class Verification:
    """All that was seen; `asked` is what was asked for, as the command line names it, with no losses for all."""

    seed: int
    asked: dict[str, Any] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    interrupted: bool = False

    @property
    def rows(self) -> list[Hunt]:
        """A row for each hunt."""
        return self.work.rows

    @property
    def notes(self) -> list[str]:
        """What else is to be said."""
        return self.work.notes

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
    tick: Tick = lambda what, cases: None,
    processes: int = 1,
    cluster: str | None = None,
    remember: bool = False,
    repeat: int = 1,
    told: Callable[[Hunt], None] = lambda row: None,
) -> Verification:
    """Hunt each twin in each type.

    Args:
        twins: the losses.
        dtypes: the types under test.
        seed: of the draw.
        examples: cases that are drawn for each loss and type.
        with_real: whether there are cases on real images, too.
        tick: see `parallel.run_jobs`, as for `processes` and `cluster`.
        processes: how many jobs at a time.
        cluster: the address of a Dask scheduler.
        remember: see `Hunt`.
        repeat: how many hunts of each loss and type, with the seeds `seed`, `seed + 1`, …; real images come once.
        told: called with each row when it is finished.
    """
    names = [twin.name for twin in twins]
    losses = [] if names == [twin.name for twin in TWINS] else names
    asked = {"losses": losses, "dtypes": list(dtypes), "examples": examples, "real": with_real}
    seen = Verification(seed, asked | ({"repeat": repeat} if repeat > 1 else {}), Work(told=told))
    ordered = sorted(twins, key=lambda twin: QUICK.index(twin.name) if twin.name in QUICK else len(QUICK))
    remember = remember and repeat == 1  # in a soak, what one seed has found would hide what the others find
    jobs = list(_hunts(ordered, dtypes, range(seed, seed + 1), examples, remember))
    jobs += [Job(twin, tuple(dtypes), "real", examples, seed) for twin in ordered if with_real and twin.real]
    jobs += _hunts(ordered, dtypes, range(seed + 1, seed + repeat), examples, remember)
    try:
        run_jobs(seen.work, jobs, tick, processes, cluster)
    except KeyboardInterrupt:
        seen.interrupted = True
    seen.rows.sort(key=lambda row: (row.seed, names.index(row.twin.name), row.data == "real", dtypes.index(row.dtype)))
    return seen


def _hunts(
    twins: Sequence[Twin], dtypes: Sequence[str], seeds: Sequence[int], examples: int, remember: bool
) -> Iterator[Job]:
    for seed in seeds:
        for twin in twins:
            yield from (Job(twin, (dtype,), "generated", examples, seed, {"remember": remember}) for dtype in dtypes)
