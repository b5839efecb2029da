"""Figures of the benchmark: speed-up, time and memory against volume size, and a roofline plot."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinloss.harness.bench.competitors import FAST
from twinloss.harness.bench.records import Outcome, Records, by_loss, rates_of
from twinloss.harness.bench.roofline import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes", Records], bool]


def write(records: Records, folder: Path, stem: str) -> list[Path]:
    """Write the figures for which there are results; write none if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from matplotlib.figure import Figure

    made = []
    for name, draw in DRAWN.items():
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        if draw(figure.subplots(), records):
            made.append(folder / f"{stem}-{name}.png")
            figure.savefig(made[-1], dpi=90, metadata={"Software": None})
    return made


def speed_up(axes: Axes, records: Records) -> bool:
    """Draw a bar for the speed-up of each loss in its base case."""
    losses = by_loss(records.base)
    axes.bar(range(len(losses)), list(losses.values()))
    axes.set_xticks(range(len(losses)), list(losses), rotation=45, ha="right", fontsize=8)
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("speed-up over the fastest competitor")
    axes.set_title("Speed-up at the base case")
    return bool(losses)


def _volumes(records: Records, value: Callable[[Outcome, str], float | None]) -> dict[tuple[str, str], list[Any]]:
    """Return points (voxels, value) by case and implementation, for cases that differ only in size."""
    curves: dict[tuple[str, str], list[Any]] = {}
    for each in sorted(records.of_kind("base", "size"), key=lambda each: each.case.voxels):
        for name in (FAST, each.fastest):
            known = value(each, name) if name and name in each.times else None
            if known is not None:
                curves.setdefault((each.case.title, FAST if name == FAST else "rival"), []).append(
                    (each.case.voxels, known)
                )
    return {of: points for of, points in curves.items() if len(points) > 1}


def _curves(axes: Axes, curves: dict[tuple[str, str], list[Any]], label: str, title: str) -> bool:
    titles = list(dict.fromkeys(title for title, _ in curves))
    for (line, name), points in curves.items():
        ours, colour = name == FAST, f"C{titles.index(line) % 10}"
        style = "-" if titles.index(line) < 10 else "-."
        axes.plot(*zip(*points, strict=True), style if ours else ":", color=colour, label=line if ours else None)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("voxels")
    axes.set_ylabel(label)
    axes.set_title(title)
    if curves:
        axes.legend(fontsize=7)
    return bool(curves)


def time_by_volume(axes: Axes, records: Records) -> bool:
    """Draw the time per voxel, in nanoseconds, against the number of voxels."""
    curves = _volumes(records, lambda each, name: each.times[name].median_ms * 1e6 / each.case.voxels)
    return _curves(axes, curves, "ns per voxel", "Time: twinloss (solid) and the fastest competitor (dotted)")


def memory_by_volume(axes: Axes, records: Records) -> bool:
    """Draw the peak memory of a step, in MiB, against the number of voxels."""

    def taken(each: Outcome, name: str) -> float | None:
        multiple = each.memory.get(name)
        return None if multiple is None else multiple * each.gradient_bytes / 2**20

    return _curves(axes, _volumes(records, taken), "MiB per step", "Peak memory of a step of twinloss")


def roofline(axes: Axes, records: Records) -> bool:
    """Draw the throughput of each base case against its arithmetic intensity, under the roofline of the machine.

    The throughput is in GB/s. The arithmetic intensity is the number of exponentials per byte.
    """
    base = [each for each in records.base if FAST in each.times and rates_of(each) and each.case.line.work]
    if not base:
        return False
    rates = rates_of(base[-1])
    assert rates is not None
    places = [_place(each) for each in base]
    furthest = 1.3 * max(rates.exp / rates.bandwidth, *(x for x, _ in places))
    grid = [furthest * k / 200 for k in range(201)]
    roof = [min(rates.bandwidth, rates.exp / x) if x else rates.bandwidth for x in grid]
    axes.plot(grid, [y / 1e9 for y in roof], color="black", label="limit: bandwidth, then exponentials")
    for each, (x, y) in zip(base, places, strict=True):
        axes.plot(x, y / 1e9, "o", label=f"{each.case.title}: {y / 1e9:.1f} GB/s")
    axes.set_yscale("log")
    axes.set_xlabel("exponentials per byte")
    axes.set_ylabel("GB/s")
    axes.set_title("Roofline: the minimal bytes and exponentials of each loss")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return True


def _place(each: Outcome) -> tuple[float, float]:
    moved, exponentials = needed(each.case)
    return exponentials / moved, moved / each.times[FAST].median_ms * 1e3


DRAWN: dict[str, Draw] = {
    "speed-up": speed_up,
    "time": time_by_volume,
    "memory": memory_by_volume,
    "roofline": roofline,
}
