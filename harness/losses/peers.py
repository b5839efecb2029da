"""Losses of other libraries with a different signature, wrapped so that they are called like ours."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from twinloss.harness.model.benchmark_spec import LossFunction

SMP = "segmentation_models_pytorch"
YARDSTICK, FIREANTS = "cross_entropy", "FireANTs"


class MonaiMultiScale(torch.nn.Module):
    """MONAI's wrapper around its LNCC, or around torch's MSELoss; it takes `pred` first."""

    def __init__(
        self, ndim: int = 3, loss: str = "lncc", scales: Any = None, kernel: str = "gaussian", reduction: str = "mean"
    ) -> None:
        super().__init__()
        import monai.losses  # type: ignore[import-untyped, unused-ignore]

        losses: Any = monai.losses
        lncc = losses.LocalNormalizedCrossCorrelationLoss(ndim, smooth_nr=1e-5)
        wrapped = lncc if loss == "lncc" else torch.nn.MSELoss()
        self.multi_scale = losses.MultiScaleLoss(wrapped, scales, kernel, reduction)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Call the wrapper, which takes its arguments in the opposite order."""
        made: Tensor = self.multi_scale(target, pred)
        return made


def kornia_dice(input: Tensor, target: Tensor) -> Tensor:
    """Kornia's Dice loss, averaged over classes, from labels."""
    import kornia.losses

    made: Tensor = kornia.losses.dice_loss(input, target[:, 0].long(), average="macro")
    return made


def kornia_tversky(input: Tensor, target: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """Kornia's Tversky loss, from labels."""
    import kornia.losses

    made: Tensor = kornia.losses.tversky_loss(input, target[:, 0].long(), alpha, beta)
    return made


def kornia_focal(input: Tensor, target: Tensor, gamma: float = 2.0, reduction: str = "mean") -> Tensor:
    """Kornia's focal loss, from labels."""
    import kornia.losses

    made: Tensor = kornia.losses.focal_loss(input, target[:, 0].long(), None, gamma, reduction)
    return made


# --- for the benchmark: volumes, labels, exclusive classes ------------------------------------------------------------


def _planes(loss: LossFunction) -> LossFunction:
    """Apply a loss for 2D images to volumes (B, C, D, H, W), by merging the last two axes."""

    def of_volumes(input: Tensor, target: Tensor) -> Tensor:
        return loss(input.flatten(3), target.flatten(3))

    return of_volumes


def _of_planes(loss: LossFunction) -> Callable[[], LossFunction]:
    def build() -> LossFunction:
        import kornia.losses  # noqa: F401

        return _planes(loss)

    return build


def _of_smp(name: str, classes: int) -> Callable[[], LossFunction]:
    def build() -> LossFunction:
        loss: LossFunction = getattr(smp_losses(), name)("multiclass" if classes > 1 else "binary")
        return (lambda input, target: loss(input, target[:, 0])) if classes > 1 else loss

    return build


def dice(classes: int) -> dict[str, Callable[[], LossFunction]]:
    """Return the Dice losses of other libraries; that of segmentation_models_pytorch pools the batch."""
    kornia = {"kornia": _of_planes(kornia_dice)} if classes > 1 else {}
    return {**kornia, SMP: _of_smp("DiceLoss", classes)}


def tversky(classes: int) -> dict[str, Callable[[], LossFunction]]:
    """Return the Tversky losses of other libraries."""
    kornia = {"kornia": _of_planes(kornia_tversky)} if classes > 1 else {}
    return {**kornia, SMP: _of_smp("TverskyLoss", classes)}


def focal(classes: int) -> dict[str, Callable[[], LossFunction]]:
    """Return the focal losses of other libraries, and the yardstick."""
    kornia = {"kornia": _of_planes(kornia_focal)} if classes > 1 else {}
    return {**kornia, SMP: _of_smp("FocalLoss", classes), **cross_entropy(classes)}


def cross_entropy(classes: int) -> dict[str, Callable[[], LossFunction]]:
    """Return torch's cross entropy, a yardstick for losses that contain one: it computes less than they do."""
    return {YARDSTICK: lambda: _cross_entropy if classes > 1 else _binary_cross_entropy}


def _cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(input, target[:, 0])


def _binary_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(input, target.to(input.dtype))


def fireants_ncc(size: int) -> LossFunction:
    """Return the LNCC of FireANTs' fused kernels, with the exact gradient; it is negative, and needs a GPU."""
    from fireants.losses.fusedcc import FusedLocalNormalizedCrossCorrelationLoss

    made: LossFunction = FusedLocalNormalizedCrossCorrelationLoss(
        spatial_dims=3, kernel_size=size, use_ants_gradient=False
    )
    return made


def fireants_information() -> LossFunction:
    """Return the mutual information of FireANTs' fused kernels, with as many bins as ours; it needs a GPU."""
    from fireants.losses.fusedmi import FusedGlobalMutualInformationLoss

    made: LossFunction = FusedGlobalMutualInformationLoss(num_bins=23, sigma_ratio=0.5)
    return made


def kornia_information() -> LossFunction:
    """Return Kornia's mutual information, with the same number of bins as ours."""
    from kornia.losses import mutual_information_loss

    def of_images(pred: Tensor, target: Tensor) -> Tensor:
        made: Tensor = mutual_information_loss(pred.flatten(1), target.flatten(1), num_bins=23).mean()
        return made

    return of_images


def voxelmorph_ncc(size: int) -> LossFunction:
    """Return the NCC of voxelmorph, which since version 0.3 is in its companion package neurite."""
    from neurite.nn.functional import ncc

    def of_images(pred: Tensor, target: Tensor) -> Tensor:
        made: Tensor = -ncc(pred, target, window_size=size).mean()
        return made

    return of_images


@cache
def smp_losses() -> Any:
    """Load the losses of segmentation_models_pytorch without its models, which need a matching torchvision."""
    package = importlib.util.find_spec("segmentation_models_pytorch")
    if package is None or package.origin is None:
        raise ImportError("No module named 'segmentation_models_pytorch'")
    folder = Path(package.origin).parent / "losses"
    name = "twinloss_segmentation_models_pytorch_losses"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a package")
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
