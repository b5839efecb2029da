"""Who takes part: twinloss, its plain-torch form, MONAI, and other libraries where they have the loss.

`max-autotune-no-cudagraphs` is what torch.compile does at its most eager without graphs that forbid new addresses.
voxelmorph 0.3 runs on torch 2.13; its NCC has moved to neurite, which it brings along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from twinloss.fast.runtime import dispatch
from twinloss.harness.bench.cases import Case
from twinloss.harness.line import Loss
from twinloss.harness.peers import YARDSTICK

FAST, EAGER, COMPILED = "twinloss", "MONAI", "MONAI compiled"
PLAIN, PLAIN_COMPILED = "plain torch", "plain torch compiled"
COMPILES = (COMPILED, PLAIN_COMPILED)
# Own forms and the yardstick are shown; the latter computes less, and is no competitor.
NO_COMPETITORS = (FAST, YARDSTICK)
MODE = "max-autotune-no-cudagraphs"

# The packages that bring a loss.
PACKAGES = ("monai", "kornia", "segmentation-models-pytorch", "neurite")

Step = Callable[[], object]


def names(case: Case, compiled: bool = True) -> list[str]:
    """Who may take part in a case; on a GPU twinloss is its plain form, which is not timed twice."""
    plain = [PLAIN] if case.device == "cpu" else []
    others = list(case.line.others) if case.device == "cpu" else []
    peers = [EAGER, COMPILED] if case.line.peer else []
    return [name for name in [FAST, *peers, *plain, PLAIN_COMPILED, *others] if compiled or name not in COMPILES]


def versions_of_others() -> dict[str, str]:
    """Of the packages that are there."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def loss_of(case: Case, name: str) -> Loss:
    """The loss that a competitor brings.

    Raises:
        ImportError: if the package is not there.
    """
    line = case.line
    if name in line.others:
        return line.others[name]()
    if name in (EAGER, COMPILED):
        import monai.losses  # type: ignore[import-untyped, unused-ignore]

        assert line.peer is not None
        made = line.peer(monai.losses)
    else:
        made = case.twin.fast(**line.options)
    if isinstance(made, torch.nn.Module):
        made = made.to(case.device)
    return torch.compile(made, mode=MODE, dynamic=False) if name in COMPILES else made


def step_of(case: Case, name: str, operands: Sequence[torch.Tensor]) -> Step:
    """One forward and one backward."""
    loss, (x, *rest) = loss_of(case, name), operands
    x = x.detach().requires_grad_()
    plain = name in (PLAIN, PLAIN_COMPILED)

    def step() -> object:
        with dispatch.forced("plain") if plain else nullcontext():
            return torch.autograd.grad(loss(x, *rest), x)

    return step
