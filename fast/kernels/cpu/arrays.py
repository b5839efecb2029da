"""Tensors as arrays for kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as a contiguous array.

    To reshape it, use NumPy: on a small input, a view of torch takes as long as a kernel.
    """
    array: Array = (tensor if tensor.is_contiguous() else tensor.contiguous()).numpy(force=True)
    return array
