"""`twinloss verify`: hunts on generated cases and trials on real images, loss by loss and type by type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twinloss.harness.catalogue import TWINS
from twinloss.harness.hunt import Hunt
from twinloss.harness.shards import PROCESSES, Job, Tick, Work, do
from twinloss.harness.twin import Twin

EXAMPLES = 150


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
) -> Verification:
    """Hunt each twin in each type; see `shards.do` for the last but one arguments, and `Hunt` for the last."""
    names = [twin.name for twin in twins]
    losses = [] if names == [twin.name for twin in TWINS] else names
    asked = {"losses": losses, "dtypes": list(dtypes), "examples": examples, "real": with_real}
    seen, jobs = Verification(seed, asked), []
    for twin in twins:
        jobs += [Job(twin, (dtype,), "generated", examples, seed, {"remember": remember}) for dtype in dtypes]
        jobs += [Job(twin, tuple(dtypes), "real", examples, seed)] if with_real and twin.real else []
    try:
        do(seen.work, jobs, tick, processes, cluster)
    except KeyboardInterrupt:
        seen.interrupted = True
    return seen


__all__ = ["EXAMPLES", "PROCESSES", "Tick", "Verification", "verify"]
