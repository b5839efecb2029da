"""Generalised Wasserstein Dice loss; the twin of `reference/generalized_wasserstein_dice.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.loss import entry_point, untraced
from twinloss.fast.engine.segmentation.loss import SegmentationLoss
from twinloss.fast.kernels.contract import DISTANCE, NEARNESS, Distances, Terms
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError, check_tensors, numbers
from twinloss.fast.runtime.options import fixed, one_of
from twinloss.fast.runtime.warn import warn


def checked_distances(dist_matrix: Any, name: str = "dist_matrix") -> Distances:
    """A distance matrix divided by its maximum, as a copy that no later change of the caller's reaches."""
    m = numbers(dist_matrix, name)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise ValueError(f"dist_matrix must be a square matrix (C, C), got shape {tuple(m.shape)}")
    if not bool((m >= 0).all()) or bool(m.isinf().any()):
        raise ValueError("dist_matrix must hold finite distances that are not negative")
    if bool((m.diagonal() != 0).any()):
        raise ValueError(f"dist_matrix must have a zero diagonal, got {m.diagonal().tolist()}")
    if not bool((m > 0).any()):
        raise ValueError("dist_matrix must hold a distance greater than 0 between some classes")
    return tuple(map(tuple, (m / m.max()).tolist()))


def wasserstein_distance_map(flat_proba: Tensor, flat_target: Tensor, dist_matrix: Any) -> Tensor:
    r"""Wasserstein distance of each voxel's prediction from its label (Fidon et al. 2017, eq. 6).

    .. math::
        W_i = \sum_l M_{y_i l}\, p_{il}

    Args:
        flat_proba: probabilities p, (B, C, N).
        flat_target: labels y, (B, N).
        dist_matrix: distances between classes, (C, C); M is this divided by its maximum.

    Returns:
        (B, N).
    """
    with untraced():  # it checks numbers
        distances = checked_distances(dist_matrix)
    return _distance_map(flat_proba, flat_target, distances)


@entry_point
def _distance_map(flat_proba: Tensor, flat_target: Tensor, distances: Distances) -> Tensor:
    matrix = torch.tensor(distances, dtype=flat_proba.dtype, device=flat_proba.device)
    return (matrix[flat_target.long()].movedim(-1, 1) * flat_proba).sum(1)


def _warn_of_near_background(dist_matrix: Distances, weighting_mode: str) -> None:
    far = [*dist_matrix[0][1:], *(row[0] for row in dist_matrix[1:])]
    if weighting_mode == "default" and any(distance != 1 for distance in far):
        warn(
            "some class is nearer to the background than the largest distance; the default weighting (eq. 9 of "
            "Fidon et al. 2017) assumes that none is: raise these distances, or use weighting_mode='GDL'"
        )


class GeneralizedWassersteinDiceLoss(SegmentationLoss):
    r"""Dice loss whose errors count by the distance between the classes that are confused.

    With p the softmax of the input, M the distances divided by their maximum and
    :math:`W_i = \sum_l M_{y_i l}\, p_{il}` (Fidon et al. 2017, eq. 6),

    .. math::
        \text{default:}\quad L &= 1 - \frac{2 TP + \nu}{2 TP + \sum_i W_i + \delta},
        \quad TP = \sum_i \alpha_{y_i} (1 - W_i),\; \alpha_0 = 0,\; \alpha_l = 1 \\
        \text{GDL:}\quad L &= 1 - \frac{2 TP + \nu}{\sum_i \alpha_{y_i} (2 - W_i) + \delta},
        \quad \alpha_l = 1 / (V_l + 1)

    one value for each item (Fidon et al. 2017, eq. 9; Tilborghs et al. 2020, appendix).

    Args:
        dist_matrix: distances between classes, (C, C): array, tensor or nested lists. It is copied.
        weighting_mode: ``"default"`` or ``"GDL"``.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for (B,).
        smooth_nr: ν.
        smooth_dr: δ.
        ignore_index: voxels with this label take no part, whatever they hold.

    Shape:
        input (B, C, *S), logits; target, labels, (B, *S) or (B, 1, *S), of any integer or float type.

    Raises:
        ValueError: if ``dist_matrix`` is not square, or negative, NaN, all zero or not zero on its diagonal; for an
            unknown ``weighting_mode`` or reduction; for as many channels as there are no classes, labels that name no
            class, a target whose voxels are not those of the input, an empty input.

    Warns:
        UserWarning: in the default mode, if the distance between some class and the background is not the largest:
            the paper's eq. 9 assumes that it is.

    Reference:
        Fidon, L. et al. (2017) Generalised Wasserstein Dice Score for Imbalanced Multi-class Segmentation using
        Holistic Convolutional Networks, BrainLes.
        Tilborghs, S. et al. (2020) Comparative study of deep learning methods for the automatic segmentation of lung,
        lesion and lesion type in CT scans of COVID-19 patients, arXiv:2007.15546.

    Example:
        >>> import torch
        >>> distances = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]
        >>> loss = GeneralizedWassersteinDiceLoss(distances)
        >>> loss(torch.tensor([[1000.0, 0, 0], [0, 1000, 0], [0, 0, 1000]]), torch.tensor([0, 1, 2]))
        tensor(0.)
    """

    option_checks: ClassVar = {
        **SegmentationLoss.option_checks,
        "dist_matrix": checked_distances,
        "weighting_mode": one_of("default", "GDL"),
        **dict.fromkeys(("sigmoid", "batch"), fixed(False)),
        **dict.fromkeys(("include_background", "to_onehot_y", "softmax"), fixed(True)),
        **dict.fromkeys(("other_act", "process_group"), fixed(None)),
    }
    option_rules: ClassVar = ((("dist_matrix", "weighting_mode"), _warn_of_near_background),)

    def __init__(
        self,
        dist_matrix: Any,
        weighting_mode: str = "default",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        *,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(True, True, False, True, None, reduction, smooth_nr, smooth_dr, False, ignore_index)
        self.weighting_mode = weighting_mode
        self.dist_matrix = dist_matrix

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        check_tensors(input=input, target=target)
        if input.ndim < 2:
            raise ValueError(f"input must be (batch, classes, *spatial), got shape {tuple(input.shape)}")
        if input.shape[1] != len(self.dist_matrix):
            raise ValueError(
                f"input has {input.shape[1]} channels (shape {tuple(input.shape)}) and dist_matrix "
                f"{len(self.dist_matrix)} classes: they must be as many"
            )
        flat = (input.shape[0], *input.shape[2:])
        if tuple(target.shape) == flat:
            target = target.unsqueeze(1)
        elif tuple(target.shape) != (flat[0], 1, *flat[1:]):
            raise ShapeError(
                f"target has shape {tuple(target.shape)} and input {tuple(input.shape)}: expected labels of shape "
                f"{flat} or {(flat[0], 1, *flat[1:])}"
            )
        terms = Terms(((NEARNESS, 2.0),), ((DISTANCE, 1.0),), self.smooth_nr, self.smooth_dr)
        return self.reduced_fraction(input, self.voxels(input, target), "none", terms, self._weigh, self.dist_matrix)

    def _weigh(self, volume: Any) -> Sequence[Any]:
        """Of volumes (B, C), in an array or a tensor, the weights of nearness and of distance, or those of both."""
        if self.weighting_mode == "GDL":
            return (1 / (volume + 1),)
        everywhere = volume[:1] ** 0  # 1, whatever the volume
        foreground = everywhere + 0
        foreground[:, 0] = 0
        return foreground, everywhere

    def reduce(self, loss: Tensor, input: Tensor) -> Tensor:
        """Reduce per-item values, (B, 1), to (B,) with "none"."""
        return self.reduced(loss[:, 0], 2).to(dispatch.result_type(input))

    def wasserstein_distance_map(self, flat_proba: Tensor, flat_target: Tensor) -> Tensor:
        """Eq. 6 for probabilities (B, C, N) and labels (B, N), with this loss's distances; (B, N)."""
        return wasserstein_distance_map(flat_proba, flat_target, self.dist_matrix)
