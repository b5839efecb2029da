"""`twinloss audit`: compare every option of another library's losses with the references; the table is the errata.

A loss counts as agreeing if it differs only by rounding.
"""

from __future__ import annotations

import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch

from twinloss import __version__
from twinloss.harness.commands.check import fails_without_option, probe
from twinloss.harness.hunting.hunt import Hunt
from twinloss.harness.hunting.loading import load
from twinloss.harness.hunting.parallel import on_cluster, prepare
from twinloss.harness.hunting.shrink import simplest
from twinloss.harness.hunting.snippet import in_a_line
from twinloss.harness.hunting.target import Convert, Wiring, adapted, matrix_as_array
from twinloss.harness.judging.trial import Trial
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.operand import label
from twinloss.harness.model.twin import Twin

# The number of cases for each option value, and the largest number of attempts to simplify a failing case.
PROBES, STEPS = 24, 150
KINDS = ("value", "gradient", "law", "differences", "error", "reference")


@dataclass(frozen=True)
class Peer:
    """A loss of another library: where it is, which of our losses it should equal, and how to call it."""

    target: str
    like: str
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    convert: Convert = matrix_as_array
    ranks: tuple[int, ...] = (1, 2, 3)
    channels: int = 1

    def twin(self) -> Twin:
        """Return the twin for this loss."""
        wiring = Wiring(self.target, self.like, self.options, self.names, ranks=self.ranks)
        made = adapted(wiring, load(self.target), self.convert)
        return replace(made, channels=max(made.channels, self.channels))


def _as_tensor(name: str, value: Any) -> Any:
    return torch.tensor(value) if name == "weight" and isinstance(value, list) else value


_OF_LABELS = {"softmax": True, "to_onehot_y": True, "smooth_nr": 0.0, "smooth_dr": 1e-8}
_OF_CHANNELS = {"sigmoid": True, "batch": True, "smooth_nr": 0.0, "smooth_dr": 0.0}

PEERS: dict[str, tuple[Peer, ...]] = {
    "monai": (
        Peer("monai.losses:DiceLoss", "dice"),
        Peer("monai.losses:MaskedDiceLoss", "masked_dice"),
        Peer("monai.losses:TverskyLoss", "tversky"),
        Peer("monai.losses:GeneralizedDiceLoss", "generalized_dice"),
        Peer("monai.losses:GeneralizedWassersteinDiceLoss", "generalized_wasserstein_dice"),
        Peer("monai.losses:FocalLoss", "focal"),
        Peer("monai.losses:DiceCELoss", "dice_ce", convert=_as_tensor),
        Peer("monai.losses:DiceFocalLoss", "dice_focal", {"use_softmax": False}),
        Peer("monai.losses:BendingEnergyLoss", "bending_energy"),
        Peer("monai.losses:DiffusionLoss", "diffusion", {"stencil": "wide"}),
        Peer(
            "monai.losses:LocalNormalizedCrossCorrelationLoss",
            "lncc",
            {"denominator": "clamp"},
            {"ndim": "spatial_dims"},
        ),
        Peer("monai.losses:GlobalMutualInformationLoss", "mutual_information"),
        Peer("twinloss.harness.losses.peers:MonaiMultiScale", "multi_scale"),
    ),
    "kornia": (
        Peer("twinloss.harness.losses.peers:kornia_dice", "dice", _OF_LABELS, ranks=(2,), channels=2),
        Peer("twinloss.harness.losses.peers:kornia_tversky", "tversky", _OF_LABELS, ranks=(2,), channels=2),
        Peer("twinloss.harness.losses.peers:kornia_focal", "focal", {"to_onehot_y": True}, ranks=(2,), channels=2),
    ),
    "segmentation_models_pytorch": (
        Peer("twinloss.harness.losses.peers:smp_dice", "dice", _OF_CHANNELS),
        Peer("twinloss.harness.losses.peers:smp_tversky", "tversky", _OF_CHANNELS),
        Peer("twinloss.harness.losses.peers:smp_focal", "focal", {"use_softmax": False}),
    ),
}
PACKAGES = {"monai": "monai", "kornia": "kornia", "segmentation_models_pytorch": "segmentation-models-pytorch"}


class LibraryError(ValueError):
    """A library is unknown or not installed, or has no counterpart of a loss."""


@dataclass(frozen=True)
class Erratum:
    """The result for one option value of a loss: it agrees, "differs", "raises" or is "not there"; with an example."""

    loss: str
    option: str
    verdict: str
    what: str = ""
    smallest: str = ""


def audit(
    library: str,
    losses: Sequence[str] = (),
    seed: int = 0,
    tick: Callable[[str, int], None] = lambda what, cases: None,
    processes: int = 1,
    cluster: str | None = None,
) -> list[Erratum]:
    """Compare all losses of a library, or the counterparts of some of ours, with the references.

    The losses are distributed over processes, or over the workers of the Dask scheduler at the address `cluster`.

    Raises:
        LibraryError: if the library is unknown or not installed, or has no counterpart of one of the losses.
    """
    if library not in PEERS:
        raise LibraryError(f"unknown library {library}: known are {', '.join(PEERS)}")
    known = {peer.like for peer in PEERS[library]}
    for name in losses:
        if name not in known:
            raise LibraryError(f"{library} has no counterpart of {name}, only of {', '.join(sorted(known))}")
    try:
        version(PACKAGES[library])
    except ImportError as error:
        raise LibraryError(f"{library} is not installed: pip install {PACKAGES[library]}") from error
    indices = [n for n, peer in enumerate(PEERS[library]) if not losses or peer.like in losses]
    if cluster is None and processes == 1:
        return _collected((_errata_of_index(library, n, seed) for n in indices), tick)
    context, count = multiprocessing.get_context("spawn"), len(indices)
    with (
        on_cluster(cluster)
        if cluster
        else ProcessPoolExecutor(processes, context, initializer=prepare, initargs=(processes,)) as executor
    ):
        return _collected(executor.map(_errata_of_index, [library] * count, indices, [seed] * count), tick)


def _collected(parts: Iterable[list[Erratum]], tick: Callable[[str, int], None]) -> list[Erratum]:
    rows = []
    for part in parts:
        rows += part
        tick(f"after {part[0].loss}", PROBES * len(part))
    return rows


def _errata_of_index(library: str, index: int, seed: int) -> list[Erratum]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own warnings about unusual input
        return _errata_of(PEERS[library][index], seed)


def _errata_of(peer: Peer, seed: int) -> list[Erratum]:
    twin, known = peer.twin(), find(peer.like)
    excuses = Hunt(twin, "float32", forgiving=True)
    made = _errata(peer, "defaults", twin, twin.defaults(), seed, excuses)
    for name, values in known.options.items():
        for value in values[1:]:
            text = f"{name}={label(value)}"
            if name in peer.options and label(peer.options[name]) == label(value):
                continue  # the defaults were tested with this value
            if name in peer.options or not any(value is v for v in twin.options[name]):
                made.append(Erratum(peer.like, text, "not there"))
            elif twin.allowed(row := twin.defaults() | {name: value}):
                made += _errata(peer, text, twin, row, seed, excuses, name)
    return made


def _errata(
    peer: Peer, text: str, twin: Twin, row: Mapping[str, Any], seed: int, excuses: Hunt, option: str | None = None
) -> list[Erratum]:
    """Return the error that an option causes; for the defaults, one erratum for each kind of error."""
    kinds: dict[str, list[Trial]] = {}
    for trial in probe(text, twin, "float32", row, None, seed, excuses, PROBES).failures:
        if trial.kind != "law" and not (option and fails_without_option(twin, trial, option)):
            kinds.setdefault(trial.kind or "error", []).append(trial)
    found = sorted(kinds, key=KINDS.index)[: None if option is None else 1]
    if not found:
        return [Erratum(peer.like, text, "agrees" if option is None else "agrees as the defaults do")]
    return [_erratum(peer, text, twin, kinds[kind], excuses) for kind in found]


def _erratum(peer: Peer, text: str, twin: Twin, failures: Sequence[Trial], excuses: Hunt) -> Erratum:
    smallest = min(failures, key=lambda trial: trial.case.input.values.size)
    needed = set(smallest.case.options)

    def counts(trial: Trial) -> bool:
        return set(trial.case.options) >= needed and excuses.excuse(trial) is None

    shown = simplest(twin, smallest, counts, math.inf, STEPS)
    raised = shown.kind == "error"
    share = f"{len(failures)} of {PROBES} cases"
    what = shown.message.partition(" raised ")[2] if raised else f"{shown.kind} differs"
    return Erratum(peer.like, text, "raises" if raised else "differs", f"{what} ({share})", in_a_line(shown))


def as_markdown(library: str, rows: Sequence[Erratum], seed: int) -> str:
    """Return the errata table as Markdown."""
    package = PACKAGES[library]
    lines = [
        f"# {library} {version(package)} beside the papers",
        "",
        f"Made by `twinloss audit {library} --seed {seed} --out reports`, of twinloss {__version__} with torch",
        f"{torch.__version__.partition('+')[0]}: {PROBES} float32 cases of each option value, with other options at",
        "their defaults, judged by the references. A loss agrees if it differs only by rounding. Errors with default",
        "options are not repeated for each option. An option that is *not there* is missing in the library, or does",
        "not have this value.",
        "",
        "| loss | option | verdict | what | smallest input |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.loss, row.option, row.verdict, row.what, row.smallest)
        lines.append("| " + " | ".join(cell(text) for text in cells) + " |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return a text as a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
