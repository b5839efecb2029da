"""Functions of torch.nn.functional as pairs, each with a reference that is written from its documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.nn import functional

from twinloss.harness.judging import pair_laws as laws
from twinloss.harness.model.operand import Array
from twinloss.harness.model.pair import Pair, arrays

REDUCTION = {"reduction": ("mean", "sum", "none")}


def _reduced(values: Array, reduction: str) -> Array:
    made: Array = values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()
    return made


def log_softmax(x: Array) -> Array:
    """Return x - log sum exp x over axis 1."""
    z = x - np.max(x, 1, keepdims=True)
    made: Array = z - np.log(np.exp(z).sum(1, keepdims=True))
    return made


def cross_entropy(
    x: Array, labels: Array, *, reduction: str = "mean", label_smoothing: float = 0.0, ignore_index: int = -100
) -> Array:
    """Return the cross entropy of labels; the mean is over those that are not ignored."""
    log_p, kept = log_softmax(x), labels != ignore_index
    hit = np.take_along_axis(log_p, np.where(kept, labels, 0)[:, None], 1)[:, 0]
    each = -np.where(kept, (1 - label_smoothing) * hit + label_smoothing * log_p.mean(1), 0)
    made: Array = each.sum() / kept.sum() if reduction == "mean" else _reduced(each, reduction)
    return made


def layer_norm(x: Array, w: Array, b: Array, *, eps: float = 1e-5) -> Array:
    """Normalise the last axis by its mean and variance."""
    centred = x - x.mean(-1, keepdims=True)
    made: Array = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * w + b
    return made


def fast_layer_norm(x: Any, w: Any, b: Any, eps: float = 1e-5) -> Any:
    """Call torch's layer_norm for the last axis."""
    return functional.layer_norm(x, x.shape[-1:], w, b, eps)


def group_norm(x: Array, w: Array, b: Array, *, groups: int = 1, eps: float = 1e-5) -> Array:
    """Normalise each group of channels by its mean and variance."""
    g = x.reshape(len(x), groups, -1)
    centred = g - g.mean(-1, keepdims=True)
    y = (centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)).reshape(x.shape)
    made: Array = y * w[:, None] + b[:, None]
    return made


def fast_group_norm(x: Any, w: Any, b: Any, groups: int = 1, eps: float = 1e-5) -> Any:
    """Call torch's group_norm, which takes the number of groups second."""
    return functional.group_norm(x, groups, w, b, eps)


def smooth_l1(x: Array, y: Array, *, beta: float = 1.0, reduction: str = "mean") -> Array:
    """Return |d| - beta / 2, or d^2 / (2 beta) where |d| < beta."""
    d = np.abs(x - y)
    return _reduced(np.where(d < beta, d * d / (2 * beta), d - beta / 2), reduction)


def huber(x: Array, y: Array, *, delta: float = 1.0, reduction: str = "mean") -> Array:
    """Return delta (|d| - delta / 2), or d^2 / 2 where |d| <= delta."""
    d = np.abs(x - y)
    return _reduced(np.where(d <= delta, d * d / 2, delta * (d - delta / 2)), reduction)


def bce_with_logits(x: Array, y: Array, *, reduction: str = "mean") -> Array:
    """Return log(1 + exp(x)) - x y."""
    return _reduced(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))) - x * y, reduction)


def kl_div(x: Array, y: Array, *, reduction: str = "sum") -> Array:
    """Return y (log y - x), which is 0 for y = 0."""
    positive = np.where(y > 0, y, 1)
    return _reduced(np.where(y > 0, positive * (np.log(positive) - x), 0), reduction)


def cosine_similarity(x: Array, y: Array, *, eps: float = 1e-8) -> Array:
    """Return x.y / (max(|x|, eps) max(|y|, eps)) over axis 1."""
    norms = [np.maximum(np.sqrt((v * v).sum(1)), eps) for v in (x, y)]
    made: Array = (x * y).sum(1) / (norms[0] * norms[1])
    return made


def avg_pool1d(x: Array, *, kernel_size: int = 2) -> Array:
    """Return the means of disjoint windows."""
    count = x.shape[-1] // kernel_size
    made: Array = x[..., : count * kernel_size].reshape(*x.shape[:-1], count, kernel_size).mean(-1)
    return made


def interpolate(x: Array, *, size: int = 5, align_corners: bool = False) -> Array:
    """Interpolate the last axis linearly."""
    n = x.shape[-1]
    real = x.real.dtype.type
    at = np.arange(size).astype(real)
    if align_corners:
        at = at * (real(n - 1) / max(size - 1, 1))
    else:
        at = np.clip((at + real(0.5)) * (real(n) / size) - real(0.5), 0, None)
    low = np.minimum(np.floor(at).astype(int), n - 1)
    high = np.minimum(low + 1, n - 1)
    share = at - low
    made: Array = x[..., low] * (1 - share) + x[..., high] * share
    return made


def fast_interpolate(x: Any, size: int = 5, align_corners: bool = False) -> Any:
    """Call torch's interpolate with its linear mode."""
    return functional.interpolate(x, size=size, mode="linear", align_corners=align_corners)


def grid_sample(x: Array, grid: Array, *, align_corners: bool = False) -> Array:
    """Sample images (B, C, H, W) bilinearly at the points (B, N, M, 2), given as (x, y) in [-1, 1]; 0 outside."""
    batch, _, height, width = x.shape
    at = [
        (grid[..., k] + 1) / 2 * (n - 1) if align_corners else ((grid[..., k] + 1) * n - 1) / 2
        for k, n in ((0, width), (1, height))
    ]
    corners = [np.floor(a) for a in at]
    b = np.arange(batch)[:, None, None]
    total = np.zeros_like(x, shape=(batch, x.shape[1], *grid.shape[1:3]))
    for dx in (0, 1):
        for dy in (0, 1):
            i, j = (corners[0].real + dx).astype(int), (corners[1].real + dy).astype(int)
            inside = (i >= 0) & (i < width) & (j >= 0) & (j < height)
            weight = (1 - np.abs(at[0] - i)) * (1 - np.abs(at[1] - j)) * inside
            found = x[b, :, np.clip(j, 0, height - 1), np.clip(i, 0, width - 1)]
            total = total + np.moveaxis(found, -1, 1) * weight[:, None]
    return total


def fast_grid_sample(x: Any, grid: Any, align_corners: bool = False) -> Any:
    """Call torch's grid_sample with its defaults."""
    return functional.grid_sample(x, grid, align_corners=align_corners)


_AFFINE = {"w": arrays("C"), "b": arrays("C")}
_TWO = {"x": arrays("N D"), "y": arrays("N D")}

PAIRS = (
    Pair("log_softmax", functional.log_softmax, lambda x, *, dim: log_softmax(x), {"x": arrays("N C", logits=True)},
         wrt="x", options={"dim": (1,)}, laws=[laws.permutes("N")], blocks="N"),
    Pair("cross_entropy", functional.cross_entropy, cross_entropy,
         {"x": arrays("N C", logits=True), "labels": arrays("N", "int64", below="C", also=(-100,))}, wrt="x",
         options={**REDUCTION, "label_smoothing": (0.0, 0.125)}, blocks="N"),
    Pair("binary_cross_entropy_with_logits", functional.binary_cross_entropy_with_logits, bce_with_logits,
         {"x": arrays("N D", logits=True), "y": arrays("N D", low=0, high=1)}, wrt=("x", "y"), options=REDUCTION),
    Pair("kl_div", functional.kl_div, kl_div, {"x": arrays("N D"), "y": arrays("N D", low=0, high=1)}, wrt="x",
         options={"reduction": ("sum", "none")}),
    Pair("smooth_l1_loss", functional.smooth_l1_loss, smooth_l1, _TWO, wrt=("x", "y"),
         options={"beta": (1.0, 0.25), **REDUCTION}),
    Pair("huber_loss", functional.huber_loss, huber, _TWO, wrt=("x", "y"), options={"delta": (1.0, 0.25), **REDUCTION}),
    Pair("cosine_similarity", functional.cosine_similarity, cosine_similarity, _TWO, wrt=("x", "y"),
         options={"eps": (1e-8, 0.5)}, blocks="N"),
    Pair("layer_norm", fast_layer_norm, layer_norm, {"x": arrays("... C"), **_AFFINE}, wrt=("x", "w", "b"),
         options={"eps": (1e-5, 1.0)}, sizes={"C": (3, 2, 5, 67)}),
    Pair("group_norm", fast_group_norm, group_norm, {"x": arrays("B C N"), **_AFFINE}, wrt=("x", "w", "b"),
         options={"groups": (1, 2), "eps": (1e-5, 1.0)}, sizes={"C": (2, 4, 6)}, laws=[laws.permutes("B")],
         domain=lambda case: case["C"] // case["groups"] * case["N"] > 1),
    Pair("avg_pool1d", functional.avg_pool1d, avg_pool1d, {"x": arrays("B C N")}, wrt="x",
         options={"kernel_size": (2, 1, 3)}, domain=lambda case: case["N"] >= case["kernel_size"],
         laws=[laws.linear("x")]),
    Pair("interpolate", fast_interpolate, interpolate, {"x": arrays("B C N")}, wrt="x",
         options={"size": (5, 1, 3, 12), "align_corners": (False, True)}, laws=[laws.permutes("C")]),
    Pair("grid_sample", fast_grid_sample, grid_sample,
         {"x": arrays("B C H W"), "grid": arrays("B N M 2", low=-1.5, high=1.5)}, wrt=("x", "grid"),
         options={"align_corners": (False, True)}),
)  # fmt: skip
