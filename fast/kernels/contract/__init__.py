"""The interface between the engine and a set of kernels: the statistics, and the functions that kernels offer for each.

A set of kernels implements one or more of the protocols below and registers its implementations:

    VOXELS.register("cuda", (torch.float32,), load)

The losses then call them for such tensors; no loss has to change. Rules for all sets:

* Tensors are passed as the user has them: in any memory layout, with labels in any dtype. Results are tensors on the
  device of `x` that the caller may modify. A set must not read values if that synchronises the device.
* A value may keep any object for its gradient. The engine passes it back unchanged, or passes None if nothing was kept.
  A large object is kept in a `Once`, so that it does not live as long as the loss. The tensors that the gradient gets
  may be copies of those that the value got. After double backward, nothing is kept any more.
* Constants, such as weights of differences, are NumPy arrays or Python numbers.
* If numbers can be read (`runtime/checks.py`), invalid labels and masks raise `InvalidVoxelsError`, which need not say
  which voxel is wrong: the engine finds it. Otherwise, they make the statistics of the call NaN.
"""

from __future__ import annotations

from twinloss.fast.kernels.contract.fields import BENDING_ENERGY, DIFFUSION, Differences, EnergyKernels
from twinloss.fast.kernels.contract.images import (
    CORRELATION,
    HISTOGRAM,
    SMOOTHING,
    CorrelationKernels,
    CorrelationPlan,
    HistogramKernels,
    HistogramPlan,
    SmoothingKernels,
)
from twinloss.fast.kernels.contract.segmentation import (
    COMPOUND,
    VOXELS,
    ClassWeights,
    CompoundKernels,
    CompoundPlan,
    Distances,
    FractionPlan,
    InvalidVoxelsError,
    Plan,
    Terms,
    UpstreamSlopes,
    VoxelInputs,
    VoxelKernels,
    Weigh,
    flat,
    unweighted,
)
from twinloss.fast.kernels.statistic_rows import (
    DISTANCE,
    FN,
    FP,
    HITS,
    MISSES,
    NEARNESS,
    ROWS,
    TP,
    TP_LESS_FN,
    VOLUME,
)

__all__ = [
    "BENDING_ENERGY", "COMPOUND", "CORRELATION", "DIFFUSION", "DISTANCE", "FN", "FP", "HISTOGRAM", "HITS", "MISSES",
    "NEARNESS", "ROWS", "SMOOTHING", "TP", "TP_LESS_FN", "VOLUME", "VOXELS", "ClassWeights", "CompoundKernels",
    "CompoundPlan", "CorrelationKernels", "CorrelationPlan", "Differences", "Distances", "EnergyKernels",
    "FractionPlan", "HistogramKernels", "HistogramPlan", "InvalidVoxelsError", "Plan", "SmoothingKernels", "Terms",
    "UpstreamSlopes", "VoxelInputs", "VoxelKernels", "Weigh", "flat", "unweighted",
]  # fmt: skip
