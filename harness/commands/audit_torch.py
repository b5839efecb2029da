"""`twinloss audit torch`: hunt on functions of torch.nn.functional, as pairs with references of their documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from twinloss import __version__
from twinloss.harness.commands.audit import LibraryError, cell
from twinloss.harness.commands.check import check_pair
from twinloss.harness.commands.torch_pairs import PAIRS

DTYPES = ("float32", "float64")
EXAMPLES = 60

VERDICTS = {"pass": "agrees", "degraded": "agrees", "imprecise": "imprecise", "fail": "differs"}


@dataclass(frozen=True)
class Checked:
    """The result for a function in a dtype: it "agrees", is "imprecise" or "differs"; with the smallest input."""

    function: str
    dtype: str
    verdict: str
    what: str
    smallest: str


def audit_torch(
    names: Sequence[str] = (), seed: int = 0, tick: Callable[[str, int], None] = lambda what, cases: None
) -> list[Checked]:
    """Check all functions, or those of some names, in each dtype.

    Raises:
        LibraryError: if there is no function of a name.
    """
    known = {pair.name: pair for pair in PAIRS}
    for name in names:
        if name not in known:
            raise LibraryError(f"no function {name}: known are {', '.join(known)}")
    rows = []
    for name in names or known:
        for dtype in DTYPES:
            row = check_pair(known[name], dtypes=(dtype,), examples=EXAMPLES, seed=seed, tick=tick).rows[0]
            found = row.counterexample
            what = "; ".join([*([found.message] if found else []), *row.problems])
            rows.append(Checked(name, dtype, VERDICTS[row.verdict], what, found.line if found else ""))
    return rows


def as_markdown(rows: Sequence[Checked], seed: int) -> str:
    """Return the table as Markdown."""
    lines = [
        "# torch.nn.functional beside its documentation",
        "",
        f"Made by `twinloss audit torch --seed {seed} --out reports`, of twinloss {__version__} with torch",
        f"{torch.__version__.partition('+')[0]}: {EXAMPLES} cases of each function and dtype, and further ones of each",
        "law and of long axes. The references are in `harness/commands/torch_pairs.py`; the bounds are derived from",
        "them. A function is *imprecise* if its formula is right, but it loses more digits than the formula has to.",
        "",
        "| function | dtype | verdict | what | smallest input |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = row.function, row.dtype, row.verdict, row.what, row.smallest
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines) + "\n"
