"""The losses of MONAI 1.6, with its arguments, defaults and shapes, computed by `twinloss.fast`.

`from twinloss.compat.monai import *` replaces `from monai.losses import *` for the losses that twinloss has. Values and
gradients stay the same up to rounding, except for the differences in `reports/compat-monai.md`, such as defects of
MONAI and errors for invalid arguments. Each class also takes the other options of its class in `twinloss.fast`, as
keyword arguments.
"""

from twinloss.compat.monai.registration import (
    BendingEnergyLoss,
    DiffusionLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
)
from twinloss.compat.monai.segmentation import (
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GeneralizedDiceFocalLoss,
    GeneralizedDiceLoss,
    MaskedDiceLoss,
    MCCLoss,
    TverskyLoss,
)
from twinloss.compat.monai.wrappers import DeepSupervisionLoss, MaskedLoss
from twinloss.fast import GeneralizedWassersteinDiceLoss, MultiScaleLoss

Dice = DiceLoss
dice_ce = DiceCELoss
dice_focal = DiceFocalLoss
generalized_dice_focal = GeneralizedDiceFocalLoss
generalized_dice = GeneralizedDiceLoss
generalized_wasserstein_dice = GeneralizedWassersteinDiceLoss

__all__ = [
    "BendingEnergyLoss",
    "DeepSupervisionLoss",
    "Dice",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "DiffusionLoss",
    "FocalLoss",
    "GeneralizedDiceFocalLoss",
    "GeneralizedDiceLoss",
    "GeneralizedWassersteinDiceLoss",
    "GlobalMutualInformationLoss",
    "LocalNormalizedCrossCorrelationLoss",
    "MCCLoss",
    "MaskedDiceLoss",
    "MaskedLoss",
    "MultiScaleLoss",
    "TverskyLoss",
    "dice_ce",
    "dice_focal",
    "generalized_dice",
    "generalized_dice_focal",
    "generalized_wasserstein_dice",
]
