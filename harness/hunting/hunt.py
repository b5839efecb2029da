"""The hunt: Hypothesis draws cases of one loss in one dtype until a case fails or enough have passed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis.database import DirectoryBasedExampleDatabase, InMemoryExampleDatabase
from hypothesis.errors import Flaky, Unsatisfiable

from twinloss.harness.drawing import coverage
from twinloss.harness.drawing.hypothesis_seed import of_the_seed_alone
from twinloss.harness.hunting import conventions, self_check
from twinloss.harness.hunting.deviations import Deviation, entry
from twinloss.harness.hunting.shrink import simplest
from twinloss.harness.hunting.snippet import in_a_line, snippet
from twinloss.harness.judging.judgement import ORDER, Finding
from twinloss.harness.judging.trial import Examine, Trial, examine, only_rounding, outside_its_bounds
from twinloss.harness.model.twin import Ground, Law, Twin

# The default number of cases for each loss and dtype.
EXAMPLES = 150

# LAW_TRIALS is the minimum number of cases for each law. ATTEMPTS is the number of draws that look for cases of a law,
# or for a case in which an option changes the result, because such cases may be rare. LARGE_TRIALS is the number of
# large cases, EQUAL_TRIALS that of cases of many equal numbers, and KEPT the number of trials kept for the check that
# the judge rejects wrong answers (`self_check.survivors`).
LAW_TRIALS = 3
ATTEMPTS = 10
LARGE_TRIALS = 6
EQUAL_TRIALS = 3
KEPT = 40

# The width of a bar in the histogram of errors, in bits.
BIN = 0.5

# The number of draws for each row of options and shapes that the free draws missed; the first draw is the simplest.
ROW_TRIALS = 2
# Time limits, in seconds, to simplify the example of a convention and that of lost precision.
SECONDS, LONGER = 1.0, 3.0

# The folder that keeps failing cases for the next hunt; it is Hypothesis's own default.
MEMORY = ".hypothesis/examples"


class Failures(DirectoryBasedExampleDatabase):
    """An example database of failures only, so that other examples of an earlier run do not influence a run."""

    def save(self, key: bytes, value: bytes) -> None:
        """Save an example, unless it belongs to Hypothesis's Pareto front."""
        if not key.endswith(b".pareto"):
            super().save(key, value)


SETTINGS = settings(
    derandomize=False,  # only the seed decides, whatever profile is loaded
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    verbosity=Verbosity.quiet,
    report_multiple_bugs=False,
    phases=(Phase.reuse, Phase.generate, Phase.target, Phase.shrink),
)


class FailureFound(Exception):
    """A case failed; `trial` says why."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.message)
        self.trial = trial


@dataclass(frozen=True)
class Excuse:
    """A reason not to end the hunt at a failure.

    For a convention, `neutral` is the trial of the same case without the trait in question.
    """

    sort: Literal["rounding", "known", "convention"]
    reason: str = ""
    neutral: Trial | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Counterexample:
    """The simplest failing case that was found.

    `xfail` is a matching entry for a file of known deviations. For a pair, `line` is the case and both answers in one
    line.
    """

    kind: str
    message: str
    snippet: str
    xfail: str = ""
    line: str = ""


@dataclass
class Hunt:
    """The results of a hunt. They are updated during the hunt, so that an interrupted hunt has results, too.

    Attributes `forgiving`, `lenient`, `known` and `remember` control which failures end the hunt. A `forgiving` hunt
    goes on after failures that are only due to rounding, and keeps the worst of them as `doubtful`. A `lenient` hunt
    goes on where papers leave a convention open, and keeps an example of each such convention. Every hunt goes on
    after a `known` deviation. A hunt with `remember` first retries the cases that failed last time in the same folder.
    """

    twin: Twin
    dtype: str
    data: str = "generated"
    cases: int = 0
    worst: dict[str, Finding] = field(default_factory=dict)
    laws: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    pairs: set[coverage.Pair] = field(default_factory=set)
    live: set[tuple[str, str]] = field(default_factory=set)
    bits: dict[str, float] = field(default_factory=dict)
    errors: Counter[tuple[str, float]] = field(default_factory=Counter)
    beyond: set[str] = field(default_factory=set)
    kept: list[Trial] = field(default_factory=list)
    degraded: int = 0
    forgiving: bool = False
    known: tuple[Deviation, ...] = ()
    expected: Counter[str] = field(default_factory=Counter)
    remember: bool = False
    imprecise: int = 0
    doubtful: Trial | None = None
    lenient: bool = False
    silent: dict[str, Trial] = field(default_factory=dict)
    conventions: dict[str, Counterexample] = field(default_factory=dict)
    counterexample: Counterexample | None = None
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0
    seed: int = 0

    @property
    def verdict(self) -> Literal["pass", "degraded", "convention", "imprecise", "fail"]:
        """The worst result so far."""
        if self.problems or (self.counterexample and not self.imprecise):
            return "fail"
        if self.imprecise:
            return "imprecise"
        return "convention" if self.conventions or self.silent else "degraded" if self.degraded else "pass"

    def excuse(self, trial: Trial, again: Examine = examine) -> Excuse | None:
        """Return the reason why a failed trial does not end the hunt, or None if it does.

        The function `again` examines the case with some of its traits taken away.
        """
        excuse = self._excuse_without_conventions(trial, again)
        if excuse is not None or not self.lenient:
            return excuse
        found = conventions.convention(self.twin, trial, lambda made: self.passes(made, again), again)
        if found is not None:
            return Excuse("convention", *found)
        lost = self.forgiving and only_rounding(self.twin, trial, again, every=True)
        return Excuse("rounding") if lost else None

    def _excuse_without_conventions(self, trial: Trial, again: Examine = examine) -> Excuse | None:
        if self.forgiving and only_rounding(self.twin, trial, again):
            return Excuse("rounding")
        known = next((each.reason for each in self.known if each.met_by(self.twin, trial)), None)
        return None if known is None else Excuse("known", known)

    def passes(self, trial: Trial, again: Examine = examine) -> bool:
        """Return whether a trial passed or has an excuse other than a convention."""
        return trial.kind is None or self._excuse_without_conventions(trial, again) is not None

    def note_excused(self, trial: Trial, excuse: Excuse) -> None:
        """Record a failure that does not end the hunt."""
        if excuse.sort == "rounding":
            self.imprecise += 1
            if self.doubtful is None or _worst_ratio(trial) > _worst_ratio(self.doubtful):
                self.doubtful = trial
        elif excuse.sort == "known":
            self.expected[excuse.reason] += 1
        else:
            kept = self.silent.setdefault(excuse.reason, trial)
            if trial.case.input.values.size < kept.case.input.values.size:
                self.silent[excuse.reason] = trial
            again = excuse.neutral and excuse.neutral.kind and self._excuse_without_conventions(excuse.neutral)
            if excuse.neutral and again:
                self.note_excused(excuse.neutral, again)

    def note(self, trial: Trial) -> None:
        """Record a trial that did not fail."""
        self.cases += 1
        for finding in trial.findings:
            self.note_finding(finding)
            if finding.ratio < math.inf:
                self.errors[finding.part, math.floor(finding.bits / BIN) * BIN] += 1
        self.degraded += any(finding.verdict == "degraded" for finding in trial.findings)
        case = trial.case
        worst = max((finding.bits for finding in trial.findings), default=0.0)
        for name, text in case.traits.items():
            if name in self.twin.options:
                self.bits[f"{name}={text}"] = max(worst, self.bits.get(f"{name}={text}", 0.0))
        shape = coverage.shape_of(self.twin, case)
        self.kinds.update({**case.traits, **shape}.items())
        options = {name: case.traits[name] for name in self.twin.options if name in case.traits}
        self.pairs |= coverage.pairs_of({**options, **shape})
        if case.law is not None and trial.beyond:
            self.beyond.add(case.law.name)
        elif case.law is not None and case.law.applies(case):
            self.laws[case.law.name] += 1
        if len(self.kept) < KEPT and case.input.values.size < 1000:
            self.kept.append(trial)
        for name, value in self_check.given_values(case):
            if (name, value) not in self.live and self_check.changes_result(self.twin, case, name):
                self.live.add((name, value))

    def note_finding(self, finding: Finding) -> None:
        """Keep a finding if it is the worst of its part so far."""
        known = self.worst.get(finding.part)
        badness = (ORDER.index(finding.verdict), finding.ratio)
        if known is None or badness > (ORDER.index(known.verdict), known.ratio):
            self.worst[finding.part] = finding


def hunt(
    twin: Twin, dtype: str, examples: int, start: int, tick: Callable[[], None] = lambda: None, into: Hunt | None = None
) -> Hunt:
    """Look for a failing case.

    Args:
        twin: the loss.
        dtype: the dtype under test.
        examples: the number of freely drawn cases; further cases cover the laws and pairs of options that these missed.
        start: the seed.
        tick: called after each case.
        into: the record to update; a new one by default.

    Returns:
        The results, with the shrunk counterexample if a case failed.
    """
    seen = into or Hunt(twin, dtype)
    try:
        _draw_all(seen, examples, start, tick)
        _guard(seen)
    except FailureFound as found:
        seen.imprecise, seen.doubtful = 0, None
        trial = conventions.ordinary(twin, found.trial, seen.passes) if seen.lenient else found.trial
        _show(seen, simplest(twin, trial, lambda trial: seen.excuse(trial) is None))
    except KeyboardInterrupt:
        seen.interrupted = True
    if seen.doubtful is not None:
        _show(seen, simplest(twin, seen.doubtful, lambda trial: seen.excuse(trial) == Excuse("rounding"), LONGER))
    _show_conventions(seen)
    return seen


def _same_kind(first: Trial, other: Trial, twin: Twin) -> bool:
    """Return whether a failure is of the same kind as the first one, so that shrinking does not end at a lesser one."""
    beyond = [outside_its_bounds(twin, trial) is not None for trial in (first, other)]
    return first.kind == other.kind and beyond[0] == beyond[1]


def _worst_ratio(trial: Trial) -> float:
    return max((finding.ratio for finding in trial.findings), default=0.0)


def _show(seen: Hunt, trial: Trial) -> None:
    """Keep a trial as the counterexample."""
    for finding in trial.findings:
        seen.note_finding(finding)
    seen.counterexample = _counterexample(seen, trial)


def _counterexample(seen: Hunt, trial: Trial) -> Counterexample:
    kind = trial.kind or "error"
    line = in_a_line(trial) if seen.twin.pair and kind in ("value", "gradient") else ""
    return Counterexample(kind, trial.message, snippet(seen.twin, trial), entry(seen.twin, trial), line)


def _show_conventions(seen: Hunt) -> None:
    """Keep a simple example of each convention that was met."""
    for name in conventions.told(seen.silent):
        alike = Excuse("convention", name)
        shown = simplest(seen.twin, seen.silent[name], lambda other, alike=alike: seen.excuse(other) == alike, SECONDS)  # type: ignore[misc]
        seen.conventions[name] = _counterexample(seen, shown)
    seen.silent.clear()


def _draw_all(seen: Hunt, examples: int, start: int, tick: Callable[[], None]) -> None:
    twin = seen.twin
    # If the user restricts the shapes, no case may exist in which a law applies or an option has an effect.
    attempts = ATTEMPTS if twin.ground == Ground() else 1
    _draw(seen, {}, None, examples, start, tick)
    _draw(seen, {}, None, LARGE_TRIALS, start, tick, large=True)
    if twin.pair is None:
        _draw(seen, {}, None, EQUAL_TRIALS, start, tick, large=True, shape={coverage.EQUAL: True})
    for axis in coverage.long_axes(twin):
        _draw(seen, {}, None, ROW_TRIALS, start, tick, shape=axis)
    for row in coverage.covering_rows(coverage.with_shapes(twin), coverage.missing_pairs(twin, seen.pairs)):
        shape = {name: row.pop(name) for name in coverage.shapes(twin)}
        _draw(seen, row, None, ROW_TRIALS, start, tick, shape=shape)
    for law in twin.laws_for(seen.dtype):
        for attempt in range(attempts):
            if seen.laws[law.name] < LAW_TRIALS and law.name not in seen.beyond:
                _draw(seen, {}, law, 2 * LAW_TRIALS, start + attempt, tick)
    for name, text in sorted(self_check.option_values(twin) - seen.live):
        for attempt in range(attempts):
            if (name, text) not in seen.live:
                _draw(seen, {name: coverage.value_called(twin, name, text)}, None, 10, start + attempt, tick)


def _guard(seen: Hunt) -> None:
    for left in self_check.survivors(seen.kept):
        seen.problems.append(f"the judge accepts a {left}")
    if seen.twin.ground != Ground():
        return  # with the restricted shapes, some laws may not apply and some options may have no effect
    for name, value in sorted(self_check.option_values(seen.twin) - seen.live):
        seen.problems.append(f"option {name}={value} has no effect: it is dead, or no case depends on it")
    for law in seen.twin.laws_for(seen.dtype):
        if not seen.laws[law.name] and law.name not in seen.beyond:
            seen.problems.append(f"law '{law.name}' applied to no case")


def _draw(
    seen: Hunt,
    options: Mapping[str, Any],
    law: Law | None,
    examples: int,
    start: int,
    tick: Callable[[], None],
    large: bool = False,
    shape: Mapping[str, Any] | None = None,
) -> None:
    """Run Hypothesis once; raise FailureFound with the shrunk case if one fails."""
    drawn = coverage.narrowed(seen.twin, shape) if shape else seen.twin
    failed: list[FailureFound] = []
    # Without any database Hypothesis would draw other cases from the same seed.
    database = Failures(MEMORY) if seen.remember else InMemoryExampleDatabase()

    @settings(SETTINGS, max_examples=examples, database=database)
    @seed(start)  # must stand below the settings, since it resets their database
    @given(drawn.cases(drawn, seen.dtype, options, law, large))
    def run(case: Any) -> None:
        trial = examine(seen.twin, case)
        tick()
        excuse = seen.excuse(trial) if trial.kind is not None else None
        if trial.kind is not None and excuse is None and (not failed or _same_kind(failed[0].trial, trial, seen.twin)):
            failed.append(FailureFound(trial))
            raise failed[-1]
        if not failed:
            # For a case that only a convention sets apart, record the errors of the case without that trait.
            neutral = excuse.neutral if excuse else None
            seen.note(trial if neutral is None else replace(neutral, case=trial.case))
            if excuse:
                seen.note_excused(trial, excuse)
        for finding in trial.findings:
            target(math.log2(max(finding.ratio, 2.0**-20)), label=finding.part)

    # Key the example database by loss, dtype and what is drawn.
    about = (seen.twin.source or seen.twin.name, seen.dtype, law and law.name, sorted(options), large, shape)
    run.hypothesis.inner_test._hypothesis_internal_add_digest = repr(about).encode()  # type: ignore[attr-defined]
    try:
        with of_the_seed_alone():
            run()
    except Flaky:
        # The loss is nondeterministic: report the first failure.
        raise failed[0] from None
    except Unsatisfiable:
        if seen.twin.pair is None:  # the domain of a pair may exclude some sizes and options
            raise
