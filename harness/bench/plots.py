"""The figures as pictures: speed-up, time and memory against volume, and the roofline."""

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
    """The pictures for which there are figures; none without matplotlib."""
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
    """A bar for each loss at the base case."""
    losses = by_loss(records.base)
    axes.bar(range(len(losses)), list(losses.values()))
    axes.set_xticks(range(len(losses)), list(losses), rotation=45, ha="right", fontsize=8)
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("times as fast as the fastest competitor")
    axes.set_title("Speed-up at the base case")
    return bool(losses)


def _volumes(records: Records, value: Callable[[Outcome, str], float | None]) -> dict[tuple[str, str], list[Any]]:
    """By line and implementation, the points (voxels, value) of the cases that differ in size alone."""
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
    """Nanoseconds for each voxel."""
    curves = _volumes(records, lambda each, name: each.times[name].median_ms * 1e6 / each.case.voxels)
    return _curves(axes, curves, "ns for each voxel", "Time: twinloss, and dotted the fastest competitor")


def memory_by_volume(axes: Axes, records: Records) -> bool:
    """Bytes of a step."""

    def taken(each: Outcome, name: str) -> float | None:
        multiple = each.memory.get(name)
        return None if multiple is None else multiple * each.gradient_bytes / 2**20

    return _curves(axes, _volumes(records, taken), "MiB beyond the arguments", "Memory of a step of twinloss")


def roofline(axes: Axes, records: Records) -> bool:
    """GB/s that each base case moves, over the exponentials that come with each byte, under what the machine allows."""
    base = [each for each in records.base if FAST in each.times and rates_of(each) and each.case.line.work]
    if not base:
        return False
    rates = rates_of(base[-1])
    assert rates is not None
    places = [_place(each) for each in base]
    furthest = 1.3 * max(rates.exp / rates.bandwidth, *(x for x, _ in places))
    grid = [furthest * k / 200 for k in range(201)]
    roof = [min(rates.bandwidth, rates.exp / x) if x else rates.bandwidth for x in grid]
    axes.plot(grid, [y / 1e9 for y in roof], color="black", label="bandwidth, then exponentials")
    for each, (x, y) in zip(base, places, strict=True):
        axes.plot(x, y / 1e9, "o", label=f"{each.case.title}: {y / 1e9:.1f} GB/s")
    axes.set_yscale("log")
    axes.set_xlabel("exponentials for each byte")
    axes.set_ylabel("GB/s")
    axes.set_title("Roofline: the bytes and exponentials that each loss cannot do without")
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
