"""Focal loss; the twin of `reference/focal.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from twinloss.fast import backend
from twinloss.fast.arguments import checked_flag, warn
from twinloss.fast.loss import entry_point
from twinloss.fast.segmentation import (
    ClassWeight,
    SegmentationLoss,
    Voxels,
    checked_number,
    checked_reduction,
    checked_weight,
    mean_of,
    weight_by_class,
)
from twinloss.fast.statistics import Statistics, Surprisal, focal_terms


class FocalTerm:
    """Focal cross entropy as a formula on the statistics; FocalLoss and DiceFocalLoss share it."""

    def __init__(
        self,
        gamma: float,
        weight: ClassWeight | None,
        alpha: ClassWeight | None,
        use_softmax: bool,
        name: str = "weight",
    ) -> None:
        self.gamma = checked_number(gamma, "gamma")
        self.weight = checked_weight(weight, name)
        self.alpha = checked_weight(alpha, "alpha")
        self.use_softmax = checked_flag(use_softmax, "use_softmax")

    def activation(self, channels: int) -> str:
        """A softmax of one channel is constant: it is taken as binary."""
        return "softmax" if self.use_softmax and channels > 1 else "sigmoid"

    def warn(self, input: Tensor) -> None:
        """Say that one channel is taken as binary whatever `use_softmax` says."""
        if self.use_softmax and input.shape[1] == 1:
            warn("single channel prediction, `use_softmax=True` ignored")

    def plan(self) -> dict[str, Any]:
        """What the statistics are asked for."""
        surprisal: Surprisal = "target"
        return {"surprisal": surprisal, "gamma": self.gamma}

    def weighted(
        self, hits: Tensor, misses: Tensor, voxels: Voxels, weight: float | tuple[float, ...] | None
    ) -> Tensor:
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
        alpha: a number, α for the foreground (binary: positives) and 1 - α for the background (negatives), or one for
            each class that takes part (binary: α_c for positives, 1 - α_c for negatives).
        ignore_index: voxels with this label take no part, whatever they hold; the mean is over the others.

    Shape:
        input (B, C, *S), logits; target (B, C, *S), or (B, 1, *S) with ``to_onehot_y``; any spatial rank, 0 included.

    Raises:
        TypeError: if the input holds no floating-point numbers.
        ValueError: for an unknown reduction, a negative γ, negative or NaN weights or as many as there are no classes,
            labels that name no class, an empty input.
        AssertionError: if the shapes of input and target differ (the error is a ValueError, too).

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
        self.term = FocalTerm(gamma, weight, alpha, use_softmax)

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        reduction = checked_reduction(self.reduction)
        voxels = self.voxels(input, target)
        kind = backend.result_type(input)
        self.term.warn(input)
        if reduction == "none":
            return self.term.unreduced(voxels, self.term.weight).to(kind)
        arguments = voxels, reduction, self.term.weight
        foresee = partial(self.term.slopes, *arguments)
        sums = voxels.sums(self.term.activation(input.shape[1]), foresee=foresee, **self.term.plan())
        return self.term.reduced(sums, *arguments).to(kind)
