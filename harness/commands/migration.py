"""`twinloss migration`: the differences between twinloss and the releases of MONAI, each with an example that is run.

An example has at most three lines of code. It runs with the losses of twinloss and with those of each MONAI release.
The value of the last line is the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twinloss.harness.commands.migration_examples import DIFFERENCES, Difference

OURS = "twinloss"
START, END = "<!-- twinloss migration -->", "<!-- end -->"


@dataclass(frozen=True)
class Told:
    """A difference, and the answer of each library to its example."""

    difference: Difference
    answers: Mapping[str, str]


def answer(code: str, losses: Any) -> str:
    """Run an example with a module of losses; return the value of its last line, or the name of its error."""
    known = {"torch": torch, **{name: value for name, value in vars(losses).items() if not name.startswith("_")}}
    *before, last = code.splitlines()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec("\n".join(before), known)
            found = eval(last, known)
    except NameError:
        return "no such loss"
    except TypeError as error:
        return "no such option" if "unexpected keyword" in str(error) else "TypeError"
    except Exception as error:
        return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return _shown(found)


def _shown(found: Any) -> str:
    if isinstance(found, torch.Tensor):
        numbers = [f"{value:.4g}".replace("-0", "0") if value == 0 else f"{value:.4g}" for value in found.flatten()]
        return numbers[0] if found.ndim == 0 else f"[{', '.join(numbers)}]"
    return str(tuple(found)) if isinstance(found, torch.Size) else str(found)


def of_monai() -> tuple[str, list[str]]:
    """Return the release of MONAI that this process imports, and its answers.

    Raises:
        ImportError: if MONAI is not installed.
    """
    import monai  # type: ignore[import-untyped, unused-ignore]
    import monai.losses  # type: ignore[import-untyped, unused-ignore]

    losses: Any = monai.losses
    return str(monai.__version__), [answer(each.code, losses) for each in DIFFERENCES]


def elsewhere(folder: Path) -> tuple[str, list[str]]:
    """Return the release and the answers of the MONAI in a folder, which runs in another process."""
    code = "import json; from twinloss.harness.commands.migration import of_monai; print(json.dumps(of_monai()))"
    path = os.pathsep.join([str(folder.resolve()), *sys.path[1:]])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    release, answers = json.loads(done.stdout.splitlines()[-1])
    return release, answers


def compare(folders: Sequence[Path] = ()) -> list[Told]:
    """Run the example of each difference with twinloss, the installed MONAI and those in the folders."""
    from twinloss import fast

    releases = dict([*map(elsewhere, folders), of_monai()])
    made = []
    for n, each in enumerate(DIFFERENCES):
        answers = {f"MONAI {release}": releases[release][n] for release in sorted(releases)}
        made.append(Told(each, {OURS: answer(each.code, fast)} | answers))
    return made


def as_markdown(rows: Sequence[Told]) -> str:
    """Return the report: a table of all differences, then each with its reason and its example."""
    lines = [
        "# From MONAI to twinloss",
        "",
        "Made by `twinloss migration --with FOLDER --out reports`, with a FOLDER for each release that is not",
        "installed: `pip install --no-deps --target FOLDER monai==0.5.3`. Every example was run with each release.",
        "",
        as_table(rows).rstrip(),
    ]
    loss = None
    for row in rows:
        if row.difference.loss != loss:
            loss = row.difference.loss
            lines += ["", f"## {loss}"]
        lines += example(row)
        if row.difference.theirs:
            lines += ["", f"MONAI's behaviour: {row.difference.theirs}."]
    return "\n".join(lines) + "\n"


def example(row: Told) -> list[str]:
    """Return the lines of a report that show a difference: its reason, its code and the answers."""
    return [
        "",
        f"**{row.difference.here}** {row.difference.why}",
        "",
        "```python",
        row.difference.code,
        "```",
        "",
        "| " + " | ".join(row.answers) + " |",
        "|" + "---|" * len(row.answers),
        "| " + " | ".join(row.answers.values()) + " |",
    ]


def as_table(rows: Sequence[Told]) -> str:
    """Return a table with a line for each difference, and the answers to its example."""
    names = list(rows[0].answers)
    lines = [
        "| loss | in twinloss | MONAI's behaviour | " + " | ".join(names) + " |",
        "|" + "---|" * (3 + len(names)),
    ]
    for row in rows:
        cells = (row.difference.loss, row.difference.here, row.difference.theirs, *row.answers.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def that_bite(rows: Sequence[Told]) -> list[Told]:
    """Return the differences that the README lists."""
    return [row for row in rows if row.difference.bites]


def put_into(text: str, table: str) -> str:
    """Replace the table between the markers of a text.

    Raises:
        ValueError: if the text has no markers.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"no {START} … {END}, between which the table belongs")
    return f"{before}{START}\n{table}{END}{after}"
