r"""Parzen windows, which spread each voxel over the bins of a histogram of intensities.

Voxel i lies at the position :math:`z_i` among the bins 0 … K - 1 and adds the weight :math:`w_{ik}` to bin k. The slope
of the weight is :math:`\dot w_{ik} = \partial w_{ik} / \partial z_i`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from twinloss.reference.steps.activation import Array

PADDING = 2  # bins beyond each end of the range, which a cubic B-spline reaches
BLOCK = 2**13  # number of voxels whose weights are in memory at a time


@dataclass(frozen=True, kw_only=True)
class ParzenOptions:
    """Options of the histogram."""

    num_bins: int = 23  # K
    sigma_ratio: float = 0.5  # σ of the gaussian window, in bins
    kernel_type: str = "gaussian"  # or "b-spline"

    def __post_init__(self) -> None:
        """Refuse a histogram for which no memory would be enough."""
        if self.num_bins > 2**13:
            raise ValueError(f"num_bins must be at most {2**13}, got {self.num_bins}")


def weights_and_slopes(p: Array, t: Array, o: ParzenOptions) -> Iterator[tuple[tuple[Array, Array], ...]]:
    """For each block of n voxels, yield the weights w and their slopes, each (n, K), of p and of t."""
    of_p, of_t = (_gaussian, _gaussian) if o.kernel_type == "gaussian" else (_cubic, _box)
    positions = _position(p, o), _position(t.astype(p.dtype), o)
    k = np.arange(o.num_bins).astype(p.dtype)
    for start in range(0, p.size, BLOCK):
        zp, zt = (z[start : start + BLOCK, np.newaxis] for z in positions)
        yield of_p(zp, k, o), of_t(zt, k, o)


def _position(x: Array, o: ParzenOptions) -> Array:
    """Return the position z of each intensity among the bins."""
    if o.kernel_type == "gaussian":
        return np.asarray(np.clip(x, 0, 1) * (o.num_bins - 1))
    low, high = x.min(), x.max()
    if low == high:
        return np.full_like(x, PADDING)
    return np.asarray(PADDING + (x - low) * (o.num_bins - 2 * PADDING) / (high - low))


def _gaussian(z: Array, k: Array, o: ParzenOptions) -> tuple[Array, Array]:
    """Return the weights of a Gaussian window that sum to 1 over the bins, and their slopes."""
    square, sigma = (z - k) ** 2, z.dtype.type(o.sigma_ratio)
    # Divided by σ twice, because the square of a small σ is 0.
    w = np.exp((square.min(1, keepdims=True) - square) / 2 / sigma / sigma)
    w /= w.sum(1, keepdims=True)
    # k minus its mean, as a weighted sum of differences: this is accurate where the result is close to 0.
    from_mean = w @ (k - k[:, np.newaxis])
    return w, w * from_mean / sigma / sigma


def _cubic(z: Array, k: Array, o: ParzenOptions) -> tuple[Array, Array]:
    """Return the weights of a cubic B-spline, and their slopes."""
    d = np.abs(k - z)
    six = z.dtype.type(6)
    w = np.where(d < 1, (4 - 6 * d**2 + 3 * d**3) / six, np.where(d < 2, (2 - d) ** 3 / six, 0 * d))
    slope = np.where(d < 1, (3 * d - 4) * d / 2, np.where(d < 2, -((2 - d) ** 2) / 2, 0 * d))  # ∂w/∂d
    return w, -np.sign(k - z) * slope


def _box(z: Array, k: Array, o: ParzenOptions) -> tuple[Array, Array]:
    """Return the weights of a box, which count a voxel in its own bin only, and their slopes, which are 0."""
    w = (k == np.minimum(np.floor(z), o.num_bins - PADDING - 1)) + 0 * z  # + 0 z: NaN in all bins if z is NaN
    return np.asarray(w), np.zeros_like(w)
