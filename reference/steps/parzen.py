r"""Parzen windows: how much of a voxel falls into each bin of a histogram of intensities, and how that changes.

Voxel i lies at :math:`z_i` among the bins 0 … K - 1, and has the part :math:`w_{ik}` in bin k; its slope is
:math:`\dot w_{ik} = \partial w_{ik} / \partial z_i`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from twinloss.reference.steps.activation import Array

PADDING = 2  # bins beyond either end of the range: a cubic B-spline reaches so far
BLOCK = 2**13  # voxels whose weights of all bins are held at a time


@dataclass(frozen=True, kw_only=True)
class ParzenOptions:
    """The options of the histogram."""

    num_bins: int = 23  # K
    sigma_ratio: float = 0.5  # σ of the gaussian window, in bins
    kernel_type: str = "gaussian"  # or "b-spline"


def samples(p: Array, t: Array, o: ParzenOptions) -> Iterator[tuple[tuple[Array, Array], ...]]:
    """For blocks of voxels the weights in each bin and their slopes in z, (n, K) each, of both images."""
    of_p, of_t = (_gaussian, _gaussian) if o.kernel_type == "gaussian" else (_cubic, _box)
    positions = _position(p, o), _position(t.astype(p.dtype), o)
    k = np.arange(o.num_bins).astype(p.dtype)
    for start in range(0, p.size, BLOCK):
        zp, zt = (z[start : start + BLOCK, np.newaxis] for z in positions)
        yield of_p(zp, k, o), of_t(zt, k, o)


def _position(x: Array, o: ParzenOptions) -> Array:
    """Where intensities lie among the bins."""
    if o.kernel_type == "gaussian":
        return np.asarray(np.clip(x, 0, 1) * (o.num_bins - 1))
    low, high = x.min(), x.max()
    if low == high:
        return np.full_like(x, PADDING)
    return np.asarray(PADDING + (x - low) * (o.num_bins - 2 * PADDING) / (high - low))


def _gaussian(z: Array, k: Array, o: ParzenOptions) -> tuple[Array, Array]:
    exponent = -((z - k) ** 2) / (2 * z.dtype.type(o.sigma_ratio) ** 2)
    w = np.exp(exponent - exponent.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    # k less its mean, as a sum of differences: it may be all but 0.
    from_mean = w @ (k - k[:, np.newaxis])
    return w, w * from_mean / z.dtype.type(o.sigma_ratio) ** 2


def _cubic(z: Array, k: Array, o: ParzenOptions) -> tuple[Array, Array]:
    d = np.abs(k - z)
    six = z.dtype.type(6)
    w = np.where(d < 1, (4 - 6 * d**2 + 3 * d**3) / six, np.where(d < 2, (2 - d) ** 3 / six, 0 * d))
    slope = np.where(d < 1, (3 * d - 4) * d / 2, np.where(d < 2, -((2 - d) ** 2) / 2, 0 * d))  # in d
    return w, -np.sign(k - z) * slope


def _box(z: Array, k: Array, o: ParzenOptions) -> tuple[Array, Array]:
    w = (k == np.minimum(np.floor(z), o.num_bins - PADDING - 1)) + 0 * z  # of NaN all is NaN
    return np.asarray(w), np.zeros_like(w)
