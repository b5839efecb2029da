"""Pairs of five kinds of kernels, each with right and wrong fast functions."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from twinloss.harness import Pair, arrays, laws


def rms_norm(x, w, *, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


def fast_rms_norm(x, w, eps=1e-6):
    return functional.rms_norm(x, x.shape[-1:], w, eps)


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * 0.5


def rms_norm_of_half_a_gradient(x, w, eps=1e-6):
    return fast_rms_norm(x, _Halved.apply(w), eps)


class RMSNorm(torch.nn.Module):
    def __init__(self, hidden, eps=1e-6):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x):
        return fast_rms_norm(x, self.weight, self.eps)


NORM = Pair(
    "rms_norm", fast=fast_rms_norm, reference=rms_norm,
    inputs={"x": arrays("B T H"), "w": arrays("H")}, wrt=("x", "w"), options={"eps": (1e-6, 1.0)},
    laws=[laws.permutes("B")], blocks="B",
)  # fmt: skip
NORM_MODULE = replace(NORM, fast=RMSNorm, names={"H": "hidden"}, state={"w": "weight"})


def cross_entropy(x, labels, *, reduction="mean", ignore_index=-100):
    z = x - np.max(x, 1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    kept = labels != ignore_index
    each = np.where(kept, -log_p[np.arange(len(x)), np.where(kept, labels, 0)], 0)
    return each if reduction == "none" else each.sum() if reduction == "sum" else each.sum() / kept.sum()


def cross_entropy_over_all(x, labels, reduction="mean", ignore_index=-100):
    each = functional.cross_entropy(x, labels, reduction="none", ignore_index=ignore_index)
    return each if reduction == "none" else each.sum() if reduction == "sum" else each.mean()


LOSS = Pair(
    "cross_entropy", fast=functional.cross_entropy, reference=cross_entropy,
    inputs={"x": arrays("N C", logits=True), "labels": arrays("N", "int64", below="C", also=(-100,))}, wrt="x",
    options={"reduction": ("mean", "sum", "none")}, blocks="N",
    laws=[laws.permutes("N", reduction="none")],
)  # fmt: skip


def laplacian(x):
    p = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4 * x


def laplacian_gradient(x, *, cotangent):
    total = -4 * cotangent
    for axis in (1, 2):
        for step in (1, -1):
            source = np.clip(np.arange(x.shape[axis]) + step, 0, x.shape[axis] - 1)
            moved = np.moveaxis(np.zeros_like(cotangent), axis, 0)
            np.add.at(moved, source, np.moveaxis(cotangent, axis, 0))
            total = total + np.moveaxis(moved, 0, axis)
    return total


def fast_laplacian(x, out):
    """Write into `out`, as compiled kernels do."""
    rows = np.concatenate([x[:, :1], x, x[:, -1:]], 1)
    columns = np.concatenate([x[:, :, :1], x, x[:, :, -1:]], 2)
    out[...] = rows[:, 2:] + rows[:, :-2] + columns[:, :, 2:] + columns[:, :, :-2] - 4 * x


def laplacian_without_last_row(x, out):
    fast_laplacian(x, out)
    if x.shape[1] > 1:
        out[:, -1] += x[:, -1] - x[:, -2]


STENCIL = Pair(
    "laplacian", fast=fast_laplacian, reference=laplacian, gradient=laplacian_gradient,
    fast_gradient=laplacian_gradient, inputs={"x": arrays("B H W")}, wrt="x", writes="out",
    takes="numpy",    laws=[laws.linear("x"), laws.scales("x")],
)  # fmt: skip


def histogram(x, *, bins=4):
    counts = np.zeros(bins, np.int64)
    for value in x.ravel():
        counts[min(int(value * bins), bins - 1)] += 1
    return counts


def fast_histogram(x, bins=4):
    return (x * bins).long().clamp(max=bins - 1).flatten().bincount(minlength=bins)


def histogram_without_upper_end(x, bins=4):
    k = (x * bins).long().flatten()
    return k[k < bins].bincount(minlength=bins)


HISTOGRAM = Pair(
    "histogram", fast=fast_histogram, reference=histogram, inputs={"x": arrays("N M", low=0, high=1)},
    options={"bins": (4, 1, 8)}, sizes={"N": (3, 1, 0, 7)}, laws=[laws.permutes("N")],
)  # fmt: skip


def scan(x, a):
    """Return the states h_t = a h_{t-1} + x_t, and the last one."""
    states = np.zeros_like(x)
    for t in range(x.shape[1]):
        states[:, t] = x[:, t] + (a * states[:, t - 1] if t else 0)
    return states, states[:, -1]


def fast_scan(x, a):
    states = [x[:, 0]]
    for t in range(1, x.shape[1]):
        states.append(torch.addcmul(x[:, t], a, states[-1]))
    return torch.stack(states, 1), states[-1]


def scan_of_chunks(x, a):
    """Forget the state after 32 steps."""
    parts = [fast_scan(part, a) for part in x.split(32, 1)]
    return torch.cat([part for part, _ in parts], 1), parts[-1][1]


SCAN = Pair(
    "scan", fast=fast_scan, reference=scan,
    inputs={"x": arrays("B T D"), "a": arrays("D", low=-1, high=1)}, wrt=("x", "a"), laws=[laws.independent("B")],
)  # fmt: skip
