r"""Mutual information of the intensities of two images, from a joint histogram with Parzen windows.

Guo (2019), "Multi-modal image registration with unsupervised deep learning", MIT,
https://dspace.mit.edu/handle/1721.1/123142, section 3.1, eq. 3.1 to 3.5, uses a Gaussian window. Mattes et al. (2003),
"PET-CT image registration in the chest using free-form deformations", IEEE Trans. Med. Imaging 22(1),
https://doi.org/10.1109/TMI.2003.809072, section II.B, use a cubic B-spline for one image and a box for the other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.options import takes
from twinloss.reference.steps.parzen import PADDING, ParzenOptions, weights_and_slopes
from twinloss.reference.steps.reduction import reduce, reduce_adjoint


@dataclass(frozen=True, kw_only=True)
class MutualInformationOptions(ParzenOptions):
    """Options of mutual information."""

    reduction: str = "mean"
    smooth_nr: float = 1e-7  # ν
    smooth_dr: float = 1e-7  # δ


@takes(MutualInformationOptions)
def global_mutual_information_loss(pred: Array, target: Array, **options: Any) -> Array:
    r"""Return the negative mutual information of two images.

    .. math:: L = -\sum_{kl} P_{kl} \log\left(\frac{P_{kl} + \nu}{P_k P_l + \delta} + \delta\right), \qquad
        P_{kl} = \frac{1}{N} \sum_i w^p_{ik} w^t_{il}, \quad P_k = \sum_l P_{kl}, \quad P_l = \sum_k P_{kl}

    where :math:`w_{ik}` is the weight of voxel i in bin k. For the Gaussian window,
    :math:`w_{ik} \propto e^{-(z_i - k)^2 / 2 \sigma^2}`, which sums to 1 over the bins k = 0 … K - 1, and
    :math:`z_i = (K - 1) x_i` with x clamped to [0, 1]. For the B-spline window, the intensities of the item's image are
    mapped to the range from 2 to K - 2,

    .. math:: z_i = 2 + (K - 4) \frac{x_i - x_{min}}{x_{max} - x_{min}}, \qquad
        w^p_{ik} = \beta^3(k - z_i), \quad w^t_{ik} = [k = \lfloor z_i \rfloor].

    The box counts the largest intensity in bin K - 3. All voxels of a flat image lie at z = 2.

    Args:
        pred: (B, …), each item a set of samples.
        target: of the same shape.
        **options: the fields of :class:`MutualInformationOptions`.

    Returns:
        The loss, (), or that of each item, (B,), with ``reduction="none"``.

    Example:
        >>> x = np.array([[0.0, 0.0, 1.0, 1.0]])
        >>> round(float(-global_mutual_information_loss(x, x, num_bins=2, sigma_ratio=0.1) / np.log(2)), 4)  # one bit
        1.0
    """
    o = MutualInformationOptions(**options)
    with np.errstate(all="ignore"):
        joint = np.stack([joint_histogram(p.ravel(), t.ravel(), o) for p, t in zip(pred, target, strict=True)])
        of_k, of_l = joint.sum(2, keepdims=True), joint.sum(1, keepdims=True)
        ratio = (joint + o.smooth_nr) / (of_k * of_l + o.smooth_dr) + o.smooth_dr
        return reduce(-(joint * np.log(ratio)).sum((1, 2)), 1, o.reduction)


@takes(MutualInformationOptions)
def global_mutual_information_loss_gradient(
    pred: Array, target: Array, *, cotangent: Array | float = 1.0, **options: Any
) -> Array:
    r"""Return the gradient of ``sum(cotangent * loss)`` with respect to ``pred``.

    Let M = P_k P_l + δ, Q = (P_kl + ν)/M and R = Q + δ, so that L is minus the sum of P_kl log R. Since :math:`P_k` and
    :math:`P_l` are sums of :math:`P_{kl}`,

    .. math:: \Gamma_{kl} = \frac{\partial L}{\partial P_{kl}} = -\log R_{kl} - \frac{P_{kl}}{R_{kl} M_{kl}}
        + \sum_{l'} P_{l'} \frac{P_{kl'} Q_{kl'}}{R_{kl'} M_{kl'}}
        + \sum_{k'} P_{k'} \frac{P_{k'l} Q_{k'l}}{R_{k'l} M_{k'l}}

    Then :math:`\partial L/\partial z_i = \frac1N \sum_k \dot w_{ik} h_{ik}`, where
    :math:`h_{ik} = \sum_l \Gamma_{kl} w^t_{il}` and :math:`\dot w_{ik} = \partial w_{ik} / \partial z_i`.

    For the Gaussian window, :math:`\dot w_{ik} = w_{ik} (k - \bar k_i)/\sigma^2` with
    :math:`\bar k_i = \sum_k w_{ik} k`, and :math:`\partial z/\partial x = K - 1` within [0, 1] and 0 outside. The
    gradient with respect to ``target`` is this one with the images exchanged.

    For the B-spline window, :math:`\dot w_{ik} = -\dot\beta^3(k - z_i)`, and :math:`z_i` also depends on the extremes
    of the image. Let :math:`r = (K - 4) / (x_{max} - x_{min})` and
    :math:`s_i = (x_i - x_{min}) / (x_{max} - x_{min})`. The derivative of :math:`z_i` is r with respect to :math:`x_i`,
    :math:`-r (1 - s_i)` with respect to the minimum, and :math:`-r s_i` with respect to the maximum. All voxels that
    attain an extreme share its derivative equally. The gradient with respect to ``target`` is 0, because a box has no
    slope.

    >>> x, y = np.array([[0.0, 0.5, 1.0]]), np.array([[1.0, 0.0, 1.0]])
    >>> float(global_mutual_information_loss_gradient(x, y, kernel_type="b-spline").sum().round(12)) + 0.0
    0.0
    """
    o = MutualInformationOptions(**options)
    with np.errstate(all="ignore"):
        u = reduce_adjoint(cotangent, pred.reshape(len(pred), -1)[:, 0], 1, o.reduction)
        items = zip(pred, target, u, strict=True)
        return np.stack([_item_gradient(p.ravel(), t.ravel(), c, o).reshape(p.shape) for p, t, c in items])


def joint_histogram(p: Array, t: Array, o: MutualInformationOptions) -> Array:
    """Return the joint histogram P_kl of one item, (K, K)."""
    joint = np.zeros((o.num_bins, o.num_bins), p.dtype)
    for of_p, of_t in weights_and_slopes(p, t, o):
        joint += of_p[0].T @ of_t[0]
    return np.asarray(joint / p.dtype.type(p.size))


def _gradient_in_joint(joint: Array, o: MutualInformationOptions) -> Array:
    """Return Γ, the gradient with respect to P_kl, (K, K)."""
    of_k, of_l = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    m = of_k * of_l + o.smooth_dr
    q = (joint + o.smooth_nr) / m
    r = q + o.smooth_dr
    by_m = joint * q / (r * m)
    through_marginals = (of_l * by_m).sum(1, keepdims=True) + (of_k * by_m).sum(0, keepdims=True)
    return np.asarray(through_marginals - np.log(r) - joint / (r * m))


def _item_gradient(p: Array, t: Array, u: Array, o: MutualInformationOptions) -> Array:
    """Return the gradient of u L for one item, whose voxels are p and t, each (N,)."""
    gamma = u * _gradient_in_joint(joint_histogram(p, t, o), o)
    by_z = np.concatenate([(of_p[1] * (of_t[0] @ gamma.T)).sum(1) for of_p, of_t in weights_and_slopes(p, t, o)])
    by_z /= p.dtype.type(p.size)
    if o.kernel_type == "gaussian":
        return np.asarray(by_z * (o.num_bins - 1) * ((p >= 0) & (p <= 1)))
    low, high = p.min(), p.max()
    if low == high:
        return np.zeros_like(p)
    rate, share = (o.num_bins - 2 * PADDING) / (high - low), (p - low) / (high - low)
    gradient = rate * by_z
    for extreme, part in ((low, 1 - share), (high, share)):
        attained = p == extreme
        gradient -= attained * (rate * by_z * part).sum() / attained.sum()
    return np.asarray(gradient)
