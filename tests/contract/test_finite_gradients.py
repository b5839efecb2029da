"""Gradients of first and second order in every argument are finite where the value is finite."""

import pytest
import torch
from loss_options import (
    FOCAL_FORMS,
    MATRIX,
    MODES,
    REGISTRATION,
    SIGMOID,
    SOFTMAX,
    STENCILS,
    W_TYPES,
    WINDOWS,
    grid,
    one_by_one,
    registration_arguments,
    registration_loss,
    usual,
    values,
    with_options,
)
from support import BACKENDS, labels, logits, one_hot, soft

from twinloss import fast
from twinloss.fast.runtime import dispatch

WEIGHT = [0.0, 1.0, 2.0]


def parts(x):
    """Return a soft mask of the voxels."""
    return (1 + torch.arange(x[0, 0].numel(), dtype=x.dtype).reshape(x[:1, :1].shape)) / x[0, 0].numel()


def absent(g):
    """Return a target without class 2."""
    merged = g.clone()
    merged[:, 1] += merged[:, 2]
    merged[:, 2] = 0
    return merged


SITUATIONS = {
    "absent class": lambda x, g: (x, absent(g), parts(x)),
    "absent class, soft": lambda x, g: (x, absent(soft(*g.shape, dtype=g.dtype)), parts(x)),
    "no class": lambda x, g: (x, 0 * g, parts(x)),
    "empty mask": lambda x, g: (x, g, 0 * parts(x)),
    "constant image": lambda x, g: (0 * x, g, parts(x)),
    "perfect prediction": lambda x, g: (400 * g - 200, g, parts(x)),
}
IMAGES = {
    "empty mask": lambda x, g: (x, g, 0 * parts(x)),
    "constant image": lambda x, g: (0 * x + 0.5, g, parts(x)),
    "constant images": lambda x, g: (0 * x, 0 * g, parts(x)),
    "perfect prediction": lambda x, g: (g, g, parts(x)),
}


def assert_finite_slopes(situation, loss, *arguments):
    """Assert that the gradients in all arguments, and those of the sum of their squares, are finite."""
    arguments = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
    asked = [a for a in arguments if a.requires_grad]
    value = loss(*arguments)
    assert value.isfinite().all(), situation
    once = torch.autograd.grad(value.sum(), asked, create_graph=True, materialize_grads=True)
    assert all(slope.isfinite().all() for slope in once), situation
    squares = sum((slope**2).sum() for slope in once)
    if squares.requires_grad:
        twice = torch.autograd.grad(squares, asked, materialize_grads=True)
        assert all(slope.isfinite().all() for slope in twice), situation


@pytest.mark.filterwarnings("ignore:target sums to:UserWarning", "ignore:sigmoid=True applies:UserWarning")
@BACKENDS
@with_options(
    {
        fast.DiceLoss: grid([SOFTMAX, SIGMOID], [{}, {"squared_pred": True}, {"weight": WEIGHT}]),
        fast.TverskyLoss: grid([SOFTMAX, SIGMOID], [{}, {"alpha": 0.0, "beta": 0.0}]),
        fast.FocalTverskyLoss: grid([SOFTMAX, SIGMOID], values("gamma", 1.0, [1.0, 1.5, 2.0])),
        fast.MatthewsCorrelationLoss: grid([SOFTMAX, SIGMOID], [{}, {"soft_label": True}, {"batch": True}]),
        fast.GeneralizedDiceLoss: grid([SOFTMAX, SIGMOID], W_TYPES, values("normalize_weights", True, False)),
        fast.GeneralizedDiceFocalLoss: grid([SOFTMAX], W_TYPES, values("normalize_weights", True, False)),
        fast.GeneralizedWassersteinDiceLoss: grid([{"dist_matrix": MATRIX}], MODES),
        fast.FocalLoss: grid(FOCAL_FORMS, values("gamma", 0.0, 0.5, 2.0), values("reduction", "mean", "none")),
        fast.DiceFocalLoss: grid([SOFTMAX], FOCAL_FORMS),
        fast.DiceCELoss: grid([SOFTMAX], [{}, {"ce_weight": WEIGHT}, {"label_smoothing": 0.1}])
        + grid([SIGMOID], values("multilabel", True, False)),
    },
    others=usual,
)
def test_slopes_of_segmentation_losses_in_logits_target_and_mask_are_finite(form, loss_class, options):
    y, loss = labels(2, 1, 6), loss_class(**options)
    for name, situation in SITUATIONS.items():
        x, g, mask = situation(logits(2, 3, 6, dtype=torch.float64), one_hot(y).double())
        target = y if loss_class is fast.GeneralizedWassersteinDiceLoss else g
        with dispatch.forced(form):
            assert_finite_slopes(name, fast.MaskedLoss(loss), x, target, mask)
            assert_finite_slopes(name, loss, x, target)


@BACKENDS
@with_options(
    {
        fast.BendingEnergyLoss: grid(STENCILS, values("normalize", True, False)),
        fast.DiffusionLoss: grid(STENCILS, values("normalize", True, False)),
        fast.LocalNormalizedCrossCorrelationLoss: grid(WINDOWS[1:], values("denominator", "product", "clamp")),
        fast.GlobalMutualInformationLoss: [
            {"sigma_ratio": 0.05, "smooth_dr": 0.0},
            {"smooth_nr": 0.0, "smooth_dr": 0.0},
            {"kernel_type": "b-spline"},
        ],
        fast.MultiScaleLoss: values("kernel", "gaussian", "cauchy"),
    },
    others=one_by_one,
    of=REGISTRATION,
)
def test_slopes_of_registration_losses_in_both_images_and_the_mask_are_finite(form, loss_class, options):
    loss = registration_loss(loss_class, options, 2)
    x, *rest = registration_arguments(loss_class, 1, 2, 5, 6, dtype=torch.float64)
    with dispatch.forced(form):
        if not rest:
            for field in (x, 0 * x):
                assert_finite_slopes("a field", loss, field)
            return
        for name, situation in IMAGES.items():
            *images, mask = situation(x, *rest)
            assert_finite_slopes(name, loss, *images)
            assert_finite_slopes(name, fast.MaskedLoss(loss), *images, mask)
