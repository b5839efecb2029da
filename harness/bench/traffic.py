"""The traffic of a step: bytes moved, kernels launched, waits for the device and peak memory, counted without a GPU.

A step runs on tensors of the meta device, which have shapes and no numbers, so that the size of the images costs no
time. The losses take the same path on it as on any device without kernels of its own. A dispatch mode sees each
operator of torch that the step calls, in the forward and in the backward pass, as a GPU would launch it.
"""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twinloss.fast.runtime import dispatch
from twinloss.harness.bench.cases import BenchmarkCase
from twinloss.harness.bench.competitors import EAGER, FAST, loss_of

# The largest share of MONAI's bytes, launches and peak memory that the losses are meant to take.
BYTES, LAUNCHES, PEAK = 1.5, 1.5, 1.0

# Operators that launch nothing, besides those that return views.
_FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh", "alias",
    "_unsafe_view", "resize_", "set_",
}  # fmt: skip
# Operators that only write.
_WRITERS = {
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zeros", "ones", "full", "arange",
    "fill_", "zero_", "eye", "scalar_tensor",
}  # fmt: skip
# Operators that first fill or copy the whole result, and then write into a part of it.
_TWICE = {"slice_backward", "select_backward", "scatter", "scatter_add", "index_put", "masked_fill", "index_fill"}
# Operators that read at indices only.
_LOOKUPS = {"gather", "index_select", "index", "embedding"}
# Operators whose result the host needs before it can go on.
_WAITS = {
    "_local_scalar_dense", "nonzero", "equal", "_unique2", "unique_dim", "masked_select", "is_nonzero", "bincount",
}  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """What a step costs; bytes and peak as multiples of the size of the gradient.

    Attributes:
        moved: bytes read and written.
        launches: the number of kernels.
        waits: the number of times that the host waits for a number.
        uploads: the number of constants that are copied to the device.
        peak: the largest amount of memory in use beyond the arguments.
        kept: the memory in use between the forward and the backward pass.
    """

    moved: float
    launches: int
    waits: int
    uploads: int
    peak: float
    kept: float


def _size(tensor: Tensor) -> int:
    """Return the number of bytes that reading a tensor takes; an expanded axis is read once."""
    if tensor.numel() == 0:
        return 0
    numbers = math.prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return numbers * tensor.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}.values())


class Counter(TorchDispatchMode):
    """Count what the operators cost that run within this context."""

    def __init__(self, arguments: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = self.launches = self.waits = self.uploads = self.live = self.peak = 0
        self._storages: dict[int, Any] = {}
        for each in arguments:  # these do not count as memory in use
            storage = each.untyped_storage()
            self._storages[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it."""
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        self.waits += name in _WAITS and args[0].is_meta
        if name == "_local_scalar_dense" and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        out = func(*args, **kwargs)
        read = {name: value for name, value in kwargs.items() if name != "out"}
        given, made = _tensors((args, read)), _tensors(out)
        on_host = bool(given) and all(each.device.type == "cpu" for each in given)
        if any(each.is_meta for each in made) and on_host:
            self.uploads += 1
        view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if view or not any(each.is_meta for each in made):
            return out
        if name not in _FREE:
            self._count(name, args, kwargs, given, made)
        for each in made:
            self._track(each)
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, name: str, args: Any, kwargs: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        read, written = sum(map(_size, given)), sum(map(_size, made))
        self.launches += 1 + (name in _TWICE)
        if name in _WRITERS:
            read = 0
        elif name in ("copy_", "_to_copy", "clone"):
            read = _size(given[-1])
        elif name in _LOOKUPS:
            index = read - _size(given[0])
            read = index + min(_size(given[0]), written)
        elif name in ("scatter_", "scatter_add_", "index_put_"):  # lines of memory are read before a part is written
            read -= _size(given[0])
            written = 2 * max(_size(each) for each in given[1:])
        elif name in ("masked_fill", "index_fill"):
            read, written = 2 * read, 2 * written
        elif name in _TWICE:
            written += sum(map(_size, given[1:])) or _size(given[0])
        elif name in ("sum", "mean") and kwargs.get("dtype") not in (None, args[0].dtype):
            # Torch converts the whole tensor first, unless it widens half precision to float32.
            wide = kwargs["dtype"].itemsize * (_size(args[0]) // args[0].element_size())
            if args[0].is_floating_point() and args[0].dtype not in dispatch.HALVES:
                self.launches += 1
                read += 2 * wide
                self.peak = max(self.peak, self.live + wide)
        self.moved += read + written

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or not tensor.is_meta:
            return

        def freed(_: object) -> None:
            self.live -= size
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size


class _Uploads(TorchFunctionMode):
    """Add tensors to a counter that are made of Python numbers, which a dispatch mode does not see."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and count its result if it is a constant."""
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and made.is_meta and not isinstance(args[0], Tensor):
            self.counter.uploads += 1
        return made


def traffic(loss: Callable[..., Tensor], arguments: Sequence[Tensor]) -> Traffic:
    """Count one forward and one backward pass with respect to the first argument, on the meta device."""
    x, *rest = (each.to("meta") for each in arguments)
    x.requires_grad_()
    with dispatch.forced("plain"), dispatch.watched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Counter():
            torch.autograd.grad(loss(x, *rest), x)  # constants are made once
        gc.collect()
        with Counter((x, *rest)) as counter, _Uploads(counter):
            value = loss(x, *rest)
            kept = counter.live
            gradient = torch.autograd.grad(value, x)
        del gradient
    size = x.nbytes
    return Traffic(
        counter.moved / size, counter.launches, counter.waits, counter.uploads, counter.peak / size, kept / size
    )


@dataclass(frozen=True)
class Comparison:
    """The traffic of a case, and that of MONAI's loss in eager mode, if MONAI has the loss."""

    case: BenchmarkCase
    ours: Traffic
    monai: Traffic | None

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """Bytes, launches and peak memory, as multiples of MONAI's."""
        if self.monai is None:
            return None
        ours, monai = self.ours, self.monai
        return ours.moved / monai.moved, ours.launches / monai.launches, ours.peak / monai.peak

    @property
    def beyond(self) -> list[str]:
        """What exceeds its limit, in words; a percent more memory is that of constants."""
        found = [f"{self.ours.waits} waits"] * (self.ours.waits > 0) + [f"{self.ours.uploads} uploads"] * (
            self.ours.uploads > 0
        )
        for share, limit, name in zip(
            self.shares or (), (BYTES, LAUNCHES, 1.01 * PEAK), ("bytes", "launches", "peak"), strict=False
        ):
            if share > limit:
                found.append(f"{share:.2f} × the {name}")
        return found


def compare(case: BenchmarkCase) -> Comparison:
    """Count a case."""
    arguments = case.line.operands(case.size, case.batch)
    ours = traffic(loss_of(case, FAST), arguments)
    return Comparison(case, ours, traffic(loss_of(case, EAGER), arguments) if case.line.peer else None)


COLUMNS = (
    "case", "bytes", "MONAI", "share", "launches", "MONAI", "share", "peak", "MONAI", "share", "kept", "MONAI",
    "waits", "MONAI", "uploads", "MONAI",
)  # fmt: skip

INTRODUCTION = """
What one forward and one backward pass in float32 cost on a device without compiled kernels, in eager mode, beside
MONAI's loss: `twinloss bench --traffic` counts it without a GPU, on tensors without numbers. Bytes are read and written
by operators of torch, peak is the largest amount of memory in use beyond the arguments, and kept is what lives from the
forward to the backward pass, all as multiples of the size of the gradient. A wait is an operator whose result the host
needs, and an upload a constant that is copied to the device.
"""


def row(each: Comparison) -> list[str]:
    """Return the cells of a case."""
    ours, monai, shares = each.ours, each.monai, each.shares
    cells = [str(each.case).split(", 1 thread")[0]]
    numbers = (
        (f"{ours.moved:.1f}", monai and f"{monai.moved:.1f}", shares and f"{shares[0]:.2f}"),
        (str(ours.launches), monai and str(monai.launches), shares and f"{shares[1]:.2f}"),
        (f"{ours.peak:.1f}", monai and f"{monai.peak:.1f}", shares and f"{shares[2]:.2f}"),
        (f"{ours.kept:.1f}", monai and f"{monai.kept:.1f}"),
        (str(ours.waits), monai and str(monai.waits)),
        (str(ours.uploads), monai and str(monai.uploads)),
    )
    return cells + [cell or "" for group in numbers for cell in group]


def as_markdown(comparisons: Sequence[Comparison], more: Sequence[str] = ()) -> str:
    """Render the report as Markdown, with more lines at its end."""
    lines = ["# Memory traffic without compiled kernels", INTRODUCTION]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(row(each)) + " |" for each in comparisons]
    beyond = [each for each in comparisons if each.beyond]
    limits = f"{BYTES:g} × MONAI's bytes and launches, its peak memory, no waits and no uploads"
    lines += ["", f"Cases beyond the limits ({limits}): {len(beyond) or 'none'}.", ""]
    lines += [f"* {row(each)[0]}: {', '.join(each.beyond)}" for each in beyond]
    return "\n".join([*lines, "", *more]).rstrip() + "\n"


def write(comparisons: Sequence[Comparison], folder: Path, more: Sequence[str] = ()) -> Path:
    """Write the report."""
    path = folder / "traffic.md"
    path.write_text(as_markdown(comparisons, more), encoding="utf-8")
    return path
