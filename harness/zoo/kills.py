"""Which check kills which mutant, and after how many cases. Each check is evaluated independently of the others."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich import box
from rich.table import Table

from twinloss.harness.drawing.hypothesis_seed import of_the_seed_alone
from twinloss.harness.hunting import real_images
from twinloss.harness.hunting.hunt import EXAMPLES, LARGE_TRIALS, LAW_TRIALS
from twinloss.harness.hunting.parallel import PROCESSES, prepare
from twinloss.harness.judging import finite_differences
from twinloss.harness.judging.answers import ask_fast
from twinloss.harness.judging.law_check import breach
from twinloss.harness.judging.truth import Truth
from twinloss.harness.judging.verdict import judge_gradient, judge_value
from twinloss.harness.losses.module_laws import PROTOCOL
from twinloss.harness.model import device
from twinloss.harness.model.twin import Case, Law, Twin
from twinloss.harness.zoo import zoo
from twinloss.harness.zoo.mutants import Mutant

JUDGEMENTS = ("value", "gradient", "differences", "laws", "protocol")


@dataclass
class Kills:
    """For a mutant, the number of the case at which each check first objected, and the number of all cases."""

    name: str
    of: str
    origin: str
    at: dict[str, int] = field(default_factory=dict)
    cases: int = 0


@np.errstate(all="ignore")
def objections(twin: Twin, case: Case, left: Collection[str] = JUDGEMENTS, truth: Truth | None = None) -> Iterator[str]:
    """Yield the checks among `left` that object to a case."""
    truth = truth or Truth(twin, case)
    try:
        answer = ask_fast(twin, case)
    except Exception:
        yield "value"  # the loss raised an error
        return
    if "value" in left and judge_value(truth, answer.value).verdict == "fail":
        yield "value"
    if "gradient" in left and judge_gradient(truth, answer.gradient).verdict == "fail":
        yield "gradient"
    of_law = "protocol" if case.law in PROTOCOL else "laws"
    if of_law in left and case.law is not None and case.law.applies(case) and breach(case.law, twin, case):
        yield of_law
    if "differences" in left and finite_differences.applies(truth) and finite_differences.complaint(truth, answer):
        yield "differences"


def kills(mutant: Mutant, start: int = 0, examples: int = EXAMPLES) -> Kills:
    """Test a mutant as a hunt with default settings does.

    A mutant with `full_size` is tested on real images first, and on generated cases only if these do not kill it.
    """
    if mutant.interpreted:
        device.start_interpreter()
    twin, made = mutant.twin(), Kills(mutant.name, mutant.of, mutant.origin)
    for question in real_images.questions(twin, [mutant.dtype]) if mutant.full_size else ():
        made.cases += 1
        asked, case, truth = question
        made.at = dict.fromkeys(objections(asked, case, truth=truth), made.cases)
        if made.at:
            return made
    _draw(twin, mutant, None, examples, start, made)
    _draw(twin, mutant, None, LARGE_TRIALS, start, made, large=True)
    for law in twin.laws_for(mutant.dtype):
        _draw(twin, mutant, law, 2 * LAW_TRIALS, start, made)
    return made


def _draw(
    twin: Twin, mutant: Mutant, law: Law | None, examples: int, start: int, made: Kills, large: bool = False
) -> None:
    @seed(start)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck),
              phases=(Phase.generate,))  # fmt: skip
    @given(twin.cases(twin, mutant.dtype, {}, law, large))
    def run(case: Case) -> None:
        made.cases += 1
        left = [judgement for judgement in JUDGEMENTS if judgement not in made.at]
        for judgement in objections(twin, case.in_double() if mutant.dtype == "float64" else case, left):
            made.at.setdefault(judgement, made.cases)

    with warnings.catch_warnings(), of_the_seed_alone():
        warnings.simplefilter("ignore")
        run()


def _kills(name: str, start: int) -> Kills:
    return kills(next(mutant for mutant in zoo() if mutant.name == name), start)


def matrix(
    mutants: Sequence[Mutant], start: int = 0, tick: Callable[[str, int], None] = lambda what, cases: None
) -> list[Kills]:
    """Test all mutants in several processes."""
    rows = []
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"), initializer=prepare) as pool:
        for row in pool.map(_kills, [mutant.name for mutant in mutants], [start] * len(mutants)):
            tick(row.name, row.cases)
            rows.append(row)
    return rows


def alive(rows: Sequence[Kills]) -> list[str]:
    """Return the mutants that no check killed."""
    return [row.name for row in rows if not row.at]


def only_killers(rows: Sequence[Kills]) -> dict[str, list[str]]:
    """Return the mutants that a single check killed, by check."""
    return {j: [row.name for row in rows if list(row.at) == [j]] for j in JUDGEMENTS}


def table(rows: Sequence[Kills]) -> Table:
    """Create a table with the case at which each check first objected, one line per mutant."""
    made = Table("mutant", "loss", *JUDGEMENTS, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        made.add_row(row.name, row.of, *(str(row.at.get(judgement, "")) for judgement in JUDGEMENTS))
    return made


def as_markdown(rows: Sequence[Kills], start: int) -> str:
    """Render the report: the table, and a description of each mutant."""
    lines = [
        "# The zoo",
        "",
        f"Made by `twinloss zoo --seed {start} --out reports`. Each mutant is a loss with a deliberate bug.",
        "The table shows which checks detect it: the number of the first test case at which the check failed, or",
        "nothing if it passed in all of a few hundred cases. If a bug only shows at full size, the mutant is tested on",
        "real images.",
        "",
        "- value, gradient: they are compared with those of the reference.",
        "- differences: the gradient is compared with finite differences of the reference's value.",
        "- laws: mathematical properties such as symmetries and known values must hold.",
        "- protocol: the module must behave well, for example leave its arguments unchanged.",
        "",
        "| mutant | loss | " + " | ".join(JUDGEMENTS) + " | bug |",
        "|---|---|" + "---:|" * len(JUDGEMENTS) + "---|",
    ]
    for row in rows:
        cells = [row.name, row.of, *(str(row.at.get(judgement, "")) for judgement in JUDGEMENTS), row.origin]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Mutants that only one check detects:", ""]
    lines += [f"- {judgement}: {', '.join(names) or 'none'}" for judgement, names in only_killers(rows).items()]
    return "\n".join(lines) + "\n"
