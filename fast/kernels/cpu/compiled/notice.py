"""A notice in the terminal that kernels are being compiled, so that nobody takes the first call for a hang."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# If this environment variable is set, there is no notice.
QUIET = "TWINLOSS_QUIET"
# The time after which a compilation is announced, in seconds.
_PATIENCE = 1.0

_given = False


@contextmanager
def announced() -> Iterator[None]:
    """Announce the compilation in this context, if it takes more than a second; only once in a process.

    There is no notice in a file or a pipe.
    """
    if _given or os.environ.get(QUIET) or not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(_PATIENCE, _announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _announce() -> None:
    global _given
    if not _given:
        _given = True
        print(
            "compiling twinloss kernels, once per machine; `twinloss warmup` compiles all of them in advance "
            f"(set {QUIET}=1 to hide this)",
            file=sys.stderr,
            flush=True,
        )
