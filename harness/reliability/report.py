"""The report of `twinloss reliability`: rows of each line as JSON, where lines are replaced one by one; and as text."""

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
    "Mixed precision": "Half precision, with or without autocast, gives finite values and gradients within the bounds "
    "that rounding explains, on large volumes, with a class of one voxel, one that is absent, logits of ±1e4.",
    "NaN and infinity": "What is not finite reaches the output unless it is masked or ignored; a label that names no "
    "class is an error, found at no cost.",
    "Real training": "The loss goes down, the score gets better, and MONAI's curve is as near as MONAI's own is to "
    "itself from a start that is rounded otherwise, wherever MONAI computes the same.\n\n"
    "![Loss by step of each training](training.png)",
    "Fuzz": "Options and tensors that make no sense end in an error that says so, or in the reference's answer.",
    "Distributed": "Ranks that hold parts of the data get the value and, under DDP, the gradient of one process.",
    "Scale": "Large volumes take a time and a memory that grow as they do; indices do not end at 2³¹.",
    "Cold start": "A fresh process trains soon, wherever it is installed.",
    "State": "A loss is a value: no call changes it, and its copies are the same.",
    "Determinism": "The same bits on any number of threads, in any process.",
    "Concurrency": "Threads, forks, spawned processes and data loaders: no crash, no hang, the same bits.",
    "torch.compile": "A training step compiles as one graph, for sizes that change too.",
    "torch.library.opcheck": "Every operator keeps torch's rules: schema, fake tensors, autograd, tracing.",
    "torch.export": "A loss exports.",
    "torch.func": "grad, and vmap over items, give what autograd and a loop give.",
    "Double backward": "Second derivatives are right: gradgradcheck in float64.",
}


@dataclass(frozen=True)
class ReportSection:
    """The rows of a line, and when and with what they were made."""

    rows: list[Row]
    quick: bool
    date: str
    versions: dict[str, str]
    machine: str

    @classmethod
    def now(cls, rows: Iterable[Row], quick: bool) -> ReportSection:
        """Rows made today, here."""
        where = f"{machine()['cpu']}, {machine()['threads']} threads"
        return cls(list(rows), quick, datetime.datetime.now(datetime.UTC).date().isoformat(), versions(), where)


def load(folder: Path) -> dict[str, ReportSection]:
    """The sections that a folder holds; of none, none."""
    path = folder / "reliability.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: ReportSection(**{**of, "rows": [Row(**row) for row in of["rows"]]}) for name, of in found.items()}


def update(folder: Path, rows: Mapping[str, Sequence[Row]], quick: bool) -> None:
    """Put these lines into the report in a folder, in the place of what it says of them, and leave the others."""
    made = {**load(folder), **{name: ReportSection.now(of_line, quick) for name, of_line in rows.items()}}
    ordered = {name: made[name] for name in lines() if name in made}
    text = json.dumps({name: asdict(section) for name, section in ordered.items()}, indent=1, ensure_ascii=False)
    (folder / "reliability.json").write_text(text + "\n", encoding="utf-8")
    (folder / "reliability.md").write_text(as_markdown(ordered), encoding="utf-8")


def as_markdown(sections: Mapping[str, ReportSection]) -> str:
    """The report as people read it."""
    text = [
        "# Reliability",
        "",
        "Made by `twinloss reliability --out reports`: what breaks real trainings, tried on all losses. "
        "`twinloss reliability fuzz --out reports` tries one line anew.",
        "",
        *_table(("line", "trials", "failed"), (_summary(name, sections.get(name)) for name in MEANING)),
    ]
    for name, section in sections.items():
        text += ["", f"## {name}", "", MEANING[name], "", *_tables(section.rows), "", _origin(section)]
    return "\n".join(text) + "\n"


def _summary(name: str, section: ReportSection | None) -> tuple[str, str, str]:
    if section is None:
        return name, "not tried yet", ""
    anchor = "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")
    failed = sum(not row.passed for row in section.rows)
    return f"[{name}](#{anchor})", str(len(section.rows)), f"**{failed}**" if failed else "0"


def _origin(section: ReportSection) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in section.versions.items())
    sizes = ", at the small sizes of `--quick`" if section.quick else ""
    return f"Made on {section.date}{sizes}: {packages}; {section.machine}."


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    """What holds for several losses alike in one row; where figures differ, a table by loss; then all else."""
    by_trial: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.loss:
            by_trial.setdefault(row.tried, {})[row.loss] = row
    alike = [Row(f"{_named(found)}: {tried}", _only(found), True) for tried, found in by_trial.items() if _only(found)]
    alone = [*alike, *(row for row in rows if not row.loss)]
    # Trials of the same losses stand in columns of one table.
    columns: dict[tuple[str, ...], list[str]] = {}
    for tried, found in by_trial.items():
        if not _only(found):
            columns.setdefault(tuple(found), []).append(tried)
    blocks = [
        _table(("loss", *of), ([loss, *(_told(by_trial[tried][loss]) for tried in of)] for loss in losses))
        for losses, of in columns.items()
    ]
    if alone:
        blocks.insert(0, _table(("tried", "came out"), ((row.tried, _told(row)) for row in alone)))
    for n, block in enumerate(blocks):
        yield from ["", *block] if n else block


def _only(found: Mapping[str, Row]) -> str:
    """What came out of all losses, if that is one thing, and right."""
    outcomes = {row.outcome for row in found.values()}
    return outcomes.pop() if len(outcomes) == 1 and all(row.passed for row in found.values()) else ""


def _named(losses: Iterable[str]) -> str:
    names = list(losses)
    return f"all {len(names)} losses" if len(names) == 12 else ", ".join(names)


def _told(row: Row) -> str:
    return row.outcome if row.passed else f"**FAILED**: {row.outcome}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
