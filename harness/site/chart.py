"""Charts as SVG, which use the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT, FOOT, STEP = 260, 90, 18, 0.5
BOUND = 3.0  # the bound in bits, see judgement.py


def bars(counts: Mapping[float, int], title: str) -> str:
    """Draw a histogram of errors in bits, with bars of half a bit and a line at the bound."""
    most = max(BOUND + 1, *(bits + STEP for bits in counts))
    x, largest = (WIDTH - 8) / most, max(counts.values())
    drawn = []
    for bits, count in sorted(counts.items()):
        height = max(1.0, (HEIGHT - 6) * count / largest)
        drawn.append(
            f'<rect class="bar" x="{4 + bits * x:.1f}" y="{HEIGHT - height:.1f}" width="{STEP * x - 1:.1f}" '
            f'height="{height:.1f}"><title>{count} results: {bits:g} to {bits + STEP:g} bits</title></rect>'
        )
    ticks = "".join(
        f'<text class="tick" x="{4 + n * x:.1f}" y="{HEIGHT + 14}" text-anchor="middle">{n}</text>'
        for n in range(int(most) + 1)
    )
    told = "; ".join(f"{bits:g}: {count}" for bits, count in sorted(counts.items()))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img" aria-label="{escape(title)}: {told}">'
        f'{"".join(drawn)}<line class="bound" x1="{4 + BOUND * x:.1f}" x2="{4 + BOUND * x:.1f}" y1="0" y2="{HEIGHT}"/>'
        f'<line class="axis" x1="4" x2="{WIDTH - 4}" y1="{HEIGHT}" y2="{HEIGHT}"/>{ticks}</svg>'
    )
