"""Wrapper that computes a loss of two images at several scales; the twin of `reference/multi_scale.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from twinloss.fast.engine.correlation import made_from
from twinloss.fast.engine.loss import Loss, checked_loss, entry_point
from twinloss.fast.engine.smoothing import smoothed
from twinloss.fast.kernels.contract import SMOOTHING
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import check_tensors, checked_flag
from twinloss.fast.runtime.options import checked_number, one_of
from twinloss.fast.runtime.torch_operator import is_traced


def _checked_scales(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (Sequence, np.ndarray, Tensor)) or getattr(value, "ndim", 1) == 0:
        raise TypeError(f"{name} must be None or a list of numbers, got {type(value).__name__}")
    if len(value) == 0:
        raise ValueError(f"{name} must hold at least one number, or be None to leave the images unsmoothed")
    scales = tuple(checked_number(_number(scale), name) for scale in value)
    if any(0 < scale < 1e-100 for scale in scales):
        raise ValueError(f"{name} must be 0 or at least 1e-100, got {scales}: smaller kernels overflow")
    if max(scales) > 1000:
        raise ValueError(f"{name} must be at most 1000 voxels, got {max(scales)}: larger kernels take too much memory")
    return scales


class MultiScaleLoss(Loss):
    r"""Average of a loss of two images over several scales, at each of which both images are smoothed.

    .. math::
        L = \frac1S \sum_s \ell(k_s * p, k_s * t)

    Here :math:`\ell` is the wrapped loss, p is ``y_pred``, t is ``y_true``, and :math:`k_s` is the smoothing kernel of
    scale s, which is applied along each spatial axis. The images are 0 beyond their borders.

    Args:
        loss: the wrapped loss, called as ``loss(y_pred, y_true)``: a module of this package or any callable.
        scales: σ of each scale, in voxels, at most 1000. A scale of 0 does not smooth. With None, the loss is called
            once, on the unsmoothed images.
        kernel: ``"gaussian"``: exp(-j²/2σ²)/(σ√2π) for |j| ≤ int(3σ + ½). ``"cauchy"``: 1/((j/σ)² + 1) for
            |j| ≤ int(5σ), divided by its sum.
        reduction: ``"mean"`` or ``"sum"`` over the scales and all values that the loss returns, or ``"none"`` for the
            stacked results, (S, …), where S is the number of scales.
        normalize_kernel: divide the Gaussian kernel by its sum, too. Otherwise its samples sum to more than 1 for
            σ < ½, for example to 1.34 along each axis at σ = 0.3.

    Shape:
        y_true and y_pred (B, C, *S) with 1 to 3 spatial axes. Integer and half-precision images are converted to
        float32 before they are smoothed and compared. The result is float64 if either image is float64, and otherwise
        has the type of ``y_pred``.

    Raises:
        TypeError: if the loss is not callable, or if ``scales`` is not a list of numbers.
        ValueError: if ``scales`` is empty; if a scale is negative or too large; if the kernel or the reduction is
            unknown; if the images do not have 1 to 3 spatial axes; if the images are empty.

    Example:
        >>> import torch
        >>> loss = MultiScaleLoss(torch.nn.MSELoss(), scales=[0, 1])
        >>> loss(torch.zeros(1, 1, 5), torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]))
        tensor(0.1282)
    """

    option_checks: ClassVar = {
        **Loss.option_checks,
        "loss": checked_loss,
        "scales": _checked_scales,
        "kernel": one_of("gaussian", "cauchy"),
        "normalize_kernel": checked_flag,
    }

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        scales: Sequence[float] | None = None,
        kernel: str = "gaussian",
        reduction: str = "mean",
        *,
        normalize_kernel: bool = False,
    ) -> None:
        super().__init__(reduction=reduction)
        self.loss = loss
        self.scales = scales
        self.kernel = kernel
        self.normalize_kernel = normalize_kernel

    @entry_point
    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        check_tensors(y_true=y_true, y_pred=y_pred)
        kind = dispatch.result_type(y_pred, y_true)
        wide = torch.float64 if kind == torch.float64 else torch.float32
        for image in (y_pred, y_true):
            if not 3 <= image.ndim <= 5:
                raise ValueError(
                    "images must be (batch, channels, *spatial) with 1 to 3 spatial axes, got shape "
                    f"{tuple(image.shape)}"
                )
            if image.numel() == 0:
                raise ValueError(f"images must have at least one voxel, got shape {tuple(image.shape)}")
        pred, true = y_pred.to(wide), y_true.to(wide)
        if self.scales is None:
            result = self.loss(pred, true)
        else:
            kernels = [_taps(sigma, self.kernel, self.normalize_kernel) for sigma in self.scales]
            result = torch.stack([self._at_scale(pred, true, taps) for taps in kernels])
        if self.reduction != "none":
            result = result.mean() if self.reduction == "mean" else result.sum()
        return result.to(kind)

    def _at_scale(self, pred: Tensor, true: Tensor, taps: list[float]) -> Tensor:
        smooth = smoothed(pred, taps), smoothed(true, taps)
        # The unsmoothed images live until the backward pass in any case. If a correlation loss keeps those, and smooths
        # them again where it needs to, the memory of the smoothed images can be freed.
        seen = is_traced((pred, true)) or dispatch.choose(SMOOTHING, pred) == "plain" or not torch.is_grad_enabled()
        with nullcontext() if seen or taps == [1.0] else made_from((pred, true), smooth, partial(smoothed, taps=taps)):
            return self.loss(*smooth)


def _number(scale: Any) -> Any:
    return scale.item() if isinstance(scale, (Tensor, np.generic)) else scale


def _taps(sigma: float, kernel: str, normalize: bool) -> list[float]:
    """Return the nonzero samples of the kernel along an axis.

    Python numbers are used, because torch.compile treats NumPy numbers as tensors.
    """
    if sigma == 0:
        return [1.0]
    reach = int(3 * sigma + 0.5) if kernel == "gaussian" else int(5 * sigma)
    far = [j / sigma for j in range(-reach, reach + 1)]
    if kernel == "gaussian":
        taps = [math.exp(-(x**2) / 2) / (sigma * math.sqrt(2 * math.pi)) for x in far]
    else:
        taps = [1 / (x**2 + 1) for x in far]
    total = math.fsum(taps) if normalize or kernel == "cauchy" else 1.0
    return [tap / total for tap in taps]
