"""Tensors as arrays for kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


def total_of_parts(parts: Array) -> Array:
    """Return the sum over the first axis.

    The parts are added in pairs, always in the same order, so that rounding errors do not grow with their number. They
    are overwritten.
    """
    count = len(parts)
    while count > 1:
        half = count // 2
        parts[:half] += parts[count - half : count]
        count -= half
    total: Array = parts[0]
    return total


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as a contiguous array.

    To reshape it, use NumPy: on a small input, a view of torch takes as long as a kernel.
    """
    array: Array = (tensor if tensor.is_contiguous() else tensor.contiguous()).numpy(force=True)
    return array
