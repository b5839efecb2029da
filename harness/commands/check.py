"""`twinloss check`: run the hunt on a user's own loss, and explain a failure."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twinloss.harness.commands.verify import Verification
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.hunting import conventions, deviations, pairs
from twinloss.harness.hunting.deviations import Deviation
from twinloss.harness.hunting.hunt import EXAMPLES, Counterexample, Hunt
from twinloss.harness.hunting.jobs import Job, Tick
from twinloss.harness.hunting.parallel import run_jobs
from twinloss.harness.hunting.preflight import refuse_what_cannot_be_called
from twinloss.harness.hunting.relation import relation
from twinloss.harness.hunting.target import Wiring, adapted, as_twin
from twinloss.harness.judging.trial import Trial, examine, examine_law
from twinloss.harness.model import device as devices
from twinloss.harness.model.operand import DTYPES, label
from twinloss.harness.model.pair import Pair, PairError
from twinloss.harness.model.twin import Law, Twin

# The number of cases for each option value and each law after a failure.
PROBES, PROBES_OF_PAIR = 12, 5


@dataclass(frozen=True)
class Probe:
    """The results of the cases of one option value, or of one law."""

    name: str
    failures: tuple[Trial, ...]
    cases: int

    @property
    def failed(self) -> Trial | None:
        """The first failure, or None."""
        return self.failures[0] if self.failures else None

    def __str__(self) -> str:
        return f"{self.name}: {self.failed.message}" if self.failed else self.name


@dataclass
class Check(Verification):
    """The results of checking a target, that is, a user's loss.

    Attributes:
        twin: the target as a twin.
        options: the results of each option value by itself, with the others at their defaults; only after a failure.
        laws: the results of each law; only after a failure.
        stale: known deviations that did not occur.
        strict: whether a loss of precision and a deviating convention count as failures.
        relation: how value and gradient of a wrong target follow from ours, if there is a simple relation.
    """

    twin: Twin = field(kw_only=True)
    options: list[Probe] = field(default_factory=list)
    laws: list[Probe] = field(default_factory=list)
    stale: list[Deviation] = field(default_factory=list)
    strict: bool = False
    relation: str | None = None

    @property
    def verdict(self) -> str:
        """The worst verdict over all dtypes: "pass", "degraded", "convention", "imprecise" or "fail"."""
        order = ("pass", "degraded", "convention", "imprecise", "fail")
        return max((row.verdict for row in self.rows), key=order.index, default="pass")

    @property
    def failed(self) -> bool:
        """Whether a case failed, a deviation is stale, or, if `strict`, precision was lost or a convention deviates."""
        strictly = self.strict and (self.verdict == "imprecise" or bool(self.conventions))
        return self.verdict == "fail" or bool(self.stale) or strictly

    @property
    def conventions(self) -> dict[str, Counterexample]:
        """The conventions in which the target deviates from ours, with an example of each. Papers leave them open."""
        return {name: found for row in reversed(self.rows) for name, found in row.conventions.items()}

    @property
    def held(self) -> dict[str, str]:
        """Our options that are not varied, with their values: the target has no such option, or its value was given."""
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
    device: str = "cpu",
) -> Check:
    """Hunt for an input on which a loss differs from the reference of one of ours.

    Args:
        target: "package.module:attr", "path/file.py:attr", or the class, instance or function itself.
        like: the name of our loss with the same formula, as `twinloss list` shows it.
        options: values for our options that replace their defaults, passed on if the target has such an option; also
            values for the target's own options.
        names: maps our names of options and arguments to the target's names.
        gradient: for a function of arrays, the place of the function that returns the gradient from the same arguments.
        value_only: do not judge the gradient.
        ranks: spatial ranks to draw; by default 0 to 3.
        channels: the number of channels of the input; by default one or several.
        hard_targets: draw no soft targets.
        labels_without_channel: the target takes labels of shape (B, *S), without the axis of channels.
        dtypes: the dtypes under test.
        examples: the number of cases for each dtype.
        seed: the seed of the draws.
        xfails: a file of known deviations, see `deviations.py`.
        strict: count a loss of precision, and a deviation from our conventions, as failures.
        tick: called with the name of the current step and the number of new cases.
        processes: the number of dtypes that are hunted in parallel.
        cluster: the address of a Dask scheduler whose workers run the hunts.
        remember: first retry the cases that failed last time in the same folder.
        device: "cpu", "cuda" or "interpreter"; the target gets tensors on it.

    Returns:
        The results; `verdict` and `failed` summarise them.

    Raises:
        TargetError: if the target cannot be loaded or called, or does not fit its description.
        DeviationsError: if the file of known deviations cannot be read.
        DeviceError: if the device is unknown or cannot be used here.
    """
    devices.use(device)
    wiring = Wiring(
        _place_of(target), like, dict(options or {}), dict(names or {}),
        gradient and _place_of(gradient), value_only, None if ranks is None else tuple(ranks),
        channels, hard_targets, labels_without_channel,
    )  # fmt: skip
    twin = as_twin(wiring) if isinstance(target, str) else adapted(wiring, target)
    known = deviations.read(Path(xfails)) if xfails else ()
    made = Check(seed, twin=twin, strict=strict)
    hunting = {"forgiving": not strict, "known": known, "remember": remember, "lenient": True}
    jobs = [Job(twin, (dtype,), "generated", examples, seed, hunting, device) for dtype in dtypes]
    with _ignoring_warnings():
        refuse_what_cannot_be_called(twin, wiring, dtypes, seed)
        _hunt(made, jobs, known, tick, processes, cluster)
    return made


def check_pair(
    pair: Pair | str,
    *,
    dtypes: Sequence[str] = ("float32", "float64"),
    examples: int = EXAMPLES,
    seed: int = 0,
    xfails: Path | str | None = None,
    strict: bool = False,
    tick: Tick = lambda what, cases: None,
    processes: int = 1,
    cluster: str | None = None,
    remember: bool = False,
    device: str = "cpu",
) -> Check:
    """Hunt for an input on which the fast function of a pair differs from its reference.

    Args:
        pair: the pair, its place "package.module:PAIR", or the name of a pair of an installed package.
        dtypes: the dtypes under test.
        examples: the number of cases for each dtype.
        seed: the seed of the draws.
        xfails: a file of known deviations, see `deviations.py`.
        strict: count a loss of precision as a failure.
        tick: called with the name of the current step and the number of new cases.
        processes: the number of dtypes that are hunted in parallel.
        cluster: the address of a Dask scheduler whose workers run the hunts.
        remember: first retry the cases that failed last time in the same folder.
        device: "cpu", "cuda" or "interpreter", unless the pair itself names a device. Triton kernels run in the
            interpreter if they are imported after its start; so give the place of the pair as a text.

    Returns:
        The results; `verdict` and `failed` summarise them.

    Raises:
        TargetError: if the pair or its fast function cannot be imported.
        PairError: if the functions do not fit the description of the pair.
        DeviationsError: if the file of known deviations cannot be read.
        DeviceError: if the device is unknown or cannot be used here.
    """
    devices.use(device)
    twin = pairs.as_twin(*pairs.find_pair(pair)) if isinstance(pair, str) else pairs.as_twin(pair)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise PairError(f"there is no dtype {dtype!r} to test: known are {', '.join(DTYPES)}")
    known = deviations.read(Path(xfails)) if xfails else ()
    made = Check(seed, twin=twin, strict=strict)
    hunting = {"forgiving": not strict, "known": known, "remember": remember}
    jobs = [Job(twin, (dtype,), "generated", examples, seed, hunting, device) for dtype in dtypes]
    with _ignoring_warnings():
        pairs.refuse_what_does_not_fit(twin, dtypes, seed)
        _hunt(made, jobs, known, tick, processes, cluster)
    made.rows.sort(key=lambda row: dtypes.index(row.dtype))
    return made


@contextmanager
def _ignoring_warnings() -> Iterator[None]:
    """Suppress the target's own warnings about unusual input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _hunt(
    made: Check, jobs: Sequence[Job], known: tuple[Deviation, ...], tick: Tick, processes: int, cluster: str | None
) -> None:
    """Run the hunts and explain a failure; an interruption is noted."""
    try:
        run_jobs(made.work, jobs, tick, processes, cluster)
        _explain_failure(made, known, tick)
    except KeyboardInterrupt:
        made.interrupted = True


def _explain_failure(made: Check, known: tuple[Deviation, ...], tick: Tick) -> None:
    """Find the known deviations that did not occur; after a failure, find which options and laws fail."""
    met = {reason for row in made.rows for reason in row.expected}
    made.stale = [each for each in known if each.reason not in met]
    failed = next((row for row in made.rows if row.verdict == "fail"), None)
    if failed:
        tick("which options and laws fail", 0)
        made.relation = relation(made.twin, failed.dtype, made.seed)
        made.options, made.laws = survey(made.twin, failed.dtype, made.seed, known)


def survey(twin: Twin, dtype: str, start: int, known: tuple[Deviation, ...] = ()) -> tuple[list[Probe], list[Probe]]:
    """Try every option value by itself and every law; failures that do not depend on the option are left out."""
    excuses = Hunt(twin, dtype, forgiving=True, known=known, lenient=twin.pair is None)
    defaults, count = twin.defaults(), PROBES if twin.pair is None else PROBES_OF_PAIR
    probes = [probe("defaults", twin, dtype, defaults, None, start, excuses, count)]
    for name, values in twin.options.items():
        for value in values[1:]:
            row = defaults | {name: value}
            if twin.allowed(row):
                found = probe(f"{name}={label(value)}", twin, dtype, row, None, start, excuses, count)
                failures = tuple(trial for trial in found.failures if not fails_without_option(twin, trial, name))
                probes.append(replace(found, failures=failures))
    laws = [probe(law.name, twin, dtype, {}, law, start, excuses, count) for law in twin.laws_for(dtype)]
    return probes, laws


def fails_without_option(twin: Twin, failed: Trial, option: str) -> bool:
    """Return whether a case fails in the same way with the option at its default."""
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
    """Try some cases; if a law is given, only the law is checked, whether or not the value agrees."""
    failures: list[Trial] = []
    cases = drawn(twin, dtype, row, law, count, start)
    again = examine if law is None else examine_law
    for case in cases:
        trial = again(twin, case)
        if trial.kind is not None and excuses.excuse(trial, again) is None:
            if excuses.lenient:
                trial = conventions.ordinary(twin, trial, lambda made: excuses.passes(made, again), again)
            failures.append(trial)
    return Probe(name, tuple(failures), len(cases))


def story(made: Check) -> list[tuple[str, str]]:
    """Return the results for the target as sentences, each with a style."""
    sentences = []
    for row in made.rows:
        if row.counterexample:
            what, style = ("differs", "red") if row.verdict == "fail" else ("right, but it loses precision", "yellow")
            sentences.append((f"{row.dtype}: {what}: {row.counterexample.message}", style))
        sentences += [(f"{row.dtype}: the check itself failed: {problem}", "red") for problem in row.problems]
        sentences += [
            (f"{row.dtype}: known: {reason} ({count} cases)", "dim") for reason, count in row.expected.items()
        ]
    sentences += [
        (f"convention that papers leave open: {name} (ours: {conventions.ours(name)}): {found.message}", "cyan")
        for name, found in made.conventions.items()
    ]
    if made.relation:
        sentences.append((f"Overall: {made.relation}", "red"))
    sentences += [(f"no longer occurs: {each.reason}: remove it from the xfails file", "red") for each in made.stale]
    if made.options:
        agree = [probe.name for probe in made.options if probe.failed is None]
        failed, cases = made.options[0].failed, made.options[0].cases
        how, style = ("No further difference with", "yellow") if failed else ("Agrees with", "green")
        if agree:
            sentences.append((f"{how}, in {cases} cases each: {', '.join(agree)}", style))
        sentences += [(f"Differs with {probe}", "red") for probe in made.options if probe.failed]
        broken = [probe for probe in made.laws if probe.failed]
        sentences += [(f"Breaks {probe.failed.message}", "red") for probe in broken if probe.failed]
        kept = len(made.laws) - len(broken)
        sentences.append((f"Keeps {kept} of {len(made.laws)} laws", "green" if not broken else "yellow"))
    return sentences


def _place_of(target: Any) -> str:
    """Return the place of an object, as module:name or file:name, for a script that may run in another folder."""
    if isinstance(target, str):
        file, _, attribute = target.rpartition(":")
        return f"{Path(file).resolve()}:{attribute}" if file.endswith(".py") else target
    owner = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
    module, name = owner.__module__, getattr(owner, "__qualname__", "target")
    path = getattr(sys.modules.get(module), "__file__", None)
    return f"{module}:{name}" if "." in module or not path else f"{path}:{name}"
