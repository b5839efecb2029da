"""The grid on which a displacement field is sampled."""

from collections.abc import Sequence

import numpy as np


def voxel_sizes(spacing: Sequence[float] | None, rank: int, real: type[np.floating]) -> list[np.floating]:
    """Return the size of a voxel along each axis, 1 without ``spacing``."""
    if spacing is None:
        return [real(1)] * rank
    if not all(1e-50 <= size <= 1e50 for size in spacing):  # so that fourth powers neither overflow nor underflow
        raise ValueError(f"spacing must be positive, from 1e-50 to 1e50, got {spacing}")
    return [real(size) for size in spacing]
