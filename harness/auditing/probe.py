"""Checks that need no reference: lines of the library's own code that print what they got and what they expected.

A probe is a piece of code. It is run, and it is a finding if the two printed answers differ, or if it raises an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twinloss.harness.auditing.erratum import CONVENTION, Erratum
from twinloss.harness.auditing.peer import Peer
from twinloss.harness.auditing.snippets import lines, run
from twinloss.harness.drawing.segmentation_options import has_labels, is_activated
from twinloss.harness.model.operand import Operand, PerCase, Sizes
from twinloss.harness.model.twin import Case, Twin

# The relative difference of two float32 answers that should be equal.
CLOSE = 1e-4
ANSWER = re.compile(r"got (?P<got>.*), expected (?P<want>.*)", re.S)
# What runs of a probe may raise: an error that says that the argument is wrong.
TYPED = ("TypeError", "ValueError", "AssertionError", "NotImplementedError")


@dataclass(frozen=True)
class Probe:
    """A probe: the class of a finding, its name, the reason for this class, and the code."""

    sort: str
    what: str
    source: str
    code: str
    error_is_right: bool = False
    traits: tuple[str, ...] = ()


def differ(prints: str) -> bool:
    """Return whether the printed answers differ, or the code raised an error."""
    found = ANSWER.search(prints)
    if found is None:
        return True
    got, want = found["got"].strip(), found["want"].strip()
    try:
        a, b = float(got), float(want)
    except ValueError:
        return got != want
    if math.isnan(a) or math.isnan(b) or math.isinf(a) or math.isinf(b):
        return not (a == b or (math.isnan(a) and math.isnan(b)))
    return abs(a - b) > CLOSE * max(abs(a), abs(b), 1e-3)


def findings(peer: Peer, probes: Iterator[Probe]) -> Iterator[Erratum]:
    """Run probes, and yield those that find something."""
    seen: set[tuple[str, ...]] = set()
    for probe in probes:
        if (key := probe.traits or (probe.what.partition(", with")[0],)) in seen:
            continue  # the same cause with another option
        prints = run(probe.code)
        raised = ANSWER.search(prints) is None
        if (raised and probe.error_is_right) or not differ(prints):
            continue
        seen.add(key)
        if key[0] in peer.stated:
            probe = replace(probe, sort=CONVENTION, source=peer.stated[key[0]])
        yield Erratum(peer.like, peer.name, probe.sort, probe.what, probe.source, probe.code, prints, key)


def example(peer: Peer, twin: Twin, options: Mapping[str, Any] | None = None, items: int = 1) -> Case | None:
    """Return a small ordinary case of a loss, with these options, or None if they exclude each other."""
    rank = 2 if 1 not in peer.ranks else 1
    given = {**{n: v for n, v in twin.defaults().items() if n in twin.required}, **(options or {})}
    if not twin.allowed(twin.defaults() | given):
        return None
    case = _of_fields(rank) if len(twin.operands) == 1 else _of_images(rank, items)
    if twin.operands[0] == "input":
        case = _of_segmentation(twin, given, rank, items, max(peer.channels, 2), "mask" in twin.operands)
    sizes = Sizes(
        len(case.input.values), case.input.values.shape[1],
        case.input.values.shape[1] - (not twin.defaults().get("include_background", True)
                                      or given.get("include_background") is False),
        has_labels(twin, given), rank,
    )  # fmt: skip
    made = {name: value.make(sizes) if isinstance(value, PerCase) else value for name, value in given.items()}
    return replace(case, options=made)


def _of_fields(rank: int) -> Case:
    numbers = np.array([0.0, 1.0, 0.5, 2.0, 1.5])
    shape = (1, rank, *[5] * rank)
    return Case({"pred": Operand(np.broadcast_to(numbers, shape).copy(), "float32")})


def _of_images(rank: int, items: int) -> Case:
    first, second = np.array([0.0, 1.0, 0.25, 0.75, 0.5]), np.array([0.0, 0.5, 0.25, 1.0, 0.5])
    shape = (items, 1, *[1] * (rank - 1), 5)
    scale = 1 + np.arange(items).reshape(-1, *[1] * (rank + 1))
    return Case({
        "pred": Operand(np.broadcast_to(first, shape) * scale, "float32"),
        "target": Operand(np.broadcast_to(second, shape).copy(), "float32"),
    })  # fmt: skip


def _of_segmentation(twin: Twin, options: Mapping[str, Any], rank: int, items: int, classes: int, masked: bool) -> Case:
    given = twin.defaults() | dict(options)
    logits = "softmax" not in twin.options or is_activated(given, classes)
    shape = (items, classes, *[1] * (rank - 1), 4)
    numbers = np.array([0.75, 0.25, 0.5, 0.125]) if not logits else np.array([1.0, -1.0, 0.5, 0.0])
    x = np.stack([np.broadcast_to(np.roll(numbers, n), shape[2:]) for n in range(classes)])
    x = np.stack([x / (1 + item) for item in range(items)]).reshape(shape)
    labels = np.broadcast_to(np.arange(4) % classes, (items, 1, *shape[2:])).copy()
    made = {"input": Operand(x, "float32")}
    if has_labels(twin, given):
        made["target"] = Operand(labels, "int64")
    else:
        hot = labels == np.arange(classes).reshape(-1, *[1] * rank)
        made["target"] = Operand(hot.astype(np.int64), "float32")
    if masked:
        mask = np.broadcast_to(np.array([1, 1, 0, 1]), (items, 1, *shape[2:])).copy()
        made["mask"] = Operand(mask, "float32")
    return Case(made)


def code_of(peer: Peer, case: Case, *more: str, gradient: bool = False) -> str:
    """Return the lines that make arguments and loss, and more lines."""
    return "\n".join([*lines(peer, case, gradient), *more])


def printed(got: str, want: str) -> str:
    """Return a line that prints two numbers, which are given as code."""
    return f'print(f"got {{{got}:.6g}}, expected {{{want}:.6g}}")'
