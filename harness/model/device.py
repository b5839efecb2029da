"""The device on which the fast twins run."""

from __future__ import annotations

import os
import random
import sys
from enum import Enum
from typing import Any

import torch


class Device(str, Enum):
    """A CPU, a GPU, or a CPU on which Triton's interpreter runs the kernels for GPUs."""

    cpu = "cpu"
    cuda = "cuda"
    interpreter = "interpreter"

    __str__ = str.__str__


_device = Device.cpu


class DeviceError(ValueError):
    """A device is unknown, or cannot be used here."""


def use(name: str) -> None:
    """Run all fast twins of this process on a device from now on.

    Raises:
        DeviceError: the device is unknown, there is no GPU, or Triton is missing or runs without its interpreter.
    """
    global _device
    if name == _device:
        return
    if name not in list(Device):
        raise DeviceError(f"device must be one of {', '.join(Device)}, got {name!r}")
    if name == Device.cuda and not torch.cuda.is_available():
        why = "torch sees no GPU" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise DeviceError(f"--device cuda needs a GPU and a torch that supports it, but {why}")
    from twinloss.fast.kernels import cpu, gpu

    if name == Device.interpreter:
        start_interpreter()
        gpu.register("cpu")
    else:
        cpu.register()
    _device = Device(name)


def name_of_device() -> str:
    """Return the name that `use` was called with."""
    return str(_device)


def current() -> torch.device:
    """Return the device of the tensors that the fast twins get."""
    return torch.device("cuda" if _device == Device.cuda else "cpu")


def start_interpreter() -> None:
    """Let Triton's interpreter run the kernels that are imported from now on, with the programs in any order.

    Raises:
        DeviceError: if Triton is missing, or runs without its interpreter.
    """
    # Triton reads the variable when it is imported: its functions are then interpreted for good.
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton
        from triton.runtime.interpreter import interpreter_builder
    except ImportError as error:
        raise DeviceError("--device interpreter needs Triton: pip install triton") from error
    if not triton.knobs.runtime.interpret:
        raise DeviceError("Triton was imported without its interpreter: set TRITON_INTERPRET=1 before Python starts")
    if not isinstance(interpreter_builder.set_grid_dim, _Shuffle):
        _Shuffle(interpreter_builder)


class _Shuffle:
    """Runs the programs of each launch in another order, as a GPU does, so that races show."""

    def __init__(self, builder: Any) -> None:
        self._set_dim, self._set_index = builder.set_grid_dim, builder.set_grid_idx
        self._random = random.Random(0)
        self._order: list[tuple[int, int, int]] = []
        builder.set_grid_dim, builder.set_grid_idx = self, self._start_program

    def __call__(self, *dim: int) -> None:
        """Start a launch with a grid of these dimensions."""
        x, y, z = dim
        self._order = [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]
        self._random.shuffle(self._order)
        self._set_dim(*dim)

    def _start_program(self, *_: int) -> None:
        self._set_index(*self._order.pop())
