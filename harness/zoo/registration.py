"""Mutants of the registration losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from twinloss import fast
from twinloss.harness.losses.registration import MultiScale
from twinloss.harness.zoo.mutants import bug, with_gradient_times


@bug("bending_energy")
class NestedDifferences(fast.BendingEnergyLoss):
    """Central differences of central differences, which are blind to a checkerboard, as in a MONAI release."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if self.stencil == "wide" or min(pred.shape[2:]) < 5:
            return super().forward(pred)
        options = {name: getattr(self, name) for name in ("normalize", "reduction", "spacing")}
        made: Tensor = fast.BendingEnergyLoss(**options, stencil="wide")(pred)
        return made if self.reduction != "none" else super().forward(pred)


@bug("bending_energy")
class MixedTermsOnce(fast.BendingEnergyLoss):
    """Mixed derivatives are counted once: the sum over d < e lacks the factor 2."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if pred.ndim != 4 or self.normalize or self.stencil == "wide" or self.reduction == "none":
            return super().forward(pred)
        u = pred.double()
        mixed = (u[..., 2:, 2:] - u[..., 2:, :-2] - u[..., :-2, 2:] + u[..., :-2, :-2]) / 4
        area = 1.0 if self.spacing is None else float(self.spacing[0]) * float(self.spacing[1])
        energy = (mixed / area) ** 2
        less = energy.mean() if self.reduction == "mean" else energy.mean((1, 2, 3)).sum()
        return super().forward(pred) - less.to(pred.dtype)


@bug("bending_energy")
class SpacingForgotten(fast.BendingEnergyLoss):
    """The option spacing is ignored: derivatives are those of a grid with unit voxels."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "spacing": None})


@bug("bending_energy")
class SquareForgotten(fast.BendingEnergyLoss):
    """The square root of the energy is returned, as if it were a norm."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(pred).sqrt()


@bug("diffusion")
class BlindToACheckerboard(fast.DiffusionLoss):
    """Central differences in the interior, which see neither a checkerboard nor corners, as in a MONAI release."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if self.reduction == "none" or min(pred.shape[2:]) < 3:
            return super().forward(pred)
        options = {name: getattr(self, name) for name in ("normalize", "reduction", "spacing")}
        made: Tensor = fast.DiffusionLoss(**options, stencil="wide")(pred)
        return made


@bug("diffusion")
class SpacingOnce(fast.DiffusionLoss):
    """Squared derivatives are divided by the voxel size, not by its square."""

    def __init__(self, **options: Any) -> None:
        spacing = options.get("spacing")
        super().__init__(**{**options, "spacing": spacing and [size**0.5 for size in spacing]})


@bug("diffusion")
class LastVoxelFallsOff(fast.DiffusionLoss):
    """Forward differences omit the far border of each axis: a field and its mirror image have different losses."""

    def forward(self, pred: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if self.stencil == "wide" or self.normalize or self.spacing or self.reduction == "none":
            return super().forward(pred)
        u, near = pred.double(), (slice(None),) * 2 + (slice(None, -1),) * (pred.ndim - 2)
        slopes = torch.stack([u.roll(-1, axis)[near] - u[near] for axis in range(2, pred.ndim)])
        energy: Tensor = getattr(slopes.square().sum(0), self.reduction)()
        return energy.to(pred.dtype)


class PlainCorrelation(torch.nn.Module):
    """Correct LNCC in plain torch and float64, from which mutants are derived."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lncc: Any = fast.LocalNormalizedCrossCorrelationLoss(**options)

    def window(self) -> Tensor:
        """Return the weights along an axis."""
        k, kind = self.lncc.kernel_size, self.lncc.kernel_type
        at = torch.arange(k, dtype=torch.float64) - k // 2
        if kind == "rectangular":
            return torch.ones(k, dtype=torch.float64)
        if kind == "triangular":
            half = (k + 1) / 2
            return (half - at.abs()) / half**2
        return torch.exp(-(at**2) / (2 * (k / 3) ** 2))

    def sums(self, image: Tensor) -> Tensor:
        """Return the weighted sums over the windows, (B, C, *S)."""
        window = self.window()
        reach, rank = len(window) // 2, image.ndim - 2
        for axis in range(rank):
            around = pad(image, [0, 0] * axis + [reach, len(window) - 1 - reach])
            shifted = around.unfold(image.ndim - 1 - axis, len(window), 1)
            image = (shifted * window).sum(-1)
        return image

    def volume(self, image: Tensor) -> float:
        """Return the sum of the weights."""
        return float(self.window().sum() ** (image.ndim - 2))

    def moments(self, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cross term and both variances."""
        n = self.volume(p)
        sp, st = self.sums(p), self.sums(t)
        cross = self.sums(p * t) - sp * st / n
        return cross, self.sums(t * t) - st**2 / n, self.sums(p * p) - sp**2 / n

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        if self.lncc.denominator == "clamp":
            made: Tensor = self.lncc(pred, target)
            return made
        cross, of_t, of_p = self.moments(pred.double(), target.double())
        of_t, of_p = of_t.clamp_min(0), of_p.clamp_min(0)
        ncc = (cross**2 + self.lncc.smooth_nr) / (of_t * of_p + self.lncc.smooth_dr)
        loss = -ncc if self.lncc.reduction == "none" else -getattr(ncc, self.lncc.reduction)()
        return loss.to(pred.dtype)


@bug("lncc")
class OffCentreGaussian(PlainCorrelation):
    """The Gaussian is sampled from -k/2 to k/2 - 1, so its centre lies between two voxels, as in a MONAI release."""

    def window(self) -> Tensor:
        """Return the wrong window."""
        k = self.lncc.kernel_size
        if self.lncc.kernel_type != "gaussian" or k == 1:
            return super().window()
        return torch.exp(-((torch.arange(k, dtype=torch.float64) - k / 2) ** 2) / (2 * (k / 3) ** 2))


@bug("lncc")
class TriangleOfOne(PlainCorrelation):
    """The triangle of three voxels is 0, 1, 0, so every window is a single voxel, as in a MONAI release."""

    def window(self) -> Tensor:
        """Return the wrong window."""
        w = super().window()
        return torch.where(w == w.max(), w, 0) if self.lncc.kernel_type == "triangular" and len(w) == 3 else w


@bug("lncc", dtype="float32")
class VarianceInOnePass(fast.LocalNormalizedCrossCorrelationLoss):
    """Variance is E[x²] - E[x]² in float32: a small contrast on a large offset is lost to cancellation."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        if self.kernel_type != "rectangular" or self.denominator == "clamp":
            return super().forward(pred, target)

        def mean(image: Tensor) -> Tensor:
            pool = getattr(torch.nn.functional, f"avg_pool{self.ndim}d")
            made: Tensor = pool(image, self.kernel_size, 1, self.kernel_size // 2)
            return made

        p, t, n = pred.float(), target.float(), self.kernel_size**self.ndim
        cross = n * (mean(p * t) - mean(p) * mean(t))
        of_p, of_t = (n * (mean(i * i) - mean(i) ** 2).clamp_min(0) for i in (p, t))
        ncc = (cross**2 + self.smooth_nr) / (of_t * of_p + self.smooth_dr)
        return (-ncc if self.reduction == "none" else -getattr(ncc, self.reduction)()).to(pred.dtype)


@bug("lncc")
class MeansAreConstants(PlainCorrelation):
    """The means of the windows are detached, as if they did not depend on the image."""

    def moments(self, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the wrong moments."""
        n = self.volume(p)
        sp, st = self.sums(p).detach(), self.sums(t).detach()
        return self.sums(p * t) - sp * st / n, self.sums(t * t) - st**2 / n, self.sums(p * p) - sp**2 / n


@bug("lncc")
class WindowOfTheInside(PlainCorrelation):
    """Windows are cropped at the border, although the image is defined as 0 outside."""

    def moments(self, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the wrong moments."""
        n = self.sums(torch.ones_like(p))
        sp, st = self.sums(p), self.sums(t)
        return self.sums(p * t) - sp * st / n, self.sums(t * t) - st**2 / n, self.sums(p * p) - sp**2 / n


@bug("lncc")
class WithoutTheSquare(PlainCorrelation):
    """The cross term is not squared: correlation in place of its square, as in many implementations."""

    def moments(self, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the wrong moments."""
        cross, of_t, of_p = super().moments(p, t)
        return cross.abs().clamp_min(1e-30).sqrt(), of_t, of_p


@bug("mutual_information")
class SigmaOfTheDefault(fast.GlobalMutualInformationLoss):
    """The option sigma_ratio is ignored: 0.5 is always used."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "sigma_ratio": 0.5})


@bug("mutual_information")
class OneHistogramForTheBatch(fast.GlobalMutualInformationLoss):
    """All items share one histogram, as after one flatten() too many."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        loss = super().forward(pred.reshape(1, 1, -1), target.reshape(1, 1, -1))
        shape = [len(pred), *[1] * (pred.ndim - 1)]
        return loss.reshape(-1)[0].expand(shape).clone() if self.reduction == "none" else loss


@bug("mutual_information")
class BitsForNats(fast.GlobalMutualInformationLoss):
    """The logarithm has base 2: the result is in bits, not in nats."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward(pred, target) / 0.6931471805599453


@bug("mutual_information")
class MarginalsAreConstants(fast.GlobalMutualInformationLoss):
    """The marginal of the moving image is treated as constant: the gradient is half of the correct one."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        return super().forward((pred + pred.detach()) / 2, target)


@bug("multi_scale")
class OneImageSmoothed(MultiScale):
    """Only the prediction is smoothed, and it is compared with the unsmoothed target."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        scales = self.multi_scale.scales
        if scales is None or max(scales) == 0:
            return super().forward(pred, target)
        inner = self.multi_scale.loss

        def compare(smooth: Tensor, _: Tensor) -> Tensor:
            made: Tensor = inner(smooth, target.to(smooth.dtype))
            return made

        wrapped = fast.MultiScaleLoss(
            compare, list(scales), self.multi_scale.kernel, self.multi_scale.reduction,
            normalize_kernel=self.multi_scale.normalize_kernel,
        )  # fmt: skip
        made: Tensor = wrapped(target, pred)
        return made


@bug("multi_scale")
class SumOfTheScales(MultiScale):
    """The losses of the scales are summed, although their mean is requested."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        scales = self.multi_scale.scales or (0,)
        return super().forward(pred, target) * (len(scales) if self.multi_scale.reduction == "mean" else 1)


@bug("multi_scale")
class KernelOfTheOtherName(MultiScale):
    """The option kernel is ignored: kernel="cauchy" gives a Gaussian."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "kernel": "gaussian"})


@bug("multi_scale")
class GradientOfTheFirstScale(MultiScale):
    """Only the first scale has a gradient: the others are computed under no_grad, as for logging."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the wrong loss."""
        scales = self.multi_scale.scales
        share = 1.0 if scales is None else 1.0 / len(scales)
        return super().forward(with_gradient_times(pred, share), target)
