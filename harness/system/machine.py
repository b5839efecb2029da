"""Descriptions of the machine and of the package versions, for reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from twinloss import __version__

PACKAGES = ("numpy", "scipy", "torch", "numba", "hypothesis")


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "platform": platform.platform()}


def load() -> float | None:
    """Return the load average of the last minute, or None if the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """Return the versions of Python, of this project, and of the packages that compute."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "twinloss": __version__, **found}
