"""Generalised Dice + focal loss; the twin of `reference/generalized_dice_focal.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from twinloss.fast.dice_focal import DiceFocalLoss
from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.fraction import fraction, volumes
from twinloss.fast.engine.segmentation.loss import ClassWeight
from twinloss.fast.engine.segmentation.statistics import Statistics
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.generalized_dice import GENERALIZED_CHECKS, volume_weights
from twinloss.fast.kernels.contract import ClassWeights
from twinloss.fast.runtime.options import checked_number, fixed
from twinloss.fast.runtime.ranks import ProcessGroup


class GeneralizedDiceFocalLoss(DiceFocalLoss):
    r"""Weighted sum of generalised Dice loss and focal loss, from one pass over the voxels.

    .. math::
        L = \lambda_\mathrm{gdl}\, L_\mathrm{GDL}(\mathrm{act}(x)) + \lambda_\mathrm{focal}\, L_\mathrm{focal}(x)

    The terms are :class:`~twinloss.fast.GeneralizedDiceLoss` and :class:`~twinloss.fast.FocalLoss`. The focal loss is
    always computed from the logits: the activation applies to the Dice term only. ``include_background``,
    ``to_onehot_y``, ``reduction`` and ``ignore_index`` apply to both terms.

    Args:
        include_background: see DiceLoss.
        to_onehot_y: see DiceLoss.
        sigmoid: see DiceLoss.
        softmax: see DiceLoss.
        other_act: see DiceLoss.
        w_type: see GeneralizedDiceLoss.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each voxel and class, (B, C', *S), each of which
            includes the Dice term of its item.
        smooth_nr: see DiceLoss.
        smooth_dr: see DiceLoss.
        batch: see GeneralizedDiceLoss.
        gamma: γ, the exponent of the focal term.
        weight: class weights of the focal term: a number, or a list with one for each class, including the background.
            The Dice term has weights of its own, which follow from the volumes.
        lambda_gdl: weight of the Dice term, at least 0.
        lambda_focal: weight of the focal term, at least 0.
        soft_label: see GeneralizedDiceLoss.
        ignore_index: see DiceLoss.
        normalize_weights: see GeneralizedDiceLoss.
        use_softmax: see FocalLoss.
        alpha: see FocalLoss.
        process_group: see DiceLoss.
        return_parts: see DiceFocalLoss; the first term is the generalised Dice term.

    Raises:
        TypeError: as in DiceLoss.
        ValueError: as in GeneralizedDiceLoss and FocalLoss; if λ is negative; if input and target have different
            numbers of axes; if the target has neither 1 channel nor as many as the input; if a ``process_group`` is
            given and the reduction is not ``"mean"``.

    Warns:
        UserWarning: about the values of the target, as in DiceLoss.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> GeneralizedDiceFocalLoss(softmax=True, to_onehot_y=True)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0003)
    """

    option_checks: ClassVar = {
        **DiceFocalLoss.option_checks,
        **GENERALIZED_CHECKS,
        "lambda_gdl": checked_number,
        **dict.fromkeys(("squared_pred", "jaccard"), fixed(False)),
        "focal_weight": fixed(None),
    }

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        w_type: Any = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        weight: ClassWeight | None = None,
        lambda_gdl: float = 1.0,
        lambda_focal: float = 1.0,
        *,
        soft_label: bool = False,
        ignore_index: int | None = None,
        normalize_weights: bool = False,
        use_softmax: bool = True,
        alpha: ClassWeight | None = None,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction=reduction, smooth_nr=smooth_nr,
            smooth_dr=smooth_dr, batch=batch, gamma=gamma, lambda_focal=lambda_focal, weight=weight,
            soft_label=soft_label, ignore_index=ignore_index, use_softmax=use_softmax, alpha=alpha,
            process_group=process_group, return_parts=return_parts,
        )  # fmt: skip
        self.w_type = w_type
        self.normalize_weights = normalize_weights
        self.lambda_gdl = lambda_gdl

    @property
    def lambda_gdl(self) -> float:
        """The weight of the Dice term."""
        return self.lambda_dice

    @lambda_gdl.setter
    def lambda_gdl(self, value: float) -> None:
        self.lambda_dice = value

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def weigh(self) -> ClassWeights:
        """Return the function that computes the weight of each class from the volumes."""
        return volume_weights(self.w_type, self.normalize_weights)

    def dice(self, sums: Statistics, voxels: Voxels) -> Tensor:
        """Return the generalised Dice loss of each item, (B, 1), or (1, 1) with `batch`."""
        terms = self.dice_terms(voxels)
        return fraction(sums.stack, terms, *self.weigh()(volumes(sums.volume, terms)))

    def fractions(self, voxels: Voxels, factor: float) -> tuple[float | None, ...]:
        """Return the factor of the fraction, once for each included class, and None for one that is not included."""
        items, classes = voxels.input.shape[:2]
        included = classes if voxels.background else classes - 1
        share = factor / (1 if self.batch or self.reduction == "sum" else items)
        return (*[None] * (classes - included), *[share] * included)
