"""The differences between twinloss and the releases of MONAI: what is done here, why, and an example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A difference.

    Attributes:
        loss: the class.
        here: what twinloss does, in a sentence.
        why: the reason, of the paper or else.
        code: an example, at most three lines, of which the last is an expression.
        theirs: what to write to have MONAI's, where there is a way.
    """

    loss: str
    here: str
    why: str
    code: str
    theirs: str = ""


DIFFERENCES = (
    Difference(
        "all", "The result has the type of the input, whatever that of the target; float32 under autocast.",
        "A target in float64 must not turn a training into one in float64.",
        "x = torch.full((1, 1, 2), 0.5)\nDiceLoss()(x, torch.ones(1, 1, 2).double()).dtype",
    ),
    Difference(
        "all", "Labels that are no class are a ValueError that names them.",
        "Half a label is a sign of an image that was interpolated; MONAI rounds it down, and takes background.",
        "x, labels = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.6]]])\n"
        "DiceLoss(softmax=True, to_onehot_y=True)(x, labels)",
    ),
    Difference(
        "all", "Class weights are options and no state: a checkpoint with MONAI's `class_weight` loads without them.",
        "What a training computes stands in its code. `load_state_dict` leaves out the keys `…class_weight`, and those "
        "of the cross entropy of `DiceCELoss`; no loss takes its weights from a checkpoint.",
        "list(DiceLoss(weight=[1.0, 2.0]).state_dict())",
    ),
    Difference(
        "DiceLoss", "`weight` counts with one channel, too.",
        "A weight that is given is a weight that counts.",
        "x, g = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)\nDiceLoss(weight=2.0)(x, g)",
    ),
    Difference(
        "DiceLoss", "`ignore_index` cuts voxels out, on all segmentation losses; NaN there does not count.",
        "The result is that of the data without these voxels.",
        'x = torch.tensor([[[0.0, float("nan")], [1.0, 0.0]]])\n'
        "DiceLoss(softmax=True, to_onehot_y=True, ignore_index=1)(x, torch.tensor([[[0, 1]]]))",
    ),
    Difference(
        "DiceLoss", "`squared_pred` takes labels of any type.", "Type does not matter to a sum of squares.",
        "x, g = torch.zeros(1, 2, 2), torch.ones(1, 2, 2).int()\nDiceLoss(squared_pred=True)(x, g)",
    ),
    Difference(
        "DiceLoss", "`reduction=\"none\"` keeps axes to broadcast by.", "So the loss can be multiplied with a map.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nDiceLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "MaskedDiceLoss", "The mask comes after the activation.",
        "A logit that is masked to 0 has the probability ½, and counts.",
        "x, g = torch.tensor([[[5.0, -5.0, 5.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])\n"
        "MaskedDiceLoss(sigmoid=True)(x, g, torch.tensor([[[1.0, 1.0, 0.0]]]))",
    ),
    Difference(
        "MaskedDiceLoss", "What the mask hides does not count, even NaN.", "0 times NaN is NaN.",
        'x, g = torch.tensor([[[1.0, 0.0, float("nan")]]]), torch.tensor([[[1.0, 0.0, 0.0]]])\n'
        "MaskedDiceLoss()(x, g, torch.tensor([[[1.0, 1.0, 0.0]]]))",
    ),
    Difference(
        "TverskyLoss", "`reduction=\"none\"` keeps axes to broadcast by.", "As with all other losses.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nTverskyLoss(reduction="none")(x, x).shape',
        "`.flatten(1)`",
    ),
    Difference(
        "GeneralizedDiceLoss", "`reduction=\"none\"` keeps axes to broadcast by.", "As with all other losses.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nGeneralizedDiceLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "GeneralizedWassersteinDiceLoss", "Items of a batch do not mix.",
        "A sum over (B, 1, N) and (B, N) broadcast: wrong for every batch of more than one.",
        "x = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[3.0, 1.0], [1.0, 2.0]]])\n"
        "g, m = torch.tensor([[[1, 0]], [[0, 0]]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).numpy()\n"
        "GeneralizedWassersteinDiceLoss(m)(x, g)",
    ),
    Difference(
        "GeneralizedWassersteinDiceLoss", "`dist_matrix` may be nested lists.",
        "It is copied: to edit yours later changes nothing.",
        "x, g = torch.zeros(1, 2, 1), torch.ones(1, 1, 1)\n"
        "GeneralizedWassersteinDiceLoss([[0.0, 1.0], [1.0, 0.0]])(x, g)",
    ),
    Difference(
        "FocalLoss", "Logits go through a softmax.", "As in the documentation of MONAI 0.5; Lin et al. have one class.",
        "x, g = torch.tensor([[[2.0], [0.0]]]), torch.tensor([[[1.0], [0.0]]])\nFocalLoss()(x, g)",
        "`use_softmax=False`, of 1.x",
    ),
    Difference(
        "FocalLoss", "`include_background=False` leaves the softmax as it is.",
        "The background is left out of the loss, not out of the probabilities.",
        "x, g = torch.tensor([[[2.0], [0.0], [1.0]]]), torch.tensor([[[0.0], [1.0], [0.0]]])\n"
        "FocalLoss(include_background=False)(x, g)",
    ),
    Difference(
        "FocalLoss", "The fourth argument is `weight`, as in 0.5; `alpha` goes by name.",
        "In 1.x it is `alpha`: give both by name.",
        "FocalLoss.__init__.__code__.co_varnames[4]",
    ),
    Difference(
        "FocalLoss", "`reduction=\"none\"` is the map of voxels.", "It can be looked at.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nFocalLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "FocalLoss", "One channel is the binary form, with a warning.", "The softmax of one channel is constant.",
        "FocalLoss()(torch.tensor([[[0.0]]]), torch.tensor([[[1.0]]]))",
    ),
    Difference(
        "FocalLoss", "A logit of −inf on a class that is not the true one costs nothing.",
        "Its probability is 0, and that is right.",
        'x = torch.tensor([[[0.0], [-float("inf")]]])\nFocalLoss(to_onehot_y=True)(x, torch.tensor([[[0.0]]]))',
    ),
    Difference(
        "FocalLoss", "The gradient is finite where p = 1, also for γ < 1.", "1 − p is computed without cancellation.",
        "x, g = torch.tensor([[[200.0], [0.0]]], requires_grad=True), torch.tensor([[[0.0]]])\n"
        "torch.autograd.grad(FocalLoss(gamma=0.5, to_onehot_y=True)(x, g), x)[0].isfinite().all().item()",
    ),
    Difference(
        "FocalLoss", "A negative `gamma` is a ValueError.", "It would have a pole where a voxel is right.",
        "FocalLoss(gamma=-1.0)(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))",
    ),
    Difference(
        "DiceCELoss", "`weight` is for both terms, `ce_weight` for cross entropy.",
        "0.5 had the one, 1.x has the other: both are taken.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "DiceCELoss(softmax=True, to_onehot_y=True, ce_weight=torch.tensor([1.0, 3.0]))(x, g)",
    ),
    Difference(
        "DiceCELoss", "One channel has binary cross entropy.", "The cross entropy of one class is 0.",
        "x, g = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])\nDiceCELoss(sigmoid=True)(x, g)",
    ),
    Difference(
        "DiceCELoss", "Soft targets are soft in both terms.", "An argmax would make labels of them.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.4, 0.3], [0.6, 0.7]]])\n"
        "DiceCELoss(softmax=True)(x, g)",
    ),
    Difference(
        "DiceFocalLoss", "The focal term is that of `FocalLoss`: a softmax.", "As in the documentation of MONAI 0.5.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "DiceFocalLoss(softmax=True, to_onehot_y=True)(x, g)",
        "`use_softmax=False`, of 1.x",
    ),
    Difference(
        "BendingEnergyLoss", "Second differences are those of neighbours, and see a checkerboard.",
        "Central differences of central differences are blind to it, so that a folding field may cost nothing.",
        "u = (-1.0) ** torch.arange(8).reshape(1, 1, 8)\nBendingEnergyLoss()(u)",
        "`stencil=\"wide\"`, before 1.6",
    ),
    Difference(
        "BendingEnergyLoss", "Any number of components, but for `normalize=True`.", "Each is taken by itself.",
        "BendingEnergyLoss()(torch.zeros(1, 1, 5, 5))",
    ),
    Difference(
        "BendingEnergyLoss", "The first argument is `reduction`, as in 0.5; `normalize` goes by name.",
        "In 1.x it is `normalize`, for which any string is true.",
        'BendingEnergyLoss("sum").reduction',
    ),
    Difference(
        "DiffusionLoss", "A string for `normalize` is a TypeError.",
        "It is a reduction that has come to the wrong place.",
        'DiffusionLoss("sum").normalize',
    ),
    Difference(
        "DiffusionLoss", "First differences are those of neighbours, and see a checkerboard.",
        "As in VoxelMorph's paper; central differences are blind to it. On smooth fields both are close.",
        "u = (-1.0) ** torch.arange(8).reshape(1, 1, 8)\nDiffusionLoss()(u)",
        "`stencil=\"wide\"`",
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "A flat window scores −1, by the documented formula.",
        "(0 + ν)/(0 + δ) with ν = δ; 1.x has ν = 0, and clamps each variance at δ.",
        "x = torch.zeros(1, 1, 4)\nLocalNormalizedCrossCorrelationLoss(1)(x, x)",
        "`denominator=\"clamp\", smooth_nr=0.0`, of 1.x",
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "The triangle of three voxels is ¼, ½, ¼.",
        "That of MONAI is 0, 1, 0: a window of one voxel, which is flat.",
        "x, y = torch.tensor([[[0.0, 1.0, 3.0, 2.0]]]), torch.tensor([[[1.0, 1.0, 2.0, 5.0]]])\n"
        'LocalNormalizedCrossCorrelationLoss(1, kernel_type="triangular")(x, y)',
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "A small contrast on a large offset keeps its accuracy: no match < −1.",
        "Variances are centred before they are squared.",
        "x = 1e4 + torch.tensor([[[0.0, 0.01, 0.03, 0.02, 0.0, 0.01]]])\n"
        "y = 1e4 + torch.tensor([[[0.01, 0.01, 0.02, 0.05, 0.01, 0.0]]])\n"
        "(LocalNormalizedCrossCorrelationLoss(1)(x, y) >= -1).item()",
    ),
    Difference(
        "GlobalMutualInformationLoss", "The first argument is `num_bins`, as in 0.5; `kernel_type` goes by name.",
        "In 1.x it is `kernel_type`.",
        "GlobalMutualInformationLoss.__init__.__code__.co_varnames[1]",
    ),
    Difference(
        "GlobalMutualInformationLoss", "A small `sigma_ratio` does not underflow.",
        "The largest exponent is subtracted before exp.",
        "x, y = torch.tensor([[[0.0, 0.26, 0.77, 1.0]]]), torch.tensor([[[0.0, 0.25, 0.75, 1.0]]])\n"
        "GlobalMutualInformationLoss(sigma_ratio=0.01)(x, y)",
    ),
    Difference(
        "GlobalMutualInformationLoss", "b-spline: the range is that of each item.",
        "An item's loss does not hang on its neighbours in the batch.",
        "x = torch.tensor([[[0.0, 0.25, 0.75, 1.0]], [[0.0, 2.5, 7.5, 10.0]]])\n"
        "y = torch.tensor([[[0.0, 0.25, 0.75, 1.0]], [[0.0, 0.25, 0.75, 1.0]]])\n"
        'GlobalMutualInformationLoss(kernel_type="b-spline")(x, y)',
    ),
    Difference(
        "GlobalMutualInformationLoss", "b-spline: a constant image has a loss, of 0 but for ν and δ.",
        "It tells nothing of the other.",
        'x = torch.zeros(1, 1, 4)\nGlobalMutualInformationLoss(kernel_type="b-spline")(x, x)',
    ),
    Difference(
        "MultiScaleLoss", "Scales that are none are a ValueError at once.", "So a typing error shows.",
        "type(MultiScaleLoss(torch.nn.MSELoss(), [-1])).__name__",
    ),
)  # fmt: skip
