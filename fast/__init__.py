"""The fast wing: torch losses that people train with, drop-in for MONAI's."""

from twinloss.fast.dice import Dice, DiceLoss, MaskedDiceLoss, dice

__all__ = ["Dice", "DiceLoss", "MaskedDiceLoss", "dice"]
