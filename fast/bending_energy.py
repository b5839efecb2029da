"""Bending energy of a displacement field; the twin of `reference/bending_energy.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.field import Energy, FieldLoss, Grid
from twinloss.fast.kernels.contract import BENDING_ENERGY
from twinloss.fast.runtime.arguments import total


def _plain(u: Tensor, weights: Tensor, step: int, voxelwise: bool) -> Tensor:
    """Return the energies, see `PlainEnergy`."""
    axes = _axes(weights.shape[1])
    margin = [step if 3 - d <= axes else 0 for d in range(3)]

    def moved(**offset: int) -> Tensor:
        """The interior's neighbours at an offset."""
        at = u
        for axis, (m, name) in enumerate(zip(margin, "zyx", strict=True), start=1):
            at = at.narrow(axis, m + offset.get(name, 0), u.shape[axis] - 2 * m)
        return at

    here, differences = moved(), []
    for d in "xyz"[:axes]:
        differences.append((moved(**{d: step}) - here) + (moved(**{d: -step}) - here))
        differences += [
            (moved(**{d: 1, e: 1}) - moved(**{d: 1, e: -1})) - (moved(**{d: -1, e: 1}) - moved(**{d: -1, e: -1}))
            for e in "xyz"[: "xyz".index(d)]
        ]
    by_field = weights.to(u.dtype).repeat(u.shape[0] // weights.shape[0], 1)
    energy = total(by_field[:, k, None, None, None] * difference**2 for k, difference in enumerate(differences))
    return energy if voxelwise else energy.sum(dtype=torch.float64)


def _axes(differences: int) -> int:
    """How many axes a field has; the number may be symbolic, so that no table can hold it."""
    return 1 if differences == 1 else 2 if differences == 3 else 3


def _weigh(stencil: str, grid: Grid) -> list[list[float]]:
    pure, axes = 1.0 if stencil == "compact" else 0.25, range(len(grid.shape) - 1)
    # The last axis is x.
    pairs = [(d, e) for d in reversed(axes) for e in (d, *reversed(axes[d + 1 :]))]
    return [
        [(grid.scale(c, (d, e)) * (pure if d == e else 0.25)) ** 2 * (1 if d == e else 2) for d, e in pairs]
        for c in range(grid.shape[0])
    ]


class BendingEnergyLoss(FieldLoss):
    r"""Mean bending energy of a field: the squares of its second derivatives.

    .. math::
        E = \sum_d \left(\frac{\partial^2 u}{\partial x_d^2}\right)^2
            + 2 \sum_{d<e} \left(\frac{\partial^2 u}{\partial x_d \partial x_e}\right)^2

    for each component u and each voxel off the border. An affine field costs nothing.

    Args:
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the energy of each interior voxel.
        stencil: ``"compact"`` takes u₊ - 2u + u₋, and a quarter of the difference of corners; it needs 3 voxels along
            each axis. ``"wide"`` takes central first differences twice, as older releases of MONAI do, and needs 5; it
            does not see a field that alternates from voxel to voxel, so that a folded field may cost nothing.
        normalize: measure positions and displacements in extents of the grid, n_d h_d along axis d, so that the energy
            does not hang on how finely a field is sampled; the field needs a component for each axis.
        spacing: size of a voxel along each axis in mm, for derivatives in physical units.

    Shape:
        pred (B, C, *S) with 1 to 3 spatial axes; integers are cast to torch's default float type.
        With ``"none"`` the result is (B, C, *S'), S' without the border.

    Raises:
        TypeError: if the field is no tensor of real numbers, or ``spacing`` no list of numbers.
        ValueError: for an unknown reduction or stencil, a spacing that is not positive or does not fit the axes, a
            field of another rank, with too few voxels, or (``normalize``) components.

    Reference:
        Rueckert, D. et al. (1999) Nonrigid registration using free-form deformations: application to breast MR images,
        IEEE Trans. Med. Imaging 18(8), eq. 3.

    Example:
        >>> import torch
        >>> BendingEnergyLoss()(torch.arange(5.0).square().reshape(1, 1, 5))
        tensor(4.)
    """

    energy, weigh = Energy(BENDING_ENERGY, _plain, _axes), staticmethod(_weigh)
    wanted = "second differences"
    margins: ClassVar = {"compact": 1, "wide": 2}
    leasts: ClassVar = {"compact": 3, "wide": 5}

    def __init__(
        self,
        reduction: str = "mean",
        *,
        stencil: str = "compact",
        normalize: bool = False,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(reduction, stencil, normalize, spacing)
