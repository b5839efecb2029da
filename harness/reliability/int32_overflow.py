"""Tests of indices beyond 32 bits that need little memory, because only the end of each volume is not zero.

The operating system allocates a page of memory only when it is written to. Until then, the page reads as zeros. Only
the first and the last chunks of each kernel run. The other chunks would write zeros, which are already there.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twinloss import fast
from twinloss.fast import global_mutual_information
from twinloss.fast.engine import histogram as joint_histogram
from twinloss.fast.runtime import threads
from twinloss.harness.reliability.numerics import relative
from twinloss.harness.reliability.registry import Row, line
from twinloss.harness.system.memory import process_status

# Arrays of at least this many bytes get no memory.
LARGE_BYTES = 2**28
# The tolerated relative difference of float32 results that depend on a handful of voxels.
CLOSE = 1e-5


def untouched(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Return an array of zeros that takes no memory until it is written to.

    It may be larger than the memory of the machine.
    """
    count = math.prod(shape)
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # a Linux constant that Python has since 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    pages = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1), flags=flags)
    return np.frombuffer(pages, dtype, count).reshape(shape)


class _UntouchedTensors(TorchFunctionMode):
    """Within this context, `torch.empty` gives large tensors no memory."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        shape, dtype = (*arguments, None)[0], (options or {}).get("dtype")
        if function is torch.empty and dtype and math.prod(shape) * dtype.itemsize >= LARGE_BYTES:
            return torch.from_numpy(untouched(shape, _name(dtype)))
        return function(*arguments, **(options or {}))


@contextmanager
def _small_pages() -> Iterator[None]:
    """Within this context, let the system give no large pages: writing one number would take 2 MiB."""
    disable = 41  # PR_SET_THP_DISABLE of Linux
    call = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: None
    call(disable, 1, 0, 0, 0)
    try:
        yield
    finally:
        call(disable, 0, 0, 0, 0)


@contextmanager
def ends_only(count: int) -> Iterator[None]:
    """Run only the first and the last `count` chunks of each kernel, and allocate large tensors without memory."""
    run_all = threads.run_ranges

    def run_ends(work: Callable[[int, int], None], ranges: Sequence[tuple[int, int]], threads: int) -> None:
        _, chunks = ranges[-1]
        run_all(work, [(k, k + 1) for k in (0, *range(max(chunks - count, 1), chunks))], threads)

    with _small_pages(), _UntouchedTensors(), mock.patch.object(threads, "run_ranges", run_ends):
        yield


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def ending(space: Sequence[int], end: Tensor) -> Tensor:
    """Return a tensor (B, C, *space) of zeros whose last voxels along all axes are those of `end`."""
    made = torch.from_numpy(untouched((*end.shape[:2], *space), _name(end.dtype)))
    end_of(made, end).copy_(end)
    return made


def end_of(x: Tensor, end: Tensor) -> Tensor:
    """Return the part of `x` that holds `end`."""
    return x[tuple(slice(size - count, size) for size, count in zip(x.shape, end.shape, strict=True))]


def value_and_slopes(loss: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    """Compute value and gradient without copying `x`."""
    value = loss(x.requires_grad_(), *rest)
    return value.detach(), torch.autograd.grad(value, x)[0]


def cases(quick: bool) -> Iterator[tuple[str, Callable[..., Tensor], Sequence[int], int, list[Tensor]]]:
    """Yield the cases as tuples.

    A tuple holds the name, the loss, the spatial shape, the number of chunks at the end that are not all zeros, and the
    non-zero ends of the arguments.
    """
    length, edge, deep = (2**12, 40, (20, 60, 60)) if quick else (2**29, 1291, (8193, 512, 512))
    rng = torch.Generator().manual_seed(0)
    exact: dict[str, Any] = {"smooth_nr": 0.0, "smooth_dr": 0.0}
    x, y = (torch.rand(1, 4, 100, generator=rng) for _ in range(2))
    labels = torch.randint(1, 4, (1, 1, 100), generator=rng, dtype=torch.uint8)
    yield "Dice", fast.DiceLoss(**exact), (4 * length + 4096,), 2, [x[:, :1], y[:, :1].round()]
    of_labels = fast.DiceLoss(to_onehot_y=True, include_background=False, **exact)
    yield "Dice, 4 channels", of_labels, (length + 4096,), 2, [x, labels]
    corner = torch.zeros(2, 1, 1, 12, 40, 40)
    corner[..., -1, -8:, -8:] = torch.rand(2, 1, 1, 8, 8, generator=rng)
    yield "bending energy", fast.BendingEnergyLoss(reduction="sum"), (edge, edge, edge), 4, [corner[0]]
    lncc = fast.LocalNormalizedCrossCorrelationLoss(kernel_size=3, reduction="sum", smooth_nr=0)
    # The gradient that depends on the corner lies in the last three planes, of nine chunks each.
    yield "LNCC, k = 3", lncc, deep, 30, list(corner)


@line("Scale")
def beyond_32_bits(quick: bool) -> Iterator[Row]:
    """Tensors of more than 2³¹ elements, all zero except the last few. The zeros take no memory."""
    for name, loss, space, count, ends in cases(quick):
        wanted = value_and_slopes(loss, *(end.clone() for end in ends))
        with ends_only(count):
            value, slopes = value_and_slopes(loss, *(ending(space, end) for end in ends))
        off = relative(value, wanted[0]), relative(end_of(slopes, ends[0]), wanted[1])
        yield _row(f"{name}, value and gradient", slopes.numel(), off)
    *_, (_, _, space, count, (end, _)) = cases(quick)
    smooth, taps = torch.ops.twinloss.smooth, ([0.25, 0.5, 0.25], 3)
    of_end = smooth(end[0], *taps)[None]
    with ends_only(count):
        made = smooth(ending(space, end)[0], *taps)[None]
    yield _row("smoothing, a self-adjoint operator", made.numel(), (relative(end_of(made, end), of_end),))
    voxels = (2**18 if quick else 2**31) + 4096
    yield _row("mutual information, value and gradient", voxels, information(voxels))
    peak = process_status("VmHWM") / 2**30
    yield Row("peak memory of all of these", f"{peak:.1f} GiB", quick or peak < 4)


def _row(what: str, count: int, off: Sequence[float]) -> Row:
    told = f"relative difference from the end alone: {', '.join(f'{part:.0e}' for part in off)}"
    return Row(f"{what}, {count} elements", told, max(off) <= CLOSE)


def information(voxels: int) -> tuple[float, float]:
    """Return the relative errors of mutual information and its gradient for images that are zero except in 100 voxels.

    The expected values come from a histogram of one voxel of each kind, weighted by the number of such voxels.
    """
    count = 100
    loss: Any = fast.GlobalMutualInformationLoss(num_bins=4)
    x, y = (torch.full((1, 1, count), level) for level in (0.75, 0.6))
    value_and_slopes(loss, x.clone(), y)
    x, y = ending((voxels,), x).requires_grad_(), ending((voxels,), y)
    value = loss(x, y)
    with ends_only(1):
        (slopes,) = torch.autograd.grad(value, x)
    kinds = torch.tensor([[0.0], [0.75]], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([[0.0], [0.6]], dtype=torch.float64)
    by_kind = joint_histogram.joint_histogram(kinds, others, 4, loss.sigma_ratio, "gaussian")
    share = torch.tensor([voxels - count, count], dtype=torch.float64) / voxels
    joint = (share[:, None, None] * by_kind).sum(0, keepdim=True)
    wanted = -global_mutual_information.mutual_information(joint, loss.smooth_nr, loss.smooth_dr).sum()
    (by_level,) = torch.autograd.grad(wanted, kinds)
    return relative(value.detach(), wanted.detach()), relative(slopes[0, 0, -count:], by_level[1] / count)
