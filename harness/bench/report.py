"""The benchmark report benchmarks.md, and the table that is printed to the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from twinloss.harness.bench import plots
from twinloss.harness.bench.cases import sweep
from twinloss.harness.bench.competitors import FAST
from twinloss.harness.bench.records import BenchmarkRun, Outcome, Records, by_loss, geometric_mean, rates_of
from twinloss.harness.bench.roofline import Floor, floor
from twinloss.harness.bench.timing import NOISY
from twinloss.harness.losses.catalogue import TWINS

TARGET_MEAN, TARGET_LEAST = 4.0, 1.5
# The losses in the documentation of MONAI 0.5, over which the target mean is defined.
DOCUMENTED = (
    "dice", "masked_dice", "tversky", "generalized_dice", "generalized_wasserstein_dice", "focal", "dice_ce",
    "dice_focal", "bending_energy", "lncc", "mutual_information", "multi_scale",
)  # fmt: skip
COLUMNS = (
    "case", "implementation", "best ms", "median ms", "quartiles ms", "median / twinloss median", "memory / gradient",
)  # fmt: skip
SWEPT = (
    "case", "twinloss ms", "fastest competitor", "competitor ms", "speed-up", "memory / gradient", "minimal ms",
    "minimal / twinloss",
)  # fmt: skip


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: int) -> list[str]:
    ruler = "|" + "---|" * text + "---:|" * (len(columns) - text)
    return [_row(columns), ruler, *map(_row, rows), ""]


def _rows(each: Outcome) -> list[list[str]]:
    """Return one table row for each implementation."""
    ours = each.times.get(FAST)
    rows = []
    for name, of in each.times.items():
        ratio = f"{of.median_ms / ours.median_ms:.1f}" if ours else ""
        memory = each.memory.get(name)
        times = [f"{of.best_ms:.2f}", f"{of.median_ms:.2f}", f"{of.low_ms:.2f} to {of.high_ms:.2f}"]
        rows.append([str(each.case), name, *times, ratio, "" if memory is None else f"{memory:.1f}"])
    return rows


def floor_of(each: Outcome) -> Floor | None:
    """Return the minimal time of a case on the machine of its run, if the rates of that machine were measured."""
    rates = rates_of(each)
    return floor(each.case, rates) if rates else None


def _swept(each: Outcome) -> list[str]:
    ours, least = each.times.get(FAST), floor_of(each)
    fastest, memory = each.fastest, each.memory.get(FAST)
    return [
        str(each.case),
        f"{ours.median_ms:.2f}" if ours else "",
        fastest or "",
        f"{each.times[fastest].median_ms:.2f}" if fastest else "",
        f"{each.speed_up:.2f}" if each.speed_up else "",
        "" if memory is None else f"{memory:.1f}",
        f"{least.ms:.2f} ({least.limit})" if least else "",
        f"{least.ms / ours.median_ms:.0%}" if least and ours else "",
    ]


def screen(outcomes: Sequence[Outcome]) -> Table:
    """Create the table of all implementations in all cases."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(COLUMNS):
        made.add_column(column, justify="left" if i < 2 else "right", no_wrap=i == 0)
    for each in outcomes:
        for row in _rows(each):
            made.add_row(*row)
    return made


def summary(records: Records) -> list[str]:
    """Summarise the results and compare them with the targets."""
    base = [each for each in records.base if each.speed_up is not None]
    if not base:
        return ["No base case has been timed together with a competitor."]
    least = min(base, key=lambda each: each.speed_up or 0)
    slower = [each for each in records.outcomes if each.speed_up is not None and each.speed_up < 1]
    failed = [each for each in records.outcomes if FAST not in each.times]
    heavy = [each for each in records.outcomes if each.exceeds_memory_limit]
    return [
        *_means(by_loss(base)),
        f"* Smallest speed-up: **{least.speed_up:.2f}**, {least.case} over {least.fastest} (target: {TARGET_LEAST:g}).",
        *_listed(
            f"Cases slower than a competitor, out of {len(records.outcomes)}",
            slower,
            lambda each: _against(each, records),
        ),
        *_listed("Cases that exceed the memory limit", heavy, _allowed),
        *(_listed("Cases that could not be timed", failed, lambda each: each.left_out.get(FAST, "")) if failed else []),
        *_unreached(records),
        *_noisy(records),
        *_limits(base),
        "* Reasons for missed targets: [performance-log.md](performance-log.md#missed-targets-and-reasons).",
    ]


def _unreached(records: Records) -> list[str]:
    """List how many cases of an unfinished sweep have not run yet."""
    if records.outcomes == records.base:
        return []
    cases = sweep(TWINS, records.base[0].case.threads)
    left = [case for case in cases if not records.has(case)]
    return [f"* Cases of the sweep that have not run yet, out of {len(cases)}: {len(left) or 'none'}."]


def _noisy(records: Records) -> list[str]:
    """List the cases whose times vary even after they were repeated."""
    noisy = [each for each in records.outcomes if NOISY < each.noise < math.inf]
    title = "Cases in which the quartiles of twinloss or of the fastest competitor are more than a fifth apart"
    return _listed(title, noisy, lambda each: f"{each.noise:.0%} of the median") if noisy else []


def _means(losses: Mapping[str, float]) -> list[str]:
    """Give the mean speed-up of the losses that have a target, and of all losses."""
    documented = [speed_up for loss, speed_up in losses.items() if loss in DOCUMENTED]
    others = [loss for loss in losses if loss not in DOCUMENTED]
    of = len(DOCUMENTED)
    many, lines = str(of) if len(documented) == of else f"{len(documented)} of {of}", []
    if documented:
        lines = [
            "* Speed-up over the fastest competitor in the base case, geometric mean over "
            f"{many} losses in the documentation of MONAI 0.5: "
            f"**{geometric_mean(documented):.2f}** (target: {TARGET_MEAN:g})."
        ]
    if others:
        lines.append(f"* The same mean including {', '.join(others)}: {geometric_mean(losses.values()):.2f}.")
    return lines


def _against(each: Outcome, records: Records) -> str:
    """Describe a case that is slower than a competitor.

    If calls and cold caches take a large part of its time, the description says how large a part.
    """
    told, base, ours = f"speed-up {each.speed_up:.2f} over {each.fastest}", records.base_of(each.case), each.times[FAST]
    if base is None or FAST not in base.times:
        return told
    numbers = [one.case.voxels * (one.case.classes or 1) / one.case.threads for one in (each, base)]
    calls = ours.median_ms - base.times[FAST].median_ms * numbers[0] / numbers[1]
    if calls < ours.median_ms / 4:
        return told
    return f"{told}; {calls:.2f} of {ours.median_ms:.2f} ms are overhead beyond the time per voxel of the base case"


def _allowed(each: Outcome) -> str:
    return f"{each.memory[FAST]:.2f} × gradient, limit {each.case.line.memory:g}"


def _listed(title: str, outcomes: Sequence[Outcome], said: Callable[[Outcome], str]) -> list[str]:
    return [f"* {title}: {len(outcomes) or 'none'}.", *(f"  * {each.case}: {said(each)}" for each in outcomes)]


def _limits(base: Sequence[Outcome]) -> list[str]:
    """Compare each loss with the limit of the machine: bandwidth for losses without exponentials."""
    lines = []
    for each in base:
        least, ours = floor_of(each), each.times.get(FAST)
        if least is None or ours is None:
            continue
        if least.exponentials_ms == 0:
            lines.append(f"  * {each.case.title}: {least.ms / ours.median_ms:.0%} of the bandwidth")
        else:
            times = ours.median_ms / least.exponentials_ms
            lines.append(f"  * {each.case.title}: {times:.2f} × the time of its exponentials")
    return ["* Comparison with the limits of the machine:", *lines] if lines else []


def _machines(records: Records) -> list[str]:
    """Describe each run once: command, machine, versions and rates."""
    lines = []
    for run in dict.fromkeys(_run(each) for each in records.outcomes):
        lines += [run, ""]
    return lines


def _run(each: Outcome) -> str:
    run = each.run
    rates = [
        f"{count} thread{'s' * (count != '1')}: copy {of.copy / 1e9:.1f} GB/s, read {of.read / 1e9:.1f} GB/s, "
        f"exp {of.exp / 1e9:.2f} G/s (torch's {of.torch_exp / 1e9:.2f})"
        for count, of in run.rates.items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    host = f"{run.machine['cpu']}, {run.machine['cores']} cores"
    return f"`{run.command}`: {host}; {versions}. {'; '.join(rates)}{conditions(run)}"


def conditions(run: BenchmarkRun) -> str:
    """Describe the load before a run and the drift of the machine's rates during the run, as far as they are known."""
    load = "" if run.load is None else f". Load before the run: {run.load:.1f}"
    drift = "" if run.drift is None else f". The rates changed by up to {run.drift:.0%} during the run"
    return load + drift


def _left_out(records: Records) -> list[str]:
    """List the implementations that were left out, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for each in records.outcomes:
        for name, why in each.left_out.items():
            reasons.setdefault(f"{name}: {why}", []).append(str(each.case))
    return [f"* {reason} ({', '.join(cases[:3])}{', …' * (len(cases) > 3)})" for reason, cases in reasons.items()]


def _work(records: Records) -> list[str]:
    lines = {each.case.title: each.case.line.work for each in records.base}
    return [f"* {title}: {work.formula}" for title, work in lines.items() if work]


def _notes(records: Records) -> list[str]:
    notes = {each.case.title: each.case.line.note for each in records.outcomes}
    return [f"* {title}: {note}" for title, note in notes.items() if note]


INTRODUCTION = """
A step is one forward and one backward pass, in float32 unless the case names another type. The implementations take
turns within one run, and speed-ups compare medians. Memory is the peak of a step minus the memory in use before it,
divided by the size of the gradient; 1 means that only the gradient was allocated. The memory limit is checked where
the gradient has at least 8 MiB. cross_entropy computes less than the losses that it is listed with, so it does not
count as a competitor. "Plain torch" is the form of twinloss for other devices, and does count. *Minimal* time is what
the machine needs to move the bytes, or to compute the exponentials, that no implementation of the loss can avoid.
"""


def as_markdown(records: Records, figures: Sequence[str] = ()) -> str:
    """Render the report as Markdown."""
    base = records.base
    swept = [each for each in records.outcomes if each not in base]
    lines = ["# Benchmarks", INTRODUCTION, *_machines(records), "## Summary", "", *summary(records), ""]
    lines += [f"![{name}]({name})" for name in figures] + [""] * bool(figures)
    lines += ["## Base cases", "", *_table(COLUMNS, (row for each in base for row in _rows(each)), 2)]
    lines += _table(SWEPT, map(_swept, base), 1)
    if swept:
        lines += ["## Sweep", "", *_table(SWEPT, map(_swept, swept), 1)]
    for title, items in (
        ("Differences between the implementations", _notes(records)),
        ("Implementations that were left out", _left_out(records)),
        ("Work counted for the minimal time, per voxel", _work(records)),
    ):
        lines += [f"## {title}", "", *items, ""] if items else []
    return "\n".join(lines).rstrip() + "\n"


def write(records: Records, folder: Path, stem: str = "benchmarks") -> list[Path]:
    """Write the Markdown report and its figures."""
    figures = plots.write(records, folder, stem)
    path = folder / f"{stem}.md"
    path.write_text(as_markdown(records, [figure.name for figure in figures]), encoding="utf-8")
    return [path, *figures]
