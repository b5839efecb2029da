"""`twinloss audit torch`, scipy, torchvision or liger_kernel: hunt on their functions, as pairs with our references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from twinloss import __version__
from twinloss.harness.commands.audit import LibraryError, cell
from twinloss.harness.commands.check import check_pair
from twinloss.harness.model import interpreter
from twinloss.harness.model.device import DeviceError
from twinloss.harness.model.pair import Pair


@dataclass(frozen=True)
class Library:
    """What is audited of a library.

    Attributes:
        module: the module with the functions.
        package: the name of the package for pip.
        dtypes: the dtypes under test.
        examples: the number of cases of each function and dtype.
        interpreted: whether Triton's interpreter runs the functions.
    """

    module: str
    package: str
    dtypes: tuple[str, ...] = ("float32", "float64")
    examples: int = 60
    interpreted: bool = False

    def running(self) -> AbstractContextManager[None]:
        """Return the context in which the functions are imported and run."""
        return interpreter.completed() if self.interpreted else nullcontext()


LIBRARIES = {
    "torch": Library("torch.nn.functional", "torch"),
    "scipy": Library("scipy.ndimage", "scipy"),
    "torchvision": Library("torchvision.ops", "torchvision"),
    # Its kernels compute in float32 whatever the dtype is, and the interpreter is slow.
    "liger_kernel": Library("liger_kernel.transformers.functional", "liger-kernel", ("float32",), 20, interpreted=True),
}

INTERPRETED = (
    "",
    "Triton's interpreter ran the kernels on a CPU. It was made to pass numbers to them in float32, as launches on a",
    "GPU do, and to compute by NumPy the functions `rsqrt` and `tanh`, which are in libdevice on a GPU. No GPU was",
    "used, which may round differently. Errors of the interpreter are not errors of the library.",
)

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
    known = LIBRARIES[library]
    try:
        with known.running():
            import_module(known.module)
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises the latter
        raise LibraryError(f"{library} cannot be imported: {error}; pip install {known.package}") from error
    except DeviceError as error:
        raise LibraryError(f"the kernels of {library} run in Triton's interpreter: {error}") from error
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
    rows, audited = [], LIBRARIES[library]
    for name in names or known:
        for dtype in audited.dtypes:
            with audited.running():
                row = check_pair(known[name], dtypes=(dtype,), examples=audited.examples, seed=seed, tick=tick).rows[0]
            found = row.counterexample
            what = "; ".join([*([found.message] if found else []), *row.problems])
            verdict = "not judged" if row.problems and not found else VERDICTS[row.verdict]
            rows.append(Checked(name, dtype, verdict, what, found.line if found else ""))
    return rows


def as_markdown(library: str, rows: Sequence[Checked], seed: int) -> str:
    """Return the table as Markdown."""
    audited, pairs = LIBRARIES[library], _pairs_module(library)
    release = version(audited.package).partition("+")[0]
    lines = [
        f"# {audited.module} beside its documentation",
        "",
        f"Made by `twinloss audit {library} --seed {seed} --out reports`, of twinloss {__version__} with {library}",
        f"{release}: {audited.examples} cases of each function and dtype, and further ones of each",
        "law and of long axes. The bounds are derived from references of our own, which are in",
        f"`harness/commands/pairs_of_{library}.py`. A function is *imprecise* if its formula is right, but it loses",
        "more digits than the formula has to. It is *not judged* if the check itself would miss some wrong answers.",
        *(INTERPRETED if audited.interpreted else ()),
        "",
        "| function | dtype | verdict | what | smallest input |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = row.function, row.dtype, row.verdict, row.what, row.smallest
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    notes = getattr(pairs, "NOTES", {})
    for name in dict.fromkeys(row.function for row in rows if row.verdict == "differs"):
        if name in notes:
            lines += ["", f"**{name}**: {notes[name]}"]
    for name, reason in getattr(pairs, "NOT_RUN", {}).items():
        lines += ["", f"**{name}** was not run: {reason}."]
    return "\n".join(lines) + "\n"
