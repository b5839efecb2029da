"""Losses of torchvision as pairs, each with a reference that is written from the paper that it cites."""

from __future__ import annotations

import numpy as np
from torchvision import ops

from twinloss.harness.commands.pairs_of_torch import bce_with_logits, reduced
from twinloss.harness.model.operand import Array
from twinloss.harness.model.pair import Pair, arrays


def focal(x: Array, y: Array, *, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none") -> Array:
    """Return alpha_t (1 - p_t)^gamma times the cross entropy (Lin et al. 2017)."""
    e = np.exp(-np.abs(x))
    p, q = np.where(x > 0, 1, e) / (1 + e), np.where(x > 0, e, 1) / (1 + e)
    each = bce_with_logits(x, y, reduction="none") * (q * y + p * (1 - y)) ** gamma
    return reduced(each * (alpha * y + (1 - alpha) * (1 - y)) if alpha >= 0 else each, reduction)


def _overlap(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the areas of the intersections and of the unions of boxes (x1, y1, x2, y2)."""
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    areas = [(c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b)]
    common = sides[:, 0] * sides[:, 1]
    return common, areas[0] + areas[1] - common


def _hull(a: Array, b: Array) -> Array:
    """Return the sides of the smallest boxes that hold both."""
    made: Array = np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])
    return made


def giou(a: Array, b: Array, *, reduction: str = "none", eps: float = 1e-7) -> Array:
    """Return 1 - I / U + (H - U) / H, where H is the area of the hull (Rezatofighi et al. 2019)."""
    common, union = _overlap(a, b)
    sides = _hull(a, b)
    hull = sides[:, 0] * sides[:, 1]
    return reduced(1 - common / (union + eps) + (hull - union) / (hull + eps), reduction)


def diou(a: Array, b: Array, *, reduction: str = "none", eps: float = 1e-7) -> Array:
    """Return 1 - I / U + d^2 / c^2: the distance of the centres, and the diagonal of the hull (Zheng et al. 2020)."""
    common, union = _overlap(a, b)
    apart = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2) ** 2
    return reduced(1 - common / (union + eps) + apart.sum(1) / ((_hull(a, b) ** 2).sum(1) + eps), reduction)


def _boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    low = rng.integers(-4, 5, (shape[0], 2)) / 2
    return np.concatenate([low, low + rng.integers(1, 9, (shape[0], 2)) / 4 + rng.random((shape[0], 2))], 1)


_ORDER = {"reduction": ("none", "mean", "sum")}
_BOXES = {"a": arrays("N 4", make=_boxes), "b": arrays("N 4", make=_boxes)}

PAIRS = (
    Pair("sigmoid_focal_loss", ops.sigmoid_focal_loss, focal,
         {"x": arrays("N D", logits=True), "y": arrays("N D", low=0, high=1)}, wrt=("x", "y"),
         options={"alpha": (0.25, -1.0, 0.75), "gamma": (2.0, 0.0, 1.5), **_ORDER}),
    Pair("generalized_box_iou_loss", ops.generalized_box_iou_loss, giou, _BOXES, wrt=("a", "b"),
         options={**_ORDER, "eps": (1e-7, 0.5)}),
    Pair("distance_box_iou_loss", ops.distance_box_iou_loss, diou, _BOXES, wrt=("a", "b"),
         options={**_ORDER, "eps": (1e-7, 0.5)}),
)  # fmt: skip
