"""torch.compile makes one graph of a loss, and the operators keep the rules of torch."""

import warnings

import pytest
import torch
from loss_options import (
    FOCAL_FORMS,
    SIGMOID,
    SOFTMAX,
    grid,
    registration_arguments,
    registration_loss,
    with_options,
)
from support import assert_all_close, labels, logits, one_hot, value_and_gradient

from twinloss.fast import (
    BendingEnergyLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    DiffusionLoss,
    FocalLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
    MultiScaleLoss,
)
from twinloss.fast.runtime import dispatch

WEIGHT = [0.5, 2.0, 3.0]
BY_REDUCTION = [{"reduction": "mean", "to_onehot_y": True}, {"reduction": "none", "to_onehot_y": False}]
SCALED = {"stencil": "wide", "normalize": True, "spacing": (0.5, 2.0)}
FIELD_OPTIONS = [{"reduction": "mean"}, {"reduction": "none"} | SCALED, {"reduction": "sum"} | SCALED]


@with_options(
    {
        DiceLoss: [SOFTMAX | {"to_onehot_y": True, "weight": [1.0, 2.0, 3.0]}],
        FocalLoss: grid(FOCAL_FORMS, BY_REDUCTION),
        DiceCELoss: [
            SOFTMAX | {"to_onehot_y": True},
            SIGMOID | {"to_onehot_y": True, "ce_weight": WEIGHT, "label_smoothing": 0.1},
        ],
        DiceFocalLoss: grid([SOFTMAX], BY_REDUCTION),
    }
)
def test_segmentation_loss_compiles_to_one_graph_with_the_same_numbers(loss_class, options):
    x, y = logits(2, 3, 50), labels(2, 1, 50)
    loss, target = loss_class(**options), y if options["to_onehot_y"] else one_hot(y)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it compiles
        found = value_and_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, target)
    atol = {FocalLoss: 1e-9, DiceFocalLoss: 1e-6}.get(loss_class, 1e-8)
    assert_all_close(found, value_and_gradient(loss, x, target), 1e-6, atol)


LNCC = {"kernel_type": "gaussian", "smooth_dr": 0.5}


# `asked` holds the places of the arguments that ask for a gradient.
@with_options(
    {
        BendingEnergyLoss: grid(FIELD_OPTIONS, [{"form": "kernel", "asked": [0]}]),
        DiffusionLoss: grid(FIELD_OPTIONS, [{"form": "kernel", "asked": [0]}]),
        LocalNormalizedCrossCorrelationLoss: [
            LNCC | {"reduction": "mean", "form": "kernel", "asked": [0]},
            LNCC | {"reduction": "none", "form": "kernel", "asked": [0, 1]},
            LNCC | {"reduction": "sum", "form": "kernel", "asked": [1]},
            LNCC | {"reduction": "mean", "form": "plain", "asked": [0, 1]},
        ],
        GlobalMutualInformationLoss: [
            {"kernel_type": "gaussian", "reduction": "mean", "form": "kernel", "asked": [0, 1]},
            {"kernel_type": "gaussian", "reduction": "none", "form": "kernel", "asked": [0, 1]},
            {"kernel_type": "b-spline", "reduction": "sum", "form": "kernel", "asked": [0, 1]},
        ],
        MultiScaleLoss: [
            {"kernel": "gaussian", "scales": [0, 1.0], "reduction": "mean", "form": "kernel", "asked": [1]},
            {"kernel": "cauchy", "scales": None, "reduction": "mean", "form": "kernel", "asked": [1]},
            {"kernel": "cauchy", "scales": [0.3], "reduction": "none", "form": "kernel", "asked": [1]},
            {"kernel": "gaussian", "scales": [0, 1.0], "reduction": "mean", "form": "plain", "asked": [1]},
        ],
    }
)
def test_registration_loss_compiles_to_one_graph_with_the_same_numbers(loss_class, options):
    options = dict(options)
    form, asked = options.pop("form"), options.pop("asked")
    loss = registration_loss(loss_class, options, ndim=2)
    arguments = registration_arguments(loss_class, 2, 2, 8, 9)
    leaves = [arguments[place].requires_grad_() for place in asked]
    torch.compiler.reset()  # a compiled graph does not notice that another form is forced, and their number is limited
    # Inductor takes long to build code, so that one reduction must do, and the plain form has none.
    backend = "inductor" if form == "kernel" and loss.reduction == "mean" else "aot_eager"
    compiled, found = torch.compile(loss, fullgraph=True, backend=backend), []
    with dispatch.forced(form):
        for either in (loss, compiled):
            value = either(*arguments)
            gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)
            found.append((value, *gradients))
    tolerances = {LocalNormalizedCrossCorrelationLoss: (1e-5, 1e-6), MultiScaleLoss: (1e-5, 1e-6)}
    atol = 1e-8 if loss_class is GlobalMutualInformationLoss else 1e-7
    assert_all_close(found[1], found[0], *tolerances.get(loss_class, (1e-6, atol)))


SHAPES = [(2, 1, 1, 7), (2, 1, 6, 7), (2, 5, 6, 7)]


@pytest.mark.parametrize("voxelwise", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_operators_of_fields_keep_the_rules_of_torch(voxelwise, shape):
    axes = sum(n > 1 for n in shape[1:])
    u, terms = logits(*shape).requires_grad_(), {1: 1, 2: 3, 3: 6}[axes]
    of_bending, of_diffusion = (torch.ones(2, count, dtype=torch.float64) for count in (terms, axes))
    torch.library.opcheck(torch.ops.twinloss.bending_energy.default, (u, of_bending, 1, voxelwise))
    for margin in (0, 1):
        torch.library.opcheck(torch.ops.twinloss.diffusion.default, (u, of_diffusion, margin, voxelwise))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_operator_of_smoothing_keeps_the_rules_of_torch(shape, dtype):
    rank = sum(size > 1 for size in shape[1:])
    images = logits(*shape, dtype=dtype).requires_grad_()
    torch.library.opcheck(torch.ops.twinloss.smooth.default, (images, [0.25, 0.5, 0.25], rank))


@pytest.mark.parametrize("kernel_type", ["gaussian", "b-spline"])
def test_operator_of_histograms_keeps_the_rules_of_torch(kernel_type):
    pred, target = registration_arguments(GlobalMutualInformationLoss, 2, 40)
    target = target.requires_grad_(kernel_type == "gaussian")
    arguments = pred.requires_grad_(), target, 8, 0.5, kernel_type
    torch.library.opcheck(torch.ops.twinloss.joint_histogram.default, arguments)


@pytest.mark.parametrize("voxelwise", [True, False])
@pytest.mark.parametrize("asked", [0, 1, 2])
def test_operators_of_local_correlation_keep_the_rules_of_torch(voxelwise, asked):
    p, t = registration_arguments(LocalNormalizedCrossCorrelationLoss, 2, 3, 4, 5)
    p, t = p.requires_grad_(asked > 0), t.requires_grad_(asked > 1)
    plan = (3, "gaussian", 3, 1e-5, 1e-5, False)
    torch.library.opcheck(torch.ops.twinloss.local_correlation.default, (p, t, *plan, voxelwise, asked))
    p, t = p.detach(), t.detach()
    score, of_both_and_p, of_t = torch.ops.twinloss.local_correlation(p, t, *plan, voxelwise, 2)
    for one, other, of_one in ((p, t, of_both_and_p[:, 1:]), (t, p, of_t)):
        arguments = (torch.ones_like(score), one, other, of_both_and_p, of_one, *plan)
        torch.library.opcheck(torch.ops.twinloss.local_correlation_backward.default, arguments)


def test_operators_of_voxel_sums_keep_the_rules_of_torch():
    x, y, mask = logits(2, 3, 5, dtype=torch.float64), labels(2, 1, 5), torch.rand(1, 1, 5, dtype=torch.float64)
    for options in [("softmax", "product", "none", 0.0, True, None), ("sigmoid", "squared", "target", 2.0, True, 1)]:
        for m in (None, mask):
            arguments = (x.clone().requires_grad_(), y, m, None, *options)
            torch.library.opcheck(torch.ops.twinloss.voxel_sums.default, arguments)
            slopes = torch.rand_like(torch.ops.twinloss.voxel_sums(x, y, m, None, *options))
            torch.library.opcheck(torch.ops.twinloss.voxel_sums_backward.default, (slopes, x, y, m, None, *options))
