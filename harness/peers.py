"""Losses of other libraries that are called otherwise than ours, as functions that are not."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def kornia_dice(input: Tensor, target: Tensor) -> Tensor:
    """Kornia's Dice of each class, on labels."""
    import kornia.losses

    made: Tensor = kornia.losses.dice_loss(input, target[:, 0].long(), average="macro")
    return made


def kornia_tversky(input: Tensor, target: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """Kornia's Tversky index, on labels."""
    import kornia.losses

    made: Tensor = kornia.losses.tversky_loss(input, target[:, 0].long(), alpha, beta)
    return made


def kornia_focal(input: Tensor, target: Tensor, gamma: float = 2.0, reduction: str = "mean") -> Tensor:
    """Kornia's focal loss, on labels."""
    import kornia.losses

    made: Tensor = kornia.losses.focal_loss(input, target[:, 0].long(), None, gamma, reduction)
    return made


def smp_dice(input: Tensor, target: Tensor) -> Tensor:
    """The Dice loss of segmentation_models_pytorch, on channels that do not exclude each other."""
    made: Tensor = _smp().DiceLoss("multilabel")(input, target)
    return made


def smp_tversky(input: Tensor, target: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """The Tversky loss of segmentation_models_pytorch, on channels that do not exclude each other."""
    made: Tensor = _smp().TverskyLoss("multilabel", alpha=alpha, beta=beta)(input, target)
    return made


def smp_focal(input: Tensor, target: Tensor, gamma: float = 2.0, alpha: Any = None) -> Tensor:
    """The focal loss of segmentation_models_pytorch, on channels that do not exclude each other."""
    made: Tensor = _smp().FocalLoss("multilabel", alpha=alpha, gamma=gamma)(input, target)
    return made


def _smp() -> Any:
    import segmentation_models_pytorch.losses as losses

    return losses
