"""Dice + focal loss; the twin of `reference/dice_focal.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from twinloss.fast.dice import CompoundDiceLoss
from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.compound import compound
from twinloss.fast.engine.segmentation.loss import ClassWeight, checked_weight, times
from twinloss.fast.engine.segmentation.parts import DiceFocalParts
from twinloss.fast.engine.segmentation.statistics import Statistics
from twinloss.fast.focal import FOCAL_CHECKS, FOCAL_RULES, FocalTerm
from twinloss.fast.kernels.contract import CompoundPlan
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.options import checked_number
from twinloss.fast.runtime.ranks import ProcessGroup


def _mean_over_ranks(reduction: str, process_group: ProcessGroup | None) -> None:
    if process_group is not None and reduction != "mean":
        raise ValueError(
            f'with a process_group, reduction must be "mean", got {reduction!r}: the other reductions need the focal '
            "term of each item, and each rank has only its own"
        )


def _one_weight(weight: Any, focal_weight: Any) -> None:
    if weight is not None and focal_weight is not None:
        raise ValueError("weight goes to both terms and focal_weight to the focal term only: give one of them")


class DiceFocalLoss(CompoundDiceLoss):
    r"""Weighted sum of Dice loss and focal loss, from one pass over the voxels.

    .. math::
        L = \lambda_\mathrm{dice}\, L_\mathrm{Dice}(\mathrm{act}(x)) + \lambda_\mathrm{focal}\, L_\mathrm{focal}(x)

    The terms are :class:`~twinloss.fast.DiceLoss` and :class:`~twinloss.fast.FocalLoss`. The focal loss is always
    computed from the logits: the activation applies to the Dice term only. ``include_background``, ``to_onehot_y``,
    ``reduction`` and ``ignore_index`` apply to both terms.

    Args:
        include_background: see DiceLoss.
        to_onehot_y: see DiceLoss.
        sigmoid: see DiceLoss.
        softmax: see DiceLoss.
        other_act: see DiceLoss.
        squared_pred: see DiceLoss.
        jaccard: see DiceLoss.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each voxel and class, (B, C', *S), each of which
            includes the Dice term of its item and class.
        smooth_nr: see DiceLoss.
        smooth_dr: see DiceLoss.
        batch: see DiceLoss.
        gamma: γ, the exponent of the focal term.
        focal_weight: class weights of the focal term only, like ``weight`` in FocalLoss.
        lambda_dice: weight of the Dice term, at least 0.
        lambda_focal: weight of the focal term, at least 0.
        weight: class weights of both terms: a number, or a list with one for each class, including the background.
        soft_label: see DiceLoss.
        ignore_index: see DiceLoss.
        use_softmax: see FocalLoss.
        alpha: see FocalLoss.
        process_group: see DiceLoss.
        return_parts: return a tuple of the loss and :class:`~twinloss.fast.DiceFocalParts`, its two terms, which are
            detached from the graph, for logging.

    Raises:
        TypeError: as in DiceLoss.
        ValueError: as in DiceLoss and FocalLoss; if λ is negative; if both ``weight`` and ``focal_weight`` are given;
            if input and target have different numbers of axes; if the target has neither 1 channel nor as many as the
            input; if a ``process_group`` is given and the reduction is not ``"mean"``.

    Warns:
        UserWarning: about the values of the target, as in DiceLoss.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> DiceFocalLoss(softmax=True, to_onehot_y=True)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0003)
    """

    option_checks: ClassVar = {
        **CompoundDiceLoss.option_checks,
        **FOCAL_CHECKS,
        **dict.fromkeys(("lambda_dice", "lambda_focal"), checked_number),
        "focal_weight": checked_weight,
    }
    option_rules: ClassVar = (
        *CompoundDiceLoss.option_rules,
        *FOCAL_RULES,
        (("reduction", "process_group"), _mean_over_ranks),
        (("weight", "focal_weight"), _one_weight),
    )

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        focal_weight: ClassWeight | None = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        *,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        use_softmax: bool = True,
        alpha: ClassWeight | None = None,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, weight=weight, soft_label=soft_label, ignore_index=ignore_index,
            process_group=process_group, return_parts=return_parts,
        )  # fmt: skip
        self.gamma = gamma
        self.focal_weight: Any = focal_weight
        self.use_softmax = use_softmax
        self.alpha: Any = alpha
        self.lambda_dice = lambda_dice
        self.lambda_focal = lambda_focal

    def exclusive(self, background: bool) -> tuple[bool, bool]:
        """Return whether a softmax makes the classes exclude each other, and whether the background counts."""
        return self.softmax or self.use_softmax, background

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        reduction, term = self.reduction, FocalTerm(self.gamma, self.alpha, self.use_softmax)
        voxels = self.compound_voxels(input, target, mask)
        if reduction == "none":
            voxels = voxels.widened()
        term.warn(input)
        activation = term.activation(input.shape[1])
        weight = self.focal_weight if self.weight is None else self.seen(self.weight, voxels)

        def total(dice_sums: Statistics, focal_sums: Statistics) -> Tensor:
            dice = self.reduced(self.dice(dice_sums, voxels), input.ndim)
            if reduction == "none":
                focal = term.unreduced(voxels, weight)
            else:
                focal = term.reduced(focal_sums, voxels, reduction, weight)
            return self.total(DiceFocalParts(times(self.lambda_dice, dice), times(self.lambda_focal, focal)), input)

        whole = reduction != "none" and not self.return_parts and self.activation(input) == activation
        if whole and term.is_whole(voxels, self):
            plan = voxels.plan(activation, overlap=self.overlap(), **term.plan())
            surprisals = term.whole(voxels, reduction, weight, self.lambda_focal)
            fractions, kind = self.fractions(voxels, self.lambda_dice), dispatch.result_type(input)
            asked = CompoundPlan(plan, self.dice_terms(voxels), fractions, *surprisals, kind, self.weigh())
            return compound(voxels, asked, lambda sums: total(sums, sums))
        return total(*self.two_sums(voxels, activation, {} if reduction == "none" else term.plan()))
