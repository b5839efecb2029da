"""Focal loss; the twin of `reference/focal.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.loss import (
    ClassWeight,
    SegmentationLoss,
    checked_weight,
    mean_of,
    weight_by_class,
)
from twinloss.fast.engine.segmentation.plain import focal_terms
from twinloss.fast.engine.segmentation.statistics import Activation, Statistics, Surprisal
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import checked_flag
from twinloss.fast.runtime.options import Check, Rule, checked_number, fixed
from twinloss.fast.runtime.warn import warn

Weight = float | tuple[float, ...] | None


def _checked_alpha(value: Any, name: str) -> Weight:
    alpha = checked_weight(value, name)
    if isinstance(alpha, float) and alpha > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got {alpha}: 1 - {name} is the weight of the other class, and a negative "
            "one makes the loss unbounded below. To weigh classes freely pass a weight for each class"
        )
    return alpha


def shares_in_binary_form(alpha: Weight, use_softmax: bool) -> None:
    """Raise if the binary form would give negatives a negative weight 1 - α of some class."""
    if not use_softmax and isinstance(alpha, tuple) and max(alpha, default=0) > 1:
        raise ValueError(
            "alpha must lie in [0, 1] in the binary form (use_softmax=False, or one channel), got "
            f"{list(alpha)}: 1 - alpha is the weight of negatives, and a negative one makes the loss unbounded below. "
            "To weigh classes freely pass a weight for each class"
        )


FOCAL_CHECKS: Mapping[str, Check] = {
    "gamma": checked_number,
    "alpha": _checked_alpha,
    "use_softmax": checked_flag,
}
FOCAL_RULES: tuple[Rule, ...] = ((("alpha", "use_softmax"), shares_in_binary_form),)


@dataclass
class FocalTerm:
    """Focal cross entropy as a formula on the statistics; FocalLoss and DiceFocalLoss share it."""

    gamma: float
    alpha: Weight
    use_softmax: bool

    def activation(self, channels: int) -> Activation:
        """A softmax of one channel is constant: it is taken as binary."""
        return "softmax" if self.use_softmax and channels > 1 else "sigmoid"

    def warn(self, input: Tensor) -> None:
        """Say that one channel is taken as binary whatever `use_softmax` says, which limits α."""
        if self.use_softmax and input.shape[1] == 1:
            shares_in_binary_form(self.alpha, use_softmax=False)
            warn("single channel prediction, `use_softmax=True` ignored")

    def plan(self) -> dict[str, Any]:
        """What the statistics are asked for."""
        surprisal: Surprisal = "target"
        return {"surprisal": surprisal, "gamma": self.gamma}

    def weighted(self, hits: Tensor, misses: Tensor, voxels: Voxels, weight: Weight) -> Tensor:
        """a_c hits + b_c misses of the classes that take part, where hits and misses are (B, C, …)."""
        binary = self.activation(hits.shape[1]) == "sigmoid"
        if not voxels.background:
            hits, misses = hits[:, 1:], misses[:, 1:]
        classes = hits.shape[1]
        shape = (1, -1, *[1] * (hits.ndim - 2))
        if self.alpha is not None:
            positive = weight_by_class(self.alpha, classes, hits, "alpha").expand(classes)
            negative = 1 - positive
            if not binary and not isinstance(self.alpha, tuple) and voxels.background:
                positive = torch.cat([negative[:1], positive[1:]])
            hits, misses = positive.reshape(shape) * hits, negative.reshape(shape) * misses
        loss = hits + misses if binary else hits
        if weight is not None:
            scale = weight_by_class(weight, classes, hits)
            loss = loss * (scale.reshape(shape) if scale.ndim else scale)
        return loss

    def unreduced(self, voxels: Voxels, weight: Any) -> Tensor:
        """The voxel map (B, C', *S)."""
        x, target = voxels.cleaned()
        hits, misses = focal_terms(x, target, self.activation(x.shape[1]), self.gamma, voxels.labels)
        ignored = voxels.ignored()
        loss = self.weighted(hits, misses, voxels, weight)
        return loss if ignored is None else torch.where(ignored, 0, loss)

    def reduced(self, sums: Statistics, voxels: Voxels, reduction: str, weight: Any) -> Tensor:
        """Mean over all voxels and classes, or the sum over items and classes of the mean over voxels."""
        totals = self.weighted(sums.hits, sums.misses, voxels, weight)
        counts = voxels.counts()
        if reduction == "mean":
            return mean_of(totals.sum(), counts.sum() * totals.shape[1])
        return mean_of(totals.sum(1), counts).sum()

    def slopes(self, voxels: Voxels, reduction: str, weight: Any) -> Tensor:
        """What a hit of each item and class adds to `reduced`, (B, C)."""
        each = torch.ones(voxels.input.shape[:2], dtype=torch.float64, device=voxels.input.device)
        added = self.weighted(each, 0 * each, voxels, weight)
        counts = voxels.counts()
        added = added / (counts.sum() * added.shape[1] if reduction == "mean" else counts.unsqueeze(1))
        return torch.nn.functional.pad(added, (each.shape[1] - added.shape[1], 0))


class FocalLoss(SegmentationLoss):
    r"""Cross entropy of each class, weighted down where the prediction is right already.

    .. math::
        FL_{ic} = -a_c (1 - p_{ic})^\gamma\, g_{ic} \log p_{ic}, \quad p = \mathrm{softmax}(x)

    (Lin et al. 2017, eq. 5, on a softmax as in Zhu et al. 2018). With ``use_softmax=False`` the binary form on each
    channel, :math:`p = \sigma(x)`: the term above and :math:`-(1 - a_c)\, p^\gamma (1 - g) \log(1 - p)`.

    Args:
        include_background: if False, channel 0 takes no part in the loss (it still does in the softmax).
        to_onehot_y: the target holds labels, (B, 1, *S), of any integer or float type.
        gamma: γ; 0 is cross entropy.
        weight: a number, or one for each class that takes part; multiplies its terms.
        reduction: ``"mean"`` over voxels and classes; ``"sum"`` over items and classes of the *mean* over voxels, as
            every release of MONAI has it, which keeps the scale of a Dice term beside it; ``"none"`` for (B, C', *S).
        use_softmax: False for the binary form. One channel is always binary, with a warning.
        alpha: a number in [0, 1], α for the foreground (binary: positives) and 1 - α for the background (negatives), or
            one for each class that takes part. In the binary form that is α_c in [0, 1] for positives and 1 - α_c for
            negatives; under a softmax, where α_c weighs one term alone, it need only not be negative.
        ignore_index: voxels with this label take no part, whatever they hold; the mean is over the others.

    Shape:
        input (B, C, *S), logits; target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``; any spatial rank, 0 included.

    Raises:
        TypeError: if the input holds no floating-point numbers.
        ValueError: for an unknown reduction, a negative γ, an α that would make a term negative, negative or NaN
            weights or as many as there are no classes, labels that name no class, an empty input.
        AssertionError: if the shapes of input and target differ (the error is a ValueError, too).

    Warns:
        UserWarning: about the target, as DiceLoss.

    Reference:
        Lin, T. et al. (2017) Focal Loss for Dense Object Detection, ICCV.
        Zhu, W. et al. (2018) AnatomyNet: Deep learning for fast and fully automated whole-volume segmentation of head
        and neck anatomy, Medical Physics.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> FocalLoss(to_onehot_y=True)(logits, torch.tensor([[0], [1], [0]]))
        tensor(0.0113)
    """

    option_checks: ClassVar = {
        **SegmentationLoss.option_checks,
        **FOCAL_CHECKS,
        "weight": checked_weight,
        **dict.fromkeys(("sigmoid", "softmax", "batch"), fixed(False)),
        **dict.fromkeys(("other_act", "process_group"), fixed(None)),
        **dict.fromkeys(("smooth_nr", "smooth_dr"), fixed(0)),
    }
    option_rules: ClassVar = FOCAL_RULES

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        weight: ClassWeight | None = None,
        reduction: str = "mean",
        *,
        use_softmax: bool = True,
        alpha: ClassWeight | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(include_background, to_onehot_y, False, False, None, reduction, 0, 0, False, ignore_index)
        self.gamma = gamma
        self.weight: Any = weight
        self.use_softmax = use_softmax
        self.alpha: Any = alpha

    def exclusive(self, background: bool) -> tuple[bool, bool]:
        """Return whether the prediction is a softmax, and whether the target of all its classes counts."""
        return self.use_softmax, background

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        term = FocalTerm(self.gamma, self.alpha, self.use_softmax)
        voxels = self.voxels(input, target)
        term.warn(input)
        if self.reduction == "none":
            return term.unreduced(voxels, self.weight).to(dispatch.result_type(input))
        arguments = voxels, self.reduction, self.weight
        slopes = partial(term.slopes, *arguments)
        sums = voxels.sums(term.activation(input.shape[1]), slopes=slopes, **term.plan())
        return term.reduced(sums, *arguments).to(dispatch.result_type(input))
