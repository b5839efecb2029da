"""Functions of torch.nn.functional as pairs, each with a reference that is written from its documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from twinloss.harness.judging import pair_laws as laws
from twinloss.harness.model.operand import Array
from twinloss.harness.model.pair import Pair, arrays

REDUCTION = {"reduction": ("mean", "sum", "none")}


def reduced(values: Array, reduction: str) -> Array:
    """Return the values, or their sum or mean."""
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
    made: Array = each.sum() / kept.sum() if reduction == "mean" else reduced(each, reduction)
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
    return reduced(np.where(d < beta, d * d / (2 * beta), d - beta / 2), reduction)


def huber(x: Array, y: Array, *, delta: float = 1.0, reduction: str = "mean") -> Array:
    """Return delta (|d| - delta / 2), or d^2 / 2 where |d| <= delta."""
    d = np.abs(x - y)
    return reduced(np.where(d <= delta, d * d / 2, delta * (d - delta / 2)), reduction)


def bce_with_logits(x: Array, y: Array, *, reduction: str = "mean") -> Array:
    """Return log(1 + exp(x)) - x y."""
    return reduced(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))) - x * y, reduction)


def kl_div(x: Array, y: Array, *, reduction: str = "sum") -> Array:
    """Return y (log y - x), which is 0 for y = 0."""
    positive = np.where(y > 0, y, 1)
    return reduced(np.where(y > 0, positive * (np.log(positive) - x), 0), reduction)


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


def interpolate_2d(x: Array, *, scale: int = 2, align_corners: bool = False) -> Array:
    """Interpolate the last two axes linearly, one after the other."""
    for axis in (-1, -2):
        moved = interpolate(np.moveaxis(x, axis, -1), size=scale * x.shape[axis], align_corners=align_corners)
        x = np.moveaxis(moved, -1, axis)
    return x


def fast_interpolate_2d(x: Any, scale: int = 2, align_corners: bool = False) -> Any:
    """Call torch's interpolate with its bilinear mode."""
    return functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=align_corners)


def rms_norm(x: Array, w: Array, *, eps: float = 1e-5) -> Array:
    """Divide the last axis by its root mean square."""
    made: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w
    return made


def fast_rms_norm(x: Any, w: Any, eps: float = 1e-5) -> Any:
    """Call torch's rms_norm for the last axis."""
    return functional.rms_norm(x, x.shape[-1:], w, eps)


def attention(q: Array, k: Array, v: Array, *, is_causal: bool = False) -> Array:
    """Return softmax(q k^T / sqrt(d)) v; with is_causal, query i sees the keys up to i."""
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(_real(q).dtype.type(q.shape[-1]))
    seen = np.tril(np.ones(scores.shape[-2:], bool)) if is_causal else np.ones(scores.shape[-2:], bool)
    most = np.max(np.where(seen, _real(scores), -np.inf), -1, keepdims=True)
    weights = np.where(seen, np.exp(np.where(seen, scores - most, 0)), 0)
    made: Array = weights / weights.sum(-1, keepdims=True) @ v
    return made


def _real(values: Array) -> Array:
    """Return the real parts."""
    return np.asarray(values.real)


def gaussian_nll(x: Array, y: Array, var: Array, *, full: bool = False, eps: float = 1e-6) -> Array:
    """Return the mean of (log var + (x - y)^2 / var) / 2, where var is at least eps; full adds log(2 pi) / 2."""
    var = np.maximum(var, eps)
    each = (np.log(var) + (x - y) ** 2 / var) / 2
    constant = np.log(2 * np.arctan2(_real(x).dtype.type(0), _real(x).dtype.type(-1))) / 2 if full else 0
    return reduced(each + constant, "mean")


def fast_gaussian_nll(x: Any, y: Any, var: Any, full: bool = False, eps: float = 1e-6) -> Any:
    """Call torch's gaussian_nll_loss, which takes the variance third."""
    return functional.gaussian_nll_loss(x, y, var, full=full, eps=eps)


def poisson_nll(x: Array, y: Array, *, log_input: bool = True, reduction: str = "mean") -> Array:
    """Return exp(x) - y x, or x - y log(x + 1e-8) if x is not a logarithm."""
    return reduced(np.exp(x) - y * x if log_input else x - y * np.log(x + 1e-8), reduction)


def soft_margin(x: Array, y: Array, *, reduction: str = "mean") -> Array:
    """Return log(1 + exp(-y x))."""
    z = -y * x
    return reduced(np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), reduction)


def triplet_margin(a: Array, p: Array, n: Array, *, margin: float = 1.0, swap: bool = False) -> Array:
    """Return the mean of max(d(a, p) - d(a, n) + margin, 0) with d(x, y) = |x - y + 1e-6|."""
    near, far, other = (np.sqrt(((u - v + 1e-6) ** 2).sum(-1)) for u, v in ((a, p), (a, n), (p, n)))
    return reduced(np.maximum(near - (np.minimum(far, other) if swap else far) + margin, 0), "mean")


def fast_triplet_margin(a: Any, p: Any, n: Any, margin: float = 1.0, swap: bool = False) -> Any:
    """Call torch's triplet_margin_loss with its defaults."""
    return functional.triplet_margin_loss(a, p, n, margin=margin, swap=swap)


def ctc(log_p: Array, labels: Array, *, reduction: str = "sum") -> Array:
    """Return minus the log probability of the labels, with blanks (class 0) between them (Graves et al. 2006).

    `log_p` are log probabilities (T, B, C), and `labels` (B, S) of at least 1; all lengths are the full ones.
    """
    path = np.zeros((len(labels), 2 * labels.shape[1] + 1), int)
    path[:, 1::2] = labels
    skips = np.zeros(path.shape, bool)
    skips[:, 3::2] = labels[:, 1:] != labels[:, :-1]
    p = np.exp(np.take_along_axis(log_p, path[None], 2))
    nothing = 0 * p[0, :, :1]
    alpha, each = np.where(np.arange(path.shape[1]) < 2, p[0], 0), 0
    for t in range(1, len(p)):
        total = alpha.sum(1, keepdims=True)  # so that the probabilities of long inputs do not underflow
        alpha = alpha / total
        one, two = (np.concatenate([nothing] * k + [alpha], 1)[:, : path.shape[1]] for k in (1, 2))
        alpha, each = (alpha + one + np.where(skips, two, 0)) * p[t], each - np.log(total[:, 0])
    each = each - np.log(alpha[:, -2:].sum(1))
    made: Array = (each / labels.shape[1]).mean() if reduction == "mean" else reduced(each, reduction)
    return made


def fast_ctc(log_p: Any, labels: Any, reduction: str = "sum") -> Any:
    """Call torch's ctc_loss with full lengths."""
    sizes = (len(log_p), labels.shape[1])
    steps, length = (torch.full((len(labels),), n, dtype=torch.long, device=log_p.device) for n in sizes)
    return functional.ctc_loss(log_p, labels, steps, length, reduction=reduction)


def ctc_of_logits(x: Array, labels: Array, *, reduction: str = "sum") -> Array:
    """Return the loss of the log-softmax of logits; torch's gradient is right only if a log-softmax comes first."""
    return ctc(np.moveaxis(log_softmax(np.moveaxis(x, -1, 1)), 1, -1), labels, reduction=reduction)


def fast_ctc_of_logits(x: Any, labels: Any, reduction: str = "sum") -> Any:
    """Call torch's ctc_loss after a log-softmax."""
    return fast_ctc(functional.log_softmax(x, 2), labels, reduction)


def _log_probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    made: Array = np.moveaxis(log_softmax(np.moveaxis(3 * rng.normal(size=shape), -1, 1)), 1, -1)
    return made


_AFFINE = {"w": arrays("C"), "b": arrays("C")}
_CTC_REDUCTION = {"reduction": ("sum", "mean", "none")}
_CTC_SIZES = {"B": (2, 1, 5), "C": (3, 5), "S": (2, 1, 3), "T": (7, 9, 31)}
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
    Pair("interpolate_bilinear", fast_interpolate_2d, interpolate_2d, {"x": arrays("B C H W")}, wrt="x",
         options={"scale": (2, 1, 3), "align_corners": (False, True)}),
    Pair("rms_norm", fast_rms_norm, rms_norm, {"x": arrays("... C"), "w": arrays("C")}, wrt=("x", "w"),
         options={"eps": (1e-5, 1.0)}),
    Pair("scaled_dot_product_attention", functional.scaled_dot_product_attention, attention,
         {"q": arrays("B L D"), "k": arrays("B S D"), "v": arrays("B S D")}, wrt=("q", "k", "v"),
         options={"is_causal": (False, True)}, sizes={"D": (4, 1, 7)}),
    Pair("gaussian_nll_loss", fast_gaussian_nll, gaussian_nll,
         {**_TWO, "var": arrays("N D", low=0, high=4)}, wrt=("x", "y"),
         options={"full": (False, True), "eps": (1e-6, 0.5)}),
    Pair("poisson_nll_loss", functional.poisson_nll_loss, poisson_nll,
         {"x": arrays("N D", low=0, high=8), "y": arrays("N D", low=0, high=8)}, wrt=("x", "y"),
         options={"log_input": (True, False), **REDUCTION}),
    Pair("soft_margin_loss", functional.soft_margin_loss, soft_margin,
         {"x": arrays("N D", logits=True), "y": arrays("N D", make=lambda rng, shape: rng.choice([-1.0, 1.0], shape))},
         wrt="x", options=REDUCTION, domain=lambda case: bool((np.abs(case["y"]) == 1).all())),
    Pair("triplet_margin_loss", fast_triplet_margin, triplet_margin,
         {name: arrays("N D", low=-2, high=2) for name in ("a", "p", "n")}, wrt=("a", "p", "n"),
         options={"margin": (1.0, 0.25), "swap": (False, True)}),
    Pair("ctc_loss", fast_ctc, ctc,
         {"x": arrays("T B C", make=_log_probabilities), "labels": arrays("B S", "int64", low=1, high=2)}, wrt="x",
         options=_CTC_REDUCTION, sizes=_CTC_SIZES),
    Pair("ctc_loss_of_logits", fast_ctc_of_logits, ctc_of_logits,
         {"x": arrays("T B C", low=-4, high=4), "labels": arrays("B S", "int64", low=1, high=2)}, wrt="x",
         options=_CTC_REDUCTION, sizes=_CTC_SIZES),
)  # fmt: skip

# What is known about functions that differ: what the documentation says, and whether others have reported it.
NOTES = {
    "cosine_similarity":
        "the value agrees. The documented formula divides by max(|x|, eps). Where |x| < eps, this is a constant, but "
        "the gradient is that of a quotient by |x|.",
    "soft_margin_loss":
        "exp(-x y) overflows where the documented formula, log(1 + exp(-x y)), is about -x y.",
    "ctc_loss":
        "the value agrees. The gradient is not the derivative with respect to `log_probs`, but with respect to "
        "logits of which they are the log-softmax: for the sum, it is larger by exp(log_probs). So it is right "
        "where a log-softmax comes before the loss, as in nearly all use; see `ctc_loss_of_logits`. The "
        "documentation does not state this: `log_probs` are \"logarithmized probabilities (e.g. obtained with "
        "log_softmax)\", and its example takes the gradient with respect to detached ones. pytorch/pytorch#52241 and"
        " #181534 report it, and #190863 proposes to document it.",
}  # fmt: skip
