r"""Local normalised cross-correlation (LNCC) of two images.

Avants et al. (2008), "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 12(1),
https://doi.org/10.1016/j.media.2007.06.004, section 2.2: the squared correlation coefficient of two images in a window
around each voxel, :math:`\langle \bar I, \bar J \rangle^2 / (\langle \bar I, \bar I \rangle \langle \bar J, \bar
J \rangle)`, where :math:`\bar I` and :math:`\bar J` are the images minus their means in the window.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import takes
from twinloss.reference.steps.reduction import reduce, reduce_adjoint
from twinloss.reference.steps.window import correlated, cropped, padded, places

Mean = tuple[Array, Array]  # a rounded mean, and its rounding error


@dataclass(frozen=True, kw_only=True)
class LNCCOptions:
    """Options of LNCC."""

    ndim: int = 3  # the window spans the last ndim axes
    kernel_size: int = 3  # the odd length of the window along each axis
    kernel_type: str = "rectangular"  # or "triangular", "gaussian"
    reduction: str = "mean"
    smooth_nr: float = 1e-5  # ν
    smooth_dr: float = 1e-5  # δ
    denominator: str = "product"  # or "clamp"

    def __post_init__(self) -> None:
        """Refuse a window for which no memory would be enough."""
        if self.kernel_size > 1023:
            raise ValueError(f"kernel_size must be at most 1023, got {self.kernel_size}")


@takes(LNCCOptions)
def local_normalized_cross_correlation_loss(pred: Array, target: Array, **options: Any) -> Array:
    r"""Return the negative squared local correlation of two images.

    .. math:: L_v = -\frac{c_v^2 + \nu}{s^t_v s^p_v + \delta}, \qquad
        c_v = \sum_j w_j (t_{v+j} - \bar t_v)(p_{v+j} - \bar p_v), \quad
        s^p_v = \sum_j w_j (p_{v+j} - \bar p_v)^2, \quad \bar p_v = \frac{\sum_j w_j p_{v+j}}{\sum_j w_j}

    Here j runs over the window around voxel v, which has the weights w. :math:`s^t` and :math:`\bar t` are defined in
    the same way. The images are zero beyond their borders. With ``denominator="clamp"`` the denominator is
    :math:`\max(s^t, \delta) \max(s^p, \delta)`. The loss of equal images is -1 if ν = δ. Where an image is flat, the
    loss is -ν/δ, or :math:`-\nu / (\delta \max(s, \delta))` for ``"clamp"``, where s is that of the other image.

    Args:
        pred: p, (B, C, *S).
        target: t, of the same shape.
        **options: the fields of :class:`LNCCOptions`.

    Returns:
        The loss, (), or that of each window, (B, C, *S), with ``reduction="none"``.

    Example:
        >>> t = np.array([[[1.0, 2, 4, 8]]])
        >>> local_normalized_cross_correlation_loss(3 * t, t, ndim=1, reduction="none", smooth_nr=0, smooth_dr=0)
        array([[[-1., -1., -1., -1.]]])
    """
    o = LNCCOptions(**options)
    with np.errstate(all="ignore"):
        *_, c, s_t, s_p = window_moments(pred, target, o)
        return reduce(-(c**2 + o.smooth_nr) / denominator(s_t, s_p, o)[0], pred.ndim, o.reduction)


@takes(LNCCOptions)
def local_normalized_cross_correlation_loss_gradient(
    pred: Array, target: Array, *, cotangent: Array | float = 1.0, **options: Any
) -> Array:
    r"""Return the gradient of ``sum(cotangent * loss)`` with respect to ``pred``.

    The loss is symmetric, so that exchanging the images gives the gradient with respect to ``target``.

    The weighted deviations from a mean sum to 0. Hence
    :math:`\partial c_v / \partial p_{v+j} = w_j (t_{v+j} - \bar t_v)` and
    :math:`\partial s^p_v / \partial p_{v+j} = 2 w_j (p_{v+j} - \bar p_v)`. With the denominator D and N = c² + ν,

    .. math:: \frac{\partial L_v}{\partial p_{v+j}} = -w_j \left(\frac{2 c_v}{D_v} (t_{v+j} - \bar t_v)
        - \frac{2 N_v}{D_v^2} \frac{\partial D_v}{\partial s^p_v} (p_{v+j} - \bar p_v)\right)

    where :math:`\partial D / \partial s^p = s^t`. For ``"clamp"`` it is :math:`\max(s^t, \delta)` if
    :math:`s^p > \delta`, and 0 otherwise.

    >>> t = np.array([[[1.0, 2, 4, 8]]])
    >>> local_normalized_cross_correlation_loss_gradient(t, t, ndim=1, smooth_nr=0, smooth_dr=0)  # the best match
    array([[[0., 0., 0., 0.]]])
    """
    o = LNCCOptions(**options)
    with np.errstate(all="ignore"):
        (mean_t, rest_t), (mean_p, rest_p), c, s_t, s_p = window_moments(pred, target, o)
        d, slope = denominator(s_t, s_p, o)
        g = reduce_adjoint(cotangent, c, pred.ndim, o.reduction)
        by_c, by_s = -2 * g * c / d, 2 * g * (c**2 + o.smooth_nr) / d * slope / d
        rest = by_c * rest_t + by_s * rest_p  # corrects both deviations for the rounding of the means
        radii, windows = window_weights(pred, o)
        t, p, gradient = padded(target, radii), padded(pred, radii), np.zeros_like(padded(pred, radii))
        for w, place in places(pred.shape, windows):
            gradient[place] += w * (by_c * (t[place] - mean_t) + by_s * (p[place] - mean_p) - rest)
    return cropped(gradient, radii)


def window_moments(pred: Array, target: Array, o: LNCCOptions) -> tuple[Mean, Mean, Array, Array, Array]:
    r"""Return the means of target and pred, c, s^t and s^p, each (B, C, *S).

    The rounding error of a mean m may be as large as the deviations of the images from it, so that it is kept beside m
    as r. Let d = t - m and e = p - m', and let W be the sum of the weights. Then :math:`r = \sum_j w_j d_j / W` and
    :math:`c = \sum_j w_j d_j e_j - W r r'`, the corrected two-pass sum of Chan, Golub & LeVeque (1983).
    """
    radii, windows = window_weights(pred, o)
    t, p = padded(target.astype(pred.dtype), radii), padded(pred, radii)
    total = np.prod([window.sum() for window in windows])
    mean_t, mean_p = (correlated(a, windows) / total for a in (target.astype(pred.dtype), pred))
    rest_t, rest_p, c, s_t, s_p = (np.zeros_like(pred) for _ in range(5))
    for w, place in places(pred.shape, windows):
        dt, dp = t[place] - mean_t, p[place] - mean_p
        weighted_t, weighted_p = w * dt, w * dp
        rest_t += weighted_t
        rest_p += weighted_p
        c += weighted_t * dp
        s_t += weighted_t * dt
        s_p += weighted_p * dp
    rest_t, rest_p = rest_t / total, rest_p / total
    c -= total * rest_t * rest_p
    s_t, s_p = (np.maximum(s - total * rest**2, 0) for s, rest in ((s_t, rest_t), (s_p, rest_p)))
    return (mean_t, rest_t), (mean_p, rest_p), c, s_t, s_p


def denominator(s_t: Array, s_p: Array, o: LNCCOptions) -> tuple[Array, Array]:
    """Return the denominator D, and ∂D/∂s^p."""
    if o.denominator == "product":
        return s_t * s_p + o.smooth_dr, s_t
    floor = np.maximum(s_t, o.smooth_dr)
    return floor * np.maximum(s_p, o.smooth_dr), np.where(s_p > o.smooth_dr, floor, 0 * s_p)


def window_weights(image: Array, o: LNCCOptions) -> tuple[list[int], list[Array]]:
    """Return the radius and the weights of the window along each axis: one voxel along axes that it does not span."""
    radius = o.kernel_size // 2
    j = np.arange(-radius, radius + 1).astype(image.dtype)
    f = image.dtype.type(radius + 1)
    weights = {
        "rectangular": np.ones_like(j),
        "triangular": (f - np.abs(j)) / f**2,
        "gaussian": np.exp(-(j**2) * 9 / (2 * image.dtype.type(o.kernel_size) ** 2)),  # σ = k/3
    }[o.kernel_type]
    spanned = [axis >= image.ndim - 2 - o.ndim for axis in range(image.ndim - 2)]
    return [radius if here else 0 for here in spanned], [weights if here else np.ones_like(j[:1]) for here in spanned]
