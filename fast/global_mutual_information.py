"""Mutual information of two images; the twin of `reference/global_mutual_information.py`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.histogram import joint_histogram
from twinloss.fast.engine.loss import Loss, entry_point
from twinloss.fast.kernels.contract import HISTOGRAM
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError, check_tensors
from twinloss.fast.runtime.checks import is_readable
from twinloss.fast.runtime.options import checked_number, is_whole, one_of
from twinloss.fast.runtime.ranks import ProcessGroup, checked_group, sum_over_ranks
from twinloss.fast.runtime.warn import has_warned, warn_once


def _checked_bins(value: Any, name: str) -> int:
    if not is_whole(value) or value < 2:
        raise ValueError(f"{name} must be a whole number, 2 or more, got {value!r}")
    if value > 2**13:
        raise ValueError(f"{name} must be at most {2**13}, got {value}: the size of a histogram is its square")
    return int(value)


def _checked_ratio(value: Any, name: str) -> float:
    ratio = checked_number(value, name)
    if ratio == 0:
        raise ValueError(f"{name} must be positive, got 0")
    return ratio


def _enough_bins(num_bins: int, kernel_type: str) -> None:
    if kernel_type == "b-spline" and num_bins < 5:
        raise ValueError(f'num_bins must be 5 or more with kernel_type="b-spline", got {num_bins}')


def _ranks_share_bins(kernel_type: str, process_group: ProcessGroup | None) -> None:
    if process_group is not None and kernel_type != "gaussian":
        raise ValueError(
            f'with a process_group, kernel_type must be "gaussian", got {kernel_type!r}: the bins depend on the '
            "intensity range of the images, and each rank sees only that of its own part"
        )


class GlobalMutualInformationLoss(Loss):
    r"""Negative mutual information of the intensities of two images.

    .. math::
        L = -\sum_{kl} P_{kl} \log\left(\frac{P_{kl} + \nu}{P_k P_l + \delta} + \delta\right), \quad
        P_{kl} = \frac1N \sum_i w^p_{ik} w^t_{il}

    Here :math:`w^p_{ik}` is the weight of voxel i of ``pred`` in bin k, :math:`w^t_{il}` is that of ``target`` in bin
    l, and both sum to 1 over the bins. :math:`P_k` and :math:`P_l` are the marginals of the joint histogram. The mutual
    information with a constant image is 0, up to the smoothing terms.

    Args:
        num_bins: K, the number of bins of each image, from 2 to 8192.
        sigma_ratio: σ of the Gaussian window, in bins.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each item, (B,).
        smooth_nr: ν, the smoothing term of the numerator.
        smooth_dr: δ, the smoothing term of the denominator.
        kernel_type: the window that spreads a voxel over the bins. ``"gaussian"``: bin k is at the intensity
            k / (K - 1), and intensities outside [0, 1] are clamped. ``"b-spline"`` (Mattes et al. 2003): a cubic
            B-spline for ``pred`` and a box for ``target``. The bins span the intensity range of each image of an item,
            so that units, brightness and contrast do not matter. The gradient with respect to ``target`` is exactly 0:
            pass the moving image as ``pred``. Voxels that attain the same extreme of the range share the gradient
            through it equally.
        process_group: the ranks of this group hold parts of the same images, and their voxels are counted in one
            histogram for each item. The value and the gradient of a rank are as in DiceLoss.

    Shape:
        pred and target (B, …), of equal shape. All elements of an item are samples. The result is float64 if either
        image is float64, and otherwise has the type of ``pred``.

    Raises:
        TypeError: if ``pred`` is not a floating-point tensor, or if an option is not a number.
        ValueError: if ``num_bins`` is less than 2, or less than 5 with ``"b-spline"``; if the reduction or the window
            is unknown; if σ is not positive; if ν or δ is negative; if a ``process_group`` is given with
            ``"b-spline"``; if the shapes of the images differ; if the images are empty.

    Warns:
        UserWarning: if intensities outside [0, 1] are clamped; or if, with ``"b-spline"``, only ``target`` requires a
            gradient. Each loss object gives each warning once.

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

    option_checks: ClassVar = {
        **Loss.option_checks,
        "num_bins": _checked_bins,
        "sigma_ratio": _checked_ratio,
        **dict.fromkeys(("smooth_nr", "smooth_dr"), checked_number),
        "kernel_type": one_of("gaussian", "b-spline"),
        "process_group": checked_group,
    }
    option_rules: ClassVar = (
        (("num_bins", "kernel_type"), _enough_bins),
        (("kernel_type", "process_group"), _ranks_share_bins),
    )

    def __init__(
        self,
        num_bins: int = 23,
        sigma_ratio: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-7,
        smooth_dr: float = 1e-7,
        *,
        kernel_type: str = "gaussian",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        self.num_bins = num_bins
        self.sigma_ratio = sigma_ratio
        self.smooth_nr = smooth_nr
        self.smooth_dr = smooth_dr
        self.kernel_type = kernel_type
        self.process_group = process_group

    @entry_point
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        check_tensors(pred=pred, target=target)
        if not pred.is_floating_point():
            raise TypeError(f"pred must be a floating-point image, got {pred.dtype}")
        if pred.shape != target.shape:
            raise ShapeError(f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}: they must be equal")
        if pred.ndim < 1 or pred.numel() == 0:
            raise ValueError(f"images must have at least one item and one voxel, got shape {tuple(pred.shape)}")
        kind = dispatch.result_type(pred, target)
        wide = torch.float64 if kind == torch.float64 else torch.float32
        x, y = (_samples(image, wide) for image in (pred, target))
        if self.kernel_type == "gaussian":
            self._warn_of_clamping(x, y)
        elif target.requires_grad and not pred.requires_grad and torch.is_grad_enabled():
            warn_once(
                self,
                "swapped",
                'only the target requires a gradient, but with kernel_type="b-spline" its gradient is 0: pass the '
                'moving image as pred, the first argument, or use kernel_type="gaussian"',
            )
        joint = self.histogram(x, y)
        if self.process_group is not None:
            voxels = sum_over_ranks(joint.new_tensor(x.shape[1]), self.process_group)
            joint = sum_over_ranks(joint * x.shape[1], self.process_group) / voxels
        information = mutual_information(joint, self.smooth_nr, self.smooth_dr)
        if self.reduction != "none":
            information = information.mean() if self.reduction == "mean" else information.sum()
        return (-information).to(kind)

    def histogram(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the joint histogram of the images (B, N) of each item, (B, K, K) float64, which sums to 1."""
        return joint_histogram(x, y, self.num_bins, self.sigma_ratio, self.kernel_type)

    def _warn_of_clamping(self, x: Tensor, y: Tensor) -> None:
        if not is_readable(x) or has_warned(self, "clamping"):
            return
        low, high = (torch.stack(ends) for ends in zip(x.detach().aminmax(), y.detach().aminmax(), strict=True))
        if low.min() < 0 or high.max() > 1:
            warn_once(
                self,
                "clamping",
                f"intensities beyond [0, 1] are clamped and get no gradient; these images have intensities in "
                f"[{low.min().item():g}, {high.max().item():g}]. Scale the images to [0, 1], or use "
                'kernel_type="b-spline"',
            )


def _samples(image: Tensor, wide: torch.dtype) -> Tensor:
    """Return the voxels of each item, (B, N), in a dtype that the kernels take."""
    is_half = image.dtype in dispatch.HALVES and wide == torch.float32
    image = HISTOGRAM.taken(image) if is_half else image.to(wide)
    return image.flatten(1) if image.ndim > 1 else image.unsqueeze(1)


def mutual_information(joint: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
    """Return the mutual information of each item, given joint histograms (B, K, K) that sum to 1."""
    product = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    # An empty bin adds nothing. Its ratio may be 0 / 0 without smoothing, and is replaced by 1. The share of a bin far
    # from all intensities adds no digit either, but the slope of its ratio may overflow.
    empty = joint <= 1e-50
    lower = torch.where(empty, 1, product + smooth_dr)
    ratio = torch.where(empty, 1, (joint + smooth_nr) / lower + smooth_dr)
    # For nearly independent images, the first-order terms of the sum cancel, and only rounding errors would remain. The
    # excess over the product sums to 0. Subtracting it cancels these terms within each bin, and log1p keeps the digits
    # of the remainder.
    excess = joint - product
    change = torch.where(empty, 0, (excess + (smooth_nr - smooth_dr)) / lower + smooth_dr)
    near = change.abs() < 0.5
    log = torch.where(near, torch.where(near, change, 0).log1p(), torch.where(near, 1, ratio).log())
    return (joint * log - excess).sum((1, 2))
