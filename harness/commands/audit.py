"""`twinloss audit`: what is wrong in another library's losses, and the lines that show it."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version

import torch

from twinloss import __version__
from twinloss.harness.auditing.audit import COUNTS, audited
from twinloss.harness.auditing.erratum import DEFECT, PRECISION, SORTS, Audited, Erratum, rounded_in
from twinloss.harness.auditing.libraries import LIBRARIES, PACKAGES, make_importable
from twinloss.harness.auditing.peer import Peer
from twinloss.harness.hunting.parallel import on_cluster, prepare

EXPLAINED = {
    "defect": "wrong by the library's own documentation, or by the paper that it cites, on input that it documents",
    "precision": "the formula is right, but digits are lost; beyond 1 % it is a defect, except in half precision",
    "convention": "papers and documentation leave it open, and our reference does otherwise",
    "outside the documented domain": "the documentation excludes this input, or says nothing about it",
}


class LibraryError(ValueError):
    """A library is unknown or not installed, or has no counterpart of a loss."""


def audit(
    library: str,
    losses: Sequence[str] = (),
    seed: int = 0,
    tick: Callable[[str, int], None] = lambda what, cases: None,
    processes: int = 1,
    cluster: str | None = None,
) -> list[Audited]:
    """Audit all losses of a library, or the counterparts of some of ours.

    The losses are distributed over processes, or over the workers of the Dask scheduler at the address `cluster`.

    Raises:
        LibraryError: if the library is unknown or not installed, or has no counterpart of one of the losses.
    """
    if library not in LIBRARIES:
        raise LibraryError(f"unknown library {library}: known are {', '.join(LIBRARIES)}, torch")
    known = {peer.like for peer in LIBRARIES[library]}
    for name in losses:
        if name not in known:
            raise LibraryError(f"{library} has no counterpart of {name}, only of {', '.join(sorted(known))}")
    try:
        version(PACKAGES[library])
    except ImportError as error:
        raise LibraryError(f"{library} is not installed: pip install {PACKAGES[library]}") from error
    make_importable(library)
    indices = [n for n, peer in enumerate(LIBRARIES[library]) if not losses or peer.like in losses]
    if cluster is None and processes == 1:
        return merged(library, _collected((_audited(library, n, seed) for n in indices), tick))
    context, count = multiprocessing.get_context("spawn"), len(indices)
    with (
        on_cluster(cluster)
        if cluster
        else ProcessPoolExecutor(processes, context, initializer=prepare, initargs=(processes,)) as executor
    ):
        return merged(library, _collected(executor.map(_audited, [library] * count, indices, [seed] * count), tick))


def _collected(parts: Iterable[Audited], tick: Callable[[str, int], None]) -> list[Audited]:
    made = []
    for part in parts:
        made.append(part)
        tick(f"after {part.loss}", part.cases)
    return made


def _audited(library: str, index: int, seed: int) -> Audited:
    make_importable(library)
    return audited(LIBRARIES[library][index], seed)


def merged(library: str, found: Sequence[Audited]) -> list[Audited]:
    """Keep one erratum of each cause: defects in losses that share code, and all else that has the same reason."""
    peers = {peer.like: peer for peer in LIBRARIES[library]}
    kept: list[Erratum] = []
    for each in (erratum for part in found for erratum in part.errata):
        known = next((n for n, other in enumerate(kept) if _same_cause(peers, other, each)), None)
        if known is None:
            kept.append(each)
        else:
            also = (*kept[known].also, *([each.peer] if each.peer != kept[known].peer else []))
            kept[known] = replace(kept[known], also=tuple(dict.fromkeys(also)))
    return [replace(part, errata=tuple(each for each in kept if each.loss == part.loss)) for part in found]


def _same_cause(peers: dict[str, Peer], a: Erratum, b: Erratum) -> bool:
    if a.sort != b.sort:
        return False
    share = _uses(peers[b.loss], peers[a.loss]) or _uses(peers[a.loss], peers[b.loss])
    if a.sort == PRECISION:
        return share and rounded_in(a) == rounded_in(b)
    if a.sort != DEFECT:
        return a.source == b.source and a.traits[:1] == b.traits[:1]
    more, less = set(a.traits), set(b.traits)
    return share and (more <= less or less <= more) and a.traits[:1] == b.traits[:1]


def _uses(peer: Peer, other: Peer) -> bool:
    """Return whether a loss inherits from another one, or holds one."""
    found, used = peer.found, other.found
    if not isinstance(found, type) or not isinstance(used, type):
        return False
    if issubclass(found, used):
        return True
    try:
        held = peer.make({}).modules()
    except Exception:  # an option is required
        return False
    return any(isinstance(module, used) for module in held)


def counts(found: Sequence[Audited]) -> dict[str, int]:
    """Return the number of causes of each class."""
    errata = [each for part in found for each in part.errata]
    return {sort: sum(each.sort == sort for each in errata) for sort in SORTS}


def as_markdown(library: str, found: Sequence[Audited], seed: int) -> str:
    """Return the errata as Markdown: a table of all causes, and for each the lines that show it."""
    package = PACKAGES[library]
    drawn = sum(part.cases for part in found)
    numbered = _numbered(found)
    some = [part.loss for part in found] if len(found) < len(LIBRARIES[library]) else []
    command = " ".join(["twinloss audit", library, *some, f"--seed {seed} --out reports"])
    lines = [
        f"# {library} {version(package)} beside its documentation and the papers",
        "",
        f"Made by `{command}`, of twinloss {__version__} with torch",
        f"{torch.__version__.partition('+')[0]}: {drawn} cases in {', '.join(COUNTS)}, and probes that need no",
        "reference. Each row is one cause, with the smallest input that shows it. The lines below a row run without",
        "twinloss. Only a *defect* is called wrong; [how we audit](how-we-audit.md) explains the classes.",
        "",
        "| class | causes | meaning |",
        "|---|---|---|",
        *(f"| {sort} | {count} | {EXPLAINED[sort]} |" for sort, count in counts(found).items()),
        "",
        "| loss | no. | class | what | also in |",
        "|---|---|---|---|---|",
    ]
    for n, each in numbered:
        also = ", ".join(each.also)
        lines.append(f"| {each.loss} | {n} | {each.sort} | {each.peer}: {cell(each.what)} | {also} |")
    lines += ["", "## What agrees", "", "| loss | defaults of the library | agrees | not there |", "|---|---|---|---|"]
    for part in found:
        cells = (f"`{part.peer}`", ", ".join(part.agrees), "; ".join(part.missing))
        lines.append(f"| {part.loss} | {' | '.join(cell(text) for text in cells)} |")
    for sort in SORTS:
        rows = [(n, each) for n, each in numbered if each.sort == sort]
        if rows:
            lines += ["", f"## {sort.capitalize()}"]
        for n, each in rows:
            also = f" Also in {', '.join(each.also)}." if each.also else ""
            lines += ["", f"**{n}. {each.peer}: {each.what}.**{also}", "", f"Source: {each.source}.", "", "```python"]
            lines += [each.code, "```", "", "```text", each.prints, "```"]
    return "\n".join(lines) + "\n"


def _numbered(found: Sequence[Audited]) -> list[tuple[int, Erratum]]:
    errata = [each for part in found for each in part.errata]
    return list(enumerate(sorted(errata, key=lambda each: SORTS.index(each.sort)), 1))


def snippets(text: str) -> list[tuple[str, str]]:
    """Return the lines of code of a report, each with what they print."""
    found = re.findall(r"```python\n(.*?)\n```\n\n```text\n(.*?)\n```", text, re.S)
    return [(code, prints) for code, prints in found]


def cell(text: str) -> str:
    """Return a text as a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
