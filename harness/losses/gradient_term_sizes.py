"""Magnitudes of the terms that the gradients of some losses add and subtract, to bound their rounding errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from twinloss import reference
from twinloss.harness.judging.nearby import reference_options
from twinloss.harness.judging.truth import Truth
from twinloss.harness.model.operand import Array
from twinloss.reference import (
    focal_tversky,
    generalized_dice,
    global_mutual_information,
    local_normalized_cross_correlation,
    matthews_correlation,
)
from twinloss.reference.steps import parzen, segmentation
from twinloss.reference.steps.activation import softmax
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.window import cropped, padded, places


def _arguments(truth: Truth) -> tuple[list[Array], Array, Mapping[str, Any]]:
    case = truth.case
    images = [operand.lifted(truth.real) for operand in case.operands.values()]
    return images, case.weights(truth.value.shape).astype(truth.real), case.options


def softmax_terms(h: Array, p: Array) -> Array:
    """Return p_c sum_{k != c} p_k (|h_c| + |h_k|), the terms of a gradient through a softmax p; `h` holds the |h|."""
    terms = np.empty_like(p)
    for c in range(p.shape[1]):
        others = np.arange(p.shape[1]) != c
        terms[:, c] = p[:, c] * (p * (h[:, c : c + 1] + h))[:, others].sum(1)
    return terms


def generalized_dice_loss(truth: Truth) -> Array:
    r"""Return the magnitudes of the terms of w/M (t' (N/M - 2) + (1 - t') N/M), the gradient of generalised Dice.

    Both factors, N/M - 2 and N/M, come from sums that are rounded. For a hard target, one of the two terms is 0. For a
    soft target, they may cancel, and their rounding errors are then larger than the effect of any perturbation of the
    input: a perturbation of g also changes the weight 1/V², in the opposite direction.
    """
    (x, target), cotangent, _ = _arguments(truth)
    given = reference_options(truth.case, gradient=True)
    return _generalized_dice(x, target, cotangent, given)


def generalized_dice_focal_loss(truth: Truth) -> Array:
    """Return the magnitudes of the terms of the generalised Dice term, to which the focal term only adds."""
    (x, target), cotangent, options = _arguments(truth)
    given = reference_options(truth.case, gradient=True)
    names = (*inspect.signature(generalized_dice.GeneralizedDiceOptions).parameters, "other_act_derivative")
    if options.get("reduction") == "none":  # one Dice loss is added at many voxels
        axes = tuple(range(0 if options.get("batch") else 1, cotangent.ndim))
        cotangent = np.abs(cotangent).sum(axis=axes, keepdims=True)
    terms = _generalized_dice(x, target, cotangent, {name: given[name] for name in names if name in given})
    return np.asarray(options.get("lambda_gdl", 1.0) * terms)


def _generalized_dice(x: Array, target: Array, cotangent: Array, given: dict[str, Any]) -> Array:
    derivative = given.pop("other_act_derivative", None)
    o = generalized_dice.GeneralizedDiceOptions(**given)
    p, g = segmentation.probabilities(x, target, o)
    n, m = generalized_dice.fraction(p, g, o)
    u = np.abs(reduce_adjoint(cotangent, n, x.ndim, o.reduction))
    _, dt = segmentation.overlap(p, g, o.soft_label)
    h = u * np.abs(generalized_dice.volume_weights(g, o) / m) * (dt * np.abs(n / m - 2) + (1 - dt) * np.abs(n / m))
    return _through_activation(h, x, target, o, derivative)


def _through_activation(h: Array, x: Array, target: Array, o: Any, derivative: Any) -> Array:
    """Return the magnitude of the terms of the gradient in the input, given that of dL/dp, (B, C', *S)."""
    if o.softmax and x.shape[1] > 1:
        h = segmentation.probabilities_adjoint(h, x, target, replace(o, softmax=False), None)
        return softmax_terms(h, softmax(x))
    return np.abs(segmentation.probabilities_adjoint(h, x, target, o, derivative))


def focal_tversky_loss(truth: Truth) -> Array:
    """Return the magnitudes of the terms of a hit and a miss in the gradient, which may cancel for a soft target."""
    (x, target), cotangent, _ = _arguments(truth)
    given = reference_options(truth.case, gradient=True)
    derivative = given.pop("other_act_derivative", None)
    o = focal_tversky.FocalTverskyOptions(**given)
    p, g = segmentation.probabilities(x, target, o)
    loss, n, m = focal_tversky.tversky(x, target, p, g, o)
    gamma = segmentation.class_weights(o.gamma, p)
    u = np.abs(segmentation.class_weights(o.weight, p) * reduce_adjoint(cotangent, loss, x.ndim, o.reduction))
    _, dt = segmentation.overlap(p, g, o.soft_label)
    slope = np.where(loss <= 0, 0, gamma * loss ** (gamma - 1))
    h = u * np.abs(slope / m) * (dt * np.abs(n / m * (1 - o.beta) - 1) + (1 - dt) * np.abs(n / m * o.alpha))
    return _through_activation(h, x, target, o, derivative)


def _correlation(truth: Truth) -> Any:
    """Return the upstream slopes, the counts and the moments of the Matthews correlation, and g and t'."""
    (x, target), cotangent, _ = _arguments(truth)
    given = reference_options(truth.case)
    o = matthews_correlation.MatthewsCorrelationOptions(**given)
    p, g = segmentation.probabilities(x, target, o)
    c = matthews_correlation.counts(x, target, p, g, o)
    m = matthews_correlation.moments(c, o)
    u = segmentation.class_weights(o.weight, p) * reduce_adjoint(cotangent, m.r, x.ndim, o.reduction)
    return x, target, o, np.abs(u), c, m, segmentation.overlap(p, g, o.soft_label)[1]


def matthews_correlation_value(truth: Truth) -> Array:
    r"""Return the magnitude of the terms of TN, :math:`|\partial L/\partial TN| \max(TN, FP)`.

    TN is the number of negatives minus FP. Where p was computed from logits, FP is rounded, and no perturbation of a
    logit explains this if p is close to 1.
    """
    x, _, o, _, c, m, _ = _correlation(truth)
    w = np.abs(segmentation.class_weights(o.weight, c.tp))
    by_tn = np.abs(m.r * (c.tp + c.fp) / (2 * m.p) - c.tp) / (c.n * m.d)
    return reduce(w * (np.abs(1 - m.r / m.d) + by_tn * c.fp), x.ndim, o.reduction)


def matthews_correlation_loss(truth: Truth) -> Array:
    """Return the magnitude of the terms of the gradient, and how much it changes if TN changes by FP.

    With a soft target, the terms of a voxel may cancel.
    """
    x, target, o, u, c, m, dt = _correlation(truth)
    a, b = c.tp + c.fp, c.tn + c.fn
    by_p = m.r * (b - a) / (2 * m.p)
    slope = (by_p - dt * (c.tn + c.fp) + (1 - dt) * (c.tp + c.fn)) / (c.n * m.d)
    by_tn = (c.tp / c.n * (b - a) + m.r) / (2 * m.p) - by_p * a / (c.n * m.p)
    sizes = (np.abs(by_p) + dt * (c.tn + c.fp) + (1 - dt) * (c.tp + c.fn)) / (c.n * m.d)
    h = u * (sizes + c.fp * np.abs(by_tn / (c.n * m.d) - slope * a / (2 * c.n * m.p)))
    derivative = reference_options(truth.case, gradient=True).get("other_act_derivative")
    return _through_activation(h, x, target, o, derivative)


def lncc(truth: Truth) -> Array:
    """Return w_j (|A| |t - mean t| + 2 |B| |p - mean p|), the terms of LNCC's gradient, with the rounding of A and B.

    A = 2 c / D and B = -N / D² ∂D/∂s^p are computed from the moments of their window, which are rounded. Each window
    rounds its own moments, while a perturbation of the input changes all windows around it. If the terms of two windows
    cancel, no perturbation therefore explains the rounding error. For this reason, the magnitude includes the changes
    of A and B that result if each term of c and each variance changes by its own magnitude. The means are float64
    numbers, whatever the dtype of the images. If the images are float64, too, the rounding of the means matters for a
    contrast of a few roundoffs.
    """
    (pred, target), cotangent, options = _arguments(truth)
    return _lncc(pred, target, cotangent, MEAN / truth.precision.u, **options)


# The unit roundoff of the means of windows.
MEAN = 2.0**-53


class _Moments(NamedTuple):
    """The moments of each window, and the magnitudes of the sums behind them; each is (B, C, *S)."""

    mean_t: Array
    mean_p: Array
    c: Array
    terms_of_c: Array
    d: Array
    slope: Array
    of_d: Array  # the relative change of D if both variances change by their own magnitude


def _moments(pred: Array, target: Array, o: Any) -> _Moments:
    paper = local_normalized_cross_correlation
    (mean_t, _), (mean_p, _), c, s_t, s_p = paper.window_moments(pred, target, o)
    d, slope = paper.denominator(s_t, s_p, o)
    radii, windows = paper.window_weights(pred, o)
    t, p = padded(target.astype(pred.dtype), radii), padded(pred, radii)
    terms_of_c = np.zeros_like(pred)
    for w, place in places(pred.shape, windows):
        terms_of_c += w * np.abs((t[place] - mean_t) * (p[place] - mean_p))
    return _Moments(mean_t, mean_p, c, terms_of_c, d, slope, 2 * np.abs(d - o.smooth_dr) / d)


def lncc_value(truth: Truth) -> Array:
    """Return (c² + ν) / D plus its change if each term of c and each variance changes by its own magnitude."""
    (pred, target), _, options = _arguments(truth)
    o = local_normalized_cross_correlation.LNCCOptions(**options)
    m = _moments(pred, target, o)
    sizes = ((m.c**2 + o.smooth_nr) * (1 + m.of_d) + 2 * np.abs(m.c) * m.terms_of_c) / m.d
    return reduce(np.abs(sizes), pred.ndim, o.reduction)


def _lncc(pred: Array, target: Array, cotangent: Array, rounding: float, **options: Any) -> Array:
    paper = local_normalized_cross_correlation
    o = paper.LNCCOptions(**options)
    m = _moments(pred, target, o)
    g = np.abs(reduce_adjoint(cotangent, m.c, pred.ndim, o.reduction))
    by_c = g * 2 / m.d * (np.abs(m.c) * (1 + m.of_d) + m.terms_of_c)
    n = m.c**2 + o.smooth_nr
    by_s = g * np.abs(m.slope) / m.d**2 * (n * (2 + 2 * m.of_d) + 2 * np.abs(m.c) * m.terms_of_c)
    radii, windows = paper.window_weights(pred, o)
    t, p = padded(target.astype(pred.dtype), radii), padded(pred, radii)
    sizes, off_t, off_p = np.zeros_like(p), rounding * np.abs(m.mean_t), rounding * np.abs(m.mean_p)
    for w, place in places(pred.shape, windows):
        dt, dp = np.abs(t[place] - m.mean_t), np.abs(p[place] - m.mean_p)
        sizes[place] += w * (by_c * (dt + off_t) + 2 * by_s * (dp + off_p))
    return cropped(sizes, radii)


def mutual_information(truth: Truth) -> Array:
    """Return the sum over bins of |derivative of the weight| w |terms of Gamma|, where Gamma is dL/d(histogram)."""
    (pred, target), cotangent, options = _arguments(truth)
    o = global_mutual_information.MutualInformationOptions(**options)
    u = np.abs(reduce_adjoint(cotangent, pred.reshape(len(pred), -1)[:, 0], 1, o.reduction))
    return np.stack([_of_item(*item, o) for item in zip(pred, target.astype(pred.dtype), u, strict=True)])


def _of_item(p: Array, t: Array, u: Array, o: Any) -> Array:
    joint = global_mutual_information.joint_histogram(p.ravel(), t.ravel(), o)
    of_k, of_l = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    m = of_k * of_l + o.smooth_dr
    q = (joint + o.smooth_nr) / m
    r = q + o.smooth_dr
    by_m = joint * q / (r * m)
    gamma = np.abs(np.log(r)) + joint / (r * m) + (of_l * by_m).sum(1, keepdims=True) + (of_k * by_m).sum(0)
    terms = [
        (np.abs(of_p[1]) * (of_t[0] @ gamma.T)).sum(1)
        for of_p, of_t in parzen.weights_and_slopes(p.ravel(), t.ravel(), o)
    ]
    low, high = p.min(), p.max()
    width = 1 if o.kernel_type == "gaussian" or high == low else high - low
    by_x = u * np.concatenate(terms) / p.size * o.num_bins / width
    # All voxels contribute to the gradient at the two extremes of the range, so the sum of their terms is added.
    return np.asarray(by_x if o.kernel_type == "gaussian" else by_x + by_x.sum()).reshape(p.shape)


def multi_scale_lncc(truth: Truth, wrapped: Callable[..., Array], wrapped_gradient: Callable[..., Array]) -> Array:
    """Return the terms of the wrapped loss, smoothed as its gradient is, plus the effect of rounding the images."""
    (pred, target), cotangent, options = _arguments(truth)
    ours = {name: value for name, value in options.items() if name not in ("ndim", "loss")}
    rng, u = np.random.default_rng(0), truth.real(truth.precision.u)

    def rounded(image: Array) -> Array:
        return np.asarray(image * (1 + u * rng.choice([-1, 1], image.shape).astype(image.dtype)))

    def terms(p: Array, t: Array, cotangent: Array) -> Array:
        here = wrapped_gradient(p, t, cotangent)
        moves = [np.abs(wrapped_gradient(rounded(p), rounded(t), cotangent) - here) for _ in range(2)]
        own = _lncc(p, t, cotangent, MEAN / truth.precision.u, ndim=options["ndim"])
        return np.asarray(own + np.maximum(*moves) / u)

    if options.get("loss", "lncc") != "lncc":
        return truth.gradient
    return reference.multi_scale_loss_gradient(target, pred, wrapped, terms, cotangent=np.abs(cotangent), **ours)


def dice_loss(truth: Truth) -> Array | None:
    """Return the magnitudes of the terms of the Dice term's gradient if p is the softmax of the input, else None.

    The gradient is p_c sum_k p_k (h_c - h_k) with h = dL/dp, and every h is rounded.
    """
    case = truth.case
    x = case.input.lifted(truth.real)
    if not case.options.get("softmax") or x.shape[1] == 1:
        return None
    other_terms = {name: 0.0 for name in ("lambda_ce", "lambda_focal") if name in truth.twin.options}
    p = softmax(x)
    h = truth.gradient_of(case.having(softmax=None, **other_terms).with_values(input=p))
    return softmax_terms(np.abs(h), p)


def wasserstein_loss(truth: Truth) -> Array:
    """Return the magnitudes of the terms of the gradient, in which |dL/dp| is M[y, c] |dL/dW|, as if none cancelled.

    The loss is L = 1 - N / Z, where N and Z are sums over the distances W of all voxels.
    """
    case, given = truth.case, truth.twin.defaults() | dict(truth.case.options)
    x = case.input.lifted(truth.real)
    p = softmax(x).reshape(*x.shape[:2], -1)
    labels = case.operands["target"].values.reshape(len(x), -1)
    kept = labels != given["ignore_index"]
    y = np.where(kept, labels, 0).astype(np.intp)
    distances = np.asarray(given["dist_matrix"], truth.real)
    to_label = np.stack([(distances[:, c] / distances.max())[y] for c in range(x.shape[1])], 1)
    w, alpha = np.where(kept, (to_label * p).sum(1), 0), kept * (y > 0).astype(truth.real)
    by_gdl = given["weighting_mode"] == "GDL"
    if by_gdl:
        volumes = np.stack([(kept & (y == c)).sum(1) for c in range(x.shape[1])], 1)
        alpha = kept * np.take_along_axis(1 / (volumes + truth.real(1)), y, 1)
    overlap = 2 * (alpha * (1 - w)).sum(1, keepdims=True)
    n = overlap + given["smooth_nr"]
    z = given["smooth_dr"] + ((alpha * (2 - w)) if by_gdl else 2 * alpha * (1 - w) + w).sum(1, keepdims=True)
    slope_z = alpha if by_gdl else np.abs(1 - 2 * alpha)
    by_w = kept * (np.abs(n / z) * slope_z + 2 * alpha) / np.abs(z)
    upstream = np.abs(case.weights(truth.value.shape)).reshape(-1, 1) / (len(x) if given["reduction"] == "mean" else 1)
    return softmax_terms(np.asarray((upstream * by_w)[:, np.newaxis] * to_label).reshape(x.shape), softmax(x))
