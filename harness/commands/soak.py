"""The soak, `twinloss verify --repeat`: results of many seeds, by loss and dtype."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from twinloss import __version__
from twinloss.harness.commands.verify import Verification
from twinloss.harness.hunting.hunt import EXAMPLES, Hunt
from twinloss.harness.judging.judgement import ORDER, Finding

START, END = "<!-- twinloss soak -->", "<!-- end -->"

# The largest number of seeds that a cell of the table on screen lists.
SHOWN = 3


@dataclass
class SoakLine:
    """The results of all seeds for one loss, one dtype and one kind of data.

    Attributes:
        loss: the name of the loss.
        dtype: the dtype under test.
        data: "generated" or "real".
        seeds: the seeds whose hunt was finished.
        cases: the number of cases of all seeds.
        worst: the worst finding on the value and on the gradient.
        degraded: the number of degraded cases by seed.
        failed: the seeds that failed.
        unfinished: the seeds that were interrupted.
    """

    loss: str
    dtype: str
    data: str
    seeds: list[int] = field(default_factory=list)
    cases: int = 0
    worst: dict[str, Finding] = field(default_factory=dict)
    degraded: dict[int, int] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)

    def add(self, row: Hunt) -> None:
        """Add the hunt of one more seed."""
        (self.unfinished if row.interrupted else self.seeds).append(row.seed)
        self.cases += row.cases
        for part, finding in row.worst.items():
            known = self.worst.get(part)
            if known is None or _badness(finding) > _badness(known):
                self.worst[part] = finding
        if row.degraded:
            self.degraded[row.seed] = row.degraded
        if row.verdict == "fail":
            self.failed.append(row.seed)


def _badness(finding: Finding) -> tuple[int, float]:
    return ORDER.index(finding.verdict), finding.ratio


def lines(rows: Iterable[Hunt]) -> list[SoakLine]:
    """Combine the rows of all seeds."""
    made: dict[tuple[str, str, str], SoakLine] = {}
    for row in rows:
        key = row.twin.name, row.dtype, row.data
        made.setdefault(key, SoakLine(*key)).add(row)
    return list(made.values())


def command(seen: Verification) -> str:
    """Return the command line that repeats the soak."""
    words = ["twinloss verify", *seen.asked["losses"], f"--repeat {seen.asked['repeat']}", f"--seed {seen.seed}"]
    words += [] if seen.asked["real"] else ["--no-real"]
    words += [] if seen.asked["examples"] == EXAMPLES else [f"--examples {seen.asked['examples']}"]
    return " ".join(words + [f"--dtype {dtype}" for dtype in seen.asked["dtypes"]])


def again(line: SoakLine, seed: int, examples: int) -> str:
    """Return the command line that hunts one loss in one dtype with one seed."""
    words = ["twinloss verify", line.loss, f"--seed {seed}", f"--dtype {line.dtype}"]
    words += ["--no-real"] if line.data == "generated" else []
    return " ".join(words + ([] if examples == EXAMPLES else [f"--examples {examples}"]))


def summary(seen: Verification) -> str:
    """Return the result in one sentence, with numbers."""
    found = lines(seen.rows)
    seeds = {seed for line in found for seed in line.seeds}
    failed, degraded = sum(len(line.failed) for line in found), sum(sum(line.degraded.values()) for line in found)
    cases = f"{sum(line.cases for line in found):,}".replace(",", " ")
    return f"{len(seeds)} seeds, {cases} cases: {failed} hunts failed, {degraded} cases degraded"


def table(seen: Verification) -> Table:
    """Return a table with a line for each loss, dtype and kind of data."""
    title = f"twinloss verify, {seen.asked['repeat']} seeds from {seen.seed}"
    made = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    for column in HEAD:
        made.add_column(column, overflow="fold")
    for line in lines(seen.rows):
        made.add_row(*_cells(line, SHOWN), style="red" if line.failed else "yellow" if line.degraded else "")
    return made


HEAD = ("loss", "type", "data", "seeds", "cases", "value x, bits", "gradient x, bits", "degraded", "failed")


def _cells(line: SoakLine, most: int | None = None) -> list[str]:
    """Return the cells of a line; each lists at most `most` seeds."""
    seeds = str(len(line.seeds)) + (f" + {len(line.unfinished)} interrupted" if line.unfinished else "")
    degraded = f"{sum(line.degraded.values())}: seeds {_listed(list(line.degraded), most)}" if line.degraded else ""
    failed = f"seeds {_listed(line.failed, most)}" if line.failed else ""
    worst = [_error(line.worst.get(part)) for part in ("value", "gradient")]
    data = "drawn" if line.data == "generated" else line.data
    return [line.loss, line.dtype, data, seeds, str(line.cases), *worst, degraded, failed]


def _listed(seeds: Sequence[int], most: int | None) -> str:
    left = len(seeds) - (most or len(seeds))
    return ", ".join(map(str, seeds[:most])) + (f" and {left} more" if left > 0 else "")


def _error(finding: Finding | None) -> str:
    return "" if finding is None else f"{finding.ratio:.2g} {finding.bits:.1f}"


def failures(seen: Verification) -> list[str]:
    """Return for each failure a command line that runs only the failing hunt."""
    return [again(line, seed, seen.asked["examples"]) for line in lines(seen.rows) for seed in line.failed]


def as_data(seen: Verification) -> list[dict[str, Any]]:
    """Return the same table for report.json."""
    return [
        {
            "loss": line.loss,
            "dtype": line.dtype,
            "data": line.data,
            "seeds": line.seeds,
            "unfinished": line.unfinished,
            "cases": line.cases,
            "degraded": [{"seed": seed, "cases": count} for seed, count in line.degraded.items()],
            "failed": [{"seed": seed, "again": again(line, seed, seen.asked["examples"])} for seed in line.failed],
        }
        for line in lines(seen.rows)
    ]


def as_markdown(seen: Verification) -> str:
    """Return the report as Markdown."""
    made = [
        "# Soak",
        "",
        f"Made by `{command(seen)}`, twinloss {__version__}, {datetime.date.today().isoformat()}"
        + (", which was interrupted." if seen.interrupted else "."),
        "",
        f"**{summary(seen)}.**",
        "",
        "x is the worst error as a multiple of its bound, and bits is the number of wrong trailing bits of the result,",
        "which is 3 at the bound. A case is degraded if its error is beyond the bound, but at most twice that of the",
        "plain formula in the same dtype.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    made += ["| " + " | ".join(_cells(line)) + " |" for line in lines(seen.rows)]
    degraded = dict.fromkeys(line.loss for line in lines(seen.rows) if line.degraded)
    if degraded:
        made += ["", "Why cases are degraded:", ""]
        reasons = {row.twin.name: row.twin.lost_digits for row in seen.rows}
        losses_by_reason: dict[str, list[str]] = {}
        for loss in degraded:
            losses_by_reason.setdefault(reasons[loss] or "not explained yet.", []).append(loss)
        made += [f"- {', '.join(losses)}: {reason}" for reason, losses in losses_by_reason.items()]
    if failed := failures(seen):
        made += ["", "To repeat each failure:", "", "```sh", *failed, "```"]
    return "\n".join(made) + "\n"


def put_into(text: str, seen: Verification) -> str:
    """Put the result and its command between the marks in a README.

    Raises:
        ValueError: if there are no marks.
    """
    cells = f"{START} {summary(seen)} | `{command(seen)}` | [soak](reports/soak.md) {END}"
    marked = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"it has no marks {START} … {END} between which the result of the soak belongs")
    return marked.sub(lambda _: cells, text, count=1)
