"""Diffusion loss of a displacement field; the twin of `reference/diffusion.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.field import Energy, FieldLoss, Grid
from twinloss.fast.kernels.contract import DIFFUSION


def _plain(u: Tensor, weights: Tensor, margin: int, voxelwise: bool) -> Tensor:
    """Return the energies, see `PlainEnergy`."""
    by_field = weights.to(u.dtype).repeat(u.shape[0] // weights.shape[0], 1)
    terms = [by_field[:, k, None, None, None] * _squares(u, 3 - k, margin, weights) for k in range(weights.shape[1])]
    energy = sum(terms[1:], terms[0])
    return energy if voxelwise else energy.sum(dtype=torch.float64)


def _squares(u: Tensor, axis: int, margin: int, weights: Tensor) -> Tensor:
    """The squared differences along an axis, unscaled: one for each voxel off the border, or the sum of two for all."""
    if margin:  # of the wide stencil
        for other in {3 - k for k in range(weights.shape[1])} - {axis}:
            u = u.narrow(other, 1, u.shape[other] - 2)
        n = u.shape[axis] - 2
        return (u.narrow(axis, 2, n) - u.narrow(axis, 0, n)).square()
    squares = u.diff(dim=axis).square()
    n = squares.shape[axis]
    before = torch.cat([squares.narrow(axis, 0, 1), squares], axis)  # a missing neighbour is the mirror image of ...
    return before + torch.cat([squares, squares.narrow(axis, n - 1, 1)], axis)  # ... that on the other side


def _weigh(stencil: str, grid: Grid) -> list[list[float]]:
    share, axes = 0.5 if stencil == "compact" else 0.25, range(len(grid.shape) - 1)
    # The last axis is x.
    return [[share * grid.scale(c, (d,)) ** 2 for d in reversed(axes)] for c in range(grid.shape[0])]


class DiffusionLoss(FieldLoss):
    r"""Mean squared slope of a field: the squares of its first derivatives.

    .. math:: E = \sum_d \left(\frac{\partial u}{\partial x_d}\right)^2

    for each component u and each voxel. A translation costs nothing.

    Args:
        normalize: measure positions and displacements in extents of the grid, n_d h_d along axis d, so that the loss
            does not hang on how finely a field is sampled; the field needs a component for each axis.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the squared slope at each voxel.
        stencil: ``"compact"`` takes the mean of the squared differences to the two neighbours of a voxel, at the border
            to the one; it needs 2 voxels along each axis. ``"wide"`` takes central differences off the border, as MONAI
            does, and needs 3; it sees neither a field that alternates from voxel to voxel, so that a folded field may
            cost nothing, nor corners. On a smooth field both are close to each other.
        spacing: size of a voxel along each axis in mm, for derivatives in physical units.

    Shape:
        pred (B, C, *S) with 1 to 3 spatial axes; integers are cast to torch's default float type.
        With ``"none"`` the result is (B, C, *S), or without the border where the stencil is ``"wide"``.

    Raises:
        TypeError: if the field is no tensor of real numbers, or ``spacing`` no list of numbers.
        ValueError: for an unknown reduction or stencil, a spacing that is not positive or does not fit the axes, a
            field of another rank, with too few voxels, or (``normalize``) components.

    Reference:
        Balakrishnan, G. et al. (2019) VoxelMorph: a learning framework for deformable medical image registration, IEEE
        Trans. Med. Imaging 38(8); Fischer, B. and Modersitzki, J. (2002) Fast diffusion registration, Contemporary
        Mathematics 313.

    Example:
        >>> import torch
        >>> DiffusionLoss()(3 * torch.arange(5.0).reshape(1, 1, 5))
        tensor(9.)
    """

    energy, weigh = Energy(DIFFUSION, _plain, lambda axes: axes), staticmethod(_weigh)
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
