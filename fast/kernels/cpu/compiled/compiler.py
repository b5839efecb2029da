"""Numba kernels: one fused pass over the voxels, forward or backward. Nothing else lives here."""

import hashlib
import warnings
from pathlib import Path

from numba import njit

from twinloss.fast.kernels import statistic_rows

# Numba's cache on disk knows only the file that a kernel itself stands in; a kernel that closes over this constant is
# compiled anew when any of its stages has changed, or the rows of the statistics.
SOURCES = hashlib.sha256(
    b"".join(
        path.read_bytes() for path in [*sorted(Path(__file__).parent.rglob("*.py")), Path(statistic_rows.__file__)]
    )
).hexdigest()


def _can_cache() -> bool:
    """Whether there is a place for compiled code: beside the kernels, in the user's cache, or in NUMBA_CACHE_DIR."""
    try:
        njit(cache=True)(_can_cache)
    except RuntimeError:
        warnings.warn(
            "no place to keep compiled kernels: each process compiles anew, some seconds for each loss. "
            "Point NUMBA_CACHE_DIR to a folder that can be written to, and run `twinloss warmup` once",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


# What makes a function a kernel: compiled at the first call, kept on disk, and run without the GIL.
kernel = njit(cache=_can_cache(), nogil=True)
