"""The differences between twinloss and the releases of MONAI: what twinloss does, why, and an example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A difference.

    Attributes:
        loss: the class.
        here: what twinloss does, in a sentence.
        why: the reason.
        code: an example of at most three lines; the last one is an expression.
        theirs: how to get MONAI's behaviour, where this is possible.
    """

    loss: str
    here: str
    why: str
    code: str
    theirs: str = ""


DIFFERENCES = (
    Difference(
        "all", "The result has the dtype of the input, whatever that of the target; float32 under autocast.",
        "A target in float64 must not change a training to float64.",
        "x = torch.full((1, 1, 2), 0.5)\nDiceLoss()(x, torch.ones(1, 1, 2).double()).dtype",
    ),
    Difference(
        "all", "Labels that are no class raise a ValueError that lists them.",
        "A fractional label is a sign of an interpolated image; MONAI rounds it down, here to the background.",
        "x, labels = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.6]]])\n"
        "DiceLoss(softmax=True, to_onehot_y=True)(x, labels)",
    ),
    Difference(
        "all", "Class weights are options, not state: a checkpoint with MONAI's `class_weight` loads without them.",
        "The code of a training should say what it computes. `load_state_dict` skips the keys `…class_weight`, and "
        "those of the cross entropy of `DiceCELoss`; no loss takes its weights from a checkpoint.",
        "list(DiceLoss(weight=[1.0, 2.0]).state_dict())",
    ),
    Difference(
        "DiceLoss", "`weight` also applies to a single channel.",
        "A weight that is given should not be ignored.",
        "x, g = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)\nDiceLoss(weight=2.0)(x, g)",
    ),
    Difference(
        "DiceLoss", "`ignore_index` excludes voxels, in all segmentation losses; NaN in them does not matter.",
        "The result is that of the data without these voxels.",
        'x = torch.tensor([[[0.0, float("nan")], [1.0, 0.0]]])\n'
        "DiceLoss(softmax=True, to_onehot_y=True, ignore_index=1)(x, torch.tensor([[[0, 1]]]))",
    ),
    Difference(
        "DiceLoss", "`squared_pred` accepts labels of any dtype.", "The dtype does not matter for a sum of squares.",
        "x, g = torch.zeros(1, 2, 2), torch.ones(1, 2, 2).int()\nDiceLoss(squared_pred=True)(x, g)",
    ),
    Difference(
        "DiceLoss", "`reduction=\"none\"` keeps the axes for broadcasting.", "So the loss can be multiplied by a map.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nDiceLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "MaskedDiceLoss", "The mask is applied after the activation.",
        "A logit that is masked to 0 has the probability ½, and would count.",
        "x, g = torch.tensor([[[5.0, -5.0, 5.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])\n"
        "MaskedDiceLoss(sigmoid=True)(x, g, torch.tensor([[[1.0, 1.0, 0.0]]]))",
    ),
    Difference(
        "MaskedDiceLoss", "Masked voxels do not count, even if they are NaN.", "0 times NaN is NaN.",
        'x, g = torch.tensor([[[1.0, 0.0, float("nan")]]]), torch.tensor([[[1.0, 0.0, 0.0]]])\n'
        "MaskedDiceLoss()(x, g, torch.tensor([[[1.0, 1.0, 0.0]]]))",
    ),
    Difference(
        "TverskyLoss", "`reduction=\"none\"` keeps the axes for broadcasting.", "So do all other losses.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nTverskyLoss(reduction="none")(x, x).shape',
        "`.flatten(1)`",
    ),
    Difference(
        "GeneralizedDiceLoss", "`reduction=\"none\"` keeps the axes for broadcasting.", "So do all other losses.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nGeneralizedDiceLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "GeneralizedWassersteinDiceLoss", "The items of a batch do not mix.",
        "MONAI broadcasts (B, 1, N) with (B, N) in a sum, which is wrong for every batch of more than one item.",
        "x = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[3.0, 1.0], [1.0, 2.0]]])\n"
        "g, m = torch.tensor([[[1, 0]], [[0, 0]]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).numpy()\n"
        "GeneralizedWassersteinDiceLoss(m)(x, g)",
    ),
    Difference(
        "GeneralizedWassersteinDiceLoss", "`dist_matrix` may be nested lists.",
        "The matrix is copied: a later change of yours has no effect.",
        "x, g = torch.zeros(1, 2, 1), torch.ones(1, 1, 1)\n"
        "GeneralizedWassersteinDiceLoss([[0.0, 1.0], [1.0, 0.0]])(x, g)",
    ),
    Difference(
        "FocalLoss", "A softmax is applied to the logits.",
        "As in the documentation of MONAI 0.5; the paper by Lin et al. has only one class.",
        "x, g = torch.tensor([[[2.0], [0.0]]]), torch.tensor([[[1.0], [0.0]]])\nFocalLoss()(x, g)",
        "`use_softmax=False`, as in 1.x",
    ),
    Difference(
        "FocalLoss", "`include_background=False` does not change the softmax.",
        "The background is excluded from the loss, not from the probabilities.",
        "x, g = torch.tensor([[[2.0], [0.0], [1.0]]]), torch.tensor([[[0.0], [1.0], [0.0]]])\n"
        "FocalLoss(include_background=False)(x, g)",
    ),
    Difference(
        "FocalLoss", "The fourth argument is `weight`, as in 0.5; `alpha` is keyword-only.",
        "In 1.x it is `alpha`: pass both by name.",
        "FocalLoss.__init__.__code__.co_varnames[4]",
    ),
    Difference(
        "FocalLoss", "`reduction=\"none\"` returns a value for each voxel.", "So it can be shown as an image.",
        'x = torch.full((2, 3, 4, 4), 0.5)\nFocalLoss(reduction="none")(x, x).shape',
    ),
    Difference(
        "FocalLoss", "A single channel gives the binary loss, with a warning.",
        "The softmax of one channel is constant.",
        "FocalLoss()(torch.tensor([[[0.0]]]), torch.tensor([[[1.0]]]))",
    ),
    Difference(
        "FocalLoss", "A logit of −inf in a class that is not the true one costs nothing.",
        "Its probability is 0, which is correct.",
        'x = torch.tensor([[[0.0], [-float("inf")]]])\nFocalLoss(to_onehot_y=True)(x, torch.tensor([[[0.0]]]))',
    ),
    Difference(
        "FocalLoss", "The gradient is finite where p = 1, also for γ < 1.", "1 − p is computed without cancellation.",
        "x, g = torch.tensor([[[200.0], [0.0]]], requires_grad=True), torch.tensor([[[0.0]]])\n"
        "torch.autograd.grad(FocalLoss(gamma=0.5, to_onehot_y=True)(x, g), x)[0].isfinite().all().item()",
    ),
    Difference(
        "FocalLoss", "A negative `gamma` raises a ValueError.", "The loss would be infinite for a correct voxel.",
        "FocalLoss(gamma=-1.0)(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))",
    ),
    Difference(
        "DiceCELoss", "`weight` applies to both terms, `ce_weight` to cross entropy.",
        "MONAI 0.5 has only `ce_weight`, and 1.x only `weight`; here both are available.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "DiceCELoss(softmax=True, to_onehot_y=True, ce_weight=torch.tensor([1.0, 3.0]))(x, g)",
    ),
    Difference(
        "DiceCELoss", "A single channel gives binary cross entropy.", "The cross entropy of one class is 0.",
        "x, g = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])\nDiceCELoss(sigmoid=True)(x, g)",
    ),
    Difference(
        "DiceCELoss", "Soft targets are used as they are in both terms.", "An argmax would turn them into labels.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.4, 0.3], [0.6, 0.7]]])\n"
        "DiceCELoss(softmax=True)(x, g)",
    ),
    Difference(
        "DiceFocalLoss", "The focal term is that of `FocalLoss`, with a softmax.",
        "As in the documentation of MONAI 0.5.",
        "x, g = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])\n"
        "DiceFocalLoss(softmax=True, to_onehot_y=True)(x, g)",
        "`use_softmax=False`, as in 1.x",
    ),
    Difference(
        "BendingEnergyLoss", "Second differences use neighbouring voxels, so a checkerboard has a cost.",
        "Central differences of central differences do not see it, so a folding field may cost nothing.",
        "u = (-1.0) ** torch.arange(8).reshape(1, 1, 8)\nBendingEnergyLoss()(u)",
        "`stencil=\"wide\"`, as before 1.6",
    ),
    Difference(
        "BendingEnergyLoss", "Any number of components is accepted, except with `normalize=True`.",
        "The components do not depend on each other.",
        "BendingEnergyLoss()(torch.zeros(1, 1, 5, 5))",
    ),
    Difference(
        "BendingEnergyLoss", "The first argument is `reduction`, as in 0.5; `normalize` is keyword-only.",
        "In 1.x it is `normalize`, for which any string is true.",
        'BendingEnergyLoss("sum").reduction',
    ),
    Difference(
        "DiffusionLoss", "A string for `normalize` raises a TypeError.",
        "It is a reduction in the wrong place.",
        'DiffusionLoss("sum").normalize',
    ),
    Difference(
        "DiffusionLoss", "First differences use neighbouring voxels, so a checkerboard has a cost.",
        "As in the VoxelMorph paper; central differences do not see it. On smooth fields, both are close.",
        "u = (-1.0) ** torch.arange(8).reshape(1, 1, 8)\nDiffusionLoss()(u)",
        "`stencil=\"wide\"`",
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "A flat window scores −1, by the documented formula.",
        "It is (0 + ν)/(0 + δ) with ν = δ; 1.x has ν = 0, and clamps each variance at δ.",
        "x = torch.zeros(1, 1, 4)\nLocalNormalizedCrossCorrelationLoss(1)(x, x)",
        "`denominator=\"clamp\", smooth_nr=0.0`, as in 1.x",
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "The triangular kernel of three voxels is ¼, ½, ¼.",
        "MONAI's is 0, 1, 0: a window of one voxel, which is flat.",
        "x, y = torch.tensor([[[0.0, 1.0, 3.0, 2.0]]]), torch.tensor([[[1.0, 1.0, 2.0, 5.0]]])\n"
        'LocalNormalizedCrossCorrelationLoss(1, kernel_type="triangular")(x, y)',
    ),
    Difference(
        "LocalNormalizedCrossCorrelationLoss", "A small contrast on a large offset stays accurate: no match < −1.",
        "Intensities are centred before they are squared.",
        "x = 1e4 + torch.tensor([[[0.0, 0.01, 0.03, 0.02, 0.0, 0.01]]])\n"
        "y = 1e4 + torch.tensor([[[0.01, 0.01, 0.02, 0.05, 0.01, 0.0]]])\n"
        "(LocalNormalizedCrossCorrelationLoss(1)(x, y) >= -1).item()",
    ),
    Difference(
        "GlobalMutualInformationLoss", "The first argument is `num_bins`, as in 0.5; `kernel_type` is keyword-only.",
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
        "GlobalMutualInformationLoss", "b-spline: the range is taken from each item.",
        "The loss of an item does not depend on the other items of the batch.",
        "x = torch.tensor([[[0.0, 0.25, 0.75, 1.0]], [[0.0, 2.5, 7.5, 10.0]]])\n"
        "y = torch.tensor([[[0.0, 0.25, 0.75, 1.0]], [[0.0, 0.25, 0.75, 1.0]]])\n"
        'GlobalMutualInformationLoss(kernel_type="b-spline")(x, y)',
    ),
    Difference(
        "GlobalMutualInformationLoss", "b-spline: a constant image has a loss of 0, up to ν and δ.",
        "It carries no information about the other image.",
        'x = torch.zeros(1, 1, 4)\nGlobalMutualInformationLoss(kernel_type="b-spline")(x, x)',
    ),
    Difference(
        "MultiScaleLoss", "Invalid scales raise a ValueError in the constructor.", "So a typing error is found early.",
        "type(MultiScaleLoss(torch.nn.MSELoss(), [-1])).__name__",
    ),
)  # fmt: skip
