"""The implementations that are compared: twinloss, its plain-torch form, MONAI, and other libraries that have the loss.

`max-autotune-no-cudagraphs` is the most aggressive mode of torch.compile without CUDA graphs, which require that
inputs keep their memory addresses. voxelmorph 0.3 runs on torch 2.13; its NCC has moved to the package neurite, which
is one of its dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from twinloss.fast.runtime import dispatch
from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.losses.peers import FIREANTS, YARDSTICK
from twinloss.harness.model.benchmark_spec import LossFunction

FAST, EAGER, COMPILED = "twinloss", "MONAI", "MONAI compiled"
PLAIN, PLAIN_COMPILED = "plain torch", "plain torch compiled"
COMPILES = (COMPILED, PLAIN_COMPILED)
# These are shown, but no speed-up is computed against them. The yardstick computes less than the losses do.
NO_COMPETITORS = (FAST, YARDSTICK)
MODE = "max-autotune-no-cudagraphs"

# The packages that provide losses for comparison.
PACKAGES = ("monai", "kornia", "segmentation-models-pytorch", "neurite")

Step = Callable[[], object]


def names(case: BenchmarkCase, compiled: bool = True) -> list[str]:
    """Return the names of the implementations for a case.

    On a GPU, the plain form is not timed in eager mode, and of other libraries only those that are made for GPUs are.
    """
    on_cpu = case.device == "cpu"
    plain = [PLAIN] if on_cpu else []
    others = [name for name in case.line.others if (name != FIREANTS if on_cpu else name in (FIREANTS, YARDSTICK))]
    peers = [EAGER, COMPILED] if case.line.peer else []
    return [name for name in [FAST, *peers, *plain, PLAIN_COMPILED, *others] if compiled or name not in COMPILES]


def versions_of_others() -> dict[str, str]:
    """Return the versions of the installed packages that provide competitors."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def loss_of(case: BenchmarkCase, name: str) -> LossFunction:
    """Create the loss of a competitor, compiled if its name says so.

    Raises:
        ImportError: if its package is not installed.
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


def step_of(case: BenchmarkCase, name: str, operands: Sequence[torch.Tensor]) -> Step:
    """Return a function that runs one forward and one backward pass."""
    loss, (x, *rest) = loss_of(case, name), operands
    x = x.detach().requires_grad_()
    plain = name in (PLAIN, PLAIN_COMPILED)

    def step() -> object:
        with dispatch.forced("plain") if plain else nullcontext():
            return torch.autograd.grad(loss(x, *rest), x)

    return step
