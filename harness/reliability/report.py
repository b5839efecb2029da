"""The report of `twinloss reliability`, as JSON, in which sections are replaced one by one, and as Markdown."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from twinloss.harness.reliability import lines
from twinloss.harness.reliability.registry import Row
from twinloss.harness.system.machine import machine, versions

MEANING = {
    "Mixed precision": "In half precision and under autocast, values and gradients are finite and within the bounds "
    "that rounding explains. The volumes are large, with a class of one voxel, an absent class and logits of ±1e4.",
    "NaN and infinity": "Non-finite inputs reach the output unless they are masked or ignored. A label outside the "
    "range of classes raises an error, and the check costs no measurable time.",
    "Real training": "The loss falls and the score improves. Where MONAI computes the same loss, its training curve is "
    "as close to ours as rounding allows. To measure this, MONAI is also trained from starts that differ only by "
    "rounding. A distance is the largest one over the steps, relative to the first loss.\n\n"
    "![Loss by step of each training run](training.png)",
    "Fuzz": "Options and tensors that make no sense raise an error that explains the problem, or give the result of "
    "the reference.",
    "Distributed": "Ranks that hold parts of the data get the value and, under DDP, the gradient of a single process.",
    "Scale": "Time and memory grow in proportion to the volume, and indices may exceed 2³¹.",
    "Cold start": "A fresh process starts training quickly, wherever the package is installed.",
    "State": "A loss has no hidden state: calls do not change it, and its copies compute the same.",
    "Determinism": "Results are bitwise identical on any number of threads, in any process.",
    "Concurrency": "Losses work in threads, forked and spawned processes and data loaders. Nothing crashes or hangs, "
    "and results are bitwise identical.",
    "torch.compile": "A training step compiles as one graph, also for changing sizes.",
    "torch.library.opcheck": "Every operator follows torch's rules: schema, fake tensors, autograd and tracing.",
    "torch.export": "A loss can be exported, and the program returns the same value.",
    "torch.func": "`grad`, and `vmap` over items, give the results of autograd and of a loop.",
    "Double backward": "Second derivatives are correct: gradgradcheck passes in float64.",
}


@dataclass(frozen=True)
class ReportSection:
    """The rows of a section, with the date, the versions and the machine of the run."""

    rows: list[Row]
    quick: bool
    date: str
    versions: dict[str, str]
    machine: str

    @classmethod
    def now(cls, rows: Iterable[Row], quick: bool) -> ReportSection:
        """Create a section from rows that were made today on this machine."""
        where = f"{machine()['cpu']}, {machine()['threads']} threads"
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return cls(list(rows), quick, today, versions(), where)


def load(folder: Path) -> dict[str, ReportSection]:
    """Load the sections of the report in a folder; return none if there is no report."""
    path = folder / "reliability.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: ReportSection(**{**of, "rows": [Row(**row) for row in of["rows"]]}) for name, of in found.items()}


def update(folder: Path, rows: Mapping[str, Sequence[Row]], quick: bool) -> None:
    """Replace these sections of the report in a folder, and keep the others."""
    made = {**load(folder), **{name: ReportSection.now(of_line, quick) for name, of_line in rows.items()}}
    ordered = {name: made[name] for name in lines() if name in made}
    text = json.dumps({name: asdict(section) for name, section in ordered.items()}, indent=1, ensure_ascii=False)
    (folder / "reliability.json").write_text(text + "\n", encoding="utf-8")
    (folder / "reliability.md").write_text(as_markdown(ordered), encoding="utf-8")


def as_markdown(sections: Mapping[str, ReportSection]) -> str:
    """Render the report as Markdown."""
    text = [
        "# Reliability",
        "",
        "Made by `twinloss reliability --out reports`: tests of all losses against what breaks real training runs. "
        "`twinloss reliability fuzz --out reports` runs one section again.",
        "",
        *_table(("section", "checks", "failed"), (_summary(name, sections.get(name)) for name in MEANING)),
    ]
    for name, section in sections.items():
        text += ["", f"## {name}", "", MEANING[name], "", *_tables(section.rows), "", _origin(section)]
    return "\n".join(text) + "\n"


def _summary(name: str, section: ReportSection | None) -> tuple[str, str, str]:
    if section is None:
        return name, "not run yet", ""
    anchor = "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")
    failed = sum(not row.passed for row in section.rows)
    return f"[{name}](#{anchor})", str(len(section.rows)), f"**{failed}**" if failed else "0"


def _origin(section: ReportSection) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in section.versions.items())
    sizes = ", with the small sizes of `--quick`" if section.quick else ""
    return f"Made on {section.date}{sizes}: {packages}; {section.machine}."


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    """Render rows as tables.

    Tests with the same result for several losses share a row. Where results differ, a table has a row for each loss.
    """
    by_trial: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.loss:
            by_trial.setdefault(row.tried, {})[row.loss] = row
    alike = [
        Row(f"{', '.join(found)}: {tried}", _only(found), True) for tried, found in by_trial.items() if _only(found)
    ]
    alone = [*alike, *(row for row in rows if not row.loss)]
    # Tests of the same losses are columns of one table.
    columns: dict[tuple[str, ...], list[str]] = {}
    for tried, found in by_trial.items():
        if not _only(found):
            columns.setdefault(tuple(found), []).append(tried)
    blocks = [
        _table(("loss", *of), ([loss, *(_told(by_trial[tried][loss]) for tried in of)] for loss in losses))
        for losses, of in columns.items()
    ]
    if alone:
        blocks.insert(0, _table(("test", "result"), ((row.tried, _told(row)) for row in alone)))
    for n, block in enumerate(blocks):
        yield from ["", *block] if n else block


def _only(found: Mapping[str, Row]) -> str:
    """Return the result of a test if all losses passed with the same result, and an empty string otherwise."""
    outcomes = {row.outcome for row in found.values()}
    return outcomes.pop() if len(outcomes) == 1 and all(row.passed for row in found.values()) else ""


def _told(row: Row) -> str:
    return row.outcome if row.passed else f"**FAILED**: {row.outcome}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
