"""Steps that the segmentation losses share, in the order in which they are applied.

activation → one-hot target → mask → included classes → sums over voxels → formula

There are ``B`` items and ``C`` classes. ``C'`` of the classes are included in the loss: all of them, or all but the
background. ``S`` stands for the spatial axes. Non-finite results raise no warning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from twinloss.reference.steps.activation import Array, sigmoid, sigmoid_adjoint, softmax, softmax_adjoint

Elementwise = Callable[[Array], Array]
Weight = float | Sequence[float] | Array | None


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """Options of all losses of classes."""

    include_background: bool = True  # include class 0; a single class is always included
    to_onehot_y: bool = False  # the target holds labels, (B, 1, *S), which are converted to one-hot
    reduction: str = "mean"  # or "sum", or "none"
    # Leave out the voxels with this label. In a target of channels, leave out those where this channel is 1; C is a
    # further channel behind the C channels of the classes.
    ignore_index: int | None = None
    mask: Array | None = None  # m, the weight of each voxel in [0, 1], (B or 1, 1, *S)


@dataclass(frozen=True, kw_only=True)
class OverlapOptions(SegmentationOptions):
    """Options of the losses that measure the overlap of p and g."""

    sigmoid: bool = False  # the activation is at most one of these three; without one, p is the input
    softmax: bool = False
    other_act: Elementwise | None = None
    smooth_nr: float = 1e-5  # ν, added to the numerator
    smooth_dr: float = 1e-5  # δ, added to the denominator
    batch: bool = False  # sum over the items, too
    soft_label: bool = False  # the overlap is min(p, g), whose optimum is p = g even if g is soft


def as_volume(a: Array) -> Array:
    """Return a contiguous array with at least one spatial axis, (B, C, *S)."""
    return np.ascontiguousarray(a if a.ndim > 2 else a[..., np.newaxis])


def masked_product(a: Array, b: Array) -> Array:
    """Return ab, of the shape of ``b``. It is exactly 0 where a = 0, even if b is NaN there."""
    return np.multiply(a, b, out=np.zeros_like(b), where=a != 0)


def class_target(input: Array, target: Array, o: SegmentationOptions) -> Array:
    """Return the target g in the input's dtype, (B, C, *S). For labels y, g_ic = [y_i = c]."""
    x, g = as_volume(input), as_volume(target)
    if o.to_onehot_y and x.shape[1] > 1:
        g = np.concatenate([g == c for c in range(x.shape[1])], axis=1)
    return g[:, : x.shape[1]].astype(x.dtype)  # without the further channel


def kept_voxels(input: Array, target: Array, o: SegmentationOptions) -> Array:
    """Return a boolean array, (B, 1, *S), that is false at the ignored voxels."""
    x, y = as_volume(input), as_volume(target)
    if o.ignore_index is None:
        return np.ones((x.shape[0], 1, *x.shape[2:]), dtype=bool)
    if y.shape[1] == 1:  # labels; a single channel holds the labels 0 and 1
        return np.asarray(y != o.ignore_index)
    return np.asarray(y[:, o.ignore_index : o.ignore_index + 1] != 1)


def first_class(input: Array, o: SegmentationOptions) -> int:
    """Return the first included class: 1 without the background, unless there is only one class."""
    return int(not o.include_background and input.shape[1] > 1)


def voxel_weights(input: Array, target: Array, o: SegmentationOptions) -> Array:
    """Return the mask m, which is 0 at ignored voxels, (B, 1, *S)."""
    m = np.ones_like(input, shape=()) if o.mask is None else as_volume(o.mask).astype(input.dtype)
    return np.where(kept_voxels(input, target, o), m, 0)


def probabilities(input: Array, target: Array, o: OverlapOptions) -> tuple[Array, Array]:
    """Return the masked p = act(x) and g of the included classes, each (B, C', *S)."""
    x = as_volume(input)
    if o.softmax and x.shape[1] > 1:
        p = softmax(x)
    elif o.sigmoid:
        p = sigmoid(x)
    else:
        p = x if o.other_act is None else o.other_act(x)
    m, first = voxel_weights(input, target, o), first_class(input, o)
    return masked_product(m, p)[:, first:], masked_product(m, class_target(input, target, o))[:, first:]


def complements(input: Array, target: Array, o: OverlapOptions) -> Array:
    """Return 1 - mp for the masked p of :func:`probabilities`, without cancellation where p is close to 1."""
    x, first = as_volume(input), first_class(input, o)
    if o.softmax and x.shape[1] > 1:
        p = softmax(x)
        q = np.stack([np.delete(p, c, axis=1).sum(axis=1) for c in range(x.shape[1])], axis=1)
    elif o.sigmoid:
        q = sigmoid(-x)
    else:
        q = 1 - (x if o.other_act is None else o.other_act(x))
    m = voxel_weights(input, target, o)
    return ((1 - m) + masked_product(m, q))[:, first:]


def errors(p: Array, q: Array, g: Array, soft: bool) -> tuple[Array, Array]:
    r"""Return the false positive and the false negative of p and g at each voxel, each (B, C', \*S), given q = 1 - p.

    They are :math:`p - t = p (1 - g)` and :math:`g - t = q g`, where t is the :func:`overlap`. For soft labels, they
    are the positive parts of :math:`p - g` and :math:`g - p`.
    """
    if not soft:
        return p * (1 - g), q * g
    d = np.where(p > q, (1 - g) - q, p - g)
    return np.maximum(d, 0), np.maximum(-d, 0)


def probabilities_adjoint(
    dp: Array,
    input: Array,
    target: Array,
    o: OverlapOptions,
    other_act_derivative: Elementwise | None,
) -> Array:
    """Return the gradient with respect to the input, given the gradient ``dp`` with respect to p, (B, C', *S)."""
    x, m = as_volume(input), voxel_weights(input, target, o)
    dx = np.zeros_like(x)
    dx[:, first_class(input, o) :] = masked_product(m, dp)
    if o.softmax and x.shape[1] > 1:
        dx = softmax_adjoint(dx, softmax(x))
    elif o.sigmoid:
        dx = sigmoid_adjoint(dx, x)
    elif o.other_act is not None and other_act_derivative is not None:
        dx = dx * other_act_derivative(x)
    return np.where(m != 0, dx, 0).reshape(input.shape)


def sum_voxels(a: Array, batch: bool) -> Array:
    """Return the sum over the voxels, (B, C', 1, …), and with ``batch`` over the items, too, (1, C', 1, …)."""
    axes = [axis for axis in range(a.ndim) if axis > 1 or (axis == 0 and batch)]
    return np.asarray(a.sum(axis=tuple(axes), keepdims=True))


def overlap(p: Array, g: Array, soft: bool) -> tuple[Array, Array]:
    r"""Return the overlap t of p and g at each voxel and its derivative with respect to p, each (B, C', \*S).

    The overlap is :math:`t = p g`, with :math:`\partial t/\partial p = g`. For soft labels it is
    :math:`t = \min(p, g) = \frac12 (p + g - |p - g|)`, with
    :math:`\partial t/\partial p = \frac12 (1 - \operatorname{sign}(p - g))`.
    """
    return (np.minimum(p, g), (1 - np.sign(p - g)) / 2) if soft else (p * g, g)


def class_weights(weight: Weight, a: Array, first: int = 0) -> Array:
    """Return one weight for each class of ``a``, (1, C, 1, …). Classes before ``first`` get 0."""
    w = np.zeros(a.shape[1], a.dtype)
    given = np.asarray(1 if weight is None else weight, a.dtype).reshape(-1)
    w[first:] = given[first - len(w) :]  # drops the background's weight if the background is left out
    return w.reshape(1, -1, *[1] * (a.ndim - 2))
