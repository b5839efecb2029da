"""Print the results of `twinloss verify`: each row when it is finished, then the table, the failures and the files."""

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
    """Return a function that prints a finished row; with `only_marked`, rows that passed are not printed."""
    start = time.monotonic()

    def print_row(row: Hunt) -> None:
        if not only_marked or row.verdict != "pass":
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            seed = f" seed {row.seed}:" if only_marked else ""
            console.print(f"{minutes}:{seconds:02}{seed} {reports.line(row)}")

    return print_row


def outcome(seen: Verification) -> None:
    """Print the table, and the details that it does not show."""
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
        _print_details(row, quiet=repeated(seen))
    if seen.interrupted:
        console.print("interrupted: the table shows the results so far", style="magenta")


def files(seen: Verification, folder: Path, save: Path | None, out: Path | None, readme: Path | None) -> None:
    """Write the report and the scripts.

    If given, `save` gets a copy of the report, `out` the page of a soak, and `readme` its result.
    """
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
        console.print(f"wrote the result into {readme}")


def repeated(seen: Verification) -> bool:
    """Return whether the verification is a soak, with several seeds."""
    return bool(seen.asked.get("repeat", 1) > 1)


def _print_details(row: Hunt, quiet: bool) -> None:
    """Print the details of a row; `quiet` leaves out scripts, and details that the table of a soak shows."""
    name = f"{row.twin.name} {row.dtype} {row.data}" + (f", seed {row.seed}" if quiet else "")
    if row.degraded and not quiet:
        console.print(f"{name}: {row.degraded} of {row.cases} cases degraded", style="yellow", markup=False)
    for problem in row.problems:
        console.print(f"{name}: the check itself failed: {problem}", style="red", markup=False)
    if row.counterexample:
        console.print(f"{name}: {row.counterexample.message}", style="red", markup=False)
        if not quiet:
            console.print("This script shows the failure, and fails until the loss is fixed:")
            console.print(Syntax(shortened(row.counterexample.snippet), "python", word_wrap=True))
