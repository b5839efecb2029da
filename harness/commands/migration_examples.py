"""The differences between twinloss and the releases of MONAI, each with its reason and an example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A difference.

    Attributes:
        loss: the class, or "all".
        here: the behaviour of twinloss, in one sentence.
        why: the reason for it.
        code: an example of at most three lines, of which the last is an expression.
        theirs: the options that give MONAI's behaviour, if there are any.
        bites: whether it silently changes the loss of code that moves from MONAI; the README lists these.
        kept: why `twinloss.compat.monai` has it as well, one of KINDS; empty if that behaves like MONAI.
    """

    loss: str
    here: str
    why: str
    code: str
    theirs: str = ""
    bites: bool = False
    kept: str = ""


# Why `twinloss.compat.monai` differs from MONAI.
KINDS = {
    "defect": "MONAI returns a wrong number; errata.md has most of these",
    "NaN": "MONAI returns NaN, or digits that are mere rounding errors",
    "convention": "the documentation of MONAI leaves open what the number is",
    "error": "MONAI returns a number for an invalid argument, and twinloss raises an error",
    "accepted": "MONAI raises an error for a valid argument",
    "conduct": "the number is the same, and something else differs",
}

DIFFERENCES = (
    Difference(
        "all", "The result has the dtype of the input, regardless of the target. Under autocast it is float32.",
        "A target in float64 must not turn the whole training into float64.",
        "x = torch.full((1, 1, 2), 0.5)\nDiceLoss()(x, torch.ones(1, 1, 2).double()).dtype",
        kept="conduct",
    ),
    Difference(
        "all", "Labels that are not a class raise a ValueError that lists them.",
        "A fractional label is the sign of an interpolated label map. MONAI rounds it down, here to the background.",
        "x, labels = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.6]]])\n"
        "DiceLoss(softmax=True, to_onehot_y=True)(x, labels)",
        kept="error",
    ),
    Difference(
        "all",
        "Class weights are options, not state. A checkpoint with MONAI's `class_weight` loads, without its weights.",
        "Training code should show what it computes. `load_state_dict` skips the keys `…class_weight` and "
        "those of the cross entropy in `DiceCELoss`.",
        "list(DiceLoss(weight=[1.0, 2.0]).state_dict())",
        kept="conduct",
    ),
    Difference(
        "DiceLoss", "`weight` also applies to a single channel.",
        "An option that is given must not be ignored.",
        "x, g = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)\nDiceLoss(weight=2.0)(x, g)",
        kept="defect",
    ),
    Difference(
        "DiceLoss", "`ignore_index` leaves voxels out in all segmentation losses, even if they are NaN.",
        "The result is the same as without these voxels.",
        'x = torch.tensor([[[0.0, float("nan")], [1.0, 0.0]]])\n'
        "DiceLoss(softmax=True, to_onehot_y=True, ignore_index=1)(x, torch.tensor([[[0, 1]]]))",
        kept="NaN",
    ),
    Difference(
        "DiceLoss", "`squared_pred` takes labels of any dtype.", "A sum of squares does not depend on the dtype.",
        "x, g = torch.zeros(1, 2, 2), torch.ones(1, 2, 2).int()\nDiceLoss(squared_pred=True)(x, g)",
        kept="accepted",
    ),
    Difference(
        "DiceLoss", "`reduction=\"none\"` keeps the axes for broadcasting.",
        "The loss can then be multiplied with a map.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nDiceLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "MaskedDiceLoss", "The mask is applied after the activation.",
        "A logit that is masked to 0 would have the probability ½, and would count.",
        "x, g = torch.tensor([[[5.0, -5.0, 5.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])\n"
        "MaskedDiceLoss(sigmoid=True)(x, g, torch.tensor([[[1.0, 1.0, 0.0]]]))",
    ),
    Difference(
        "MaskedDiceLoss", "Masked voxels do not count, even if they are NaN.",
        "A product with the mask would be NaN, since 0 · NaN is NaN.",
        'x, g = torch.tensor([[[1.0, 0.0, float("nan")]]]), torch.tensor([[[1.0, 0.0, 0.0]]])\n'
        "MaskedDiceLoss()(x, g, torch.tensor([[[1.0, 1.0, 0.0]]]))",
        kept="NaN",
    ),
    Difference(
        "TverskyLoss", "`reduction=\"none\"` keeps the axes for broadcasting.", "This is the same for all losses.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nTverskyLoss(reduction="none")(x, x).shape',
        "`.flatten(1)`",
    ),
    Difference(
        "GeneralizedDiceLoss", "`reduction=\"none\"` keeps the axes for broadcasting.",
        "This is the same for all losses.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nGeneralizedDiceLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "GeneralizedWassersteinDiceLoss", "The items of a batch do not mix.",
        "MONAI added arrays of shape (B, 1, N) and (B, N), which is wrong for every batch of more than one item.",
        "x = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[3.0, 1.0], [1.0, 2.0]]])\n"
        "g, m = torch.tensor([[[1, 0]], [[0, 0]]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).numpy()\n"
        "GeneralizedWassersteinDiceLoss(m)(x, g)",
    ),
    Difference(
        "GeneralizedWassersteinDiceLoss", "`dist_matrix` may be nested lists.",
        "The loss keeps a copy, which later changes to your array do not affect.",
        "x, g = torch.zeros(1, 2, 1), torch.ones(1, 1, 1)\n"
        "GeneralizedWassersteinDiceLoss([[0.0, 1.0], [1.0, 0.0]])(x, g)",
        kept="accepted",
    ),
    Difference(
        "FocalLoss", "The logits go through a softmax, also in `DiceFocalLoss`.",
        "This is what MONAI 0.5 documents. Lin et al. treat a single class.",
        "x, g = torch.tensor([[[2.0], [0.0]]]), torch.tensor([[[1.0], [0.0]]])\nFocalLoss()(x, g)",
        "`use_softmax=False`",
        bites=True,
    ),
    Difference(
        "FocalLoss", "`include_background=False` does not change the softmax.",
        "The background is removed from the loss, not from the probabilities.",
        "x, g = torch.tensor([[[2.0], [0.0], [1.0]]]), torch.tensor([[[0.0], [1.0], [0.0]]])\n"
        "FocalLoss(include_background=False)(x, g)",
    ),
    Difference(
        "FocalLoss", "The fourth argument is `weight`, as in 0.5. `alpha` is keyword-only.",
        "In 1.x it is `alpha`. Pass both by name.",
        "FocalLoss.__init__.__code__.co_varnames[4]",
        bites=True,
    ),
    Difference(
        "FocalLoss", "`reduction=\"none\"` returns the loss of each voxel.", "The map can be inspected.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nFocalLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "FocalLoss", "A single channel is a binary problem, with a warning.",
        "The softmax of a single channel is constant.",
        "FocalLoss()(torch.tensor([[[0.0]]]), torch.tensor([[[1.0]]]))",
    ),
    Difference(
        "FocalLoss", "A logit of −inf for a wrong class adds nothing.",
        "Its probability is 0, which is correct.",
        'x = torch.tensor([[[0.0], [-float("inf")]]])\nFocalLoss(to_onehot_y=True)(x, torch.tensor([[[0.0]]]))',
        kept="NaN",
    ),
    Difference(
        "FocalLoss", "The gradient is finite where p = 1, even for γ < 1.", "1 − p is computed without cancellation.",
        "x, g = torch.tensor([[[200.0], [0.0]]], requires_grad=True), torch.tensor([[[0.0]]])\n"
        "torch.autograd.grad(FocalLoss(gamma=0.5, to_onehot_y=True)(x, g), x)[0].isfinite().all().item()",
    ),
    Difference(
        "FocalLoss", "A negative `gamma` raises a ValueError.",
        "The loss would have a pole where a voxel is classified correctly.",
        "FocalLoss(gamma=-1.0)(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))",
        kept="error",
    ),
    Difference(
        "DiceCELoss", "`weight` applies to both terms, `ce_weight` only to the cross entropy.",
        "0.5 has `ce_weight`, 1.x has `weight`. twinloss takes both.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "DiceCELoss(softmax=True, to_onehot_y=True, ce_weight=torch.tensor([1.0, 3.0]))(x, g)",
    ),
    Difference(
        "DiceCELoss", "A single channel has a binary cross entropy.", "The cross entropy of a single class would be 0.",
        "x, g = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])\nDiceCELoss(sigmoid=True)(x, g)",
    ),
    Difference(
        "DiceCELoss", "Soft targets stay soft in both terms.", "MONAI 0.5 takes their argmax, which makes them labels.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.4, 0.3], [0.6, 0.7]]])\n"
        "DiceCELoss(softmax=True)(x, g)",
    ),
    Difference(
        "DiceFocalLoss", "The focal term uses a softmax, as `FocalLoss` does.", "This is what MONAI 0.5 documents.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "DiceFocalLoss(softmax=True, to_onehot_y=True)(x, g)",
        "`use_softmax=False`",
    ),
    Difference(
        "GeneralizedDiceFocalLoss", "The focal term uses a softmax, as `FocalLoss` does.",
        "This is the same for all losses.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "GeneralizedDiceFocalLoss(softmax=True, to_onehot_y=True)(x, g)",
        "`use_softmax=False`",
    ),
    Difference(
        "MaskedLoss", "The mask is applied after the activation of a segmentation loss.",
        "A logit that is masked to 0 would have the probability ½, and would count.",
        "x, g = torch.tensor([[[5.0, -5.0, 5.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])\n"
        "MaskedLoss(DiceLoss(sigmoid=True))(x, g, torch.tensor([[[1.0, 1.0, 0.0]]]))",
        "`MaskedLoss(lambda x, g: loss(x, g))`",
    ),
    Difference(
        "DeepSupervisionLoss", "A list of weights of another length than that of the outputs raises a ValueError.",
        "MONAI ignores a list that is too short, and weights the outputs by `exp`.",
        "x, g = [torch.zeros(1, 2, 2), torch.zeros(1, 2, 1)], torch.ones(1, 1, 2)\n"
        "DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True), weights=[1.0])(x, g)",
        kept="error",
    ),
    Difference(
        "BendingEnergyLoss",
        "Second differences are taken between neighbours, so that the loss of a checkerboard is not 0.",
        "Nested central differences are blind to a checkerboard, so that a folding field may have a loss of 0.",
        "u = (-1.0) ** torch.arange(8).reshape(1, 1, 8)\nBendingEnergyLoss()(u)",
        "`stencil=\"wide\"` (before 1.6)",
    ),
    Difference(
        "BendingEnergyLoss", "A field may have any number of components, unless `normalize=True`.",
        "Each component is independent.",
        "BendingEnergyLoss()(torch.zeros(1, 1, 5, 5))",
    ),
    Difference(
        "BendingEnergyLoss", "The first argument is `reduction`, as in 0.5. `normalize` is keyword-only.",
        "In 1.x it is `normalize`, and any string counts as true.",
        'BendingEnergyLoss("sum").reduction',
        bites=True,
    ),
    Difference(
        "DiffusionLoss", "A string for `normalize` raises a TypeError.",
        "It is probably a reduction in the wrong position.",
        'DiffusionLoss("sum").normalize',
        kept="error",
    ),
    Difference(
        "DiffusionLoss", "First differences are taken between neighbours, so that the loss of a checkerboard is not 0.",
        "VoxelMorph's paper has these differences. Central differences are blind to a checkerboard. Both are close on "
        "smooth fields.",
        "u = (-1.0) ** torch.arange(8).reshape(1, 1, 8)\nDiffusionLoss()(u)",
        "`stencil=\"wide\"`",
        bites=True,
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "A flat window scores −1, as the documented formula gives.",
        "It is −(0 + ν)/(0 + δ) with ν = δ. In 1.x, ν = 0, and each variance is clamped at δ.",
        "x = torch.zeros(1, 1, 4)\nLocalNormalizedCrossCorrelationLoss(1)(x, x)",
        "`denominator=\"clamp\", smooth_nr=0.0`",
        bites=True,
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "The triangular window of three voxels is ¼, ½, ¼.",
        "MONAI's is 0, 1, 0, which is a window of one voxel, and always flat.",
        "x, y = torch.tensor([[[0.0, 1.0, 3.0, 2.0]]]), torch.tensor([[[1.0, 1.0, 2.0, 5.0]]])\n"
        'LocalNormalizedCrossCorrelationLoss(1, kernel_type="triangular")(x, y)',
        kept="defect",
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss",
        "A small contrast on a large offset stays accurate. No value is below −1.",
        "The means are subtracted before squaring.",
        "x = 1e4 + torch.tensor([[[0.0, 0.01, 0.03, 0.02, 0.0, 0.01]]])\n"
        "y = 1e4 + torch.tensor([[[0.01, 0.01, 0.02, 0.05, 0.01, 0.0]]])\n"
        "(LocalNormalizedCrossCorrelationLoss(1)(x, y) >= -1).item()",
        kept="NaN",
    ),
    Difference(
        "GlobalMutualInformationLoss", "The first argument is `num_bins`, as in 0.5. `kernel_type` is keyword-only.",
        "In 1.x it is `kernel_type`.",
        "GlobalMutualInformationLoss.__init__.__code__.co_varnames[1]",
    ),
    Difference(
        "GlobalMutualInformationLoss", "A small `sigma_ratio` does not underflow.",
        "The largest exponent is subtracted before the exponential.",
        "x, y = torch.tensor([[[0.0, 0.26, 0.77, 1.0]]]), torch.tensor([[[0.0, 0.25, 0.75, 1.0]]])\n"
        "GlobalMutualInformationLoss(sigma_ratio=0.01)(x, y)",
        kept="NaN",
    ),
    Difference(
        "GlobalMutualInformationLoss", "b-spline: each item has its own range of intensities.",
        "The loss of an item does not depend on the rest of the batch.",
        "x = torch.tensor([[[0.0, 0.25, 0.75, 1.0]], [[0.0, 2.5, 7.5, 10.0]]])\n"
        "y = torch.tensor([[[0.0, 0.25, 0.75, 1.0]], [[0.0, 0.25, 0.75, 1.0]]])\n"
        'GlobalMutualInformationLoss(kernel_type="b-spline")(x, y)',
    ),
    Difference(
        "GlobalMutualInformationLoss", "b-spline: the loss of a constant image is 0, up to ν and δ.",
        "A constant image has no information about the other one.",
        'x = torch.zeros(1, 1, 4)\nGlobalMutualInformationLoss(kernel_type="b-spline")(x, x)',
        kept="NaN",
    ),
    Difference(
        "MultiScaleLoss", "Invalid scales raise a ValueError in the constructor.", "A typo then shows at once.",
        "type(MultiScaleLoss(torch.nn.MSELoss(), [-1])).__name__",
        kept="error",
    ),
)  # fmt: skip
