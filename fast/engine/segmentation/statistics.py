r"""The statistics of the segmentation losses: a few sums over voxels for each item and class, all from one pass.

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

==========  ======================================  =======================================================
surprisal   hits                                    misses
==========  ======================================  =======================================================
softmax     $\sum w g (1 - p)^\gamma (-\log p)$      $\sum w (-\log p)$, if "all" is asked for
sigmoid     $\sum w g (1 - p)^\gamma (-\log p)$      $\sum w (1 - g) p^\gamma (-\log (1 - p))$
==========  ======================================  =======================================================

volume is $\sum w g$, which carries no gradient to p; distance is $\sum w W$ over the voxels of true class c, with
$W_i = \sum_l M_{y_i l} p_{il}$ (Fidon et al. 2017, eq. 6).

The kernels are those of `kernels/voxel.py`, and the plain form is below. The reference has such sums in
`reference/segmentation.py`, which nothing here imports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.kernels.statistic_rows import HITS, MISSES, ROWS, VOLUME
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.memory import empty
from twinloss.fast.runtime.threads import for_each_range
from twinloss.fast.runtime.torch_operator import apply, looked_into, operator, save, slopes_by_torch

Activation = Literal["identity", "sigmoid", "softmax"]
Overlap = Literal["none", "product", "minimum", "squared"]
Surprisal = Literal["none", "target", "all"]

_ACTIVATIONS = ("identity", "sigmoid", "softmax")
_OVERLAPS = ("none", "product", "minimum", "squared")
_SURPRISALS = ("none", "target", "all")

# Halves that are widened at a time, in whole tiles, a megabyte of them: of fewer, threads wait for each other's Python.
_WIDENED_AT_ONCE = 2**18

# Target types that the kernel reads as they are, by the number it knows them by; others are widened first.
_NATIVE = {
    torch.bool: 0, torch.uint8: 0, torch.int32: 1, torch.int64: 2, torch.float32: 3, torch.float64: 4,
}  # fmt: skip
_WIDENED = {
    torch.int8: torch.int32, torch.int16: torch.int32, torch.float16: torch.float32, torch.bfloat16: torch.float32,
}  # fmt: skip


# Numbers that the caches hold until the backward, so that to keep what was read of the target takes longer than to read
# it; and beyond which a second pass takes so much longer than to foresee slopes that these are foreseen.
_CACHED, _MANY = 2**18, 2**20


@dataclass(frozen=True)
class Statistics:
    """Sums over the voxels, float64; 0 where they were not asked for.

    Attributes:
        stack: all of them, (ROWS, B, C).
        fixed: whether the target asks for no gradient, so that the volume has none.
    """

    stack: Tensor
    fixed: bool

    @property
    def hits(self) -> Tensor:
        """(B, C)."""
        return self.stack[HITS]

    @property
    def misses(self) -> Tensor:
        """(B, C)."""
        return self.stack[MISSES]

    @property
    def volume(self) -> Tensor:
        """(B, C), off the graph if it is fixed."""
        return (self.stack.detach() if self.fixed else self.stack)[VOLUME]


Foresee = Callable[[], Tensor]


class Plan(NamedTuple):
    """What to compute, in types that a torch schema knows.

    Attributes:
        activation: what turns x into the prediction p; softmax or sigmoid if the surprisal is asked for.
        overlap: a row of the table above.
        surprisal: "target" for the terms of the target; "all" also for those of every class under softmax.
        gamma: the focal exponent.
        labels: whether the target holds labels.
        ignore_index: voxels with this label take no part; in a target of C > 1 channels those with a 1 in this channel.
    """

    activation: str
    overlap: str = "none"
    surprisal: str = "none"
    gamma: float = 0.0
    labels: bool = False
    ignore_index: int | None = None


def statistics(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    matrix: Tensor | None,
    plan: Plan,
    foresee: Foresee | None = None,
) -> Statistics:
    """Sum the statistics of every item and class in one pass.

    Args:
        x: logits, or probabilities for `activation="identity"`, (B, C, N); halves are computed in float32.
        target: labels (B, 1, N) if the plan says so, else one-hot or soft (B, C, N), of any type.
        mask: voxel weights in [0, 1], (B or 1, 1, N); a voxel of weight 0 takes no part, whatever it holds.
        matrix: distances between classes, (C, C) float64, for labels and softmax.
        plan: what to compute.
        foresee: called if the gradient can be made in the same pass, for the slopes in the hits of a loss that is
            linear in them and hangs on nothing else, (B, C).

    Raises:
        ValueError: if a label is no whole number in [0, C) or a mask value lies outside [0, 1].
    """
    if dispatch.choose(x, target, mask, matrix, halves=True) == "kernel":
        tensors, ahead = (x, target, mask, matrix), torch.is_grad_enabled() and x.requires_grad
        if looked_into(tensors):
            sums = _voxel_sums(*tensors, *plan)
        else:
            slopes = _foreseen(foresee, x, mask, plan) if foresee is not None and ahead else None
            sums = _VoxelSums.apply(*tensors, plan, ahead, slopes)
    else:
        sums = plain_sums(x, target, mask, matrix, plan)
    return Statistics(sums, not any(t is not None and t.requires_grad for t in (target, mask)))


def flat(tensor: Tensor) -> Tensor:
    """(B, C, *S) as (B, C, N)."""
    return tensor.flatten(2) if tensor.ndim > 2 else tensor.unsqueeze(-1)


# --- plain torch: other devices, gradients of the target and the mask, double backward --------------------------------


def plain_sums(x: Tensor, target: Tensor, mask: Tensor | None, matrix: Tensor | None, plan: Plan) -> Tensor:
    """The statistics in operators of torch, (ROWS, B, C)."""
    x = dispatch.widened(x)
    weight = torch.ones_like(x[:, :1]) if mask is None else _checked_mask(mask, x)
    if plan.ignore_index is not None:
        weight = weight.masked_fill(ignored(target, plan.labels, plan.ignore_index), 0)
    taken = weight != 0
    # A voxel that takes no part has no slope in the mask either, since its logit, which may be NaN, is not looked at.
    weight, x = torch.where(taken, weight, 0), torch.where(taken, x, 0)
    if plan.labels and dispatch.transformed():
        x = torch.where(_wrong_labels(_comparable(target), x.shape[1], plan.ignore_index), torch.nan, x)
    surprisal, p, q = _probabilities(x, plan.activation)
    if not plan.labels:
        g = torch.where(taken, target.to(x.dtype), 0)
        nothing = (0 * p).detach()
        return torch.stack([_total(term) for term in (*_terms(x, surprisal, p, q, g, weight, plan), *[nothing] * 3)])
    # Every voxel's terms with g = 0, save those of its own class, which are put in its place: no one-hot tensor.
    y = _checked_labels(target, x.shape[1], plan.ignore_index)
    one, zero = torch.ones_like(weight), torch.zeros_like(weight)
    own_values = [None if values is None else values.gather(1, y) for values in (x, surprisal, p, q)]
    own = _terms(*own_values, one, weight, plan)
    others = _terms(x, surprisal, p, q, zero, weight, plan)
    sums = [
        _by_class(of_own, y, _total(of_others.expand_as(p).scatter(1, y, 0)))
        for of_own, of_others in zip(own, others, strict=True)
    ]
    distance, nearness, nothing = zero, zero, _total(0 * p).detach()
    if matrix is not None:
        rows = matrix.to(x.dtype)[y[:, 0]].movedim(-1, 1)
        distance, nearness = (weight * (m * p).sum(1, keepdim=True) for m in (rows, 1 - rows))
    return torch.stack([*sums, *(_by_class(values, y, nothing) for values in (distance, nearness)), nothing])


def focal_terms(x: Tensor, target: Tensor, activation: str, gamma: float, labels: bool) -> tuple[Tensor, Tensor]:
    """The terms of hits and misses themselves, (B, C, *S): what a loss that is not reduced gives back."""
    if labels:
        y = _checked_labels(target, x.shape[1], None)
        g = torch.zeros_like(x).scatter(1, y, 1)
    else:
        g = target.to(x.dtype)
    surprisal, p, q = _probabilities(x, activation)
    plan = Plan(activation, "none", "target", gamma, labels, None)
    return _terms(x, surprisal, p, q, g, torch.ones_like(x[:, :1]), plan)[3:5]


def _total(term: Tensor) -> Tensor:
    return term.sum(-1, dtype=torch.float64)


def _by_class(values: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Start (B, C) plus the values (B, 1, N) summed by class."""
    return start.scatter_add(1, y[:, 0], values.expand_as(y)[:, 0].double())


class _Surprisal(torch.autograd.Function):
    """-log softmax(x), whose gradient keeps the digits of 1 - p where p is close to 1; autograd would subtract."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        # log(1 + the others' exponentials) + (largest - x): small ones are not rounded away. The last difference is 0,
        # or NaN where the largest logit is infinite: there exp(inf) / exp(inf) is no probability.
        top, index = x.max(1, keepdim=True)
        rest = torch.exp(x - top).scatter(1, index, 0).sum(1, keepdim=True)
        return torch.log1p(rest) + (top - x) + (top - top)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor) -> Tensor:
        """Sum over the other classes of their p times their tangent, less (1 - p_k) times its own."""
        surprisal = _surprisal(ctx.saved_tensors[0])
        return _sum_of_others(torch.exp(-surprisal) * tangents[0]) + torch.expm1(-surprisal) * tangents[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        """p_k (sum of the upstream of the other classes) - (1 - p_k) (that of its own)."""
        surprisal = _surprisal(ctx.saved_tensors[0])
        return torch.exp(-surprisal) * _sum_of_others(upstream[0]) + torch.expm1(-surprisal) * upstream[0]


def _sum_of_others(by_class: Tensor) -> Tensor:
    """For each class the sum over all others, (B, C, …), without taking a class away from the sum of all."""
    exclusive = 1 - torch.eye(by_class.shape[1], dtype=by_class.dtype, device=by_class.device)
    with dispatch.full_precision(by_class):
        return (exclusive @ by_class.reshape(*by_class.shape[:2], -1)).reshape(by_class.shape)


class _Complement(torch.autograd.Function):
    """1 - exp(-surprisal), whose slope is exp(-surprisal); that of torch.expm1 is 1 more than its rounded result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(surprisal: Tensor) -> Tensor:
        return -torch.expm1(-surprisal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * torch.exp(-ctx.saved_tensors[0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0] * torch.exp(-ctx.saved_tensors[0])


class _Focused(torch.autograd.Function):
    """The focal term (1 - p)^gamma s of a surprisal s = -log p, and its slope q^gamma (1 + gamma p s / q), q = 1 - p.

    Both are right at p = 1, where s / q tends to 1, and at p = 0, where s is infinite and p s tends to 0; autograd
    would multiply 0 by infinity there.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(surprisal: Tensor, gamma: float) -> Tensor:
        return _power(-torch.expm1(-surprisal), gamma) * surprisal

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        surprisal, ctx.gamma = inputs
        save(ctx, surprisal)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _slope_of_focused(ctx.saved_tensors[0], ctx.gamma)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] * _slope_of_focused(ctx.saved_tensors[0], ctx.gamma), None


def _slope_of_focused(surprisal: Tensor, gamma: float) -> Tensor:
    if gamma == 0:
        return torch.ones_like(surprisal)
    p, q = torch.exp(-surprisal), _complement(surprisal)
    ratio = p * torch.where(p == 0, 0, surprisal) / torch.where(q == 0, 1, q)
    return _power(q, gamma) * (1 + gamma * torch.where(q == 0, 1, ratio))


def _power(q: Tensor, gamma: float) -> Tensor:
    """q^gamma, with a finite slope at q = 0."""
    return q**gamma if gamma >= 1 or gamma == 0 else q.clamp_min(torch.finfo(q.dtype).tiny) ** gamma


class _Weighed(torch.autograd.Function):
    """The product of a weight and a term, 0 where the weight is 0, though the term be infinite or NaN there.

    The slope in the weight is the term, also where the weight is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, term: Tensor) -> Tensor:
        return torch.where(weight == 0, 0, weight * term)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def along(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (weight, term), (of_weight, of_term) = ctx.saved_tensors, tangents
        along_weight = 0 if of_weight is None else of_weight * term
        along_term = 0 if of_term is None else _weighed(weight, of_term)
        return along_weight + along_term

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        weight, term = ctx.saved_tensors
        return upstream[0] * term, _weighed(weight, upstream[0])


_surprisal, _complement, _focused, _weighed = map(apply, (_Surprisal, _Complement, _Focused, _Weighed))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last digit; torch's own is x beyond 20."""
    return -torch.nn.functional.logsigmoid(-x)


def _probabilities(x: Tensor, activation: str) -> tuple[Tensor | None, Tensor, Tensor]:
    """-log p of a softmax, p, and 1 - p, each with a gradient that does not cancel where p saturates."""
    if activation == "softmax":
        surprisal = _surprisal(x)
        return surprisal, torch.exp(-surprisal), _complement(surprisal)
    if activation == "sigmoid":
        return None, torch.exp(-_softplus(-x)), torch.exp(-_softplus(x))
    return None, x, 1 - x


def _terms(
    x: Tensor, surprisal: Tensor | None, p: Tensor, q: Tensor, g: Tensor, weight: Tensor, plan: Plan
) -> tuple[Tensor, ...]:
    """The terms of all sums but the distance, (B, C, N) or what broadcasts to it."""
    nothing = 0 * p
    tp, fp, fn, hits, misses = nothing, nothing, nothing, nothing, nothing
    target = weight * g
    if plan.overlap != "none":
        prediction, complement = weight * p, (1 - weight) + weight * q
        d = weight * torch.where(p > 0.5, (1 - g) - q, p - g)
        excess, lack = (d.abs() + d) / 2, (d.abs() - d) / 2
        if plan.overlap == "product":
            tp, fp, fn = prediction * target, prediction * (1 - target), target * complement
        elif plan.overlap == "minimum":
            tp, fp, fn = target - lack, excess, lack
        else:
            tp, fp, fn = prediction * target, excess**2, lack**2
    if plan.surprisal != "none" and plan.activation == "softmax":
        hits = _weighed(target, _focused(surprisal, plan.gamma))
        if plan.surprisal == "all":
            misses = weight * surprisal
    elif plan.surprisal != "none":
        hits = _weighed(target, _focused(_softplus(-x), plan.gamma))
        misses = _weighed(weight * (1 - g), _focused(_softplus(x), plan.gamma))
    return tp, fp, fn, hits, misses, target


def ignored(target: Tensor, labels: bool, ignore_index: int) -> Tensor:
    """Where a target (B, 1 or C, …) says that the voxel takes no part, (B, 1, …)."""
    if labels or target.shape[1] == 1:
        return _equal(target, ignore_index)
    return target[:, ignore_index : ignore_index + 1] == 1


# Under torch.func, where no branch may hang on numbers, what is an error elsewhere makes the loss NaN. On the meta
# device there are no numbers to be wrong.


def _checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    if dispatch.transformed():
        return torch.where((mask >= 0) & (mask <= 1), mask.to(x.dtype), torch.nan)
    if mask.is_meta:
        return mask.to(x.dtype)
    low, high = mask.detach().to(x.dtype).aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"mask values must lie in [0, 1], got {low.item():g} to {high.item():g}: divide by the maximum, or compare "
            "with a threshold"
        )
    return mask.to(x.dtype)


def _comparable(labels: Tensor) -> Tensor:
    """Labels of a type that torch can compare: it cannot unsigned ones but bytes."""
    unsigned = labels.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return labels.to(torch.int64) if unsigned else labels


def _equal(labels: Tensor, number: int) -> Tensor:
    """Where labels are a number; torch would wrap one that is beyond their type, and find 256 in bytes of 0."""
    labels = _comparable(labels)
    if not labels.is_floating_point() and labels.dtype != torch.bool:
        limits = torch.iinfo(labels.dtype)
        if not limits.min <= number <= limits.max:
            return torch.zeros_like(labels, dtype=torch.bool)
    return labels == number


def _wrong_labels(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    whole = target.to(torch.int64)
    wrong = (whole < 0) | (whole >= classes) | (target != whole)
    return wrong if ignore_index is None else wrong & ~_equal(target, ignore_index)


def _checked_labels(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    target = _comparable(target)
    wrong = _wrong_labels(target, classes, ignore_index)
    if dispatch.transformed():
        target = torch.where(wrong, 0, target)
    elif not target.is_meta and wrong.any():
        _raise_wrong_labels(target, classes, ignore_index)
    labels = target.to(torch.int64)
    return labels if ignore_index is None else labels.masked_fill(_equal(target, ignore_index), 0)


def _raise_wrong_labels(target: Tensor, classes: int, ignore_index: int | None) -> None:
    target = _comparable(target)
    values = target[_wrong_labels(target, classes, ignore_index)]
    found = values.unique()
    shown = ", ".join(f"{v:g}" for v in found[:5].tolist()) + (", …" if found.numel() > 5 else "")
    raise ValueError(
        f"labels must be whole numbers in [0, {classes}), one for each of the input's {classes} channels; got "
        f"{values.numel()} voxels with {shown}: relabel the target, or pass ignore_index for a label to leave out"
    )


# --- the kernels as torch operators ----------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Some voxels of an item, as the kernels take them."""

    x: np.ndarray
    target: np.ndarray
    mask: np.ndarray | None
    item: int
    start: int
    stop: int


class _Kernels:
    """Which kernels are called, and how: those for a common case, or those for any."""

    def __init__(
        self,
        x: Tensor,
        target: Tensor,
        mask: Tensor | None,
        matrix: Tensor | None,
        plan: Plan,
        kept: Tensor | None = None,
    ) -> None:
        voxel, tile = dispatch.kernels("voxel"), dispatch.kernels("tile")
        self.places = _places(x, target, mask)
        excluding = mask is not None or plan.ignore_index is not None
        if kept is not None:
            target, mask = kept, None
        elif target.dtype not in _NATIVE:
            target = target.to(_WIDENED.get(target.dtype, torch.int64))
        self.x, self.halves = flat(x.detach()).contiguous(), x.dtype in dispatch.HALVES
        real = torch.float32 if self.halves else x.dtype
        self.real = np.float32 if real == torch.float32 else np.float64
        self.target = flat(target).contiguous().numpy().view(np.uint8)
        self.mask = None if mask is None else flat(mask)[:, 0].detach()
        self.asked = (
            _NATIVE[target.dtype] if kept is None else tile.KEPT,
            None if plan.overlap == "none" else _OVERLAPS.index(plan.overlap),
            None if plan.surprisal == "none" else _SURPRISALS.index(plan.surprisal),
            self.real(plan.gamma),
        )
        self.ignore = None if plan.ignore_index is None else float(plan.ignore_index)
        if kept is not None:
            self.ignore = math.nan if excluding else None
        self.dense, self.activation = not plan.labels, _ACTIVATIONS.index(plan.activation)
        alone = matrix is None or (plan.overlap, plan.surprisal) == ("none", "none")
        common = plan.overlap != "squared" and plan.surprisal != "all" and alone
        # Of a dense target of several channels, one says which voxels all of them are to ignore.
        by_channel = plan.labels or plan.ignore_index is None or x.shape[1] == 1
        pair = plan.activation == "softmax" and x.shape[1] == 2
        voxels = self.x.shape[2]
        self.chunk = tile.TILES * tile.tile_width.py_func(x.shape[1], voxels)
        self.chunks_of_item = -(-voxels // self.chunk)
        self.options: tuple[Any, ...] = ()
        if common and plan.activation == "softmax" and plan.labels and not pair:
            self.forward, self.backward = voxel.forward_labels, voxel.backward_labels
        elif common and (plan.labels if pair else plan.activation == "sigmoid" and by_channel):
            self.forward, self.backward = voxel.forward_channels, voxel.backward_channels
            self.options = pair, self.dense
        else:
            self.weigh()
        single = plan.labels or x.shape[1] == 1
        self.keeps = single and self.forward is not voxel.forward and x.shape[1] <= tile.MOST_KEPT and not self.halves
        self.room: tuple[Any, ...] = () if self.forward is voxel.forward else (np.empty((len(x), 1, 0), np.uint8),)
        self.whole = None
        if not self.halves:
            weights = None if self.mask is None else self.mask.to(real).contiguous().numpy()
            self.whole = _Part(self.x.numpy(), self.target, weights, 0, 0, 0)

    def weigh(self) -> None:
        """Take the kernels for any case: only these know of soft targets, and of a mask that weighs voxels."""
        voxel = dispatch.kernels("voxel")
        self.forward, self.backward, self.room, self.keeps = voxel.forward, voxel.backward, (), False

    def keep(self) -> Tensor:
        """Room for what the backward needs of target and mask, to be filled with the sums while `keeps` is true."""
        items, _, voxels = self.x.shape
        kept = empty((items, 1, (voxels + 1) // 2), torch.uint8)
        self.room = (kept.numpy(),)
        return kept

    def arguments(self, part: _Part, matrix: np.ndarray | None) -> tuple[Any, ...]:
        """Those of both kernels."""
        if self.forward is dispatch.kernels("voxel").forward:
            mask = np.empty((0, 0), self.real) if part.mask is None else part.mask
            after = self.dense, mask, self.activation, math.nan if self.ignore is None else self.ignore
        else:
            after = *self.options, self.ignore, part.mask
        return part.x, part.target, *self.asked, matrix, *after

    def spans(self, first: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Of chunks first … end - 1, those of one item at a time: the first, the item, and from where to where in it.

        Items are cut alike, whatever the number of threads. Of halves it is one chunk at a time.
        """
        while first < end:
            item, start = divmod(first, self.chunks_of_item)
            count = 1 if self.halves else min(end - first, self.chunks_of_item - start)
            yield first, item, start * self.chunk, min((start + count) * self.chunk, self.x.shape[2])
            first += count

    def parts(self, first: int, end: int) -> Iterator[tuple[_Part, int, tuple[int, int, int]]]:
        """What the kernels take of some chunks, the first of these, and where in x it lies.

        Halves are widened a few tiles at a time: who takes them lets go of them before the next.
        """
        for chunk, item, start, stop in self.spans(first, end):
            if self.whole is not None:
                yield self.whole._replace(item=item, start=start, stop=stop), chunk, (item, start, stop)
                continue
            tile, classes = self.chunk // dispatch.kernels("tile").TILES, self.x.shape[1]
            step = tile * max(_WIDENED_AT_ONCE // (tile * classes), 1)
            for lo in range(start, stop, step):
                hi = min(lo + step, stop)
                yield self.widened(item, lo, hi), chunk, (item, lo, hi)

    def widened(self, item: int, lo: int, hi: int) -> _Part:
        """Some voxels of an item, halves as float32."""
        size = self.target.shape[2] // self.x.shape[2]
        x = self.x[item : item + 1, :, lo:hi].to(torch.float32, memory_format=torch.contiguous_format).numpy()
        target = np.ascontiguousarray(self.target[item : item + 1, :, lo * size : hi * size])
        mask = None
        if self.mask is not None:
            row = min(item, len(self.mask) - 1)
            mask = self.mask[row : row + 1, lo:hi].float().numpy()
        return _Part(x, target, mask, 0, 0, hi - lo)

    def add_sums(self, first: int, end: int, matrix: np.ndarray | None, sums: np.ndarray) -> int:
        """Add the statistics of some chunks to `sums`, (N, ROWS, C), given distances; how many are bad, or -1."""
        status, worst = dispatch.kernels("status"), 0
        for part, chunk, _ in self.parts(first, end):
            at = part.item, part.start, part.stop
            found: int = self.forward(*self.arguments(part, matrix), *at, sums[chunk:end], *self.room)
            if found == status.NOT_BINARY:
                return found
            worst = max(worst, found)
            del part
        return worst

    def put_gradient(
        self, first: int, end: int, matrix: np.ndarray | None, slopes: np.ndarray, gradient: Tensor
    ) -> int:
        """Write dL/dx of some chunks, given the slopes, (ROWS, B, C), and those in distances, (B, C, C); 0, or -1."""
        for part, _, (item, start, stop) in self.parts(first, end):
            at = part.item, part.start, part.stop
            if self.halves:
                by_item = np.ascontiguousarray(slopes[:, item : item + 1])
                # Over what was widened, save by the kernels whose loops read and write at once.
                apart = self.backward is dispatch.kernels("voxel").backward_channels
                out = np.empty_like(part.x) if apart else part.x
            else:
                out, by_item = gradient.numpy(), slopes
            by_class = None if matrix is None else matrix[item]
            found: int = self.backward(*self.arguments(part, by_class), by_item, *at, out)
            if found == dispatch.kernels("status").NOT_BINARY:
                return found
            if self.halves:
                gradient[item, :, start:stop] = torch.from_numpy(out[0])
            del part, out
        return 0

    def run(self, call: Callable[[int, int], int]) -> bool:
        """Call with ranges of all chunks, and of all again if that returns -1, as mask or target is soft.

        Returns whether any returned something else than 0, at last.
        """
        chunks = len(self.x) * self.chunks_of_item
        found = [0] * chunks

        def work(first: int, end: int) -> None:
            found[first] = call(first, end)

        for_each_range(work, chunks, self.x.numel())
        if max(found) == dispatch.kernels("status").NOT_BINARY:
            self.weigh()
            for_each_range(work, chunks, self.x.numel())
        return any(found)


def _places(*tensors: Tensor | None) -> list[int | None]:
    """Where the numbers are: what saves tensors for a backward may have put copies in their place."""
    return [None if each is None else each.data_ptr() for each in tensors]


# What a forward may keep for the backward: of large inputs what it has read of target and mask, in half a byte for each
# voxel; of small ones, where it takes longer to find them than to call them, the kernels.
Kept = Tensor | _Kernels | None


def sums_of_voxels(
    x: Tensor, target: Tensor, mask: Tensor | None, matrix: np.ndarray | None, plan: Plan, ahead: bool
) -> tuple[np.ndarray, Kept]:
    """The statistics by the kernels, (ROWS, B, C); and, if asked `ahead`, what `gradient_of_voxels` may be given.

    Tensors are those of `statistics`, but with any axes of space.
    """
    kernels = _Kernels(x, target, mask, matrix, plan)
    many = x.numel() > _CACHED
    kept = kernels.keep() if ahead and kernels.keeps and many else None
    distances = None if matrix is None else matrix.astype(kernels.real)
    sums, bad = _summed(kernels, lambda first, end, sums: kernels.add_sums(first, end, distances, sums))
    if bad:
        if mask is not None:
            _checked_mask(mask, dispatch.widened(x))
        _raise_wrong_labels(target, x.shape[1], plan.ignore_index)
    if ahead and not many:
        return sums, kernels
    return sums, kept if kernels.keeps else None


def _summed(kernels: _Kernels, add: Callable[[int, int, np.ndarray], int]) -> tuple[np.ndarray, bool]:
    """What `add`, given a range of chunks, adds to their places in (N, ROWS, C), as sums of items, (ROWS, B, C).

    And whether it has found bad values.
    """
    items, classes, _ = kernels.x.shape
    sums = np.empty((items, kernels.chunks_of_item, len(ROWS), classes))
    by_chunk = sums.reshape(-1, len(ROWS), classes)

    def forward(first: int, end: int) -> int:
        by_chunk[first:end] = 0
        return add(first, end, by_chunk)

    bad = kernels.run(forward)
    by_item = sums[:, 0] if sums.shape[1] == 1 else sums.sum(1)
    return np.ascontiguousarray(by_item.transpose(1, 0, 2)), bad


def gradient_of_voxels(
    slopes: np.ndarray,
    factor: float,
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    matrix: np.ndarray | None,
    plan: Plan,
    kept: Kept,
) -> Tensor:
    """dL/dx by the kernels, given the slopes in the statistics, (ROWS, B, C), times a factor; see `sums_of_voxels`."""
    labels = kept if isinstance(kept, Tensor) else None
    of_forward = isinstance(kept, _Kernels) and kept.places == _places(x, target, mask)
    kernels = kept if of_forward else _Kernels(x, target, mask, matrix, plan, labels)
    items, classes, _ = kernels.x.shape
    by_row = np.empty((len(ROWS), items, classes), kernels.real)
    by_class = None if matrix is None else np.empty((items, classes, classes), kernels.real)
    scaled = dispatch.kernels("fraction").scaled
    fits = scaled(slopes, factor, plan.overlap == "squared", matrix, by_row, by_class)
    if not fits and kernels.real is np.float32:
        # A class that all but vanishes, with no smoothing: slopes beyond float32, but not their product with p.
        return gradient_of_voxels(slopes, factor, x.double(), target, mask, matrix, plan, labels).float().to(x.dtype)
    gradient = empty(x.shape, x.dtype)
    by_voxel = flat(gradient)
    kernels.run(lambda first, end: kernels.put_gradient(first, end, by_class, by_row, by_voxel))
    return gradient


def _array(matrix: Tensor | None) -> np.ndarray | None:
    return None if matrix is None else matrix.numpy()


@operator("voxel_sums")
def _voxel_sums(
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    matrix: Tensor | None,
    activation: str,
    overlap: str,
    surprisal: str,
    gamma: float,
    labels: bool,
    ignore_index: int | None,
) -> Tensor:
    plan = Plan(activation, overlap, surprisal, gamma, labels, ignore_index)
    return torch.from_numpy(sums_of_voxels(x, target, mask, _array(matrix), plan, False)[0])


@operator("voxel_sums_backward")
def voxel_sums_backward(
    slopes: Tensor,
    x: Tensor,
    target: Tensor,
    mask: Tensor | None,
    matrix: Tensor | None,
    activation: str,
    overlap: str,
    surprisal: str,
    gamma: float,
    labels: bool,
    ignore_index: int | None,
) -> Tensor:
    """dL/dx, given the slopes in the statistics, (ROWS, B, C)."""
    plan = Plan(activation, overlap, surprisal, gamma, labels, ignore_index)
    by_row = np.ascontiguousarray(slopes.numpy())
    return gradient_of_voxels(by_row, 1.0, x, target, mask, _array(matrix), plan, None)


@_voxel_sums.fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((len(ROWS), x.shape[0], x.shape[1]), dtype=torch.float64)


@voxel_sums_backward.fake
def _(slopes: Tensor, x: Tensor, *_: object) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, target, mask, matrix, *ctx.plan = inputs
    ctx.save_for_backward(x, target, mask, matrix)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if dispatch.by_torch(slopes):
        (gradient,) = slopes_by_torch(lambda: plain_sums(*tensors, Plan(*ctx.plan)), tensors[:1], slopes)
    else:
        gradient = voxel_sums_backward(slopes, *tensors, *ctx.plan)
    return gradient, *[None] * (len(tensors) - 1 + len(ctx.plan))


_voxel_sums.differentiable(_setup_context, _backward)


class _VoxelSums(torch.autograd.Function):
    """The same where nobody looks into it, which may keep for the backward what it has read."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.plan, ahead, ctx.foreseen = arguments
        ctx.save_for_backward(*tensors)
        ctx.kept = ctx.gradient = None
        if ctx.foreseen is None:
            sums, ctx.kept = sums_of_voxels(*tensors[:3], _array(tensors[3]), ctx.plan, ahead)
        else:
            sums, ctx.gradient = _surprisals_of_voxels(*tensors[:2], ctx.plan, ctx.foreseen)
        return torch.from_numpy(sums)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None  # which is the caller's from now on
        kept, ctx.kept = ctx.kept, None  # or else it would live as long as the loss
        if dispatch.by_torch(upstream[0]):
            return *slopes_by_torch(lambda: plain_sums(*tensors, ctx.plan), tensors[:1], upstream[0]), *[None] * 6
        slopes = np.ascontiguousarray(upstream[0].numpy())
        factor = None if gradient is None else _multiple(slopes, ctx.foreseen)
        if factor is None:
            gradient = gradient_of_voxels(slopes, 1.0, *tensors[:3], _array(tensors[3]), ctx.plan, kept)
        elif factor != 1:
            gradient *= factor
        return gradient, *[None] * 6


def _foreseen(foresee: Foresee, x: Tensor, mask: Tensor | None, plan: Plan) -> np.ndarray | None:
    """The slopes in the statistics, (ROWS, B, C), where it is of use to know them.

    There is a kernel for surprisals alone, of labels of more than two classes, all of which count.
    """
    alone = (plan.overlap, plan.surprisal, plan.activation) == ("none", "target", "softmax") and plan.labels
    served = x.shape[1] > 2 and x.dtype not in dispatch.HALVES and mask is None and plan.ignore_index is None
    if not (alone and served and x.numel() > _MANY):
        return None
    slopes = np.zeros((len(ROWS), *x.shape[:2]))
    slopes[HITS] = foresee().numpy()
    return slopes


def _multiple(slopes: np.ndarray, foreseen: np.ndarray) -> float | None:
    """How many times the slopes are those that were foreseen, but for rounding; None if they are others."""
    largest = np.abs(foreseen).argmax()
    with np.errstate(all="ignore"):
        factor = float(slopes.flat[largest] / foreseen.flat[largest])
        return factor if np.allclose(slopes, factor * foreseen, rtol=1e-14, atol=0) else None


def _surprisals_of_voxels(
    x: Tensor, target: Tensor, plan: Plan, slopes: np.ndarray
) -> tuple[np.ndarray, Tensor | None]:
    """The statistics by a kernel, and dL/dx given the slopes in them, (ROWS, B, C), unless these are too large."""
    kernels, both = _Kernels(x, target, None, None, plan), dispatch.kernels("voxel").surprisals_of_labels
    by_row = np.empty((len(ROWS), *x.shape[:2]), kernels.real)
    if not dispatch.kernels("fraction").scaled(slopes, 1.0, False, None, by_row, None):
        return sums_of_voxels(x, target, None, None, plan, False)[0], None
    gradient = empty(x.shape, x.dtype)
    item, *_, gamma = kernels.asked
    at = kernels.x.numpy(), kernels.target, item, gamma, by_row

    def add(first: int, end: int, sums: np.ndarray) -> int:
        return max(both(*at, *span, sums[chunk:end], gradient.numpy()) for chunk, *span in kernels.spans(first, end))

    sums, bad = _summed(kernels, add)
    if bad:
        _raise_wrong_labels(target, x.shape[1], None)
    return sums, gradient
