"""Launches of Triton kernels, and what all launches share: the device, the type of sums, the number of programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs for each multiprocessor of the device: enough that some compute while others wait for memory.
_WAVES = 8

# The number of multiprocessors that is assumed where there is no GPU: that of an H100 or H200.
_PROCESSORS = 132

_TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.bool: "i1",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8",
    torch.uint16: "u16", torch.uint32: "u32", torch.uint64: "u64",
}  # fmt: skip


class Launch(NamedTuple):
    """A launch as a compiler sees it.

    Attributes:
        kernel: the function.
        types: the type of each argument by name, as Triton writes types, or "constexpr".
        constants: the value of each constexpr.
        aligned: the arguments that are multiples of 16, which lets the compiler load vectors.
        warps: the number of warps of a program.
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int


_recorded: dict[Launch, list[int]] | None = None


@contextmanager
def recorded() -> Iterator[dict[Launch, list[int]]]:
    """Record the launches of a block instead of running them, to compile them for a device that is not there.

    For each, the bytes of the tensors that it got are listed, once for every time that it was launched.
    """
    global _recorded
    before, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Run a kernel on the device of its first tensor.

    Args:
        kernel: a function that `triton.jit` has decorated.
        grid: the number of programs along up to three axes.
        arguments: tensors and numbers, in the order of the kernel's parameters.
        warps: the number of warps of a program.
        constants: the kernel's parameters that are `tl.constexpr`.
    """
    if _recorded is not None:
        tensors = {each.data_ptr(): each.nbytes for each in arguments if isinstance(each, Tensor)}
        _recorded.setdefault(_described(kernel, arguments, constants, warps), []).append(sum(tensors.values()))
        return
    with _on_device(arguments):
        # Without fused multiply-adds, a GPU rounds as the source says, and as the interpreter does.
        kernel[tuple(grid)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels, for which few large programs are faster."""
    return bool(triton.knobs.runtime.interpret) and _recorded is None


def processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _PROCESSORS


def warp_size(device: torch.device) -> int:
    """Return the number of threads of a warp of a device."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def share(count: int, block: int, device: torch.device) -> int:
    """Return how many of `count` elements a program takes, in whole blocks, so that all processors are busy.

    The result depends on the device, but not on its load, so that sums are the same from run to run.
    """
    if interpreted():
        return -(-count // (3 * block)) * block
    return max(-(-count // (processors(device) * _WAVES * block)), 1) * block


def real_type(dtype: torch.dtype) -> Any:
    """Return the type of arithmetic within a block: float64 for float64, and float32 for all others."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def index_type(extent: int) -> Any:
    """Return the type of numbers below an extent: int32 if it holds them, because a GPU adds it faster."""
    return tl.int32 if extent < 2**31 else tl.int64


def power_of_2(n: int) -> int:
    """Return the least power of 2 that is at least n."""
    return 1 << (n - 1).bit_length()


def _on_device(arguments: Sequence[Any]) -> AbstractContextManager[object]:
    """Return a context in which the device of the first tensor is the current one, for which Triton launches.

    On a CPU, Triton's interpreter computes with NumPy, which must not warn of NaN, as a GPU does not.
    """
    device = next(each.device for each in arguments if isinstance(each, Tensor))
    return torch.cuda.device(device) if device.type == "cuda" else np.errstate(all="ignore")


def _described(kernel: Any, arguments: Sequence[Any], constants: dict[str, Any], warps: int) -> Launch:
    types: dict[str, str] = {}
    aligned = []
    names = kernel.arg_names
    values = {**dict(zip(names, arguments, strict=False)), **constants}
    annotated = {name: str(kind) for name, kind in kernel.fn.__annotations__.items()}
    # Triton compiles a version for each number that is 1, and looks at the alignment of those that may have any.
    parameters = getattr(kernel, "params", ())  # the interpreter's functions have none
    unaligned = {each.name for each in parameters if each.do_not_specialize or each.do_not_specialize_on_alignment}
    one = {each.name for each in parameters if not each.do_not_specialize and not each.annotation}
    fixed: dict[str, Any] = {}
    for name in names:
        value = values[name]
        if value is None or name in constants or (name in one and type(value) is int and value == 1):
            types[name], fixed[name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[name] = f"*{_TYPES[value.dtype]}"
            if value.data_ptr() % 16 == 0:
                aligned.append(name)
        elif isinstance(value, int):
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in unaligned:
                aligned.append(name)
        else:
            types[name] = "fp64" if "64" in annotated.get(name, "") else "fp32"
    return Launch(kernel, tuple(types.items()), tuple(fixed.items()), tuple(aligned), warps)
