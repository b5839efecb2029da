"""Registration losses with the arguments of MONAI 1.6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinloss import fast
from twinloss.fast.engine.field import FieldLoss
from twinloss.fast.runtime.constants import accumulator


class _OneComponentPerAxis(FieldLoss):
    """A loss of a field that must have one component for each spatial axis, with and without `normalize`."""

    def _check(self, pred: Tensor) -> None:
        super()._check(pred)
        if pred.shape[1] != pred.ndim - 2:
            raise ValueError(
                f"pred must have one component for each of its {pred.ndim - 2} spatial axes, got shape "
                f"{tuple(pred.shape)}; twinloss.fast.{type(self).__name__} takes any number of components"
            )


class BendingEnergyLoss(_OneComponentPerAxis, fast.BendingEnergyLoss):
    """Bending energy of a displacement field, see `twinloss.fast.BendingEnergyLoss`."""

    def __init__(self, normalize: bool = False, reduction: str = "mean", **options: Any) -> None:
        super().__init__(reduction, normalize=normalize, **options)


class DiffusionLoss(_OneComponentPerAxis, fast.DiffusionLoss):
    """Diffusion loss of a displacement field, with central differences, see `twinloss.fast.DiffusionLoss`."""

    def __init__(self, normalize: bool = False, reduction: str = "mean", **options: Any) -> None:
        super().__init__(normalize, reduction, **{"stencil": "wide", **options})


class LocalNormalizedCrossCorrelationLoss(fast.LocalNormalizedCrossCorrelationLoss):
    """Negative squared local correlation of two images, see `twinloss.fast.LocalNormalizedCrossCorrelationLoss`.

    Each variance is clamped at `smooth_dr`, so that a flat window scores 0.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 3,
        kernel_type: str = "rectangular",
        reduction: str = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__(
            3, kernel_size, kernel_type, reduction, smooth_nr, smooth_dr, spatial_dims=spatial_dims,
            **{"denominator": "clamp", **options},
        )  # fmt: skip


class GlobalMutualInformationLoss(fast.GlobalMutualInformationLoss):
    """Negative mutual information of two images, see `twinloss.fast.GlobalMutualInformationLoss`.

    With `kernel_type="b-spline"`, the bins span the intensities of the whole batch, the box of `target` is centred on a
    bin, and the positions of intensities are clamped to the bins from 2 to K - 3.
    """

    def __init__(
        self,
        kernel_type: str = "gaussian",
        num_bins: int = 23,
        sigma_ratio: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-7,
        smooth_dr: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(num_bins, sigma_ratio, reduction, smooth_nr, smooth_dr, kernel_type=kernel_type, **options)

    def histogram(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the joint histogram of the images (B, N) of each item, (B, K, K), which sums to 1."""
        if self.kernel_type != "b-spline":
            return super().histogram(x, y)
        of_x, of_y = (self._distances(image) for image in (x, y))
        inner, outer = (4 - 6 * of_x**2 + 3 * of_x**3) / 6, (2 - of_x).clamp(min=0) ** 3 / 6
        box = (of_y < 0.5) + 0.5 * (of_y == 0.5) + 0 * of_y.detach()  # the last term keeps NaN
        return torch.where(of_x < 1, inner, outer).mT @ box / x.shape[1]

    def _distances(self, image: Tensor) -> Tensor:
        """Return the distance of each voxel from each bin, (B, N, K)."""
        image = image.to(accumulator(image.device))
        low, high = image.amin(), image.amax()
        width = torch.where(high == low, 1, high - low)  # a constant image falls into one bin
        z = 2 + ((image - low) * ((self.num_bins - 4) / width)).clamp(max=self.num_bins - 5)
        return (z.unsqueeze(2) - torch.arange(self.num_bins, dtype=z.dtype, device=z.device)).abs()
