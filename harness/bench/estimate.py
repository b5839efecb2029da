"""An estimate of the time of a step on a GPU, from the bytes that our kernels and MONAI's operators move.

The kernels are recorded instead of run. Each tensor that a launch gets counts once, as it is either read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinloss.fast.kernels import gpu_kernels_on_cpu
from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.bench.competitors import FAST, loss_of
from twinloss.harness.bench.traffic import Traffic

# Bytes per second, by the data sheets.
BANDWIDTHS = {"A100 80 GB": 2.04e12, "H200": 4.8e12}


@dataclass(frozen=True)
class Estimate:
    """What a step of a case moves on a GPU; bytes as multiples of the size of the gradient.

    Attributes:
        case: the case.
        size: the size of the gradient in bytes.
        moved: the bytes of our kernels.
        launches: the number of our kernels.
        monai: the traffic of MONAI's loss, if MONAI has the loss.
    """

    case: BenchmarkCase
    size: int
    moved: float
    launches: int
    monai: Traffic | None


def launched(loss: Callable[..., Tensor], arguments: Sequence[Tensor]) -> list[int]:
    """Return the bytes that each launch of a forward and a backward pass reads and writes."""
    from twinloss.fast.kernels.gpu.launch import recorded

    x, *rest = arguments
    x = x.detach().requires_grad_()
    with gpu_kernels_on_cpu(), recorded() as launches:
        torch.autograd.grad(loss(x, *rest), x)
    return [moved for each in launches.values() for moved in each]


def estimate(case: BenchmarkCase, monai: Traffic | None) -> Estimate:
    """Count the bytes of our kernels for a case."""
    arguments = case.line.operands(case.size, case.batch)
    moved, size = launched(loss_of(case, FAST), arguments), arguments[0].nbytes
    return Estimate(case, size, sum(moved) / size, len(moved), monai)


INTRODUCTION = """
Not measured: the time that the bytes alone would take at the bandwidth that the data sheet of a GPU promises. For
MONAI, they are the bytes of the table above. For twinloss, each launch of a Triton kernel counts the sizes of all
tensors that it gets. The estimate leaves out arithmetic, the time to start a kernel, the share of the bandwidth that
can be reached, tensors that a cache holds, tensors of which a launch takes a part, neighbours that are read twice, and
the operators of torch between our kernels. Losses with much arithmetic, such as bending energy and mutual information,
will take several times as long.
"""


def as_markdown(estimates: Sequence[Estimate]) -> list[str]:
    """Return the lines of a section."""
    columns = ["case", "bytes", "MONAI", "launches", "MONAI"]
    columns += [f"{name}, {whose}, ms" for name in BANDWIDTHS for whose in ("twinloss", "MONAI")] + ["MONAI / twinloss"]
    lines = ["## Estimate for GPUs", INTRODUCTION, "| " + " | ".join(columns) + " |"]
    lines.append("|---|" + "---:|" * (len(columns) - 1))
    for each in estimates:
        monai = each.monai
        cells: list[str | None] = [str(each.case).split(", 1 thread")[0], f"{each.moved:.1f}"]
        cells += [f"{monai.moved:.1f}" if monai else None, str(each.launches), str(monai.launches) if monai else None]
        for bandwidth in BANDWIDTHS.values():
            for moved in (each.moved, monai and monai.moved):
                cells.append(f"{moved * each.size / bandwidth * 1e3:.3f}" if moved else None)
        cells.append(f"{monai.moved / each.moved:.1f}" if monai else None)
        lines.append("| " + " | ".join(cell or "" for cell in cells) + " |")
    return [*lines, ""]
