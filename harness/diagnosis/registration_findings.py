"""Findings for a batch of a registration loss: contrast, intensities, components of a field."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twinloss.harness.diagnosis.batch import Batch, extremes
from twinloss.harness.diagnosis.segmentation_findings import items


def of_registration(batch: Batch) -> Iterator[str]:
    """Check images or a field."""
    if "target" not in batch.arrays:
        yield from _field(batch)
        return
    for name, values in batch.arrays.items():
        by_channel = "num_bins" not in batch.twin.options
        flat = [b for b, item in enumerate(values) if any(_is_flat(c) for c in (item if by_channel else [item]))]
        if flat:
            yield (
                f"{name} is constant in {items(flat)}: without contrast there is nothing to match, and no gradient. "
                "Check how it is cropped, windowed and normalised, and leave out patches that hold only air."
            )
    if "num_bins" in batch.twin.options:
        yield from _gaussian_bins(batch) if batch.option("kernel_type") == "gaussian" else _gradient_of_target(batch)


def _is_flat(values: np.ndarray) -> bool:
    low, high = extremes(values[np.newaxis])
    return low == high


def _field(batch: Batch) -> Iterator[str]:
    rank, components = batch.input.ndim - 2, batch.classes
    if components != rank:
        yield (
            f"A displacement field with {rank} spatial axes has {rank} components, but pred has shape "
            f"{batch.input.shape}, with {components} components. The loss takes (batch, components, *spatial)."
        )
    low, high = batch.range
    if low == high:
        yield (
            f"The field is constant ({low:g}): its energy and its gradient are 0. This is right at the start of "
            "training; later it means that the network does not learn, or that its last layer returns 0."
        )


def _gaussian_bins(batch: Batch) -> Iterator[str]:
    for name, values in batch.arrays.items():
        low, high = extremes(values)
        if low < 0 or high > 1:
            outside = int(sum(((item < 0) | (item > 1)).sum() for item in values))
            yield (
                f"The intensities of {name} range from {low:.4g} to {high:.4g}. The gaussian kernel clamps those "
                f"outside [0, 1] ({outside / values.size:.1%} of the voxels), so they get no gradient. Scale them by "
                "(x - x.min()) / (x.max() - x.min()), or pass kernel_type='b-spline', which takes any range."
            )
        elif low < high and (bins := (high - low) * (batch.option("num_bins") - 1)) < 2:
            yield (
                f"The intensities of {name} range from {low:.4g} to {high:.4g} and cover only {bins:.2g} bins of "
                f"{batch.option('num_bins')}, so there is almost no information and no gradient. Scale them to [0, 1] "
                "by (x - x.min()) / (x.max() - x.min()), or pass kernel_type='b-spline'."
            )


def _gradient_of_target(batch: Batch) -> Iterator[str]:
    if "target" in batch.asking and "pred" not in batch.asking:
        yield (
            "Only target has requires_grad, but with kernel_type='b-spline' only pred has a gradient: that of "
            "target is exactly 0. Pass the moving, warped image first: loss(warped, fixed)."
        )
