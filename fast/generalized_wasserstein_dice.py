"""Generalised Wasserstein Dice loss; the twin of `reference/generalized_wasserstein_dice.py`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from twinloss.fast.engine.loss import entry_point, untraced
from twinloss.fast.engine.segmentation.loss import Fraction, SegmentationLoss
from twinloss.fast.engine.segmentation.voxels import Voxels
from twinloss.fast.kernels.contract import DISTANCE, NEARNESS, ClassWeights, Distances, Terms, Weigh
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError, as_tuples, check_tensors, numbers
from twinloss.fast.runtime.options import fixed, one_of
from twinloss.fast.runtime.warn import warn


def checked_distances(dist_matrix: Any, name: str = "dist_matrix") -> Distances:
    """Check a distance matrix and return it divided by its maximum.

    The result is a copy, so that later changes of the given matrix have no effect.
    """
    m = numbers(dist_matrix, name)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise ValueError(f"dist_matrix must be a square matrix (C, C), got shape {tuple(m.shape)}")
    if not bool((m >= 0).all()) or bool(m.isinf().any()):
        raise ValueError("dist_matrix must hold finite distances that are not negative")
    if bool((m.diagonal() != 0).any()):
        raise ValueError(f"dist_matrix must have a zero diagonal, got {m.diagonal().tolist()}")
    if not bool((m > 0).any()):
        raise ValueError("dist_matrix must hold a distance greater than 0 between some classes")
    distances: Distances = as_tuples(m / m.max())
    return distances


def wasserstein_distance_map(flat_proba: Tensor, flat_target: Tensor, dist_matrix: Any) -> Tensor:
    r"""Return the Wasserstein distance between the prediction and the label of each voxel (Fidon et al. 2017, eq. 6).

    .. math::
        W_i = \sum_l M_{y_i l}\, p_{il}

    Args:
        flat_proba: probabilities p, (B, C, N).
        flat_target: labels y, (B, N).
        dist_matrix: distances between classes, (C, C). M is this matrix divided by its maximum.

    Returns:
        W, (B, N), in [0, 1].

    Raises:
        TypeError: if ``dist_matrix`` does not hold numbers.
        ValueError: if ``dist_matrix`` is not square, not finite, negative, all zero, or not zero on its diagonal.
    """
    with untraced():  # the checks branch on numbers, which a tracer cannot record
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
            "some class is nearer to the background than the largest distance. The default weighting (eq. 9 of "
            "Fidon et al. 2017) assumes that the background has the largest distance to every class: increase these "
            "distances, or use weighting_mode='GDL'"
        )


# The class weights of both modes. Older releases of torch.compile cannot follow their construction.
_GDL_WEIGHTS, _FOREGROUND = ClassWeights(1, offset=1), ClassWeights(0, foreground=True)


class GeneralizedWassersteinDiceLoss(SegmentationLoss):
    r"""Generalised Wasserstein Dice loss: errors are weighted by the distance between the confused classes.

    Let p be the softmax of the input, y the labels, V the number of voxels of each class, and M the distances between
    the classes divided by their maximum. With the Wasserstein distance :math:`W_i = \sum_l M_{y_i l}\, p_{il}` of voxel
    i (Fidon et al. 2017, eq. 6), the loss of each item is

    .. math::
        \text{default:}\quad L &= 1 - \frac{2 TP + \nu}{2 TP + \sum_i W_i + \delta},
        \quad TP = \sum_i \alpha_{y_i} (1 - W_i),\; \alpha_0 = 0,\; \alpha_l = 1 \\
        \text{GDL:}\quad L &= 1 - \frac{2 TP + \nu}{\sum_i \alpha_{y_i} (2 - W_i) + \delta},
        \quad \alpha_l = 1 / (V_l + 1)

    (default: Fidon et al. 2017, eq. 9; GDL: Tilborghs et al. 2020, appendix).

    Args:
        dist_matrix: distances between the classes, (C, C), as an array, a tensor or nested lists. It is copied.
        weighting_mode: the weights α of the classes: ``"default"``, which ignores true positives of the background, or
            ``"GDL"``, which divides by the volume of each class.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a value for each item, (B,).
        smooth_nr: ν, the smoothing term of the numerator.
        smooth_dr: δ, the smoothing term of the denominator.
        ignore_index: voxels with this label are excluded, whatever values they hold.
        return_parts: see DiceLoss. The parts are the shares of the true classes.

    Shape:
        input (B, C, *S), logits; target (B, *S) or (B, 1, *S), labels of any integer or floating-point type.

    Raises:
        TypeError: if ``dist_matrix`` does not hold numbers, or if the input is not a floating-point tensor.
        ValueError: if ``dist_matrix`` is not square, not finite, negative, all zero, or not zero on its diagonal; if
            ``weighting_mode`` or the reduction is unknown; if the input does not have one channel for each class; if a
            label is not a class; if the shapes of input and target do not match; if the input is empty.

    Warns:
        UserWarning: in the default mode, if some class does not have the largest distance to the background, as eq. 9
            of the paper assumes.

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
        return_parts: bool = False,
    ) -> None:
        super().__init__(
            True, True, False, True, None, reduction, smooth_nr, smooth_dr, False, ignore_index,
            return_parts=return_parts,
        )  # fmt: skip
        self.weighting_mode = weighting_mode
        self.dist_matrix = dist_matrix

    @entry_point
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the class documents shapes and errors."""
        return self.within(input, target, None)

    def within(self, input: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of the voxels within a mask, (B or 1, 1, *S), or of all voxels."""
        check_tensors(input=input, target=target)
        if input.ndim < 2:
            raise ValueError(f"input must be (batch, classes, *spatial), got shape {tuple(input.shape)}")
        if input.shape[1] != len(self.dist_matrix):
            raise ValueError(
                f"input has {input.shape[1]} channels (shape {tuple(input.shape)}) and dist_matrix "
                f"{len(self.dist_matrix)} classes: the numbers must be equal"
            )
        flat = (input.shape[0], *input.shape[2:])
        if tuple(target.shape) == flat:
            target = target.unsqueeze(1)
        elif tuple(target.shape) != (flat[0], 1, *flat[1:]):
            raise ShapeError(
                f"target has shape {tuple(target.shape)} and input {tuple(input.shape)}: expected labels of shape "
                f"{flat} or {(flat[0], 1, *flat[1:])}"
            )
        return super().within(input, target, mask)

    def fraction(self, voxels: Voxels) -> Fraction:
        """Return the fraction of each item, in which the classes are pooled."""
        terms = Terms(((NEARNESS, 2.0),), ((DISTANCE, 1.0),), self.smooth_nr, self.smooth_dr)
        return Fraction("none", terms, self._weigh(), self.dist_matrix)

    def _weigh(self) -> Weigh:
        """Return the function that computes the class weights of the nearness 1 - W and of the distance W."""
        return _GDL_WEIGHTS if self.weighting_mode == "GDL" else _FOREGROUND

    def reduce(self, loss: Tensor, input: Tensor) -> Tensor:
        """Reduce values for each item, (B, 1); "none" returns them as (B,)."""
        return self.reduced(loss[:, 0], 2).to(dispatch.result_type(input))

    def wasserstein_distance_map(self, flat_proba: Tensor, flat_target: Tensor) -> Tensor:
        """Return W, (B, N), of probabilities (B, C, N) and labels (B, N), with the distances of this loss."""
        return wasserstein_distance_map(flat_proba, flat_target, self.dist_matrix)
