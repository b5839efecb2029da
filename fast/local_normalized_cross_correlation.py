"""Local normalised cross-correlation of two images; the twin of `reference/local_normalized_cross_correlation.py`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.correlation import correlation_sum, correlations
from twinloss.fast.engine.loss import Loss, entry_point
from twinloss.fast.kernels.contract import CorrelationPlan
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError, check_tensors
from twinloss.fast.runtime.options import checked_number, is_whole, one_of


def _checked_axes(value: Any, name: str) -> int:
    if not is_whole(value) or value not in (1, 2, 3):
        raise ValueError(f"{name} must be 1, 2 or 3, got {value!r}")
    return int(value)


def _checked_size(value: Any, name: str) -> int:
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a positive odd whole number, got {value!r}")
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd, so that the window has a centre, got {value}")
    if value > 1023:
        raise ValueError(f"{name} must be at most 1023, got {value}: larger windows take too much memory")
    return int(value)


class LocalNormalizedCrossCorrelationLoss(Loss):
    r"""Negative squared correlation coefficient of two images in a window around each voxel.

    .. math::
        L_v = -\frac{c_v^2 + \nu}{s^t_v s^p_v + \delta}, \quad
        c_v = \sum_j w_j (t_{v+j} - \bar t_v)(p_{v+j} - \bar p_v), \quad
        s^p_v = \sum_j w_j (p_{v+j} - \bar p_v)^2

    Here v is the centre of the window and j runs over the window, whose weights are w. :math:`\bar p_v` and
    :math:`\bar t_v` are means over the window, also with the weights w. The images are 0 beyond their borders. In a
    window where an image is constant, :math:`L = -\nu / \delta`, which is -1 by default. With
    ``denominator="clamp"``, the denominator is :math:`\max(s^t, \delta) \max(s^p, \delta)`, and a window where one
    image is constant has :math:`L = -\nu / (\delta \max(s, \delta))`, where s is that of the other image.

    Args:
        ndim: the number of spatial axes, from 1 to 3.
        kernel_size: k, the number of voxels of the window along each axis; odd, at most 1023.
        kernel_type: the weights of the window. ``"rectangular"``: w = 1. The others are products of weights along each
            axis: ``"triangular"``: (1, 2, …, f, …, 2, 1) / f² with f = (k + 1)/2; ``"gaussian"``: exp(-j²/2σ²) with
            σ = k/3.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each window, (B, C, *S).
        smooth_nr: ν, the smoothing term of the numerator.
        smooth_dr: δ, the smoothing term of the denominator.
        spatial_dims: another name of ``ndim``.
        denominator: ``"product"`` for :math:`s^t s^p + \delta`, or ``"clamp"``.

    Shape:
        pred and target (B, C, *S), of equal shape; each channel is compared separately. The result is float64 if either
        image is float64, and otherwise has the type of ``pred``. Integer images are converted to float32.

    Raises:
        TypeError: if an option is not a number.
        ValueError: if the window size is even, not positive or too large; if the window, the denominator or the
            reduction is unknown; if ``ndim`` is not 1, 2 or 3, or not the number of spatial axes of the images; if the
            shapes of the images differ; if the images are empty.

    Reference:
        Avants, B. B. et al. (2008) Symmetric diffeomorphic image registration with cross-correlation, Medical Image
        Analysis 12(1), section 2.2.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
        >>> round(LocalNormalizedCrossCorrelationLoss(ndim=1)(3 * image, image).item(), 4)
        -1.0
    """

    option_checks: ClassVar = {
        **Loss.option_checks,
        "ndim": _checked_axes,
        "kernel_size": _checked_size,
        "kernel_type": one_of("rectangular", "triangular", "gaussian"),
        **dict.fromkeys(("smooth_nr", "smooth_dr"), checked_number),
        "denominator": one_of("product", "clamp"),
    }

    def __init__(
        self,
        ndim: int = 3,
        kernel_size: int = 3,
        kernel_type: str = "rectangular",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        *,
        spatial_dims: int | None = None,
        denominator: str = "product",
    ) -> None:
        super().__init__(reduction=reduction)
        self.ndim = ndim
        if spatial_dims is not None:
            self.spatial_dims = spatial_dims
            if ndim not in (3, spatial_dims):
                raise ValueError(f"ndim and spatial_dims name the same option, got {ndim} and {spatial_dims}")
        self.kernel_size = kernel_size
        self.kernel_type = kernel_type
        self.smooth_nr = smooth_nr
        self.smooth_dr = smooth_dr
        self.denominator = denominator

    @property
    def spatial_dims(self) -> int:
        """Another name of `ndim`; assigning either changes both."""
        return self.ndim

    @spatial_dims.setter
    def spatial_dims(self, axes: int) -> None:
        self.ndim = _checked_axes(axes, "spatial_dims")

    @entry_point
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        self._check(pred, target)
        kind = dispatch.result_type(pred, target)
        wide = torch.float64 if kind == torch.float64 else torch.float32
        p, t = (image.to(wide).reshape(-1, *[1] * (3 - self.ndim), *image.shape[2:]) for image in (pred, target))
        if t.requires_grad and not p.requires_grad:
            p, t = t, p  # the loss is symmetric, and the kernels compute the gradient in the first image
        plan = CorrelationPlan(
            self.kernel_size, self.kernel_type, self.ndim, self.smooth_nr, self.smooth_dr, self.denominator == "clamp"
        )
        if self.reduction == "none":
            return -correlations(p, t, plan, True).reshape(pred.shape).to(kind)
        return correlation_sum(p, t, plan, -1 / pred.numel() if self.reduction == "mean" else -1.0, kind)

    def _check(self, pred: Tensor, target: Tensor) -> None:
        check_tensors(pred=pred, target=target)
        shape = tuple(pred.shape)
        if shape != tuple(target.shape):
            raise ShapeError(f"pred has shape {shape} and target {tuple(target.shape)}: they must be equal")
        if len(shape) != self.ndim + 2:
            raise ValueError(
                f"images must be (batch, channels, *spatial) with {self.ndim} spatial axes, got shape {shape}; pass "
                "ndim for another number of spatial axes"
            )
        if pred.numel() == 0:
            raise ValueError(f"images must have at least one voxel, got shape {shape}")
