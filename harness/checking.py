"""`twinloss check`: the hunt turned on somebody's own loss; and what to make of a failure."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twinloss.harness import conventions, deviations
from twinloss.harness.deviations import Deviation
from twinloss.harness.draws import drawn
from twinloss.harness.hunt import Counterexample, Hunt
from twinloss.harness.laws import Law
from twinloss.harness.preflight import refuse_what_cannot_be_called
from twinloss.harness.relation import relation
from twinloss.harness.shards import Job, Tick, do
from twinloss.harness.target import Wiring, adapted, as_twin
from twinloss.harness.trial import Trial, examine
from twinloss.harness.twin import Twin, label
from twinloss.harness.verify import Verification

EXAMPLES = 150
# How many cases each option value and each law gets, once something is wrong.
PROBES = 12


@dataclass(frozen=True)
class Probe:
    """What came of the cases of one option value, or of one law."""

    name: str
    failures: tuple[Trial, ...]
    cases: int

    @property
    def failed(self) -> Trial | None:
        """The first failure, if there is one."""
        return self.failures[0] if self.failures else None

    def __str__(self) -> str:
        return f"{self.name}: {self.failed.message}" if self.failed else self.name


@dataclass
class Check(Verification):
    """What is to be said of a target.

    Attributes:
        twin: the target as a twin.
        options: what came of each option value by itself, the others at their defaults; only if something failed.
        laws: what came of each law; likewise.
        stale: deviations that were said to be known, but met nothing.
        strict: whether imprecision and deviating conventions count as failures.
        relation: how value and gradient of a wrong target follow from ours, if simply.
    """

    twin: Twin = field(kw_only=True)
    options: list[Probe] = field(default_factory=list)
    laws: list[Probe] = field(default_factory=list)
    stale: list[Deviation] = field(default_factory=list)
    strict: bool = False
    relation: str | None = None

    @property
    def verdict(self) -> str:
        """The worst of the types': "pass", "degraded", "convention", "imprecise" or "fail"."""
        order = ("pass", "degraded", "convention", "imprecise", "fail")
        return max((row.verdict for row in self.rows), key=order.index, default="pass")

    @property
    def failed(self) -> bool:
        """Whether anything failed, or a known deviation is gone; `strict` counts imprecision and conventions, too."""
        strictly = self.strict and (self.verdict == "imprecise" or bool(self.conventions))
        return self.verdict == "fail" or bool(self.stale) or strictly

    @property
    def conventions(self) -> dict[str, Counterexample]:
        """Where papers are silent and the target does not do as ours, with an example of each."""
        return {name: found for row in reversed(self.rows) for name, found in row.conventions.items()}

    @property
    def held(self) -> dict[str, str]:
        """Our options that the target does not take, or was told, and the value that they are held at."""
        return {name: label(values[0]) for name, values in self.twin.options.items() if len(values) == 1}


def check(
    target: Any,
    like: str,
    *,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    gradient: str | None = None,
    value_only: bool = False,
    ranks: Sequence[int] | None = None,
    channels: int | None = None,
    hard_targets: bool = False,
    labels_without_channel: bool = False,
    dtypes: Sequence[str] = ("float32", "float64"),
    examples: int = EXAMPLES,
    seed: int = 0,
    xfails: Path | str | None = None,
    strict: bool = False,
    tick: Tick = lambda what, cases: None,
    processes: int = 1,
    cluster: str | None = None,
    remember: bool = False,
) -> Check:
    """Hunt for an input on which a loss differs from the reference of one of ours.

    Args:
        target: "package.module:attr", "path/file.py:attr", or the class, instance or function itself.
        like: whose formula it follows: a name that `twinloss list` shows.
        options: our options that it is held to, passed on if it takes them; and options of its own.
        names: our names of options and arguments to its own.
        gradient: for a target of arrays, where the function of its arguments is that returns the gradient.
        value_only: do not judge the gradient.
        ranks: spatial ranks to draw; by default 0 to 3.
        channels: how many channels the input has; by default one or several.
        hard_targets: draw no soft targets.
        labels_without_channel: the target takes labels of shape (B, *S), without the axis of channels.
        dtypes: types under test.
        examples: cases for each.
        seed: of the draw.
        xfails: a file of known deviations, see `deviations.py`.
        strict: count it as a failure where only rounding is to blame, or papers are silent.
        tick: told what is looked at, and how many cases more.
        processes: how many types at a time.
        cluster: the address of a Dask scheduler whose workers do the hunts.
        remember: try first what failed last time, in the same folder.

    Raises:
        TargetError: if the target cannot be loaded or called, or does not fit what is said of it.
        DeviationsError: if the file of known deviations cannot be read.
    """
    wiring = Wiring(
        _whereabouts(target), like, dict(options or {}), dict(names or {}),
        gradient and _whereabouts(gradient), value_only, None if ranks is None else tuple(ranks),
        channels, hard_targets, labels_without_channel,
    )  # fmt: skip
    twin = as_twin(wiring) if isinstance(target, str) else adapted(wiring, target)
    known = deviations.read(Path(xfails)) if xfails else ()
    made = Check(seed, twin=twin, strict=strict)
    hunting = {"forgiving": not strict, "known": known, "remember": remember, "lenient": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the target's own, on input that is drawn to be odd
        refuse_what_cannot_be_called(twin, wiring, dtypes, seed)
        try:
            jobs = [Job(twin, (dtype,), "generated", examples, seed, hunting) for dtype in dtypes]
            do(made.work, jobs, tick, processes, cluster)
            _look_into(made, known, tick)
        except KeyboardInterrupt:
            made.interrupted = True
    return made


def _look_into(made: Check, known: tuple[Deviation, ...], tick: Tick) -> None:
    """Which known deviations were not met; and if something failed, which options and laws fail."""
    met = {reason for row in made.rows for reason in row.expected}
    made.stale = [each for each in known if each.reason not in met]
    failed = next((row for row in made.rows if row.verdict == "fail"), None)
    if failed:
        tick("which options and laws", 0)
        made.relation = relation(made.twin, failed.dtype, made.seed)
        made.options, made.laws = survey(made.twin, failed.dtype, made.seed, known)


def survey(twin: Twin, dtype: str, start: int, known: tuple[Deviation, ...] = ()) -> tuple[list[Probe], list[Probe]]:
    """Every option value by itself, and every law; what fails likewise without the option is not counted again."""
    excuses = Hunt(twin, dtype, forgiving=True, known=known, lenient=True)
    defaults = twin.defaults()
    probes = [probe("defaults", twin, dtype, defaults, None, start, excuses)]
    for name, values in twin.options.items():
        for value in values[1:]:
            row = defaults | {name: value}
            if twin.allowed(row):
                found = probe(f"{name}={label(value)}", twin, dtype, row, None, start, excuses)
                failures = tuple(trial for trial in found.failures if not likewise(twin, trial, name))
                probes.append(replace(found, failures=failures))
    laws = [probe(law.name, twin, dtype, {}, law, start, excuses) for law in twin.laws_for(dtype)]
    return probes, laws


def likewise(twin: Twin, failed: Trial, option: str) -> bool:
    """Whether a case fails in the same way with the option at its default."""
    if option in twin.required or option not in failed.case.options:
        return False
    return examine(twin, failed.case.having(**{option: None})).kind == failed.kind


def probe(
    name: str,
    twin: Twin,
    dtype: str,
    row: Mapping[str, Any],
    law: Law | None,
    start: int,
    excuses: Hunt,
    count: int = PROBES,
) -> Probe:
    """Some cases; those of a law are judged by it alone."""
    failures: list[Trial] = []
    cases = drawn(twin, dtype, row, law, count, start)
    for case in cases:
        trial = examine(twin, case)
        wanted = trial.kind is not None if law is None else trial.kind == "law"
        if wanted and excuses.excuse(trial) is None:
            failures.append(conventions.ordinary(twin, trial, excuses.passes) if excuses.lenient else trial)
    return Probe(name, tuple(failures), len(cases))


def story(made: Check) -> list[tuple[str, str]]:
    """What came of the target, in sentences, each with a style."""
    told = []
    for row in made.rows:
        if row.counterexample:
            what, style = ("differs", "red") if row.verdict == "fail" else ("right, but it loses digits", "yellow")
            told.append((f"{row.dtype}: {what}: {row.counterexample.message}", style))
        told += [(f"{row.dtype}: the check itself: {problem}", "red") for problem in row.problems]
        told += [(f"{row.dtype}: known: {reason} ({count} cases)", "dim") for reason, count in row.expected.items()]
    told += [
        (f"convention, on which papers are silent: {name} (ours: {conventions.ours(name)}): {found.message}", "cyan")
        for name, found in made.conventions.items()
    ]
    if made.relation:
        told.append((f"In all: {made.relation}", "red"))
    told += [(f"no longer met: {each.reason}: take it out of the xfails file", "red") for each in made.stale]
    if made.options:
        agree = [probe.name for probe in made.options if probe.failed is None]
        failed, cases = made.options[0].failed, made.options[0].cases
        how, style = ("Differs as by default, no more", "yellow") if failed else ("Agrees", "green")
        told.append((f"{how}, in {cases} cases each: {', '.join(agree) or 'never'}", style))
        told += [(f"Differs with {probe}", "red") for probe in made.options if probe.failed]
        broken = [probe for probe in made.laws if probe.failed]
        told += [(f"Breaks {probe.failed.message}", "red") for probe in broken if probe.failed]
        kept = len(made.laws) - len(broken)
        told.append((f"Keeps {kept} of {len(made.laws)} laws", "green" if not broken else "yellow"))
    return told


def _whereabouts(target: Any) -> str:
    """Where an object, or what is in a file, can be found again by a script that runs elsewhere."""
    if isinstance(target, str):
        file, _, attribute = target.rpartition(":")
        return f"{Path(file).resolve()}:{attribute}" if file.endswith(".py") else target
    owner = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    module, name = owner.__module__, getattr(owner, "__qualname__", "target")
    path = getattr(sys.modules.get(module), "__file__", None)
    return f"{module}:{name}" if "." in module or not path else f"{path}:{name}"
