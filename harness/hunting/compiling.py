"""Progress reports of Numba's compilation: the kernel and dtype, when its compilation begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

KERNELS = "twinloss.fast.kernels.cpu.compiled."


def listener(report: Callable[[str], None]) -> Any:
    """Return a listener for Numba's event "numba:compile" that reports each kernel when its compilation begins.

    A kernel that is read from Numba's cache is not compiled, so it is not reported.
    """
    from numba.core import event

    class Compilations(event.Listener):
        depth = 0

        def on_start(self, event: Any) -> None:
            """Report a kernel, but not the functions that are compiled as a part of it."""
            function = event.data["dispatcher"].py_func
            if self.depth == 0 and function.__module__.startswith(KERNELS):
                report(described(function, event.data["args"]))
            self.depth += 1

        def on_end(self, event: Any) -> None:
            """Note that a compilation has ended."""
            self.depth -= 1

    return Compilations()


def report_always(report: Callable[[str], None]) -> None:
    """Call `report` with the name of each kernel that this process compiles from now on."""
    from numba.core import event

    event.register("numba:compile", listener(report))  # type: ignore[no-untyped-call]


@contextmanager
def reported(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` with the name of each kernel that is compiled within the block."""
    from numba.core import event

    with event.install_listener("numba:compile", listener(report)):
        yield


def described(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """Return the name of a kernel and the dtype of its first array, as in "voxel.forward_labels (float32)"."""
    module = function.__module__.removeprefix(KERNELS)
    types = [str(argument.dtype) for argument in arguments if hasattr(argument, "dtype")]
    return f"{module}.{function.__name__}" + (f" ({types[0]})" if types else "")
