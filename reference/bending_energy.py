r"""Bending energy of a displacement field.

Rueckert et al. (1999), "Nonrigid registration using free-form deformations: application to breast MR images", IEEE
Trans. Med. Imaging 18(8), https://doi.org/10.1109/42.796284, eq. 3: the bending energy of a thin metal sheet is the
mean of

.. math:: E = \sum_d \left(\frac{\partial^2 u}{\partial x_d^2}\right)^2
    + 2 \sum_{d<e} \left(\frac{\partial^2 u}{\partial x_d \partial x_e}\right)^2

over space, for each component u of the field.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.grid import voxel_sizes
from twinloss.reference.steps.options import typed
from twinloss.reference.steps.reduction import reduce, reduce_adjoint

# A difference of neighbouring voxels, as a sum of terms (factor, offset in voxels along each spatial axis).
Stencil = list[tuple[float, tuple[int, ...]]]


@typed
def bending_energy_loss(
    pred: Array,
    *,
    stencil: str = "compact",
    normalize: bool = False,
    spacing: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Array:
    r"""Return the bending energy of a displacement field.

    .. math:: E_{bci} = \sum_{d \le e} m_{de} \left(a_{cde} (K_{de} u_{bc})_i\right)^2,
        \qquad m_{dd} = 1, \quad m_{de} = 2

    where :math:`K_{de}` is a second difference along the axes d and e. The stencil ``"compact"`` is
    :math:`u_{+} - 2u + u_{-}` and :math:`(u_{++} - u_{+-} - u_{-+} + u_{--})/4`, and omits one voxel at each border.
    ``"wide"`` applies :math:`(u_{+} - u_{-})/2` twice, and omits two voxels.

    The factor is :math:`a_{cde} = 1/(h_d h_e)` for voxels of size h (1 without ``spacing``). ``normalize`` measures
    positions and displacements in units of the grid's extent :math:`s_d = n_d h_d`, as :math:`x_d / s_d` and
    :math:`u_c / s_c`, so that :math:`a_{cde} = s_d s_e / (s_c h_d h_e)`. The energy of a field then does not depend on
    how finely the field is sampled.

    Args:
        pred: u, the displacement field, (B, C, *S), with 1 to 3 spatial axes, and C = their number if ``normalize``.
        stencil: ``"compact"`` or ``"wide"``.
        normalize: measure in units of the extent of the grid.
        spacing: h, the size of a voxel along each axis, in mm.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The energy, (), or that of each interior voxel, (B, C, *S'), with ``reduction="none"``.

    Example:
        >>> x = np.arange(5.0)
        >>> float(bending_energy_loss((x**2).reshape(1, 1, 5)))  # the second derivative is 2 everywhere
        4.0
    """
    terms = [m * a**2 * d**2 for m, a, d, _ in _derivatives(pred, stencil, normalize, spacing)]
    return reduce(np.sum(terms, axis=0), pred.ndim, reduction)


@typed
def bending_energy_loss_gradient(
    pred: Array,
    *,
    stencil: str = "compact",
    normalize: bool = False,
    spacing: Sequence[float] | None = None,
    reduction: str = "mean",
    cotangent: Array | float = 1.0,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * bending_energy_loss)`` with respect to the field.

    .. math:: \frac{\partial}{\partial u} \sum_i G_i E_i
        = \sum_{d \le e} K_{de}^T \left(2 m_{de} a_{cde}^2 G \, K_{de} u\right)

    where G is the cotangent of E. The adjoint :math:`K^T` adds each value to the voxels of its difference, with
    the same factors.

    >>> bending_energy_loss_gradient(np.array([[[0.0, 1.0, 0.0]]]))  # E = (0 - 2 + 0)^2
    array([[[-4.,  8., -4.]]])
    """
    terms = list(_derivatives(pred, stencil, normalize, spacing))
    g = reduce_adjoint(cotangent, terms[0][2], pred.ndim, reduction)
    gradient = np.zeros_like(pred)
    for m, a, d, weights in terms:
        scattered = 2 * m * a**2 * g * d
        for factor, offset in weights:
            gradient[_window(pred, d, offset)] += pred.dtype.type(factor) * scattered
    return gradient


def _derivatives(
    pred: Array, stencil: str, normalize: bool, spacing: Sequence[float] | None
) -> Iterator[tuple[int, Array, Array, Stencil]]:
    """For each pair of axes, yield m, a (1, C, 1, …), the difference K u on the interior, and the stencil K."""
    real, rank = pred.dtype.type, pred.ndim - 2
    h = voxel_sizes(spacing, rank, real)
    extent = [n * size for n, size in zip(pred.shape[2:], h, strict=True)]
    margin = 1 if stencil == "compact" else 2
    interior = np.empty((*pred.shape[:2], *(n - 2 * margin for n in pred.shape[2:])), pred.dtype)
    for d, e in combinations_with_replacement(range(rank), 2):
        a = np.full(pred.shape[1], 1 / (h[d] * h[e]), pred.dtype)
        if normalize:
            a *= extent[d] * extent[e] / np.asarray(extent, pred.dtype)
        weights = _stencil(d, e, rank, stencil)
        difference = np.zeros_like(interior)
        for factor, offset in weights:
            difference += real(factor) * pred[_window(pred, interior, offset)]
        yield (1 if d == e else 2), a.reshape(-1, *[1] * rank), difference, weights


def _stencil(d: int, e: int, rank: int, stencil: str) -> Stencil:
    """Return the second difference along the axes d and e."""

    def step(along: dict[int, int]) -> tuple[int, ...]:
        return tuple(along.get(axis, 0) for axis in range(rank))

    if d != e:  # a central difference of a central difference
        return [(s * t / 4, step({d: s, e: t})) for s in (1, -1) for t in (1, -1)]
    if stencil == "compact":
        return [(1.0, step({d: 1})), (-2.0, step({})), (1.0, step({d: -1}))]
    return [(0.25, step({d: 2})), (-0.5, step({})), (0.25, step({d: -2}))]


def _window(whole: Array, interior: Array, offset: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the slices of the whole field that hold, for each interior voxel, its neighbour at an offset."""
    sizes = zip(whole.shape[2:], interior.shape[2:], offset, strict=True)
    starts = [((n - inner) // 2 + shift, inner) for n, inner, shift in sizes]
    return (slice(None), slice(None), *(slice(start, start + inner) for start, inner in starts))
