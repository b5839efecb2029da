"""Functions of Liger-Kernel as pairs, each with a reference from its documentation or the paper that this cites."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import Parameter, Signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinloss.harness.commands.pairs_of_torch import cross_entropy, group_norm, layer_norm, log_softmax, rms_norm
from twinloss.harness.model.operand import Array
from twinloss.harness.model.pair import ArraySpec, Pair, arrays


class Fast:
    """A function of liger_kernel.transformers.functional, which is imported when it is first called.

    It gets copies, since some of these functions replace their inputs by gradients to save memory, as documented.
    """

    __signature__: Signature

    def __init__(self, name: str, places: str = "", **fixed: Any) -> None:
        """Name the function, the parameters of its last inputs if they are not the next ones, and fixed options."""
        self.name, self.places, self.fixed = name, places.split(), fixed

    def copy(self, given: Tensor) -> Tensor:
        """Return a copy that keeps the layout."""
        return given.clone()

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        """Call the function with copies of the inputs."""
        function = getattr(import_module("liger_kernel.transformers.functional"), f"liger_{self.name}")
        copies = [self.copy(each) for each in inputs]
        count = len(copies) - len(self.places)
        return function(*copies[:count], **dict(zip(self.places, copies[count:], strict=True)), **self.fixed, **options)


class Contiguous(Fast):
    """A function that gets contiguous copies."""

    def copy(self, given: Tensor) -> Tensor:
        """Return a copy that is contiguous."""
        return given.clone(memory_format=torch.contiguous_format)


def of_rows(values: Array, reduction: str, labels: Array | None = None) -> Array:
    """Return rows that are not ignored, summed, averaged over all numbers ("mean") or over the rows ("batchmean")."""
    kept = np.ones(len(values), bool) if labels is None else labels != -100
    values = np.where(kept[:, None], values, 0)
    if reduction == "none":
        return values
    count = {"sum": 1, "batchmean": kept.sum(), "mean": kept.sum() * values.shape[1]}[reduction]
    made: Array = values.sum() / count
    return made


def cross_entropy_and_z(
    x: Array, labels: Array, *, lse_square_scale: float = 0.0, softcap: float | None = None, **options: Any
) -> Array:
    """Return the cross entropy plus lse_square_scale times the squared log of the sum of exponentials.

    `softcap` first replaces x by softcap tanh(x / softcap).
    """
    x = x if softcap is None else softcap * np.tanh(x / softcap)
    made = cross_entropy(x, labels, **options)
    if not lse_square_scale:
        return made
    kept = labels != -100
    each = np.where(kept, lse_square_scale * (x[:, 0] - log_softmax(x)[:, 0]) ** 2, 0)
    added: Array = {"none": each, "sum": each.sum()}.get(options["reduction"], each.sum() / kept.sum())
    return made + added


def weighted_cross_entropy(
    x: Array, w: Array, labels: Array, *, reduction: str = "mean", label_smoothing: float = 0.0
) -> Array:
    """Return the cross entropy with weights of classes, as torch documents it; the mean divides by their sum."""
    log_p, kept = log_softmax(x), labels != -100
    at = np.where(kept, labels, 0)
    of_label = np.where(kept, w[at], 0)
    hit = np.take_along_axis(log_p, at[:, None], 1)[:, 0]
    smooth = np.where(kept, (log_p * w).mean(1), 0)
    each = -(1 - label_smoothing) * of_label * hit - label_smoothing * smooth
    made: Array = each if reduction == "none" else each.sum() / (of_label.sum() if reduction == "mean" else 1)
    return made


def linear_cross_entropy(x: Array, w: Array, b: Array, labels: Array, **options: Any) -> Array:
    """Return the cross entropy of x w^T + b."""
    return cross_entropy_and_z(x @ w.T + b, labels, **options)


def kl_div(x: Array, y: Array, *, reduction: str = "mean", log_target: bool = False) -> Array:
    """Return y (log y - x), where y = 0 adds nothing; with log_target, y is a logarithm."""
    if log_target:
        return of_rows(np.exp(y) * (y - x), reduction)
    positive = np.where(y > 0, y, 1)
    return of_rows(np.where(y > 0, positive * (np.log(positive) - x), 0), reduction)


def linear_kl_div(
    x: Array, w: Array, y: Array, labels: Array, *, reduction: str = "batchmean", temperature: float = 1.0
) -> Array:
    """Return the divergence of y from softmax(x w^T / temperature)."""
    positive = np.where(y > 0, y, 1)
    each = np.where(y > 0, positive * (np.log(positive) - log_softmax(x @ w.T / temperature)), 0)
    return of_rows(each, reduction, labels)


def jsd(x: Array, y: Array, labels: Array, *, beta: float = 0.5) -> Array:
    """Return beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, for log Q = x and log P = y.

    For beta = 0 and 1, it is KL(P || Q) and KL(Q || P).
    """
    p, q = np.exp(y), np.exp(x)
    if beta in (0, 1):
        each = q * (x - y) if beta else p * (y - x)
    else:
        log_m = np.log(beta * p + (1 - beta) * q)
        each = beta * p * (y - log_m) + (1 - beta) * q * (x - log_m)
    return of_rows(each, "batchmean", labels)


def linear_jsd(
    x: Array, w: Array, y: Array, v: Array, labels: Array, *, jsd_beta: float = 0.5, temperature: float = 1.0
) -> Array:
    """Return the divergence of the softmax of x w^T and y v^T, both divided by the temperature."""
    student, teacher = (log_softmax(a @ b.T / temperature) for a, b in ((x, w), (y, v)))
    return jsd(student, teacher, labels, beta=jsd_beta)


def tvd(p: Array, q: Array, labels: Array, *, reduction: str = "mean") -> Array:
    """Return |p - q| / 2."""
    d = p - q
    return of_rows(np.where(d.real > 0, d, -d) / 2, reduction, labels)


def offset_rms_norm(x: Array, w: Array, *, eps: float, offset: float = 0.0) -> Array:
    """Divide by the root mean square, and multiply by offset + w."""
    return rms_norm(x, offset + w, eps=eps)


def modulated_rms_norm(x: Array, w: Array, scale: Array, shift: Array, *, eps: float, offset: float = 0.0) -> Array:
    """Return (1 + scale) RMSNorm(x) + shift."""
    return (1 + scale) * offset_rms_norm(x, w, eps=eps, offset=offset) + shift


def add_rms_norm(x: Array, r: Array, w: Array, *, eps: float, offset: float = 0.0) -> tuple[Array, Array]:
    """Return RMSNorm(x + r), and x + r."""
    return offset_rms_norm(x + r, w, eps=eps, offset=offset), x + r


def poly_norm(x: Array, w: Array, b: Array, *, eps: float = 1e-6) -> Array:
    """Return w0 norm(x^3) + w1 norm(x^2) + w2 norm(x) + b, where norm divides by the root mean square."""
    one = np.ones_like(w[:1])
    made: Array = sum((rms_norm(x**n, w[3 - n] * one, eps=eps) for n in (3, 2, 1)), b)
    return made


def softmax(x: Array) -> Array:
    """Return exp x, divided by its sum over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    made: Array = e / e.sum(-1, keepdims=True)
    return made


def sparsemax(x: Array) -> Array:
    """Return max(x - t, 0), with t such that the sum over the last axis is 1 (Martins & Astudillo 2016)."""
    z = -np.sort(-x, -1)
    count = np.arange(1, x.shape[-1] + 1)
    excess = z.cumsum(-1) - 1
    k = (count * z.real > excess.real).sum(-1, keepdims=True)
    t = np.take_along_axis(excess, k - 1, -1) / k
    made: Array = np.where((x - t).real > 0, x - t, 0)
    return made


def geglu(a: Array, b: Array) -> Array:
    """Return GELU(a) b, with GELU in its form with tanh (Hendrycks & Gimpel 2016)."""
    made: Array = a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))) * b
    return made


def swiglu(a: Array, b: Array) -> Array:
    """Return a sigmoid(a) b (Shazeer 2020)."""
    e = np.exp(np.where(a.real > 0, -a, a))
    made: Array = a * np.where(a.real > 0, 1, e) / (1 + e) * b
    return made


def relu_squared(x: Array) -> Array:
    """Return max(x, 0)^2."""
    made: Array = np.where(x.real > 0, x, 0) ** 2
    return made


def rope(q: Array, k: Array, c: Array, s: Array) -> tuple[Array, Array]:
    """Rotate the first half of the channels against the second by angles with these cosines and sines."""
    c, s = c[:, None], s[:, None]

    def rotated(x: Array) -> Array:
        made: Array = np.stack([x[..., 0, :] * c - x[..., 1, :] * s, x[..., 1, :] * c + x[..., 0, :] * s], -2)
        return made

    return rotated(q), rotated(k)


def fast_rope(q: Any, k: Any, c: Any, s: Any) -> Any:
    """Call rope, which takes both halves as one axis, and cosines and sines for both."""
    found = Fast("rope")(q.flatten(-2), k.flatten(-2), c.repeat(1, 1, 2), s.repeat(1, 1, 2))
    return tuple(each.unflatten(-1, (2, -1)) for each in found)


def attention_residual(v: Array, query: Array, w: Array, *, eps: float = 1e-6) -> Array:
    """Return the sum of the blocks v, weighted by the softmax over blocks of query . RMSNorm(v)."""
    scores = (rms_norm(v, w, eps=eps) * query).sum(-1)
    made: Array = (np.moveaxis(softmax(np.moveaxis(scores, 0, -1)), -1, 0)[..., None] * v).sum(0)
    return made


def mhc_pre(x: Array, h: Array) -> Array:
    """Return the sum over i of h_i x_i."""
    made: Array = (h[..., None] * x).sum(-2)
    return made


def mhc_post(x: Array, f: Array, h: Array, m: Array) -> Array:
    """Return the sum over i of m_oi x_i, plus h_o f."""
    made: Array = m @ x + h[..., None] * f[..., None, :]
    return made


def fast_group_norm(x: Any, w: Any, b: Any, groups: int = 1, eps: float = 1e-5) -> Any:
    """Call group_norm, which takes the numbers of channels and groups."""
    return Fast("group_norm")(x, w, b, num_channels=x.shape[1], num_groups=groups, eps=eps)


def _log_probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return log_softmax(2 * rng.normal(size=shape))


def _probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    made: Array = np.exp(_log_probabilities(rng, shape))
    return made


def _kept(case: Any) -> bool:
    """Return whether some label is not ignored: a mean over none is not documented."""
    return bool((case["labels"] != -100).any())


_LABELS = {"labels": arrays("N", "int64", below="C", also=(-100,))}
_LOGITS = {"x": arrays("N C", logits=True)}
_LOGS = {"x": arrays("N C", make=_log_probabilities), "y": arrays("N C", make=_log_probabilities)}
_SMALL = {"x": arrays("N D", low=-1, high=1), "w": arrays("C D", low=-0.25, high=0.25)}  # no sharp softmax
_ROWS = {"x": arrays("... D"), "w": arrays("D")}
_CLASSES = {"C": (3, 2, 5, 67)}
_ENTROPY = {"reduction": ("mean", "sum", "none"), "label_smoothing": (0.0, 0.125)}
_Z = {"lse_square_scale": (0.0, 0.25), "softcap": (None, 3.0)}
_LAYOUTS = {"": Fast, "_of_contiguous": Contiguous}
_OVER_ROWS = {"reduction": ("batchmean", "sum", "mean")}
_NORM = {"eps": (1e-5, 1.0), "offset": (0.0, 1.0)}
_GATES = {"a": arrays("... D", low=-6, high=6), "b": arrays("... D")}
_WHOLE: dict[str, Any] = {"in_place": False, "casting_mode": "gemma"}  # all in float32, as the formula reads


def _pair(name: str, fast: Any, reference: Any, inputs: Mapping[str, ArraySpec], **more: Any) -> Pair:
    """Return a pair of which a `Fast` has parameters for all inputs and options."""
    if isinstance(fast, Fast):
        names = (*inputs, *more.get("options", ()))
        fast.__signature__ = Signature([Parameter(each, Parameter.POSITIONAL_OR_KEYWORD) for each in names])
    return Pair(name, fast, reference, inputs, takes="torch", **more)


PAIRS = (
    *(
        _pair(f"cross_entropy{of}", fast("cross_entropy"), cross_entropy_and_z, {**_LOGITS, **_LABELS}, wrt="x",
              options={**_ENTROPY, **_Z}, blocks="N", domain=_kept, sizes=_CLASSES)
        for of, fast in _LAYOUTS.items()
    ),
    _pair("weighted_cross_entropy", Contiguous("cross_entropy", "weight target"), weighted_cross_entropy,
         {**_LOGITS, "w": arrays("C", low=0.25, high=4), **_LABELS}, wrt="x", options=_ENTROPY,
         domain=_kept, sizes=_CLASSES),
    _pair("fused_linear_cross_entropy", Fast("fused_linear_cross_entropy", "bias target"), linear_cross_entropy,
         {**_SMALL, "b": arrays("C", low=-2, high=2), **_LABELS}, wrt=("x", "w", "b"),
         options={**_ENTROPY, "reduction": ("mean", "sum"), **_Z}, domain=_kept, sizes=_CLASSES),
    _pair("kl_div", Fast("kl_div"), kl_div, {"x": arrays("N C"), "y": arrays("N C", low=0, high=1)}, wrt="x",
         options={"reduction": ("mean", "sum", "none", "batchmean"), "log_target": (False, True)}),
    *(
        _pair(f"fused_linear_kl_div{of}", fast("fused_linear_kl_div", "shift_labels"), linear_kl_div,
              {**_SMALL, "y": arrays("N C", make=_probabilities), **_LABELS}, wrt=("x", "w"),
              options={**_OVER_ROWS, "temperature": (1.0, 2.0)}, domain=_kept, sizes=_CLASSES)
        for of, fast in _LAYOUTS.items()
    ),
    _pair("jsd", Fast("jsd", "shift_labels"), jsd, {**_LOGS, **_LABELS}, wrt="x",
         options={"beta": (0.5, 0.0, 1.0)}, domain=_kept, sizes=_CLASSES),
    *(
        _pair(f"fused_linear_jsd{of}", fast("fused_linear_jsd", "shift_labels"), linear_jsd,
              {**_SMALL, "y": arrays("N E", low=-1, high=1), "v": arrays("C E", low=-0.25, high=0.25), **_LABELS},
              wrt=("x", "w"), options={"jsd_beta": (0.5, 0.125), "temperature": (1.0, 2.0)}, domain=_kept,
              sizes=_CLASSES)
        for of, fast in _LAYOUTS.items()
    ),
    _pair("tvd", Fast("tvd", "shift_labels"), tvd,
         {"p": arrays("N C", low=0, high=1), "q": arrays("N C", low=0, high=1), **_LABELS}, wrt="p",
         options={"reduction": ("mean", "sum", "batchmean", "none")}, domain=_kept),
    _pair("layer_norm", Fast("layer_norm"), layer_norm, {**_ROWS, "b": arrays("D")}, wrt=("x", "w", "b"),
         options={"eps": (1e-5, 1.0)}, sizes={"D": (3, 2, 5, 67)}),
    _pair("group_norm", fast_group_norm, group_norm, {"x": arrays("B C N"), "w": arrays("C"), "b": arrays("C")},
         wrt=("x", "w", "b"), options={"groups": (1, 2), "eps": (1e-5, 1.0)}, sizes={"C": (2, 4, 6)},
         domain=lambda case: case["C"] // case["groups"] * case["N"] > 1),
    _pair("rms_norm", Fast("rms_norm", **_WHOLE), offset_rms_norm, _ROWS, wrt=("x", "w"), options=_NORM),
    _pair("modulated_rms_norm", Fast("modulated_rms_norm", **_WHOLE), modulated_rms_norm,
         {**_ROWS, "scale": arrays("... D"), "shift": arrays("... D")}, wrt=("x", "w", "scale", "shift"),
         options=_NORM),
    _pair("fused_add_rms_norm", Fast("fused_add_rms_norm", **_WHOLE), add_rms_norm,
         {"x": arrays("... D"), "r": arrays("... D"), "w": arrays("D")}, wrt=("x", "r", "w"),
         options=_NORM),
    _pair("poly_norm", Fast("poly_norm", in_place=False), poly_norm,
         {"x": arrays("... D", low=-4, high=4), "w": arrays("3"), "b": arrays("")}, wrt=("x", "w", "b"),
         options={"eps": (1e-6, 1.0)}),
    _pair("softmax", Fast("softmax"), softmax, {"x": arrays("... D", logits=True)}, wrt="x"),
    _pair("sparsemax", Fast("sparsemax"), sparsemax, {"x": arrays("... D", low=-2, high=2)}, wrt="x"),
    _pair("geglu", Fast("geglu"), geglu, _GATES, wrt=("a", "b")),
    _pair("swiglu", Fast("swiglu"), swiglu, _GATES, wrt=("a", "b")),
    _pair("relu_squared", Fast("relu_squared"), relu_squared, {"x": arrays("... D")}, wrt="x"),
    _pair("rope", fast_rope, rope,
         {"q": arrays("B N T 2 H"), "k": arrays("B M T 2 H"), "c": arrays("B T H", low=-1, high=1),
          "s": arrays("B T H", low=-1, high=1)}, wrt=("q", "k")),
    _pair("attn_res", Fast("attn_res"), attention_residual,
         {"v": arrays("N B T D", low=-4, high=4), "query": arrays("D", low=-2, high=2),
          "w": arrays("D", low=-2, high=2)}, wrt=("v", "query", "w"),
         options={"eps": (1e-6, 1.0)}),
    _pair("mhc_pre", Fast("mhc_pre"), mhc_pre, {"x": arrays("B H C"), "h": arrays("B H")}, wrt=("x", "h"),
         sizes={"H": (4, 2)}),
    _pair("mhc_post_res", Fast("mhc_post_res"), mhc_post,
         {"x": arrays("B H C"), "f": arrays("B C"), "h": arrays("B H"), "m": arrays("B H H")},
         wrt=("x", "f", "h", "m"), sizes={"H": (4, 2)}),
)  # fmt: skip

# Functions that no pair runs, and why.
NOT_RUN = {
    "dyt": "its kernel is tuned for each shape when it is called, for which Triton needs a GPU",
    "fused_linear_scaled_cross_entropy_tp": "it needs several GPUs",
    **dict.fromkeys(
        ("fused_neighborhood_attention", "multi_token_attention", "qwen2vl_mrope", "mhc_coeffs"),
        "it runs in the interpreter, but has no reference here",
    ),
}

_SCALED = (
    "the value agrees, and so does the gradient if the upstream gradient is 1. Otherwise, the backward pass multiplies "
    "the gradients of input and weight by it in a kernel that takes their last stride for 1. They have the strides of "
    "input and weight: where these are transposed, it multiplies some numbers twice and others not at all. `{}` is the "
    "same function with contiguous arrays."
)

# What is known about functions that differ.
NOTES = {
    "cross_entropy":
        "the value agrees. If the last stride of the logits is not 1, as after a transposition, the gradient is the "
        "logits themselves. The forward pass then copies the logits, to which it writes the gradient; but the copy "
        "requires no gradient, and so the kernel is told to compute none. Liger's own code decides this before the "
        "kernel starts, so the interpreter has no part in it. `cross_entropy_of_contiguous` is the same function with "
        "contiguous logits.",
    "fused_linear_kl_div": _SCALED.format("fused_linear_kl_div_of_contiguous"),
    "fused_linear_jsd": _SCALED.format("fused_linear_jsd_of_contiguous"),
    "group_norm":
        "the formula is right, but digits are lost. The variance is the mean of the squares minus the square of the "
        "mean, in float32, which cancels where the mean is larger than the standard deviation.",
    "attn_res":
        "not a defect. All values are equal, so that the exact gradient of the query is 0. The terms that cancel are "
        "about 3 in size, and what remains is a roundoff of float32. The reference cancels exactly, and so the bound "
        "leaves no room for it.",
}  # fmt: skip
