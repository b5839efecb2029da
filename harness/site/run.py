"""The latest run of `twinloss verify`, from the report.json that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinloss.harness.hunting.report_file import VERDICTS, read
from twinloss.harness.site.chart import bars

PARTS = ("value", "gradient")


@dataclass(frozen=True)
class VerifyRun:
    """A run, or that there is none."""

    path: Path
    report: Mapping[str, Any] | None

    @property
    def command(self) -> str:
        """What made it, or would make it."""
        if self.report is None:
            return "twinloss verify"
        asked = self.report.get("asked", {})
        words = [*asked.get("losses", []), "--seed", str(self.report["seed"])]
        words += [f"--examples {asked['examples']}"] if "examples" in asked else []
        words += [f"--dtype {dtype}" for dtype in asked.get("dtypes", [])]
        words += [] if asked.get("real", True) else ["--no-real"]
        words += [f"--repeat {asked['repeat']}"] if "repeat" in asked else []
        return " ".join(["twinloss verify", *words])

    def rows(self, name: str | None = None) -> list[Mapping[str, Any]]:
        """Those of a loss, or all; of a soak those of the first seed, and those with a counterexample."""
        if self.report is None:
            return []
        first = self.report["seed"]
        rows = [row for row in self.report["rows"] if row.get("seed", first) == first or row["counterexample"]]
        return [row for row in rows if name in (None, row["loss"])]

    def verdict(self, name: str) -> str:
        """The worst of a loss, or nothing if it was not looked at; no pass if that was cut short."""
        rows = self.rows(name)
        worst = max((row["verdict"] for row in rows), key=VERDICTS.index, default="")
        return "interrupted" if worst == "pass" and any(row["interrupted"] for row in rows) else worst

    def counterexamples(self, name: str | None = None) -> list[Mapping[str, Any]]:
        """The rows with a counterexample."""
        return [row for row in self.rows(name) if row["counterexample"]]


def load(folder: Path) -> VerifyRun:
    """The run whose report lies in a folder.

    Raises:
        ReportError: if there is a report that cannot be read.
    """
    path = folder / "report.json"
    return VerifyRun(path, read(path) if path.exists() else None)


def error(found: Mapping[str, Any] | None) -> str:
    """A worst error, as multiple of its bound and in bits."""
    if found is None:
        return ""
    return "NaN or infinity" if found["ratio"] is None else f"{found['ratio']:.2g} ({found['bits']:.1f} bits)"


def histograms(rows: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A title and an SVG for each row and part that has a histogram."""
    made = []
    for row in rows:
        for part in PARTS:
            counts = row.get("bits_histogram", {}).get(part)
            if not counts:
                continue
            data = "drawn" if row["data"] == "generated" else row["data"]
            title = f"{row['loss']} {row['dtype']} {data}: {part}"
            made.append((title, bars({float(bits): count for bits, count in counts.items()}, title)))
    return made


def pairs(row: Mapping[str, Any]) -> tuple[list[str], dict[tuple[str, str], tuple[int, int]]]:
    """The options, and for each two of them how many pairs of values were tried, of how many that are possible."""
    found = {(a, b): (tried, possible) for a, b, tried, possible in row["pairs"].get("by_option", [])}
    followers: dict[str, set[str]] = {}
    for a, b in found:
        followers.setdefault(a, set()).add(b)
        followers.setdefault(b, set())
    # In each pair the one that stands first in the catalogue is the first.
    return sorted(followers, key=lambda name: -len(followers[name])), found
