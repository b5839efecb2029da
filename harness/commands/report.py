"""Reports of a verification: a table to read, report.json for programs, and a script for each counterexample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from twinloss.harness.commands import soak
from twinloss.harness.commands.verify import Verification
from twinloss.harness.drawing import coverage
from twinloss.harness.hunting.hunt import Hunt
from twinloss.harness.judging.judgement import Finding
from twinloss.harness.system.machine import machine, versions

COLOURS = {"pass": "green", "degraded": "yellow", "convention": "cyan", "imprecise": "yellow", "fail": "red",
           "interrupted": "magenta"}  # fmt: skip


def line(row: Hunt) -> str:
    """Return a finished row as a line of rich text."""
    data = "drawn" if row.data == "generated" else row.data
    return f"{row.twin.name} {row.dtype} {data}: [{COLOURS[row.verdict]}]{row.verdict}[/], {row.cases} cases"


def table(seen: Verification, title: str) -> Table:
    """Return a table with one line for each loss, dtype and kind of data."""
    made = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    made.add_column("loss", overflow="fold", min_width=11)
    for column in ("dtype", "data"):
        made.add_column(column, no_wrap=True)
    for column in ("cases", "value\nx, bits", "gradient\nx, bits", "laws", "pairs"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("verdict", no_wrap=True)
    for row in seen.rows:
        verdict = "interrupted" if row.interrupted else row.verdict
        made.add_row(
            row.twin.name, row.dtype, "drawn" if row.data == "generated" else row.data, str(row.cases),
            _error(row.worst.get("value")), _error(row.worst.get("gradient")), _laws(row), _pairs(row),
            f"[{COLOURS[verdict]}]{verdict}[/]",
        )  # fmt: skip
    return made


def _error(finding: Finding | None) -> str:
    return "" if finding is None else f"{finding.ratio:.2g} {finding.bits:.1f}"


def _laws(row: Hunt) -> str:
    return f"{len(row.laws)}/{len(row.twin.laws_for(row.dtype))}" if row.data == "generated" else ""


def _pairs(row: Hunt) -> str:
    if row.data != "generated":
        return ""
    possible = coverage.possible_pairs(row.twin)
    return f"{100 * len(row.pairs & possible) // len(possible)}%" if possible else ""  # a single option has no pairs


def as_json(seen: Verification) -> str:
    """Return all rows and counterexamples as JSON, with everything needed to reproduce them."""
    made = {
        "seed": seen.seed,
        "asked": seen.asked,
        "interrupted": seen.interrupted,
        "versions": versions(),
        "machine": machine(),
        "notes": seen.notes,
        **({"soak": soak.as_data(seen)} if "repeat" in seen.asked else {}),
        "rows": [_row(row) for row in seen.rows],
    }
    return json.dumps(made, indent=1)


def _row(row: Hunt) -> dict[str, Any]:
    possible = coverage.possible_pairs(row.twin)
    found = row.counterexample
    shown = ("kind", "message", "snippet", "xfail")
    return {
        "loss": row.twin.name,
        "dtype": row.dtype,
        "data": row.data,
        "seed": row.seed,
        "cases": row.cases,
        "verdict": row.verdict,
        "interrupted": row.interrupted,
        "degraded": row.degraded,
        "imprecise": row.imprecise,
        "expected": dict(row.expected),
        "conventions": {name: found.message for name, found in row.conventions.items()},
        "seconds": round(row.seconds, 2),
        "worst": {part: _finding(finding) for part, finding in row.worst.items()},
        "bits_by_option": {name: round(bits, 2) if bits < float("inf") else None for name, bits in row.bits.items()},
        "bits_histogram": _histogram(row),
        "laws": dict(row.laws),
        "pairs": {
            "tried": len(row.pairs & possible),
            "possible": len(possible),
            "by_option": coverage.by_option(row.pairs, possible),
        },
        "live_options": sorted(f"{name}={value}" for name, value in row.live),
        "kinds": {f"{trait}={kind}": count for (trait, kind), count in sorted(row.kinds.items())},
        "problems": row.problems,
        "counterexample": found and {name: getattr(found, name) for name in shown},
    }


def _histogram(row: Hunt) -> dict[str, dict[str, int]]:
    """Return for value and gradient the number of errors in each bin of half a bit."""
    made: dict[str, dict[str, int]] = {}
    for (part, bits), count in sorted(row.errors.items()):
        made.setdefault(part, {})[f"{bits:g}"] = count
    return made


def _finding(finding: Finding) -> dict[str, Any]:
    """Convert a finding for JSON, which has no infinity: an infinite ratio becomes None."""
    finite = finding.ratio < float("inf")
    return {
        "verdict": finding.verdict,
        "ratio": float(f"{finding.ratio:.4g}") if finite else None,
        "bits": round(finding.bits, 2) if finite else None,
        "error": finding.error,
        "bound": finding.bound,
        "where": list(finding.where),
        **({"of": finding.of} if finding.of else {}),
        **({"basis": finding.basis} if finding.basis else {}),
    }


def write(seen: Verification, folder: Path) -> list[Path]:
    """Write report.json and the scripts to a folder, and return their paths."""
    paths = [folder / "report.json"]
    paths[0].write_text(as_json(seen) + "\n", encoding="utf-8")
    for row in seen.rows:
        if row.counterexample:
            of_seed = f"_{row.seed}" if "repeat" in seen.asked else ""
            paths.append(folder / f"{row.twin.name}_{row.dtype}_{row.data}{of_seed}.py")
            paths[-1].write_text(row.counterexample.snippet, encoding="utf-8")
    return paths
