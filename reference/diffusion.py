r"""Diffusion regulariser of a displacement field.

Fischer and Modersitzki (2002), "Fast diffusion registration", Contemporary Mathematics 313. It is the smoothness term
of Balakrishnan et al. (2019), "VoxelMorph: a learning framework for deformable medical image registration", IEEE Trans.
Med. Imaging 38(8), https://doi.org/10.1109/TMI.2019.2897538: the mean of

.. math:: E = \|\nabla u\|^2 = \sum_d \left(\frac{\partial u}{\partial x_d}\right)^2

over space, for each component u of the field. Differences of neighbouring voxels approximate the derivatives.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.grid import voxel_sizes
from twinloss.reference.steps.options import typed
from twinloss.reference.steps.reduction import reduce, reduce_adjoint

Place = tuple[slice, ...]


@typed
def diffusion_loss(
    pred: Array,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    stencil: str = "compact",
    spacing: Sequence[float] | None = None,
) -> Array:
    r"""Return the diffusion loss of a displacement field.

    The stencil ``"compact"`` takes the differences between a voxel i and its neighbours along each axis d. The set
    :math:`N_d(i)` has two neighbours, or one at the border:

    .. math:: E_{bci} = \sum_d \frac{a_{cd}^2}{|N_d(i)|} \sum_{j \in N_d(i)} (u_{bcj} - u_{bci})^2

    These are VoxelMorph's differences :math:`u_{+} - u`. In the interior, each difference counts half for each of its
    two voxels. The outermost voxel has only one difference, which counts in full. Hence a field and its mirror image
    have the same loss, and every voxel contributes. The stencil ``"wide"`` omits one voxel at each border, and takes

    .. math:: E_{bci} = \sum_d a_{cd}^2 \left(\frac{u_{+} - u_{-}}{2}\right)^2

    MONAI uses this stencil. It is blind to a field that alternates from voxel to voxel.

    The factor is :math:`a_{cd} = 1/h_d` for voxels of size h (1 without ``spacing``). ``normalize`` measures positions
    and displacements in units of the grid's extent :math:`s_d = n_d h_d`, as :math:`x_d / s_d` and :math:`u_c / s_c`.
    Then :math:`a_{cd} = s_d / (s_c h_d)`.

    Args:
        pred: u, the displacement field, (B, C, *S), with 1 to 3 spatial axes, and C = their number if ``normalize``.
        normalize: measure in units of the extent of the grid.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        stencil: ``"compact"`` or ``"wide"``.
        spacing: h, the size of a voxel along each axis, in mm.

    Returns:
        The loss, (), or with ``reduction="none"`` that of each voxel, (B, C, *S) or, if ``"wide"``, (B, C, *S').

    Example:
        >>> float(diffusion_loss(3 * np.arange(5.0).reshape(1, 1, 5)))  # the slope is 3 everywhere
        9.0
    """
    energy = np.zeros(_shape(pred, stencil), pred.dtype)
    for weight, at, after, before in _differences(pred, stencil, normalize, spacing):
        energy[at] += weight * (pred[after] - pred[before]) ** 2
    return reduce(energy, pred.ndim, reduction)


@typed
def diffusion_loss_gradient(
    pred: Array,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    stencil: str = "compact",
    spacing: Sequence[float] | None = None,
    cotangent: Array | float = 1.0,
) -> Array:
    r"""Return the gradient of ``sum(cotangent * diffusion_loss)`` with respect to the field.

    Let G be the cotangent of E. A term :math:`w (u_j - u_k)^2` of the energy at voxel i contributes

    .. math:: \frac{\partial}{\partial u_j} G_i w (u_j - u_k)^2 = 2 G_i w (u_j - u_k)
        = -\frac{\partial}{\partial u_k} G_i w (u_j - u_k)^2

    >>> diffusion_loss_gradient(np.array([[[0.0, 1.0, 0.0]]]), reduction="sum")  # E = 1, (1 + 1)/2, 1
    array([[[-3.,  6., -3.]]])
    """
    g = reduce_adjoint(cotangent, np.zeros(_shape(pred, stencil), pred.dtype), pred.ndim, reduction)
    gradient = np.zeros_like(pred)
    for weight, at, after, before in _differences(pred, stencil, normalize, spacing):
        slope = 2 * g[at] * weight * (pred[after] - pred[before])
        gradient[after] += slope
        gradient[before] -= slope
    return gradient


def _shape(pred: Array, stencil: str) -> tuple[int, ...]:
    """Return the shape of the map of energies."""
    margin = 0 if stencil == "compact" else 1
    return (*pred.shape[:2], *(n - 2 * margin for n in pred.shape[2:]))


def _differences(
    pred: Array, stencil: str, normalize: bool, spacing: Sequence[float] | None
) -> Iterator[tuple[Array, Place, Place, Place]]:
    """Yield each set of differences: the weight w, (1, C, …), the voxels i they count for, and their ends j and k."""
    real, rank = pred.dtype.type, pred.ndim - 2
    h = voxel_sizes(spacing, rank, real)
    extent = np.array([n * size for n, size in zip(pred.shape[2:], h, strict=True)], pred.dtype)
    for d in range(rank):
        a = np.full(pred.shape[1], 1 / h[d], pred.dtype)
        if normalize:
            a *= extent[d] / extent
        weight = (a**2).reshape(1, -1, *[1] * rank)
        if stencil == "wide":
            off_border = slice(1, -1)
            after, before = (_place(rank, d, along, off_border) for along in (slice(2, None), slice(None, -2)))
            yield weight / 4, _place(rank, d, slice(None)), after, before
        else:
            neighbours = np.full(pred.shape[d + 2], 2, pred.dtype)
            neighbours[[0, -1]] = 1
            weight = weight / neighbours.reshape(-1, *[1] * (rank - 1 - d))
            lower, upper = _place(rank, d, slice(None, -1)), _place(rank, d, slice(1, None))
            yield weight[lower], lower, upper, lower
            yield weight[upper], upper, upper, lower


def _place(rank: int, d: int, along: slice, others: slice = slice(None)) -> Place:
    """Return one slice along the axis d and another along all other axes."""
    return (slice(None), slice(None), *(along if axis == d else others for axis in range(rank)))
