"""The memory that this process takes, on Linux."""

from __future__ import annotations

from pathlib import Path


def process_status(name: str) -> int:
    """Read a field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
