"""Diffusion loss of a displacement field; the twin of `reference/diffusion.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.field import FieldEnergy, FieldLoss, Grid
from twinloss.fast.kernels.contract import DIFFUSION


def _plain(u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
    """Return the total energy, or with `voxelwise` that of each voxel; see `PlainEnergy`."""
    by_field = weights.to(u.dtype).repeat(u.shape[0] // weights.shape[0], 1)
    terms = [by_field[:, k, None, None, None] * _squares(u, 3 - k, margin, weights) for k in range(weights.shape[1])]
    energy = sum(terms[1:], terms[0])
    return energy if voxelwise else energy.sum(dtype=weights.dtype)


def _squares(u: Tensor, axis: int, margin: int, weights: Tensor) -> Tensor:
    """Return the unscaled squared differences along an axis.

    The wide stencil, of margin 1, has one for each voxel inside the border. The compact stencil has the sum of two for
    each voxel; at the border, the difference to the only neighbour counts twice.
    """
    if margin:  # the wide stencil
        for other in {3 - k for k in range(weights.shape[1])} - {axis}:
            u = u.narrow(other, 1, u.shape[other] - 2)
        n = u.shape[axis] - 2
        return (u.narrow(axis, 2, n) - u.narrow(axis, 0, n)).square()
    squares = u.diff(dim=axis).square()
    n = squares.shape[axis]
    # A missing neighbour at the border is the mirror image of the neighbour on the other side.
    before = torch.cat([squares.narrow(axis, 0, 1), squares], axis)
    return before + torch.cat([squares, squares.narrow(axis, n - 1, 1)], axis)


def _weigh(stencil: str, grid: Grid) -> list[list[float]]:
    """Return the weight of the squared differences along each axis in the energy of each component."""
    share, axes = 0.5 if stencil == "compact" else 0.25, range(len(grid.shape) - 1)
    # The last axis is x.
    return [[share * grid.scale(c, (d,)) ** 2 for d in reversed(axes)] for c in range(grid.shape[0])]


class DiffusionLoss(FieldLoss):
    r"""Diffusion loss of a displacement field: the mean of the sum of its squared first derivatives.

    .. math:: E = \sum_d \left(\frac{\partial u}{\partial x_d}\right)^2

    at each voxel, for each component u of the field. The loss of a translation is 0.

    Args:
        normalize: measure positions and displacements in units of the extent of the grid, n h along an axis of n voxels
            of size h. The loss then does not depend on how finely the field is sampled. The field must have one
            component for each axis.
        reduction: ``"mean"`` over voxels and components, ``"sum"``, or ``"none"`` for the value of each voxel.
        stencil: how derivatives are computed. ``"compact"``: the mean of the squared differences to the two neighbours
            of a voxel along each axis, or the squared difference to its only neighbour at the border; needs 2 voxels
            along each axis. ``"wide"``: central differences, as in MONAI; omits one voxel at each border and needs 3.
            It is blind to the corners of the grid and to a field that alternates from voxel to voxel, so that the loss
            of a folded field may be 0. For a smooth field, the two stencils give similar values.
        spacing: h, the size of a voxel along each axis in mm, for derivatives in physical units. The default is 1.

    Shape:
        pred (B, C, *S) with 1 to 3 spatial axes. Integers are converted to torch's default floating-point type. With
        ``"none"`` the result is (B, C, *S); with the wide stencil, it is without the omitted border.

    Raises:
        TypeError: if the field is not a tensor of real numbers, or if ``spacing`` is not a list of numbers.
        ValueError: if the reduction or the stencil is unknown; if ``spacing`` is not positive, or not one number for
            each axis; if the field does not have 1 to 3 spatial axes, or has too few voxels along an axis; if, with
            ``normalize``, the number of components is not the number of axes.

    Reference:
        Fischer, B. and Modersitzki, J. (2002) Fast diffusion registration, Contemporary Mathematics 313.
        Balakrishnan, G. et al. (2019) VoxelMorph: a learning framework for deformable medical image registration, IEEE
        Trans. Med. Imaging 38(8), which uses it as the smoothness term.

    Example:
        >>> import torch
        >>> DiffusionLoss()(3 * torch.arange(5.0).reshape(1, 1, 5))
        tensor(9.)
    """

    energy, weigh = FieldEnergy(DIFFUSION, _plain, lambda axes: axes), staticmethod(_weigh)
    wanted = "first differences"
    margins: ClassVar = {"compact": 0, "wide": 1}
    leasts: ClassVar = {"compact": 2, "wide": 3}

    def __init__(
        self,
        normalize: bool = False,
        reduction: str = "mean",
        *,
        stencil: str = "compact",
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(reduction, stencil, normalize, spacing)
