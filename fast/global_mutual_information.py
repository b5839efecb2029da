"""Mutual information of two images; the twin of `reference/global_mutual_information.py`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.histogram import joint_histogram
from twinloss.fast.engine.loss import Loss, entry_point
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError, check_tensors
from twinloss.fast.runtime.options import checked_number, is_whole, one_of
from twinloss.fast.runtime.ranks import ProcessGroup, checked_group, sum_over_ranks
from twinloss.fast.runtime.warn import has_warned, numbers_are_hidden, warn_once


def _checked_bins(value: Any, name: str) -> int:
    if not is_whole(value) or value < 2:
        raise ValueError(f"{name} must be a whole number, 2 or more, got {value!r}")
    if value > 2**13:
        raise ValueError(f"{name} must be {2**13} at most, got {value}: a histogram holds its square")
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
            f'with a process_group kernel_type must be "gaussian", got {kernel_type!r}: its bins hang on the '
            "extremes of the images, and each rank sees its own"
        )


class GlobalMutualInformationLoss(Loss):
    r"""Minus the mutual information of the intensities of two images.

    .. math::
        L = -\sum_{kl} P_{kl} \log\left(\frac{P_{kl} + \nu}{P_k P_l + \delta} + \delta\right), \quad
        P_{kl} = \frac1N \sum_i w^p_{ik} w^t_{il}

    with the marginals P_k, P_l and the weight w of voxel i in bin k, which add up to 1 over the bins. An image that is
    constant tells nothing: the loss is 0 but for the smoothing.

    Args:
        num_bins: K, how many bins.
        sigma_ratio: σ of the gaussian in bins.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value for each item, (B,).
        smooth_nr: ν.
        smooth_dr: δ.
        kernel_type: ``"gaussian"``: intensities lie in [0, 1], those beyond are clamped, and bin k is at k / (K - 1).
            ``"b-spline"`` (Mattes et al.): a cubic B-spline on ``pred`` and a box on ``target``, which gets a gradient
            of exactly 0, so that the image that moves must be ``pred``, the first argument; the bins span the range of
            each image of an item, so that brightness and contrast do not count, nor do units. Voxels that share an
            extreme share what the gradient owes to the range.
        process_group: its ranks hold parts of the same images, and their voxels go into one histogram for each item;
            value and gradient are as for DiceLoss.

    Shape:
        pred and target alike, (B, …): all that an item holds are samples. The result is float64 if either image is, and
        otherwise has the type of ``pred``.

    Raises:
        TypeError: if ``pred`` holds no floating-point numbers, or an option is no number.
        ValueError: for fewer than 2 bins, 5 for ``"b-spline"``; an unknown reduction or kernel; σ that is not positive;
            negative ν or δ; images of different shapes, or without a voxel.

    Warns:
        UserWarning: once for each loss, if intensities lie beyond [0, 1] and are clamped; and once if, with
            ``"b-spline"``, only ``target`` asks for a gradient.

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
        """The loss; see the class for shapes and errors."""
        check_tensors(pred=pred, target=target)
        if not pred.is_floating_point():
            raise TypeError(f"pred must be a floating-point image, got {pred.dtype}")
        if pred.shape != target.shape:
            raise ShapeError(f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}: they must be alike")
        if pred.ndim < 1 or pred.numel() == 0:
            raise ValueError(f"images must hold at least one item and one voxel, got shape {tuple(pred.shape)}")
        kind = dispatch.result_type(pred, target)
        wide = torch.float64 if kind == torch.float64 else torch.float32
        x, y = (
            image.to(wide).flatten(1) if image.ndim > 1 else image.to(wide).unsqueeze(1) for image in (pred, target)
        )
        if self.kernel_type == "gaussian":
            self._warn_of_clamping(x, y)
        elif target.requires_grad and not pred.requires_grad and torch.is_grad_enabled():
            warn_once(
                self,
                "swapped",
                "only the target asks for a gradient, and with b-splines it gets none: the gradient is 0. Pass the "
                'image that moves as pred, the first argument, or use kernel_type="gaussian"',
            )
        joint = joint_histogram(x, y, self.num_bins, self.sigma_ratio, self.kernel_type)
        if self.process_group is not None:
            voxels = sum_over_ranks(joint.new_tensor(x.shape[1]), self.process_group)
            joint = sum_over_ranks(joint * x.shape[1], self.process_group) / voxels
        information = _information(joint, self.smooth_nr, self.smooth_dr)
        if self.reduction != "none":
            information = information.mean() if self.reduction == "mean" else information.sum()
        return (-information).to(kind)

    def _warn_of_clamping(self, x: Tensor, y: Tensor) -> None:
        if numbers_are_hidden(x) or has_warned(self, "clamping"):
            return
        low, high = (torch.stack(ends) for ends in zip(x.detach().aminmax(), y.detach().aminmax(), strict=True))
        if low.min() < 0 or high.max() > 1:
            warn_once(
                self,
                "clamping",
                f"intensities beyond [0, 1] are clamped, and have no gradient: they lie in [{low.min().item():g}, "
                f'{high.max().item():g}]. Scale the images, or use kernel_type="b-spline"',
            )


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
