"""Reports of Numba's compilation: which kernel, for which type, as it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

KERNELS = "twinloss.fast.kernels.cpu.compiled."


def listener(report: Callable[[str], None]) -> Any:
    """Return a listener for Numba's event "numba:compile" that names each kernel as its compilation begins.

    A kernel that is read from Numba's cache is not compiled, and not named.
    """
    from numba.core import event

    class Compilations(event.Listener):
        depth = 0

        def on_start(self, event: Any) -> None:
            """A kernel begins, or a function that is compiled as a part of it."""
            function = event.data["dispatcher"].py_func
            if self.depth == 0 and function.__module__.startswith(KERNELS):
                report(described(function, event.data["args"]))
            self.depth += 1

        def on_end(self, event: Any) -> None:
            """It is done."""
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
    """Name a kernel and the type of its first array, as in "voxel.forward_labels (float32)"."""
    module = function.__module__.removeprefix(KERNELS)
    types = [str(argument.dtype) for argument in arguments if hasattr(argument, "dtype")]
    return f"{module}.{function.__name__}" + (f" ({types[0]})" if types else "")
