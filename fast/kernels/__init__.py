"""The kernels: implementations of the statistics, one set for each type of device.

`contract/` defines the interface of a set. Importing a set here registers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twinloss.fast.kernels import cpu, gpu


@contextmanager
def gpu_kernels_on_cpu() -> Iterator[None]:
    """Within a block, let the kernels for GPUs serve tensors on the CPU: in Triton's interpreter, or to record them."""
    gpu.register("cpu")
    try:
        yield
    finally:
        cpu.register()
