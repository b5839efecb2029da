"""Fast losses for training: PyTorch modules that are drop-in replacements for the losses of MONAI."""

from twinloss.fast.bending_energy import BendingEnergyLoss
from twinloss.fast.deep_supervision import DeepSupervisionLoss
from twinloss.fast.dice import Dice, DiceLoss, MaskedDiceLoss, dice
from twinloss.fast.dice_ce import DiceCELoss
from twinloss.fast.dice_focal import DiceFocalLoss
from twinloss.fast.diffusion import DiffusionLoss
from twinloss.fast.engine import eager as eager
from twinloss.fast.engine.segmentation.parts import ClassParts, DiceCEParts, DiceFocalParts
from twinloss.fast.focal import FocalLoss
from twinloss.fast.focal_tversky import FocalTverskyLoss
from twinloss.fast.generalized_dice import GeneralizedDiceLoss
from twinloss.fast.generalized_dice_focal import GeneralizedDiceFocalLoss
from twinloss.fast.generalized_wasserstein_dice import GeneralizedWassersteinDiceLoss, wasserstein_distance_map
from twinloss.fast.global_mutual_information import GlobalMutualInformationLoss
from twinloss.fast.local_normalized_cross_correlation import LocalNormalizedCrossCorrelationLoss
from twinloss.fast.masked import MaskedLoss
from twinloss.fast.matthews_correlation import MatthewsCorrelationLoss
from twinloss.fast.multi_scale import MultiScaleLoss
from twinloss.fast.tversky import TverskyLoss

# MONAI's documentation has these aliases. As attributes they hide the modules of the same names, but
# `from twinloss.fast.dice_ce import …` still imports from the module.
dice_ce = DiceCELoss
dice_focal = DiceFocalLoss
generalized_dice = GeneralizedDiceLoss
generalized_dice_focal = GeneralizedDiceFocalLoss
generalized_wasserstein_dice = GeneralizedWassersteinDiceLoss

__all__ = [
    "BendingEnergyLoss",
    "ClassParts",
    "DeepSupervisionLoss",
    "Dice",
    "DiceCELoss",
    "DiceCEParts",
    "DiceFocalLoss",
    "DiceFocalParts",
    "DiceLoss",
    "DiffusionLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceFocalLoss",
    "GeneralizedDiceLoss",
    "GeneralizedWassersteinDiceLoss",
    "GlobalMutualInformationLoss",
    "LocalNormalizedCrossCorrelationLoss",
    "MaskedDiceLoss",
    "MaskedLoss",
    "MatthewsCorrelationLoss",
    "MultiScaleLoss",
    "TverskyLoss",
    "dice",
    "dice_ce",
    "dice_focal",
    "generalized_dice",
    "generalized_dice_focal",
    "generalized_wasserstein_dice",
    "wasserstein_distance_map",
]
