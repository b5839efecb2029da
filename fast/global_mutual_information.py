"""Mutual information of two images; the twin of `reference/global_mutual_information.py`."""

from __future__ import annotations

import math
import warnings
from numbers import Integral
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss
from torch.utils.checkpoint import checkpoint

from twinloss.fast import backend
from twinloss.fast.segmentation import ShapeError, checked_number, checked_reduction
from twinloss.fast.threads import for_each_chunk

_KERNELS = ("gaussian", "b-spline")

# Voxels of a chunk, at least, and for each bin of its histogram, which then takes less room than they do; and chunks of
# an item, at most.
_CHUNK, _PER_CELL, _MOST = 2**15, 4, 32
# Voxels whose weights of all bins plain torch holds at a time.
_BLOCK = 2**14


class GlobalMutualInformationLoss(_Loss):
    r"""Minus the mutual information of the intensities of two images.

    .. math::
        L = -\sum_{kl} P_{kl} \log\left(\frac{P_{kl} + \nu}{P_k P_l + \delta} + \delta\right), \quad
        P_{kl} = \frac1N \sum_i w^p_{ik} w^t_{il}

    with the marginals P_k, P_l and the weight w of voxel i in bin k, which add up to 1 over the bins.

    Args:
        num_bins: K, how many bins.
        sigma_ratio: σ of the gaussian in bins.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value for each item, (B,).
        smooth_nr: ν.
        smooth_dr: δ.
        kernel_type: ``"gaussian"``: intensities lie in [0, 1], those beyond are clamped, and bin k is at k / (K - 1).
            ``"b-spline"`` (Mattes et al.): a cubic B-spline on ``pred`` and a box on ``target``, which gets no
            gradient; the bins span the range of each image of an item, so that brightness and contrast do not count.

    Shape:
        pred and target alike, (B, …): all that an item holds are samples.

    Raises:
        TypeError: if ``pred`` holds no floating-point numbers, or an option is no number.
        ValueError: for fewer than 2 bins, 5 for ``"b-spline"``; an unknown reduction or kernel; σ that is not positive;
            negative ν or δ; images of different shapes, or without a voxel.

    Warns:
        UserWarning: once, if intensities lie beyond [0, 1] and are clamped.

    Reference:
        Guo, C. K. (2019) Multi-modal image registration with unsupervised deep learning, MIT, section 3.1, eq. 3.1 to
        3.5; Mattes, D. et al. (2003) PET-CT image registration in the chest using free-form deformations, IEEE Trans.
        Med. Imaging 22(1).

    Example:
        >>> import torch
        >>> bits = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> GlobalMutualInformationLoss(num_bins=2, sigma_ratio=0.1)(bits, bits)  # log 2
        tensor(-0.6931)
    """

    def __init__(
        self,
        num_bins: int = 23,
        sigma_ratio: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-7,
        smooth_dr: float = 1e-7,
        *,
        kernel_type: str = "gaussian",
    ) -> None:
        super().__init__(reduction=checked_reduction(reduction))
        if kernel_type not in _KERNELS:
            raise ValueError(f'kernel_type must be "gaussian" or "b-spline", got {kernel_type!r}')
        least = 2 if kernel_type == "gaussian" else 5
        if isinstance(num_bins, bool) or not isinstance(num_bins, Integral) or num_bins < least:
            raise ValueError(f"num_bins must be a whole number, {least} or more for {kernel_type}, got {num_bins!r}")
        self.num_bins = int(num_bins)
        self.sigma_ratio = checked_number(sigma_ratio, "sigma_ratio")
        if self.sigma_ratio == 0:
            raise ValueError("sigma_ratio must be positive, got 0")
        self.smooth_nr = checked_number(smooth_nr, "smooth_nr")
        self.smooth_dr = checked_number(smooth_dr, "smooth_dr")
        self.kernel_type = kernel_type

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        if not pred.is_floating_point():
            raise TypeError(f"pred must be a floating-point image, got {pred.dtype}")
        if pred.shape != target.shape:
            raise ShapeError(f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}: they must be alike")
        if pred.ndim < 1 or pred.numel() == 0:
            raise ValueError(f"images must hold at least one item and one voxel, got shape {tuple(pred.shape)}")
        wide = torch.float64 if pred.dtype == torch.float64 else torch.float32
        x, y = (
            image.to(wide).flatten(1) if image.ndim > 1 else image.to(wide).unsqueeze(1) for image in (pred, target)
        )
        if self.kernel_type == "gaussian":
            self._warn_of_clamping(x, y)
        joint = _joint(x, y, self.num_bins, self.sigma_ratio, self.kernel_type)
        information = _information(joint, self.smooth_nr, self.smooth_dr)
        reduction = checked_reduction(self.reduction)
        if reduction != "none":
            information = information.mean() if reduction == "mean" else information.sum()
        return (-information).to(pred.dtype)

    def _warn_of_clamping(self, x: Tensor, y: Tensor) -> None:
        # Kept apart, as a forward call must not change the module.
        if self in _warned or torch.compiler.is_compiling():
            return
        low, high = (torch.stack(ends) for ends in zip(x.detach().aminmax(), y.detach().aminmax(), strict=True))
        if low.min() < 0 or high.max() > 1:
            _warned.add(self)
            warnings.warn(
                f"intensities beyond [0, 1] are clamped, and have no gradient: they lie in [{low.min().item():g}, "
                f'{high.max().item():g}]. Scale the images, or use kernel_type="b-spline"',
                UserWarning,
                stacklevel=5,  # the line that calls the module
            )


_warned: WeakSet[GlobalMutualInformationLoss] = WeakSet()


def _information(joint: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
    """The mutual information of each item from joint histograms (B, K, K) that add up to 1."""
    product = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    # An empty bin adds nothing, without smoothing either: its ratio, which may be 0 / 0, is put to 1.
    empty = joint == 0
    lower = torch.where(empty, 1, product + smooth_dr)
    ratio = torch.where(empty, 1, (joint + smooth_nr) / lower + smooth_dr)
    # Of images that tell little of each other, the terms of first order cancel: to take away the excess, which adds up
    # to 0, cancels them in each bin, and log1p has the digits of what is left.
    excess = joint - product
    change = torch.where(empty, 0, (excess + (smooth_nr - smooth_dr)) / lower + smooth_dr)
    near = change.abs() < 0.5
    log = torch.where(near, torch.where(near, change, 0).log1p(), torch.where(near, 1, ratio).log())
    return (joint * log - excess).sum((1, 2))


def _joint(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """The joint histogram of the images (B, N) of each item, (B, K, K) float64, adding up to 1."""
    sigma = min(max(sigma, 1e-150), 1e150)  # beyond, the weights stay as they are, but sigma^2 is no number
    if backend.choose(x) == "kernel":
        return torch.ops.twinloss.joint_histogram(x, y, bins, sigma, kernel)
    return _plain(x, y, bins, sigma, kernel)


# --- plain torch: other devices, double backward ----------------------------------------------------------------------


def _plain(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """As the operator below; a block of voxels at a time, whose weights are computed again for the gradient."""
    z, of_y = (_places(image.double(), bins, kernel) for image in (x, y))
    joint = z.new_zeros(len(x), bins, bins)
    for start in range(0, x.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        joint = joint + checkpoint(
            _block, z[:, block], of_y[:, block], bins, sigma, kernel, use_reentrant=False, preserve_rng_state=False
        )
    return joint / x.shape[1]


def _places(x: Tensor, bins: int, kernel: str) -> Tensor:
    """Where intensities lie among the bins."""
    if kernel == "gaussian":
        return torch.where(x.isnan(), x, x.clamp(0, 1)) * (bins - 1)  # of NaN, the clamp has a slope of 0
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    flat = high == low
    return 2 + torch.where(flat, 0, (x - low) * (bins - 4) / torch.where(flat, 1, high - low))


def _block(z: Tensor, of_y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    k = torch.arange(bins, dtype=z.dtype, device=z.device)
    distance, of_y = z.unsqueeze(2) - k, of_y.unsqueeze(2)
    if kernel == "gaussian":
        first, second = ((-(d**2) / (2 * sigma**2)).softmax(2) for d in (distance, of_y - k))
    else:
        d = distance.abs()
        inner, outer = (4 - 6 * d**2 + 3 * d**3) / 6, (2 - d).clamp(min=0) ** 3 / 6
        first = torch.where(d < 1, inner, outer)
        # NaN is in no bin: it has to reach the sum by itself.
        second = (k == of_y.floor().clamp(max=bins - 3)) + 0 * of_y.detach()
    return first.mT @ second


# --- the kernels as torch operators -----------------------------------------------------------------------------------


def _reach(bins: int, sigma: float, dtype: torch.dtype) -> int:
    """How many bins to either side of the nearest one a voxel's weights are kept.

    With f = z - k its distance from the nearest bin, |f| <= 1/2, the weight j bins further off is exp(-(j^2 - 2 j f) /
    2 sigma^2) times the largest, which is at most exp(-(j^2 - j) / 2 sigma^2); call that t at j = r + 1. From there on
    each is at most exp(-(r + 1) / sigma^2) times the one before, so that those dropped on a side sum to no more than
    t (1 + sigma^2 / (r + 1)). With t below an eighth of the dtype's roundoff u, r > 6 sigma: that is t (1 + sigma / 6),
    where the weights that are kept sum to 1 and to sigma at least. So the fraction dropped is less than u / 2: by way
    of the division by the sum, too, it changes no weight by as much as its rounding.
    """
    needed = -2 * sigma**2 * math.log(torch.finfo(dtype).eps / 16)
    return min(math.ceil((math.sqrt(1 + 4 * needed) - 1) / 2), bins - 1)


class _Histogram:
    """How the kernels are called for a pair of images (B, N)."""

    def __init__(self, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> None:
        from twinloss.fast.kernels import mutual_information as kernels

        self.kernels = kernels
        self.bins = bins
        self.images = x.contiguous().numpy(), y.contiguous().numpy()
        gaussian = kernel == "gaussian"
        self.windows = (kernels.GAUSSIAN, kernels.GAUSSIAN) if gaussian else (kernels.CUBIC, kernels.BOX)
        self.reach = _reach(bins, sigma, x.dtype) if gaussian else 0
        self.exponent = 1 / (2 * sigma**2)
        low, high = (np.stack([end(image, 1) for image in self.images], 1) for end in (np.min, np.max))
        self.ranges = np.stack([low, high.astype(np.float64) - low], 2)  # (B, 2 images, 2)
        voxels = x.shape[1]
        self.chunk = max(_CHUNK, _PER_CELL * bins**2, -(-voxels // _MOST))
        self.parts = -(-voxels // self.chunk)

    def each_chunk(self, work: Any) -> None:
        """Call work(item, part, images of the chunk) for all chunks."""

        def chunk(index: int) -> None:
            item, part = divmod(index, self.parts)
            voxels = slice(part * self.chunk, (part + 1) * self.chunk)
            work(item, part, voxels, *(image[item, voxels] for image in self.images))

        for_each_chunk(chunk, len(self.images[0]) * self.parts)

    def options(self, item: int) -> tuple[Any, ...]:
        """The kernels' arguments after the images."""
        return self.windows, self.bins, self.reach, self.exponent, self.ranges[item]


@torch.library.custom_op("twinloss::joint_histogram", mutates_args=(), device_types="cpu")
def _joint_histogram(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    histogram = _Histogram(x, y, bins, sigma, kernel)
    parts = np.zeros((len(x), histogram.parts, bins, bins))
    missing = np.zeros((len(x), histogram.parts), np.int64)

    def work(item: int, part: int, voxels: slice, first: Any, second: Any) -> None:
        missing[item, part] = histogram.kernels.forward(first, second, *histogram.options(item), parts[item, part])

    histogram.each_chunk(work)
    joint = parts.sum(1) / x.shape[1]
    joint[missing.any(1)] = np.nan
    return torch.from_numpy(joint)


@torch.library.custom_op("twinloss::joint_histogram_backward", mutates_args=(), device_types="cpu")
def _joint_histogram_backward(gamma: Tensor, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    """The gradient in x."""
    histogram = _Histogram(x, y, bins, sigma, kernel)
    kernels, windows, reach = histogram.kernels, histogram.windows, histogram.reach
    before = [kernels.before(window, reach) for window in windows]
    # Beyond the last bin, what the windows reach and a wide register more.
    after = [kernels.reached(window, reach) + kernels.LANES for window in windows]
    padded = np.pad(gamma.numpy() / x.shape[1], ((0, 0), (before[0], after[0]), (before[1], after[1])))
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    out = gradient.numpy()
    sums = np.zeros((len(x), histogram.parts, 2))

    def work(item: int, part: int, voxels: slice, first: Any, second: Any) -> None:
        sums[item, part] = kernels.backward(first, second, *histogram.options(item), padded[item], out[item, voxels])

    histogram.each_chunk(work)
    if kernel == "b-spline":
        _through_the_range(out, histogram, sums.sum(1))
    return gradient


def _through_the_range(out: Any, histogram: _Histogram, sums: Any) -> None:
    """From dL/dz to dL/dx: z also depends on the extremes of x, which all voxels that attain one share."""
    for item, image in enumerate(histogram.images[0]):
        width = histogram.ranges[item, 0, 1]
        total, moment = sums[item, 0], sums[item, 1] / (histogram.bins - 4)
        if width == 0:
            out[item] = 0
            continue
        rate = (histogram.bins - 4) / width
        out[item] *= rate
        for extreme, part in ((image.min(), total - moment), (image.max(), moment)):
            attained = image == extreme
            out[item][attained] -= rate * part / np.count_nonzero(attained)


@_joint_histogram.register_fake
def _(x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    return x.new_empty((x.shape[0], bins, bins), dtype=torch.float64)


@_joint_histogram_backward.register_fake
def _(gamma: Tensor, x: Tensor, y: Tensor, bins: int, sigma: float, kernel: str) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, *ctx.plan = inputs
    ctx.save_for_backward(x, y)


def _backward(ctx: Any, gamma: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    kernel = ctx.plan[2]
    of_x, of_y = ctx.needs_input_grad[:2]
    by_x, by_y = None, None
    if torch.is_grad_enabled():  # a graph of the gradient is asked for: plain torch has one
        asked = [image for image, needed in ((x, of_x), (y, of_y)) if needed]
        made = torch.autograd.grad(
            _plain(x, y, *ctx.plan), asked, gamma, create_graph=True, allow_unused=True, materialize_grads=True
        )
        by_x, by_y = (made[0] if of_x else None), (made[-1] if of_y else None)
    else:
        if of_x:
            by_x = torch.ops.twinloss.joint_histogram_backward(gamma, x, y, *ctx.plan)
        if of_y and kernel == "gaussian":
            by_y = torch.ops.twinloss.joint_histogram_backward(gamma.mT.contiguous(), y, x, *ctx.plan)
        elif of_y:
            by_y = torch.zeros_like(y)
    return by_x, by_y, None, None, None


_joint_histogram.register_autograd(_backward, setup_context=_setup_context)
