"""Focal Tversky loss; the twin of `reference/focal_tversky.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.loss import entry_point
from twinloss.fast.engine.segmentation.loss import ClassWeight, checked_weight, weight_by_class
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.runtime.ranks import ProcessGroup
from twinloss.fast.tversky import TverskyLoss


def _checked_exponent(value: Any, name: str) -> float | tuple[float, ...]:
    if value is None:
        raise TypeError(f"{name} must be a number or one number per class, got None; 1 gives the Tversky loss")
    exponent = checked_weight(value, name)
    if exponent is None or min(exponent if isinstance(exponent, tuple) else (exponent,), default=1.0) <= 0:
        raise ValueError(f"{name} must be greater than 0, got {value}: with the exponent 0, the loss is constant")
    return exponent


def _power(loss: Tensor, exponent: Tensor) -> Tensor:
    """Return a power of the loss; where the loss is at most 0, the power and its slope are 0."""
    out = loss <= 0
    return torch.where(out, 0, torch.where(out, 1, loss) ** exponent)


class FocalTverskyLoss(TverskyLoss):
    r"""Focal Tversky loss: a power of the Tversky loss of each item and class.

    .. math::
        L = (1 - TI)^{\gamma_c}, \quad TI = \frac{TP + \nu}{TP + \alpha FP + \beta FN + \delta}

    Here TI is the Tversky index of :class:`~twinloss.fast.TverskyLoss`, and c the class. With γ < 1, the gradient of a
    class grows as the class comes close to its target. With γ > 1, classes that are segmented poorly get a larger share
    of the gradient. With γ = 1, it is the Tversky loss.

    Papers differ in their symbols. In Abraham & Khan (2019), eq. 4, the exponent is 1/γ with γ = 4/3, and α weights the
    false negatives. Our defaults compute their loss: γ = ¾, α = 0.3 for false positives, and β = 0.7 for false
    negatives.

    The slope of a power with γ < 1 is infinite at TI = 1. Where TI is at least 1, the loss and its gradient are
    therefore 0. This needs a perfect prediction, or ν > δ.

    Args:
        include_background: see TverskyLoss.
        to_onehot_y: see TverskyLoss.
        sigmoid: see TverskyLoss.
        softmax: see TverskyLoss.
        other_act: see TverskyLoss.
        alpha: α, the weight of false positives.
        beta: β, the weight of false negatives.
        gamma: γ, the exponent: a number, or a list with one for each class that is not excluded; greater than 0.
        reduction: see TverskyLoss.
        smooth_nr: see TverskyLoss.
        smooth_dr: see TverskyLoss.
        batch: see TverskyLoss.
        weight: see TverskyLoss; factors on the powers.
        soft_label: see TverskyLoss.
        ignore_index: see TverskyLoss.
        process_group: see DiceLoss.
        return_parts: see DiceLoss.

    Shape:
        See TverskyLoss.

    Raises:
        TypeError: as in TverskyLoss.
        ValueError: as in TverskyLoss; if γ is not greater than 0, or not one for each class.
        AssertionError: if the shapes of input and target do not match. The error is also a ValueError.

    Warns:
        UserWarning: about the values of the target, as in DiceLoss.

    Reference:
        Abraham, N. and Khan, N. M. (2019) A novel focal Tversky loss function with improved attention U-Net for lesion
        segmentation, ISBI (arXiv:1810.07842).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
        >>> FocalTverskyLoss(softmax=True, to_onehot_y=True)(logits, torch.tensor([[[0, 1]]]))
        tensor(0.0025)
    """

    option_checks: ClassVar = {**TverskyLoss.option_checks, "gamma": _checked_exponent}

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: ClassWeight = 0.75,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        *,
        weight: ClassWeight | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        process_group: ProcessGroup | None = None,
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, alpha, beta, reduction, smooth_nr, smooth_dr,
            batch, weight=weight, soft_label=soft_label, ignore_index=ignore_index, process_group=process_group,
            return_parts=return_parts,
        )  # fmt: skip
        self.gamma: Any = gamma

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def is_fraction(self) -> bool:
        """Return whether the loss of each class is the fraction itself; a power of it never is."""
        return False

    def by_class(self, fractions: Tensor, voxels: Voxels) -> Tensor:
        """Return the weighted power of the Tversky loss of each item and class."""
        exponent = weight_by_class(self.gamma, fractions.shape[1], fractions, "gamma")
        return super().by_class(_power(fractions, exponent), voxels)
