"""Numba kernels: one fused pass over the voxels, forward or backward. Nothing else lives here."""

import hashlib
from pathlib import Path

# Numba's cache on disk knows only the file that a kernel itself stands in; a kernel that closes over this constant is
# compiled anew when any of its stages has changed.
SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
