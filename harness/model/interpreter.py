"""What Triton's interpreter lacks to run the kernels of other libraries as a GPU does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from twinloss.harness.model.device import start_interpreter
from twinloss.harness.model.operand import Array

# The functions of libdevice, NVIDIA's library of functions for GPUs; the interpreter returns None for each of them.
LIBDEVICE: dict[str, Callable[[Array], Array]] = {"rsqrt": lambda x: 1 / np.sqrt(x), "tanh": np.tanh}


@contextmanager
def completed() -> Iterator[None]:
    """Start Triton's interpreter, and pass numbers to kernels and call libdevice there as a launch on a GPU does.

    A launch passes a Python float as a float32, which the interpreter leaves as it is. Modules that import functions of
    libdevice must be imported within this context.

    Raises:
        DeviceError: if Triton is missing, or runs without its interpreter.
    """
    start_interpreter()
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt  # noqa: SLF001  # it has no public form
    handle = interpreter.TensorHandle

    def argument(given: Any) -> Any:
        if isinstance(given, float):
            return tl.tensor(handle(np.array([given], np.float32), tl.float32), tl.float32)
        return convert(given)

    def elementwise(function: Callable[[Array], Array]) -> Callable[[Any], Any]:
        return lambda x: tl.tensor(handle(function(x.handle.data), x.handle.dtype), x.type)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(interpreter, "_implicit_cvt", argument))
        for name, function in LIBDEVICE.items():
            patches.enter_context(mock.patch.object(libdevice, name, elementwise(function)))
        patches.enter_context(np.errstate(all="ignore"))  # NumPy warns of a division by 0, as no GPU does
        yield
