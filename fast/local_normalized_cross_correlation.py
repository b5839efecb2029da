"""Local normalised cross-correlation of two images; the twin of `reference/local_normalized_cross_correlation.py`."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from twinloss.fast import backend
from twinloss.fast.segmentation import ShapeError, checked_number, checked_reduction
from twinloss.fast.threads import for_each_bundle, for_each_slab

_KERNELS = ("rectangular", "triangular", "gaussian")
_DENOMINATORS = ("product", "clamp")


class LocalNormalizedCrossCorrelationLoss(_Loss):
    r"""Minus the squared correlation coefficient of two images in a window around each voxel.

    .. math::
        L_v = -\frac{c_v^2 + \nu}{s^t_v s^p_v + \delta}, \quad
        c_v = \sum_j w_j (t_{v+j} - \bar t_v)(p_{v+j} - \bar p_v), \quad
        s^p_v = \sum_j w_j (p_{v+j} - \bar p_v)^2

    with the means of the window, weighted by w as well; the images are 0 beyond their borders. A flat window has
    :math:`L = -\nu / \delta`: -1 by default. For ``denominator="clamp"`` the denominator is
    :math:`\max(s^t, \delta) \max(s^p, \delta)`, and a window that is flat in one image has
    :math:`-\nu / (\delta \max(s, \delta))`, s of the other.

    Args:
        ndim: the number of spatial axes, 1 to 3.
        kernel_size: k, how many voxels a window has along each axis; odd.
        kernel_type: ``"rectangular"``: w = 1. ``"triangular"``: along each axis 1, 2, …, f, …, 2, 1 over f², f = (k +
            1)/2. ``"gaussian"``: along each axis exp(-j²/2σ²), σ = k/3.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each window, (B, C, *S).
        smooth_nr: ν.
        smooth_dr: δ.
        spatial_dims: another name of ``ndim``.
        denominator: ``"product"`` or ``"clamp"``.

    Shape:
        pred and target alike, (B, C, *S); channels are compared one by one.

    Raises:
        TypeError: if an option is no number.
        ValueError: for an even or negative window, an unknown window, denominator or reduction, another number of axes
            than 1 to 3, or in the images than was said; images of different shapes, or without a voxel.

    Reference:
        Avants, B. B. et al. (2008) Symmetric diffeomorphic image registration with cross-correlation, Medical Image
        Analysis 12(1), section 2.2.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
        >>> LocalNormalizedCrossCorrelationLoss(ndim=1)(3 * image, image)
        tensor(-1.0000)
    """

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
        super().__init__(reduction=checked_reduction(reduction))
        if spatial_dims is not None and ndim not in (3, spatial_dims):
            raise ValueError(f"ndim and spatial_dims name the same option, got {ndim} and {spatial_dims}")
        self.ndim = ndim if spatial_dims is None else spatial_dims
        if self.ndim not in (1, 2, 3):
            raise ValueError(f"ndim must be 1, 2 or 3, got {self.ndim!r}")
        if isinstance(kernel_size, bool) or not isinstance(kernel_size, Integral) or kernel_size < 1:
            raise ValueError(f"kernel_size must be a positive odd whole number, got {kernel_size!r}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that a window has a middle, got {kernel_size}")
        if kernel_type not in _KERNELS:
            raise ValueError(f"kernel_type must be one of {', '.join(_KERNELS)}, got {kernel_type!r}")
        if denominator not in _DENOMINATORS:
            raise ValueError(f'denominator must be "product" or "clamp", got {denominator!r}')
        self.kernel_size = int(kernel_size)
        self.kernel_type = kernel_type
        self.smooth_nr = checked_number(smooth_nr, "smooth_nr")
        self.smooth_dr = checked_number(smooth_dr, "smooth_dr")
        self.denominator = denominator

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        self._check(pred, target)
        kind = pred.dtype if pred.is_floating_point() else torch.float32
        wide = torch.float64 if kind == torch.float64 else torch.float32
        p, t = (image.to(wide).reshape(-1, *[1] * (3 - self.ndim), *image.shape[2:]) for image in (pred, target))
        if t.requires_grad and not p.requires_grad:
            p, t = t, p  # which makes no difference to the loss
        voxelwise = checked_reduction(self.reduction) == "none"
        plan = (
            self.kernel_size, self.kernel_type, self.ndim, self.smooth_nr, self.smooth_dr, self.denominator == "clamp",
            voxelwise,
        )  # fmt: skip
        if backend.choose(p) == "kernel":
            asked = torch.is_grad_enabled() * (p.requires_grad + t.requires_grad)
            score, _, _ = torch.ops.twinloss.local_correlation(p, t, *plan, asked)
        else:
            score = _plain(p, t, *plan)
        if voxelwise:
            return -score.reshape(pred.shape).to(kind)
        total = score.sum()
        return -(total / pred.numel() if self.reduction == "mean" else total).to(kind)

    def _check(self, pred: Tensor, target: Tensor) -> None:
        shape = tuple(pred.shape)
        if shape != tuple(target.shape):
            raise ShapeError(f"pred has shape {shape} and target {tuple(target.shape)}: they must be alike")
        if len(shape) != self.ndim + 2:
            raise ValueError(
                f"images must be (batch, channels, *spatial) with {self.ndim} spatial axes, got shape {shape}; for "
                "another number of axes pass ndim"
            )
        if pred.numel() == 0:
            raise ValueError(f"images must have at least one voxel, got shape {shape}")


def _window(size: int, kind: str) -> np.ndarray:
    """The weights along an axis."""
    j = np.arange(size) - size // 2
    if kind == "rectangular":
        return np.ones(size)
    if kind == "triangular":
        middle = (size + 1) / 2
        return (middle - abs(j)) / middle**2
    return np.exp(-(j**2) / (2 * (size / 3) ** 2))


# --- plain torch: other devices, double backward ----------------------------------------------------------------------


def _plain(
    p: Tensor, t: Tensor, size: int, kind: str, rank: int, nu: float, delta: float, clamped: bool, voxelwise: bool
) -> Tensor:
    """As the operator below: moments in windows along one axis after the other, means first.

    Means are relative to the voxel in the middle, so that no offset of the images takes digits from their contrast.
    """
    window = _window(size, kind).tolist()
    total, count = sum(window), 1.0
    mean_t, mean_p, tt, pp, tp = (torch.zeros_like(t) for _ in range(5))
    for axis in range(4 - rank, 4):
        from_t, from_p = (
            [of_mean + (voxel - image) for of_mean, voxel in zip(*_shifted(axis, size, mean, image), strict=True)]
            for mean, image in ((mean_t, t), (mean_p, p))
        )
        mean_t, mean_p = (sum(w / total * f for w, f in zip(window, means, strict=True)) for means in (from_t, from_p))
        from_t, from_p = [f - mean_t for f in from_t], [f - mean_p for f in from_p]
        shifted = zip(_shifted(axis, size, tt, pp, tp), (from_t, from_p, from_t), (from_t, from_p, from_p), strict=True)
        tt, pp, tp = (
            sum(w * (m + count * (a * b)) for w, m, a, b in zip(window, *fields, strict=True)) for fields in shifted
        )
        count *= total
    denominator = tt.clamp(min=delta) * pp.clamp(min=delta) if clamped else tt * pp + delta
    score = (tp**2 + nu) / denominator
    return score if voxelwise else score.sum((1, 2, 3), dtype=torch.float64)


def _shifted(axis: int, size: int, *fields: Tensor) -> list[list[Tensor]]:
    """Each field as it looks from each place of a window along an axis, with zeros beyond the borders."""
    margin = [0, 0] * (3 - axis) + [size // 2, size // 2]
    around = (torch.nn.functional.pad(field, margin) for field in fields)
    return [[wide.narrow(axis, j, wide.shape[axis] - size + 1) for j in range(size)] for wide in around]


# --- the kernels as torch operators -----------------------------------------------------------------------------------


class _Windows:
    """How the kernels are called for images (N, D, H, W)."""

    def __init__(self, shape: torch.Size, size: int, kind: str, rank: int) -> None:
        from twinloss.fast.kernels import correlation

        self.kernels = correlation
        window, none = _window(size, kind), np.ones(1)
        self.z, self.y, self.x = [none] * (3 - rank) + [window] * rank
        self.ones = kind == "rectangular"
        self.in_plane = self.y.sum() * self.x.sum()
        self.depth = shape[1]


@torch.library.custom_op("twinloss::local_correlation", mutates_args=(), device_types="cpu")
def _local_correlation(
    p: Tensor,
    t: Tensor,
    size: int,
    kind: str,
    rank: int,
    nu: float,
    delta: float,
    clamped: bool,
    voxelwise: bool,
    gradients: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Correlations of images (N, D, H, W): their sums (N,) float64, or those of all windows.

    And what is kept for the gradient in p, (N, 3, D, H, W), and for that in t as well, (N, 2, D, H, W).
    """
    windows = _Windows(p.shape, size, kind, rank)
    first, second = p.contiguous().numpy(), t.contiguous().numpy()
    lots = [torch.empty((len(p), lot, *p.shape[1:]), dtype=p.dtype) for lot in (3, 2)]
    fields, more = (lot.numpy() for lot in lots)
    score = torch.empty(p.shape if voxelwise else (len(p), 0, 0, 0), dtype=p.dtype)
    scores = score.numpy().reshape(len(first), score.shape[1], score.shape[2] * score.shape[3])
    columns = [array.reshape(*array.shape[:-2], -1) for array in (first, second, fields, more)]
    sums: dict[tuple[int, int], float] = {}

    def slab(k: int, start: int, stop: int) -> None:
        windows.kernels.planes(first[k], second[k], start, stop, windows.y, windows.x, windows.ones, fields[k], more[k])

    def bundle(k: int, start: int, stop: int) -> None:
        sums[k, start] = windows.kernels.depth(
            columns[0][k], columns[1][k], start, stop, windows.z, windows.ones, windows.in_plane, nu, delta, clamped,
            scores[k], columns[2][k], columns[3][k],
        )  # fmt: skip

    for_each_slab(slab, p.shape)
    for_each_bundle(bundle, p.shape)
    nothing = p.new_empty(0)
    kept = (lots[0] if gradients > 0 else nothing, lots[1] if gradients > 1 else nothing.clone())
    if voxelwise:
        return score, *kept
    by_image = [math.fsum(total for (k, _), total in sums.items() if k == image) for image in range(len(first))]
    return torch.tensor(by_image, dtype=torch.float64), *kept


@torch.library.custom_op("twinloss::local_correlation_backward", mutates_args=(), device_types="cpu")
def _local_correlation_backward(
    upstream: Tensor, p: Tensor, t: Tensor, kept: Tensor, more: Tensor, size: int, kind: str, rank: int
) -> Tensor:
    """The gradient in p from what was kept for it: A, the first of `kept`, and B and the rest, in `more`."""
    windows = _Windows(p.shape, size, kind, rank)
    first, second = p.contiguous().numpy(), t.contiguous().numpy()
    of_all, of_one = kept.numpy(), more.numpy()
    by_window = upstream.double().reshape(-1, 1, 1, 1) if upstream.ndim == 1 else upstream.contiguous()
    ups = by_window.numpy()
    fields = torch.empty((len(p), 3, *p.shape[1:]), dtype=p.dtype).numpy()
    gradient = torch.empty(p.shape, dtype=p.dtype)
    out = gradient.numpy()

    def slab(k: int, start: int, stop: int) -> None:
        windows.kernels.planes_backward(
            first[k], second[k], of_all[k, 0], of_one[k, 0], of_one[k, 1], ups[k], start, stop, windows.y, windows.x,
            windows.ones, fields[k],
        )  # fmt: skip

    def bundle(k: int, start: int, stop: int) -> None:
        flat = (array.reshape(windows.depth, -1) for array in (first[k], second[k]))
        windows.kernels.depth_backward(
            *flat, start, stop, windows.z, windows.ones, fields[k].reshape(3, windows.depth, -1),
            out[k].reshape(windows.depth, -1),
        )  # fmt: skip

    for_each_slab(slab, p.shape)
    for_each_bundle(bundle, p.shape)
    return gradient


@_local_correlation.register_fake
def _(p: Tensor, t: Tensor, *plan: Any) -> tuple[Tensor, Tensor, Tensor]:
    voxelwise, gradients = plan[-2:]
    score = torch.empty(p.shape, dtype=p.dtype) if voxelwise else p.new_empty(p.shape[:1], dtype=torch.float64)
    nothing = p.new_empty(0)
    return (
        score,
        torch.empty((p.shape[0], 3, *p.shape[1:]), dtype=p.dtype) if gradients > 0 else nothing,
        torch.empty((p.shape[0], 2, *p.shape[1:]), dtype=p.dtype) if gradients > 1 else nothing.clone(),
    )


@_local_correlation_backward.register_fake
def _(upstream: Tensor, p: Tensor, *_: Any) -> Tensor:
    return torch.empty(p.shape, dtype=p.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    p, t, *ctx.plan = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(p, t, *output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    p, t, kept, more = ctx.saved_tensors
    made: list[Tensor | None] = [None, None]
    needed = [k for k in range(2) if ctx.needs_input_grad[k]]
    if torch.is_grad_enabled():  # a graph of the gradient is asked for: plain torch has one
        gradients = torch.autograd.grad(
            _plain(p, t, *ctx.plan[:-1]), [(p, t)[k] for k in needed], upstream, create_graph=True
        )
        for k, gradient in zip(needed, gradients, strict=True):
            made[k] = gradient
    else:
        backward = torch.ops.twinloss.local_correlation_backward
        if 0 in needed:
            made[0] = backward(upstream, p, t, kept, kept[:, 1:], *ctx.plan[:3])
        if 1 in needed:
            made[1] = backward(upstream, t, p, kept, more, *ctx.plan[:3])
    return *made, *[None] * len(ctx.plan)


_local_correlation.register_autograd(_backward, setup_context=_setup_context)
