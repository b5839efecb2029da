"""The steps that the segmentation losses share, in their order.

activation → one-hot → mask → classes that take part → sums over voxels → formula

``B`` items, ``C`` classes, ``C'`` of them take part in the loss; ``S`` are the spatial axes.
Logits, probabilities and losses have no unit. What is not finite is returned without a warning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from twinloss.reference.steps.activation import Array, sigmoid, sigmoid_adjoint, softmax, softmax_adjoint

Elementwise = Callable[[Array], Array]
Weight = float | Sequence[float] | Array | None


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """The options of losses on classes."""

    include_background: bool = True  # class 0 takes part; it always does when it is the only one
    to_onehot_y: bool = False  # the target holds labels, (B, 1, *S)
    reduction: str = "mean"  # or "sum", or "none"
    ignore_index: int | None = None  # voxels of this label are cut out


@dataclass(frozen=True, kw_only=True)
class OverlapOptions(SegmentationOptions):
    """The options of losses on the overlap of p and g."""

    sigmoid: bool = False  # at most one of these three makes p of the input
    softmax: bool = False
    other_act: Elementwise | None = None
    smooth_nr: float = 1e-5  # ν, added to the numerator
    smooth_dr: float = 1e-5  # δ, added to the denominator
    batch: bool = False  # sums run over the items too
    soft_label: bool = False  # the overlap min(p, g), whose optimum is p = g for soft g also


def as_volume(a: Array) -> Array:
    """The array with at least one spatial axis, (B, C, *S); voxels in their order in memory."""
    return np.ascontiguousarray(a if a.ndim > 2 else a[..., np.newaxis])


def product(a: Array, b: Array) -> Array:
    """The product ab, of the shape of ``b``: exactly 0 where a = 0, though b be NaN there."""
    return np.multiply(a, b, out=np.zeros_like(b), where=a != 0)


def class_target(input: Array, target: Array, o: SegmentationOptions) -> Array:
    """The target g in the input's dtype, (B, C, *S): g_ic = [y_i = c] for labels y."""
    x, g = as_volume(input), as_volume(target)
    if o.to_onehot_y and x.shape[1] > 1:
        g = np.concatenate([g == c for c in range(x.shape[1])], axis=1)
    return g.astype(x.dtype)


def kept_voxels(input: Array, target: Array, o: SegmentationOptions) -> Array:
    """Where a voxel is not of the label to ignore: (B, 1, *S) of bool."""
    x, y = as_volume(input), as_volume(target)
    if o.ignore_index is None:
        return np.ones((x.shape[0], 1, *x.shape[2:]), dtype=bool)
    if o.to_onehot_y or x.shape[1] == 1:  # labels; one channel is a problem of two classes
        return np.asarray(y != o.ignore_index)
    return np.asarray(y[:, o.ignore_index : o.ignore_index + 1] != 1)


def first_class(input: Array, o: SegmentationOptions) -> int:
    """The first class that takes part: 1 without the background, unless it is the only class."""
    return int(not o.include_background and input.shape[1] > 1)


def voxel_weights(input: Array, target: Array, o: SegmentationOptions, mask: Array | None) -> Array:
    """The mask m, with 0 on ignored voxels: (B, 1, *S)."""
    m = np.ones_like(input, shape=()) if mask is None else as_volume(mask).astype(input.dtype)
    return np.where(kept_voxels(input, target, o), m, 0)


def probabilities(
    input: Array,
    target: Array,
    o: OverlapOptions,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """The masked p = act(x) and g of the classes that take part: twice (B, C', *S)."""
    x = as_volume(input)
    if o.softmax and x.shape[1] > 1:
        p = softmax(x)
    elif o.sigmoid:
        p = sigmoid(x)
    else:
        p = x if o.other_act is None else o.other_act(x)
    m, first = voxel_weights(input, target, o, mask), first_class(input, o)
    return product(m, p)[:, first:], product(m, class_target(input, target, o))[:, first:]


def probabilities_adjoint(
    dp: Array,
    input: Array,
    target: Array,
    o: OverlapOptions,
    other_act_derivative: Elementwise | None,
    mask: Array | None = None,
) -> Array:
    """From the gradient in p, (B, C', *S), to the gradient in x, of the input's shape."""
    x, m = as_volume(input), voxel_weights(input, target, o, mask)
    dx = np.zeros_like(x)
    dx[:, first_class(input, o) :] = product(m, dp)
    if o.softmax and x.shape[1] > 1:
        dx = softmax_adjoint(dx, softmax(x))
    elif o.sigmoid:
        dx = sigmoid_adjoint(dx, x)
    elif o.other_act is not None and other_act_derivative is not None:
        dx = dx * other_act_derivative(x)
    return np.where(m != 0, dx, 0).reshape(input.shape)


def sum_voxels(a: Array, batch: bool) -> Array:
    """The sum over S, (B, C', 1, …), and with ``batch`` over B too, (1, C', 1, …)."""
    axes = [axis for axis in range(a.ndim) if axis > 1 or (axis == 0 and batch)]
    return np.asarray(a.sum(axis=tuple(axes), keepdims=True))


def overlap(p: Array, g: Array, soft: bool) -> tuple[Array, Array]:
    r"""What a voxel adds to the overlap, and its derivative in p: twice (B, C', \*S).

    :math:`t = p g`, :math:`\partial t/\partial p = g`; or, for soft labels,
    :math:`t = \min(p, g) = \frac12 (p + g - |p - g|)`,
    :math:`\partial t/\partial p = \frac12 (1 - \operatorname{sign}(p - g))`.
    """
    return (np.minimum(p, g), (1 - np.sign(p - g)) / 2) if soft else (p * g, g)


def class_weights(weight: Weight, a: Array, first: int = 0) -> Array:
    """One weight for each class of ``a``, 0 for those that take no part: (1, C, 1, …)."""
    w = np.zeros(a.shape[1], a.dtype)
    given = np.asarray(1 if weight is None else weight, a.dtype).reshape(-1)
    w[first:] = given[first - len(w) :]  # a weight of the background is left out with it
    return w.reshape(1, -1, *[1] * (a.ndim - 2))
