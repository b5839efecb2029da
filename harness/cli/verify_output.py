"""Prints what `twinloss verify` finds: rows as they are finished, then the table, the failures and the files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.syntax import Syntax

from twinloss.harness.cli.app import console
from twinloss.harness.commands import report as reports
from twinloss.harness.commands import soak
from twinloss.harness.commands.verify import Verification
from twinloss.harness.hunting.hunt import Hunt
from twinloss.harness.hunting.report_file import LEGEND
from twinloss.harness.hunting.snippet import shortened


def finished(only_marked: bool = False) -> Callable[[Hunt], None]:
    """Return what prints a row once it is finished; with `only_marked` not those that passed."""
    start = time.monotonic()

    def told(row: Hunt) -> None:
        if not only_marked or row.verdict != "pass":
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            console.print(f"{minutes}:{seconds:02} {reports.line(row)}")

    return told


def outcome(seen: Verification) -> None:
    """Print the table, and what it cannot say."""
    if repeated(seen):
        console.print(soak.table(seen))
        console.print(soak.summary(seen))
        for line in soak.failures(seen):
            console.print(f"repeat a failure: {line}", style="red", markup=False, soft_wrap=True)
    else:
        console.print(reports.table(seen, f"twinloss verify, seed {seen.seed}"))
    console.print(LEGEND, style="dim", soft_wrap=True)
    for note in seen.notes:
        console.print(note, style="yellow")
    for row in seen.rows:
        _explain(row, quiet=repeated(seen))
    if seen.interrupted:
        console.print("interrupted: the table holds what was seen until then", style="magenta")


def files(seen: Verification, folder: Path, save: Path | None, out: Path | None, readme: Path | None) -> None:
    """Write the report and the scripts; the report also to `save`; of a soak its page into `out` and `readme`."""
    for path in reports.write(seen, folder):
        console.print(f"wrote {path}")
    if save:
        save.write_bytes((folder / "report.json").read_bytes())
        console.print(f"saved {save}")
    if out:
        (out / "soak.md").write_text(soak.as_markdown(seen), encoding="utf-8")
        console.print(f"wrote {out / 'soak.md'}")
    if readme:
        readme.write_text(soak.put_into(readme.read_text(encoding="utf-8"), seen), encoding="utf-8")
        console.print(f"wrote the outcome into {readme}")


def repeated(seen: Verification) -> bool:
    """Whether it is a soak."""
    return bool(seen.asked.get("repeat", 1) > 1)


def _explain(row: Hunt, quiet: bool) -> None:
    """Print in words what the table cannot say; `quiet` leaves out the scripts, and what a soak's table does say."""
    name = f"{row.twin.name} {row.dtype} {row.data}" + (f", seed {row.seed}" if quiet else "")
    if row.degraded and not quiet:
        console.print(f"{name}: {row.degraded} of {row.cases} cases degraded", style="yellow", markup=False)
    for problem in row.problems:
        console.print(f"{name}: the check itself: {problem}", style="red", markup=False)
    if row.counterexample:
        console.print(f"{name}: {row.counterexample.message}", style="red", markup=False)
        if not quiet:
            console.print("This script shows it, and fails until it is mended:")
            console.print(Syntax(shortened(row.counterexample.snippet), "python", word_wrap=True))
