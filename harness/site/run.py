"""The latest run of `twinloss verify`, read from its report.json."""

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
    """A run of `twinloss verify`, or a placeholder if there is none."""

    path: Path
    report: Mapping[str, Any] | None

    @property
    def command(self) -> str:
        """The command that made the run, or that would make one."""
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
        """Return the rows of a loss, or of all losses.

        For a run with several seeds, these are the rows of the first seed, and all rows with a counterexample.
        """
        if self.report is None:
            return []
        first = self.report["seed"]
        rows = [row for row in self.report["rows"] if row.get("seed", first) == first or row["counterexample"]]
        return [row for row in rows if name in (None, row["loss"])]

    def verdict(self, name: str) -> str:
        """Return the worst verdict on a loss.

        The verdict is empty if the loss was not run, and "interrupted" in place of "pass" if its run was not completed.
        """
        rows = self.rows(name)
        worst = max((row["verdict"] for row in rows), key=VERDICTS.index, default="")
        return "interrupted" if worst == "pass" and any(row["interrupted"] for row in rows) else worst

    def counterexamples(self, name: str | None = None) -> list[Mapping[str, Any]]:
        """Return the rows with a counterexample."""
        return [row for row in self.rows(name) if row["counterexample"]]


def load(folder: Path) -> VerifyRun:
    """Load the run whose report is in a folder.

    Raises:
        ReportError: if there is a report that cannot be read.
    """
    path = folder / "report.json"
    return VerifyRun(path, read(path) if path.exists() else None)


def error(found: Mapping[str, Any] | None) -> str:
    """Format the worst error as a multiple of its bound and in bits."""
    if found is None:
        return ""
    return "NaN or infinity" if found["ratio"] is None else f"{found['ratio']:.2g} ({found['bits']:.1f} bits)"


def histograms(rows: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return a title and an SVG for each row and part (value or gradient) that has a histogram."""
    made = []
    for row in rows:
        for part in PARTS:
            counts = row.get("bits_histogram", {}).get(part)
            if not counts:
                continue
            title = f"{row['loss']} {row['dtype']} {row['data']}: {part}"
            made.append((title, bars({float(bits): count for bits, count in counts.items()}, title)))
    return made


def pairs(row: Mapping[str, Any]) -> tuple[list[str], dict[tuple[str, str], tuple[int, int]]]:
    """Return the options, and the coverage of each pair of options.

    The coverage is the number of pairs of values that were tested together, and the number of possible pairs.
    """
    found = {(a, b): (tried, possible) for a, b, tried, possible in row["pairs"].get("by_option", [])}
    followers: dict[str, set[str]] = {}
    for a, b in found:
        followers.setdefault(a, set()).add(b)
        followers.setdefault(b, set())
    # In each pair, the option that comes first in the catalogue is the first.
    return sorted(followers, key=lambda name: -len(followers[name])), found
