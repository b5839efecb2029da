"""The losses of nnU-Net v2, with its arguments, computed by `twinloss.fast`.

They take the place of those in `nnunetv2.training.loss.compound_losses` and `nnunetv2.training.loss.dice`. Values and
gradients are the same up to rounding. A Dice term is minus the Dice overlap, so that a perfect prediction has the loss
-`weight_dice`.

If several ranks train with `batch_dice` and `ddp`, the Dice term pools the items of all ranks. The default process
group must be initialised before such a loss is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from twinloss import fast
from twinloss.fast.runtime.arguments import ShapeError, check_tensors
from twinloss.fast.runtime.options import checked_number

__all__ = [
    "DC_and_BCE_loss",
    "DC_and_CE_loss",
    "DC_and_topk_loss",
    "MemoryEfficientSoftDiceLoss",
    "softmax_helper_dim1",
]

Options = Mapping[str, Any]

# Options of torch's cross entropies that are accepted only with these values.
_DEFAULTS = {"size_average": None, "reduce": None, "reduction": "mean"}

# The smoothing term of the denominator if `smooth` is 0. Without it, the overlap of an absent class would be 0/0.
_LEAST = 1e-8


def softmax_helper_dim1(x: Tensor) -> Tensor:
    """Return the softmax over the channels; nnU-Net passes a function of this name as `apply_nonlin`."""
    return x.softmax(1)


class MemoryEfficientSoftDiceLoss(nn.Module):
    """Negative Dice overlap of prediction and target.

    Args:
        apply_nonlin: the activation. `torch.sigmoid` and nnU-Net's `softmax_helper_dim1` are computed by the kernels,
            other functions by torch.
        batch_dice: sum over all items of the batch before the division.
        do_bg: whether channel 0 is included.
        smooth: the smoothing term of numerator and denominator.
        ddp: with `batch_dice`, also sum over the ranks of the default process group.

    Shape:
        x (B, C, *S); y (B, C, *S), or labels (B, 1, *S) or (B, *S); loss_mask (B, 1, *S), which is 0 in the voxels to
        exclude.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
    ) -> None:
        super().__init__()
        softmax = getattr(apply_nonlin, "__name__", "") == "softmax_helper_dim1"
        sigmoid = apply_nonlin in (torch.sigmoid, functional.sigmoid)
        options = _dice_options(batch_dice, do_bg, smooth, ddp) | {
            "softmax": softmax,
            "sigmoid": sigmoid,
            "other_act": None if softmax or sigmoid else apply_nonlin,
        }
        self.of_labels, self.of_channels = (_dice_pair(to_onehot_y=given, **options) for given in (True, False))

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return the loss; the class documents the shapes."""
        check_tensors(x=x, y=y)
        if y.ndim == x.ndim - 1:
            y = y.unsqueeze(1)
        plain, masked = self.of_channels if y.shape == x.shape else self.of_labels
        loss: Tensor = plain(x, y) if loss_mask is None else masked(x, y, loss_mask)
        return loss - 1


class DC_and_CE_loss(nn.Module):
    """Cross entropy of a softmax minus the Dice overlap, from one pass over the voxels.

    Args:
        soft_dice_kwargs: `batch_dice`, `do_bg`, `smooth` and `ddp` of MemoryEfficientSoftDiceLoss.
        ce_kwargs: `weight`, one number for each class, and `label_smoothing`.
        weight_ce: weight of the cross entropy, at least 0.
        weight_dice: weight of the Dice term, at least 0.
        ignore_label: voxels with this label are left out of both terms.
        dice_class: accepted for the sake of nnU-Net, whose Dice classes are the same function.

    Shape:
        net_output (B, C, *S), logits; target (B, 1, *S), labels.

    Attributes:
        dc: the Dice term alone. `forward` does not use it; trainers of nnU-Net replace it by a compiled one.
    """

    def __init__(
        self,
        soft_dice_kwargs: Options,
        ce_kwargs: Options,
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: Any = MemoryEfficientSoftDiceLoss,
    ) -> None:
        super().__init__()
        _check_dice_class(dice_class)
        self.dc = MemoryEfficientSoftDiceLoss(softmax_helper_dim1, **soft_dice_kwargs)
        self.weight_ce, self.weight_dice, self.ignore_label = weight_ce, weight_dice, ignore_label
        self.terms = _Terms(
            soft_dice_kwargs, weight_ce, weight_dice,
            {"softmax": True, "to_onehot_y": True, "ignore_index": ignore_label},
            _ce_options(ce_kwargs, ignore_label),
        )  # fmt: skip

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents the shapes."""
        loss: Tensor = self.terms(net_output, target)
        return loss


class DC_and_BCE_loss(nn.Module):
    """Binary cross entropy of regions that may overlap minus their Dice overlap, from one pass over the voxels.

    Args:
        bce_kwargs: `pos_weight`, a number or a tensor of shape (C, 1, …) with one value for each channel.
        soft_dice_kwargs: `batch_dice`, `do_bg`, `smooth` and `ddp` of MemoryEfficientSoftDiceLoss.
        weight_ce: weight of the cross entropy, at least 0.
        weight_dice: weight of the Dice term, at least 0.
        use_ignore_label: the target has a further channel, which is 1 in voxels to leave out. As in nnU-Net, the cross
            entropy is then the sum over the channels of the mean over the voxels, and not the mean over both.
        dice_class: accepted for the sake of nnU-Net, whose Dice classes are the same function.

    Shape:
        net_output (B, C, *S), logits; target (B, C, *S), or (B, C + 1, *S) with `use_ignore_label`.

    Attributes:
        dc: the Dice term alone. `forward` does not use it; trainers of nnU-Net replace it by a compiled one.
    """

    def __init__(
        self,
        bce_kwargs: Options,
        soft_dice_kwargs: Options,
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: Any = MemoryEfficientSoftDiceLoss,
    ) -> None:
        super().__init__()
        _check_dice_class(dice_class)
        self.dc = MemoryEfficientSoftDiceLoss(torch.sigmoid, **soft_dice_kwargs)
        self.weight_ce, self.weight_dice, self.use_ignore_label = weight_ce, weight_dice, bool(use_ignore_label)
        self.soft_dice_kwargs, self.ce_options = soft_dice_kwargs, _bce_options(bce_kwargs)
        self.terms = self._terms(None)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents the shapes."""
        check_tensors(net_output=net_output, target=target)
        channels = net_output.shape[1]
        if target.ndim != net_output.ndim or target.shape[1] != channels + self.use_ignore_label:
            further = ", and a further one that is 1 in voxels to leave out" if self.use_ignore_label else ""
            raise ShapeError(
                f"target has shape {tuple(target.shape)} and net_output {tuple(net_output.shape)}: expected a channel "
                f"for each of the {channels} regions{further}"
            )
        if self.use_ignore_label and self.terms.options["ignore_index"] != channels:
            self.terms = self._terms(channels)
        loss: Tensor = self.terms(net_output, target)
        return loss

    def _terms(self, ignored: int | None) -> _Terms:
        weight = self.weight_ce * (ignored or 1)
        options = {"sigmoid": True, "ignore_index": ignored}
        return _Terms(self.soft_dice_kwargs, weight, self.weight_dice, options, {"multilabel": True, **self.ce_options})


class DC_and_topk_loss(nn.Module):
    """Mean cross entropy of the k percent of the voxels where it is largest, minus the Dice overlap.

    Args:
        soft_dice_kwargs: `batch_dice`, `do_bg`, `smooth` and `ddp` of MemoryEfficientSoftDiceLoss.
        ce_kwargs: `weight`, one number for each class, `label_smoothing`, and `k`, by default 10. At least one voxel
            is taken.
        weight_ce: weight of the cross entropy, at least 0.
        weight_dice: weight of the Dice term, at least 0.
        ignore_label: voxels with this label are left out of the Dice term, and have a cross entropy of 0.

    Shape:
        net_output (B, C, *S), logits; target (B, 1, *S), labels.
    """

    def __init__(
        self,
        soft_dice_kwargs: Options,
        ce_kwargs: Options,
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.weight: Tensor | None
        given = dict(ce_kwargs)
        self.weight_ce, self.weight_dice = _checked_weights(weight_ce, weight_dice)
        self.ignore_label, self.k = ignore_label, checked_number(given.pop("k", 10), "k")
        if not 0 < self.k <= 100:
            raise ValueError(f"k must be a percentage of the voxels, more than 0 and at most 100, got {self.k:g}")
        options = _ce_options(given, ignore_label)
        self.label_smoothing, weight = options.get("label_smoothing", 0.0), options.get("ce_weight")
        self.register_buffer("weight", None if weight is None else torch.as_tensor(weight), persistent=False)
        self.dc = fast.DiceLoss(
            softmax=True, to_onehot_y=True, ignore_index=ignore_label, **_dice_options(**soft_dice_kwargs)
        )

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents the shapes."""
        dice: Tensor = self.dc(net_output, target)
        weight = None if self.weight is None else self.weight.to(net_output.dtype)
        each = functional.cross_entropy(
            net_output, target[:, 0].long(), weight, reduction="none", label_smoothing=self.label_smoothing,
            ignore_index=-100 if self.ignore_label is None else self.ignore_label,
        )  # fmt: skip
        largest = each.flatten().topk(max(int(each.numel() * self.k / 100), 1), sorted=False).values
        return self.weight_ce * largest.mean() + self.weight_dice * (dice - 1)


class _Terms(nn.Module):
    """Dice and cross entropy in one pass, or in two if ranks pool the Dice term; they never pool the cross entropy."""

    def __init__(self, dice: Options, weight_ce: float, weight_dice: float, options: Options, ce: Options) -> None:
        super().__init__()
        weight_ce, weight_dice = _checked_weights(weight_ce, weight_dice)
        self.weight_dice, self.options = weight_dice, dict(options)
        dice_options = _dice_options(**dice)
        pooled = dice_options.pop("process_group")
        self.dc = None if pooled is None else fast.DiceLoss(**options, **dice_options, process_group=pooled)
        self.both = fast.DiceCELoss(
            **options, **dice_options, **ce, lambda_ce=weight_ce, lambda_dice=weight_dice if pooled is None else 0.0
        )

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.both(x, target) - self.weight_dice
        return loss if self.dc is None else loss + self.weight_dice * self.dc(x, target)


def _checked_weights(weight_ce: float, weight_dice: float) -> tuple[float, float]:
    return checked_number(weight_ce, "weight_ce"), checked_number(weight_dice, "weight_dice")


def _dice_pair(**options: Any) -> nn.ModuleList:
    """Return the Dice losses without and with a mask."""
    return nn.ModuleList([fast.DiceLoss(**options), fast.MaskedDiceLoss(**options)])


def _dice_options(
    batch_dice: bool = False, do_bg: bool = True, smooth: float = 1.0, ddp: bool = True
) -> dict[str, Any]:
    """Return nnU-Net's options of a Dice loss as those of `twinloss.fast.DiceLoss`.

    Raises:
        RuntimeError: if the Dice term is to be summed over ranks, and there is no process group.
    """
    pooled, smooth = None, checked_number(smooth, "smooth")
    if batch_dice and ddp:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise RuntimeError(
                "batch_dice=True with ddp=True sums over all ranks, but there is no process group: call "
                "torch.distributed.init_process_group() first, or pass ddp=False to train in one process"
            )
        pooled = distributed.group.WORLD
    return {
        "batch": batch_dice,
        "include_background": do_bg,
        "smooth_nr": smooth,
        "smooth_dr": max(smooth, _LEAST),
        "process_group": pooled,
    }


def _ce_options(given: Options, ignore_label: int | None) -> dict[str, Any]:
    """Return the options of nnU-Net's cross entropy as those of `twinloss.fast.DiceCELoss`."""
    index = -100 if ignore_label is None else ignore_label
    options = _supported("ce_kwargs", {"ignore_index": index, **given}, _DEFAULTS | {"ignore_index": index})
    return _renamed("ce_kwargs", options, {"weight": "ce_weight", "label_smoothing": "label_smoothing"})


def _bce_options(given: Options) -> dict[str, Any]:
    """Return the options of torch's binary cross entropy as those of `twinloss.fast.DiceCELoss`."""
    options = _renamed("bce_kwargs", _supported("bce_kwargs", given, _DEFAULTS), {"pos_weight": "ce_weight"})
    weight = options.get("ce_weight")
    if isinstance(weight, Tensor) and weight.numel() > 1:
        if weight.ndim < 2 or weight.shape[0] != weight.numel():
            raise ValueError(
                f"pos_weight must have the shape (C, 1, …), with an axis for each spatial axis, got "
                f"{tuple(weight.shape)}: torch broadcasts it against (B, C, *S)"
            )
        options["ce_weight"] = weight.flatten()
    elif isinstance(weight, Tensor):
        options["ce_weight"] = weight.item()
    return options


def _supported(name: str, given: Options, only: Options) -> dict[str, Any]:
    """Return the options without those in `only`, which must have the values that `only` gives."""
    for option, value in only.items():
        if given.get(option, value) != value:
            raise ValueError(f"{name}: {option} must be {value!r}, got {given[option]!r}")
    return {option: value for option, value in given.items() if option not in only}


def _renamed(name: str, given: Options, names: Mapping[str, str]) -> dict[str, Any]:
    unknown = given.keys() - names.keys()
    if unknown:
        raise ValueError(f"{name} may have {' and '.join(names)}, got {', '.join(sorted(unknown))}")
    return {names[option]: value for option, value in given.items() if value is not None}


def _check_dice_class(cls: Any) -> None:
    if getattr(cls, "__name__", "") not in ("SoftDiceLoss", "MemoryEfficientSoftDiceLoss"):
        raise TypeError(
            f"dice_class must be SoftDiceLoss or MemoryEfficientSoftDiceLoss, got {cls!r}: for another Dice term, add "
            "the losses yourself"
        )
