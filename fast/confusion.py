r"""The statistic of the Dice family: true positives, false positives and false negatives of each item and class.

With prediction $p$, target $g$ and voxel weight $w$ (a mask; $P = wp$, $G = wg$), over the voxels $i$:

=========  ==========================  ==========================  ==========================
overlap    TP                          FP                          FN
=========  ==========================  ==========================  ==========================
product    $\sum P G$                  $\sum P (1 - G)$            $\sum G (1 - P)$
minimum    $\sum \min(P, G)$           $\sum \max(P - G, 0)$       $\sum \max(G - P, 0)$
squared    $\sum P G$                  $\sum \max(P - G, 0)^2$     $\sum \max(G - P, 0)^2$
=========  ==========================  ==========================  ==========================

Always $TP + FP = \sum P$ and $TP + FN = \sum G$ (squared: $2 TP + FP + FN = \sum P^2 + \sum G^2$). None of the three
is the difference of two larger sums, so a formula on them is as accurate for a nearly perfect prediction as for a
poor one.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twinloss.fast import backend
from twinloss.fast.threads import for_each_chunk

Activation = Literal["identity", "sigmoid", "softmax"]
Overlap = Literal["product", "minimum", "squared"]

_ACTIVATIONS = ("identity", "sigmoid", "softmax")
_OVERLAPS = ("product", "minimum", "squared")

# Voxels of a chunk: the unit that threads share out, and the unit of the fixed order of float64 sums.
_CHUNK = 2**15

# Target types that the kernel reads as they are, by the number it knows them by; others are widened first.
_NATIVE = {
    torch.bool: 0, torch.uint8: 0, torch.int32: 1, torch.int64: 2, torch.float32: 3, torch.float64: 4,
}  # fmt: skip
_WIDENED = {
    torch.int8: torch.int32,
    torch.int16: torch.int32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


def confusion(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    activation: Activation = "identity",
    overlap: Overlap = "product",
    labels: bool = False,
    ignore_index: int | None = None,
) -> Tensor:
    """Sum the soft confusion of every item and class in one pass.

    Args:
        x: logits, or probabilities for `activation="identity"`, (B, C, N), float32 or float64.
        target: labels (B, 1, N) if `labels`, else one-hot or soft (B, C, N), of any type.
        mask: voxel weights in [0, 1], (B or 1, 1, N); a voxel of weight 0 takes no part, whatever it holds.
        activation: what turns x into the prediction p.
        overlap: a row of the table above.
        labels: whether the target holds labels.
        ignore_index: voxels with this label take no part; in a target of C > 1 channels those with a 1 in this channel.

    Returns:
        (3, B, C) float64: TP, FP, FN.

    Raises:
        ValueError: if a label is no whole number in [0, C) or a mask value lies outside [0, 1].
    """
    if backend.choose(x, target, mask) == "kernel":
        return torch.ops.twinloss.confusion(x, target, mask, activation, overlap, labels, ignore_index)
    return _plain(x, target, mask, activation, overlap, labels, ignore_index)


# --- plain torch: other devices, gradients of the target and the mask, double backward --------------------------------


def _plain(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    activation: str,
    overlap: str,
    labels: bool,
    ignore_index: int | None,
) -> Tensor:
    weight = torch.ones_like(x[:, :1]) if mask is None else _checked_mask(mask, x)
    if ignore_index is not None:
        ignored = _ignored(target, labels, ignore_index)
        weight = weight.masked_fill(ignored, 0)
    taken = weight != 0
    x = torch.where(taken, x, 0)
    if activation == "softmax":
        p = torch.softmax(x, 1)
        q = 1 - p
    elif activation == "sigmoid":
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
    else:
        p, q = x, 1 - x
    p, q = weight * p, (1 - weight) + weight * q
    if not labels:
        g = weight * torch.where(taken, target.to(x.dtype), 0)
        return torch.stack([term.sum(-1, dtype=torch.float64) for term in _terms(p, q, g, overlap)])
    # Every voxel's terms with g = 0, save those of its own class, which are put in its place: no one-hot tensor.
    y = _checked_labels(target, x.shape[1], ignore_index)
    own = _terms(p.gather(1, y), q.gather(1, y), weight, overlap)
    others = _terms(p, q, torch.zeros_like(weight), overlap)
    sums = []
    for of_own_class, of_others in zip(own, others, strict=True):
        rest = of_others.expand_as(p).scatter(1, y, 0).sum(-1, dtype=torch.float64)
        sums.append(rest.scatter_add(1, y[:, 0], of_own_class.expand_as(y)[:, 0].double()))
    return torch.stack(sums)


def _terms(p: Tensor, q: Tensor, g: Tensor, overlap: str) -> tuple[Tensor, Tensor, Tensor]:
    if overlap == "product":
        return p * g, p * (1 - g), g * q
    d = p - g
    excess, lack = (d.abs() + d) / 2, (d.abs() - d) / 2
    if overlap == "minimum":
        return g - lack, excess, lack
    return p * g, excess**2, lack**2


def _ignored(target: Tensor, labels: bool, ignore_index: int) -> Tensor:
    if labels or target.shape[1] == 1:
        return target == ignore_index
    return target[:, ignore_index : ignore_index + 1] == 1


def _checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    low, high = mask.detach().to(x.dtype).aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"mask values must lie in [0, 1], got {low.item():g} to {high.item():g}: divide by the maximum, or compare"
        )
    return mask.to(x.dtype)


def _wrong_labels(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    wrong = (target < 0) | (target >= classes) | (target != target.to(torch.int64))
    return wrong if ignore_index is None else wrong & (target != ignore_index)


def _checked_labels(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    if _wrong_labels(target, classes, ignore_index).any():
        _raise_wrong_labels(target, classes, ignore_index)
    labels = target.to(torch.int64)
    return labels if ignore_index is None else labels.masked_fill(target == ignore_index, 0)


def _raise_wrong_labels(target: Tensor, classes: int, ignore_index: int | None) -> None:
    values = target[_wrong_labels(target, classes, ignore_index)]
    found = values.unique()
    shown = ", ".join(f"{v:g}" for v in found[:5].tolist()) + (", …" if found.numel() > 5 else "")
    raise ValueError(
        f"labels must be whole numbers in [0, {classes}), one for each of the input's {classes} channels; got "
        f"{values.numel()} voxels with {shown}: relabel the target, or pass ignore_index for a label to leave out"
    )


# --- the kernel as a torch operator ----------------------------------------------------------------------------------


def _kernel_arguments(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    activation: str,
    overlap: str,
    labels: bool,
    ignore_index: int | None,
) -> tuple[Any, ...]:
    target = target.to(_WIDENED.get(target.dtype, target.dtype))
    if target.dtype not in _NATIVE:
        target = target.to(torch.int64)
    values = np.empty((0, 0), x.numpy().dtype) if mask is None else _checked_mask(mask, x)[:, 0].contiguous().numpy()
    return (
        x.contiguous().numpy(),
        target.contiguous().numpy().view(np.uint8),
        _NATIVE[target.dtype],
        not labels,
        values,
        _ACTIVATIONS.index(activation),
        _OVERLAPS.index(overlap),
        np.nan if ignore_index is None else float(ignore_index),
    )


def _chunk_bounds(chunk: int, voxels: int) -> tuple[int, int, int]:
    """Item, first voxel and end of a chunk; items are cut alike, whatever the number of threads."""
    item, part = divmod(chunk, -(-voxels // _CHUNK))
    return item, part * _CHUNK, min((part + 1) * _CHUNK, voxels)


@torch.library.custom_op("twinloss::confusion", mutates_args=(), device_types="cpu")
def _confusion_op(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    activation: str,
    overlap: str,
    labels: bool,
    ignore_index: int | None,
) -> Tensor:
    from twinloss.fast.kernels import confusion as kernel  # imports Numba, which takes longer than all the rest

    arguments = _kernel_arguments(x, target, mask, activation, overlap, labels, ignore_index)
    items, classes, voxels = x.shape
    chunks = items * -(-voxels // _CHUNK)
    sums = np.zeros((chunks, 3, classes))
    bad = np.zeros(chunks, np.int64)

    def work(chunk: int) -> None:
        bad[chunk] = kernel.confusion(*arguments, *_chunk_bounds(chunk, voxels), sums[chunk])

    for_each_chunk(work, chunks)
    if bad.any():
        _raise_wrong_labels(target, classes, ignore_index)
    return torch.from_numpy(sums.reshape(items, -1, 3, classes).sum(1).transpose(1, 0, 2).copy())


@torch.library.custom_op("twinloss::confusion_backward", mutates_args=(), device_types="cpu")
def _confusion_backward_op(
    slopes: Tensor,
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    activation: str,
    overlap: str,
    labels: bool,
    ignore_index: int | None,
) -> Tensor:
    from twinloss.fast.kernels import confusion as kernel

    arguments = _kernel_arguments(x, target, mask, activation, overlap, labels, ignore_index)
    gradient = torch.empty(x.shape, dtype=x.dtype)
    out, slopes_by_class = gradient.numpy(), slopes.to(x.dtype).contiguous().numpy()
    voxels = x.shape[2]

    def work(chunk: int) -> None:
        kernel.confusion_backward(*arguments, slopes_by_class, *_chunk_bounds(chunk, voxels), out)

    for_each_chunk(work, x.shape[0] * -(-voxels // _CHUNK))
    return gradient


@_confusion_op.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((3, x.shape[0], x.shape[1]), dtype=torch.float64)


@_confusion_backward_op.register_fake
def _(slopes: Tensor, x: Tensor, *_: object) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, target, mask, *ctx.options = inputs
    ctx.save_for_backward(x, target, mask)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
    x, target, mask = ctx.saved_tensors
    if torch.is_grad_enabled():  # a graph of the gradient is asked for: plain torch has one
        with torch.enable_grad():
            gradient = torch.autograd.grad(
                _plain(x, target, mask, *ctx.options), x, slopes, create_graph=True, materialize_grads=True
            )[0]
    else:
        gradient = torch.ops.twinloss.confusion_backward(slopes, x, target, mask, *ctx.options)
    return gradient, None, None, None, None, None, None


_confusion_op.register_autograd(_backward, setup_context=_setup_context)
