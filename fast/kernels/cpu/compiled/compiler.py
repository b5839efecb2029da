"""Compilation of the kernels, and their cache on disk, which is valid until a source changes."""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

from numba import njit

from twinloss.fast.kernels import statistic_rows
from twinloss.fast.kernels.cpu.compiled.notice import announced


def hash_of(folder: Path) -> str:
    """Return the hash of all that a kernel may depend on: the sources in a folder, and the rows of the statistics."""
    paths = [*sorted(folder.rglob("*.py")), Path(statistic_rows.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


SOURCES = hash_of(Path(__file__).parent)


def _can_cache() -> bool:
    """Return whether Numba can store compiled code: beside the kernels, in the user's cache or in NUMBA_CACHE_DIR."""
    try:
        njit(cache=True)(_can_cache)
    except RuntimeError:
        warnings.warn(
            "compiled kernels cannot be kept on disk: each process compiles them again, which takes some seconds for "
            "each loss. Point NUMBA_CACHE_DIR to a folder that can be written to, and run `twinloss warmup` once",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


_compile = njit(cache=_can_cache(), nogil=True, no_cfunc_wrapper=True)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Suspend Python's garbage collector.

    Numba allocates millions of objects for a kernel, and keeps most of them until it has finished. The collector would
    visit them, and all objects of the program, again and again: a fifth of the time of a compilation.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, so that it runs without the GIL, and cache the result on disk.

    If this takes long, the terminal shows a notice.

    Numba's cache detects a change in the file of a kernel, but not in the stages that it calls from other files. The
    cache also distinguishes functions by their closure variables. Therefore each kernel closes over the hash of all
    sources, which it never reads.
    """
    closing = FunctionType(
        function.__code__.replace(co_freevars=("sources",)),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        (CellType(SOURCES),),
    )
    made = _compile(update_wrapper(closing, function))
    made.compile = announced()(_without_garbage_collection()(made.compile))
    return made
