r"""Diffusion regulariser of a displacement field.

Fischer and Modersitzki (2002), "Fast diffusion registration", Contemporary Mathematics 313; as the smoothness term of
Balakrishnan et al. (2019), "VoxelMorph: a learning framework for deformable medical image registration", IEEE Trans.
Med. Imaging 38(8), https://doi.org/10.1109/TMI.2019.2897538: the mean of

.. math:: E = \|\nabla u\|^2 = \sum_d \left(\frac{\partial u}{\partial x_d}\right)^2

over space, for each component u of the field, with differences of neighbouring voxels for derivatives.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from twinloss.reference.steps.activation import Array
from twinloss.reference.steps.reduction import reduce, reduce_adjoint

Place = tuple[slice, ...]


def diffusion_loss(
    pred: Array,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    stencil: str = "compact",
    spacing: Sequence[float] | None = None,
) -> Array:
    r"""Diffusion loss: (), or the squared slopes at each voxel, (B, C, *S) or (B, C, *S'), with ``reduction="none"``.

    ``"compact"`` takes the differences to the neighbours of a voxel i along an axis d, of which
    :math:`N_d(i)` holds two, or at the border one,

    .. math:: E_{bci} = \sum_d \frac{a_{cd}^2}{|N_d(i)|} \sum_{j \in N_d(i)} (u_{bcj} - u_{bci})^2

    These are VoxelMorph's differences :math:`u_{+} - u`. In the interior, the two voxels that a difference joins share
    it; the outermost voxel has only one difference, which counts whole. So a field and its mirror image cost the same,
    and every voxel has its part. ``"wide"`` leaves out a voxel at each border, and takes

    .. math:: E_{bci} = \sum_d a_{cd}^2 \left(\frac{u_{+} - u_{-}}{2}\right)^2

    which MONAI does, and which does not see a field that alternates from voxel to voxel.

    :math:`a_{cd}` is :math:`1/h_d` for voxels of size h (1 without ``spacing``). With ``normalize`` positions and
    displacements are in units of the extent :math:`s_d = n_d h_d` of the grid, :math:`u_c / s_c` and
    :math:`x_d / s_d`, which makes it :math:`s_d / (s_c h_d)`.

    Args:
        pred: u, the displacement field, (B, C, *S), 1 to 3 spatial axes; C = their number for ``normalize``.
        normalize: measure in extents of the grid.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        stencil: ``"compact"`` or ``"wide"``.
        spacing: h, the size of a voxel along each axis, in mm.

    >>> float(diffusion_loss(3 * np.arange(5.0).reshape(1, 1, 5)))  # the slope is 3 everywhere
    9.0
    """
    energy = np.zeros(_shape(pred, stencil), pred.dtype)
    for weight, at, after, before in _differences(pred, stencil, normalize, spacing):
        energy[at] += weight * (pred[after] - pred[before]) ** 2
    return reduce(energy, pred.ndim, reduction)


def diffusion_loss_gradient(
    pred: Array,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    stencil: str = "compact",
    spacing: Sequence[float] | None = None,
    cotangent: Array | float = 1.0,
) -> Array:
    r"""Gradient in the field of the sum of ``cotangent * diffusion_loss``, of the field's shape.

    A term :math:`w (u_j - u_k)^2` of the energy of the voxel i gives

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
    """Of the energies of voxels."""
    margin = 0 if stencil == "compact" else 1
    return (*pred.shape[:2], *(n - 2 * margin for n in pred.shape[2:]))


def _differences(
    pred: Array, stencil: str, normalize: bool, spacing: Sequence[float] | None
) -> Iterator[tuple[Array, Place, Place, Place]]:
    """The weight w of a squared difference, (1, C, …), the voxels i to which it counts, and j and k between which."""
    real, rank = pred.dtype.type, pred.ndim - 2
    h = [real(1)] * rank if spacing is None else [real(size) for size in spacing]
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
    """A part of the grid along the axis d, and along the others."""
    return (slice(None), slice(None), *(along if axis == d else others for axis in range(rank)))
