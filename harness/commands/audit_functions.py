"""`twinloss audit torch`, and scipy and torchvision: hunt on their functions, as pairs with references of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from twinloss import __version__
from twinloss.harness.commands.audit import LibraryError, cell
from twinloss.harness.commands.check import check_pair
from twinloss.harness.model.pair import Pair

DTYPES = ("float32", "float64")
EXAMPLES = 60

# What is audited of each library.
LIBRARIES = {"torch": "torch.nn.functional", "scipy": "scipy.ndimage", "torchvision": "torchvision.ops"}

VERDICTS = {"pass": "agrees", "degraded": "agrees", "imprecise": "imprecise", "fail": "differs"}


@dataclass(frozen=True)
class Checked:
    """The result for a function in a dtype, with the smallest input.

    The verdict is "agrees", "imprecise", "differs", or "not judged" if the check itself has a problem.
    """

    function: str
    dtype: str
    verdict: str
    what: str
    smallest: str


def pairs_of(library: str) -> tuple[Pair, ...]:
    """Return the functions of a library as pairs.

    Raises:
        LibraryError: if the library cannot be imported.
    """
    try:
        import_module(LIBRARIES[library])
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises the latter
        raise LibraryError(f"{library} cannot be imported: {error}; pip install {library}") from error
    made: tuple[Pair, ...] = _pairs_module(library).PAIRS
    return made


def _pairs_module(library: str) -> ModuleType:
    return import_module(f"twinloss.harness.commands.pairs_of_{library}")


def audit_functions(
    library: str,
    names: Sequence[str] = (),
    seed: int = 0,
    tick: Callable[[str, int], None] = lambda what, cases: None,
) -> list[Checked]:
    """Check all functions of a library, or those of some names, in each dtype.

    Raises:
        LibraryError: if the library cannot be imported, or there is no function of a name.
    """
    known = {pair.name: pair for pair in pairs_of(library)}
    for name in names:
        if name not in known:
            raise LibraryError(f"no function {name}: known are {', '.join(known)}")
    rows = []
    for name in names or known:
        for dtype in DTYPES:
            row = check_pair(known[name], dtypes=(dtype,), examples=EXAMPLES, seed=seed, tick=tick).rows[0]
            found = row.counterexample
            what = "; ".join([*([found.message] if found else []), *row.problems])
            verdict = "not judged" if row.problems and not found else VERDICTS[row.verdict]
            rows.append(Checked(name, dtype, verdict, what, found.line if found else ""))
    return rows


def as_markdown(library: str, rows: Sequence[Checked], seed: int) -> str:
    """Return the table as Markdown."""
    lines = [
        f"# {LIBRARIES[library]} beside its documentation",
        "",
        f"Made by `twinloss audit {library} --seed {seed} --out reports`, of twinloss {__version__} with {library}",
        f"{version(library).partition('+')[0]}: {EXAMPLES} cases of each function and dtype, and further ones of each",
        "law and of long axes. The bounds are derived from references of our own, which are in",
        f"`harness/commands/pairs_of_{library}.py`. A function is *imprecise* if its formula is right, but it loses",
        "more digits than the formula has to. It is *not judged* if the check itself would miss some wrong answers.",
        "",
        "| function | dtype | verdict | what | smallest input |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = row.function, row.dtype, row.verdict, row.what, row.smallest
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    notes = getattr(_pairs_module(library), "NOTES", {})
    for name in dict.fromkeys(row.function for row in rows if row.verdict == "differs"):
        if name in notes:
            lines += ["", f"**{name}**: {notes[name]}"]
    return "\n".join(lines) + "\n"
