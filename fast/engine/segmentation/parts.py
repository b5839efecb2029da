"""The parts of a loss, which `return_parts=True` returns beside it for logging, detached from the graph."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClassParts(NamedTuple):
    """The parts of a loss of classes.

    Attributes:
        by_class: (C'), the loss of each included class, with its class weight: the mean over the items, or their sum
            with ``reduction="sum"``. The mean of these is the loss, or their sum with ``reduction="sum"``. If the
            classes are pooled, as in generalised Dice, it is the share of each class, and the sum of these is the loss.
    """

    by_class: Tensor


class DiceCEParts(NamedTuple):
    """The terms of Dice + cross entropy as they enter the loss, each with its factor λ, so that their sum is the loss.

    Attributes:
        dice: λ times the Dice term.
        ce: λ times the cross entropy.
    """

    dice: Tensor
    ce: Tensor


class DiceFocalParts(NamedTuple):
    """The terms of Dice + focal as they enter the loss, each with its factor λ, so that their sum is the loss.

    Attributes:
        dice: λ times the Dice term, or that of generalised Dice. With ``reduction="none"`` it has a value for each item
            and class, (B, C', 1, …), or for each item if the classes are pooled, (B, 1, 1, …).
        focal: λ times the focal term; with ``reduction="none"`` a value for each voxel and class, (B, C', *S).
    """

    dice: Tensor
    focal: Tensor


Parts = ClassParts | DiceCEParts | DiceFocalParts
