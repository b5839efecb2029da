"""The file report.json that `twinloss verify` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VERDICTS = ("pass", "degraded", "convention", "imprecise", "fail")


class ReportError(ValueError):
    """A file is not a report."""


LEGEND_OF_PAIR = (
    "x: worst error as a multiple of its bound. bits: number of wrong trailing bits of the result;\n"
    "an error at the bound has 3.\n"
    "degraded: beyond the bound, but the reference loses as many digits in the same dtype."
)
LEGEND = (
    "x: worst error as a multiple of its bound. bits: number of wrong trailing bits of the result;\n"
    "an error at the bound has 3. pairs: share of all pairs of option values that were tried together.\n"
    "degraded: beyond the bound, but at most twice the error of the plain formula in the same dtype.\n"
    "real: the reference judges a block of the brain, and the fast twin also runs on the whole volume."
)


def read(path: Path) -> dict[str, Any]:
    """Read a report that `twinloss verify` wrote, by `--save` or `--report`.

    Raises:
        ReportError: if the file cannot be read or is not a report.
    """
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"cannot read {path}: {error}") from error
    if not isinstance(made, dict) or not isinstance(made.get("rows"), list):
        raise ReportError(f"{path} is not a report: it has no rows; make one with twinloss verify --save {path}")
    return made
