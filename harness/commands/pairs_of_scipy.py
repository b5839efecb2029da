"""Functions of scipy.ndimage as pairs, each with a reference that is written from its documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from twinloss.harness.model.operand import Array
from twinloss.harness.model.pair import Pair, arrays

MODES = ("reflect", "nearest", "mirror", "wrap", "constant")
PADDING = {"reflect": "symmetric", "nearest": "edge", "mirror": "reflect", "wrap": "wrap", "constant": "constant"}


def correlate(x: Array, weights: Array, mode: str) -> Array:
    """Correlate the last axis with weights, whose middle is their origin."""
    reach = len(weights) // 2
    pad = [(0, 0)] * (x.ndim - 1) + [(reach, len(weights) - 1 - reach)]
    padded = np.pad(x, pad, mode=PADDING[mode])  # type: ignore[call-overload]
    total = np.zeros_like(x)
    for k, weight in enumerate(weights):
        total = total + weight * padded[..., k : k + x.shape[-1]]
    return total


def gaussian_filter(x: Array, *, sigma: float = 1.0, mode: str = "reflect") -> Array:
    """Smooth both axes with exp(-k^2 / (2 sigma^2)), normalised, for |k| up to 4 sigma, rounded."""
    reach = int(4 * sigma + 0.5)
    k = np.arange(-reach, reach + 1).astype(x.dtype)
    weights = np.exp(-k * k / (2 * x.dtype.type(sigma) ** 2))
    weights = weights / weights.sum()
    return correlate(correlate(x.T, weights, mode).T, weights, mode)


def uniform_filter(x: Array, *, size: int = 3, mode: str = "reflect") -> Array:
    """Return means over windows in both axes; the middle of an even window is right of its centre."""
    weights = np.full(size, 1 / x.dtype.type(size))
    return correlate(correlate(x.T, weights, mode).T, weights, mode)


def laplace(x: Array, *, mode: str = "reflect") -> Array:
    """Return the sum of the second differences along both axes."""
    weights = np.array([1, -2, 1], x.dtype)
    return correlate(x.T, weights, mode).T + correlate(x, weights, mode)


def sobel(x: Array, *, mode: str = "reflect") -> Array:
    """Return differences along the last axis, smoothed along the other by (1, 2, 1)."""
    made: Array = correlate(correlate(x, np.array([-1, 0, 1], x.dtype), mode).T, np.array([1, 2, 1], x.dtype), mode).T
    return made


def distance_transform(mask: Array, *, spacing: float = 1.0) -> Array:
    """Return for each point its distance to the nearest point that is False; the first axis has the spacing."""
    at = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1) * np.array([np.longdouble(spacing), 1])
    zeros = at[~mask]
    squares = ((at[:, :, None] - zeros) ** 2).sum(-1)
    made: Array = np.where(mask, np.sqrt(squares.min(-1)), 0)
    return made


def fast_distance_transform(mask: Any, spacing: float = 1.0) -> Any:
    """Call scipy's Euclidean distance transform."""
    return ndimage.distance_transform_edt(mask, (spacing, 1.0))


def map_coordinates(x: Array, at: Array) -> Array:
    """Interpolate linearly at points (2, N); outside, the image is 0 beyond its last points."""
    low = np.floor(at).astype(int)
    inside = ((at >= 0) & (at <= np.array(x.shape)[:, None] - 1)).all(0)
    total = np.zeros_like(x, shape=at.shape[1])
    for di in (0, 1):
        for dj in (0, 1):
            i, j = low[0] + di, low[1] + dj
            weight = (1 - np.abs(at[0] - i)) * (1 - np.abs(at[1] - j)) * inside
            total = total + weight * x[np.clip(i, 0, x.shape[0] - 1), np.clip(j, 0, x.shape[1] - 1)]
    return total


def fast_map_coordinates(x: Any, at: Any) -> Any:
    """Call scipy's map_coordinates with linear splines."""
    return ndimage.map_coordinates(x, at, order=1, mode="constant")


def _has_a_zero(case: Any) -> bool:
    return not case["mask"].all()


_IMAGE = {"x": arrays("H W")}
_MODES = {"mode": MODES}
# Next to the border, the nearest number is the reflected one.
_SHORT = {"mode": tuple(mode for mode in MODES if mode != "nearest")}

PAIRS = (
    Pair("gaussian_filter", ndimage.gaussian_filter, gaussian_filter, _IMAGE, takes="numpy",
         options={"sigma": (1.0, 0.5, 2.25), **_MODES}),
    Pair("uniform_filter", ndimage.uniform_filter, uniform_filter, _IMAGE, takes="numpy",
         options={"size": (3, 2, 5), **_MODES}),
    Pair("laplace", ndimage.laplace, laplace, _IMAGE, takes="numpy", options=_SHORT),
    Pair("sobel", ndimage.sobel, sobel, _IMAGE, takes="numpy", options=_SHORT),
    Pair("distance_transform_edt", fast_distance_transform, distance_transform, {"mask": arrays("H W", "bool")},
         takes="numpy", options={"spacing": (1.0, 0.5, 3.0)}, domain=_has_a_zero,
         sizes={"H": (3, 1, 7), "W": (4, 2, 9)}),
    Pair("map_coordinates", fast_map_coordinates, map_coordinates,
         {"x": arrays("H W"), "at": arrays("2 N", low=-1, high=7)}, takes="numpy",
         sizes={"H": (4, 2, 7), "W": (5, 3, 6)}),
)  # fmt: skip
