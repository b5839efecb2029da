"""Bending energy of a displacement field; the twin of `reference/bending_energy.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from twinloss.fast.engine.field import FieldEnergy, FieldLoss, Grid
from twinloss.fast.kernels.contract import BENDING_ENERGY
from twinloss.fast.runtime.arguments import total


def _plain(u: Tensor, weights: Tensor, step: int, voxelwise: bool) -> Tensor:
    """Return the total energy, or with `voxelwise` that of each voxel; see `PlainEnergy`."""
    axes = _axes(weights.shape[1])
    margin = [step if 3 - d <= axes else 0 for d in range(3)]

    def moved(**offset: int) -> Tensor:
        """Return the values at an offset from each interior voxel."""
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
    return energy if voxelwise else energy.sum(dtype=weights.dtype)


def _axes(differences: int) -> int:
    """Return the number of axes of a field, given the number of its second differences.

    This is not a table, because under torch.compile the number may be symbolic.
    """
    return 1 if differences == 1 else 2 if differences == 3 else 3


def _weigh(stencil: str, grid: Grid) -> list[list[float]]:
    """Return the weight of each squared difference in the energy of each component."""
    pure, axes = 1.0 if stencil == "compact" else 0.25, range(len(grid.shape) - 1)
    # The last axis is x.
    pairs = [(d, e) for d in reversed(axes) for e in (d, *reversed(axes[d + 1 :]))]
    return [
        [(grid.scale(c, (d, e)) * (pure if d == e else 0.25)) ** 2 * (1 if d == e else 2) for d, e in pairs]
        for c in range(grid.shape[0])
    ]


class BendingEnergyLoss(FieldLoss):
    r"""Bending energy of a displacement field: the mean of the sum of its squared second derivatives.

    .. math::
        E = \sum_d \left(\frac{\partial^2 u}{\partial x_d^2}\right)^2
            + 2 \sum_{d<e} \left(\frac{\partial^2 u}{\partial x_d \partial x_e}\right)^2

    at each voxel that is not at the border, for each component u of the field. The energy of an affine field is 0.

    Args:
        reduction: ``"mean"`` over voxels and components, ``"sum"``, or ``"none"`` for the energy of each interior
            voxel.
        stencil: how derivatives are computed. ``"compact"``: u₊ - 2u + u₋, and for mixed derivatives
            (u₊₊ - u₊₋ - u₋₊ + u₋₋)/4; omits one voxel at each border and needs 3 along each axis. ``"wide"``: central
            first differences, applied twice, as in older releases of MONAI; omits two voxels and needs 5. It is blind
            to a field that alternates from voxel to voxel, so that the energy of a folded field may be 0.
        normalize: measure positions and displacements in units of the extent of the grid, n h along an axis of n voxels
            of size h. The energy then does not depend on how finely the field is sampled. The field must have one
            component for each axis.
        spacing: h, the size of a voxel along each axis in mm, for derivatives in physical units. The default is 1.

    Shape:
        pred (B, C, *S) with 1 to 3 spatial axes. Integers are converted to torch's default floating-point type. With
        ``"none"`` the result is (B, C, *S'), where S' is the size without the omitted border.

    Raises:
        TypeError: if the field is not a tensor of real numbers, or if ``spacing`` is not a list of numbers.
        ValueError: if the reduction or the stencil is unknown; if ``spacing`` is not positive, or not one number for
            each axis; if the field does not have 1 to 3 spatial axes, or has too few voxels along an axis; if, with
            ``normalize``, the number of components is not the number of axes.

    Reference:
        Rueckert, D. et al. (1999) Nonrigid registration using free-form deformations: application to breast MR images,
        IEEE Trans. Med. Imaging 18(8), eq. 3.

    Example:
        >>> import torch
        >>> BendingEnergyLoss()(torch.arange(5.0).square().reshape(1, 1, 5))
        tensor(4.)
    """

    energy, weigh = FieldEnergy(BENDING_ENERGY, _plain, _axes), staticmethod(_weigh)
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
