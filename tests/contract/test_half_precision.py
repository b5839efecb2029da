"""Half precision: every loss computes in float32, and rounds its value and gradient once."""

import pytest
import torch
from loss_options import (
    ERRORS,
    FOCAL_FORMS,
    HISTOGRAMS,
    MODES,
    PROBABILITIES,
    REDUCTIONS,
    REGISTRATION,
    SIGMOID,
    SOFTMAX,
    W_TYPES,
    for_labels,
    grid,
    one_by_one,
    registration_arguments,
    registration_loss,
    usual,
    values,
    with_options,
)
from support import BACKENDS, labels, logits, value_and_gradient, value_and_gradients

from twinloss.fast import (
    BendingEnergyLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    DiffusionLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceFocalLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
    MatthewsCorrelationLoss,
    MultiScaleLoss,
    TverskyLoss,
)
from twinloss.fast.runtime import dispatch

HALVES = pytest.mark.parametrize("half", dispatch.HALVES, ids=str)


@HALVES
@with_options(
    {
        DiceLoss: [SOFTMAX],
        TverskyLoss: grid([ERRORS], PROBABILITIES),
        FocalTverskyLoss: PROBABILITIES,
        MatthewsCorrelationLoss: PROBABILITIES,
        GeneralizedDiceLoss: grid([SOFTMAX], W_TYPES),
        GeneralizedWassersteinDiceLoss: MODES,
        FocalLoss: grid(FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: [SOFTMAX, SIGMOID | {"label_smoothing": 0.1}],
        DiceFocalLoss: grid([SOFTMAX, SIGMOID | {"use_softmax": False}], REDUCTIONS),
        GeneralizedDiceFocalLoss: grid([SOFTMAX, SIGMOID | {"use_softmax": False}], values("reduction", "mean", "sum")),
    },
    others=usual,
)
def test_segmentation_loss_of_halves_is_computed_in_float32(half, loss_class, options):
    # 2^17 voxels: beyond 65504, the largest float16, and far beyond 256, where bfloat16 stops counting.
    classes = 3 if loss_class is GeneralizedWassersteinDiceLoss else 2
    x, y = (4 * logits(1, classes, 2**17)).to(half), labels(1, 1, 2**17, classes=classes)
    loss = loss_class(**for_labels(loss_class, options))
    value, gradient = value_and_gradient(loss, x, y)
    wide = value_and_gradient(loss, x.float(), y)
    assert value.dtype == gradient.dtype == half
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert torch.equal(value, wide[0].to(half))
    if loss_class is not DiceFocalLoss or options["reduction"] != "none":  # there the upstream of a voxel is rounded
        assert torch.equal(gradient, wide[1].to(half))


@BACKENDS
@HALVES
@with_options(
    {
        BendingEnergyLoss: REDUCTIONS,
        DiffusionLoss: REDUCTIONS,
        LocalNormalizedCrossCorrelationLoss: REDUCTIONS,
        GlobalMutualInformationLoss: HISTOGRAMS,
        MultiScaleLoss: REDUCTIONS,
    },
    others=one_by_one,
    of=REGISTRATION,
)
def test_registration_loss_of_halves_is_computed_in_float32(form, half, loss_class, options):
    arguments = registration_arguments(loss_class, 1, 3, 9, 10, 11, dtype=half)
    loss = registration_loss(loss_class, options)
    found = value_and_gradients(loss, *arguments, form=form)
    wide = value_and_gradients(loss, *(a.float() for a in arguments), form=form)
    for a, b in zip(found, wide, strict=True):
        assert a.dtype == half
        assert torch.equal(a, b.to(half))


@BACKENDS
@HALVES
@pytest.mark.parametrize(
    ("loss", "line", "expected"),
    [
        (BendingEnergyLoss(), torch.arange(8.0).square().repeat(2**14 + 2, 1), 4),
        (DiffusionLoss(), (2 * torch.arange(8.0)).repeat(2**14, 1), 4),
        (LocalNormalizedCrossCorrelationLoss(1), torch.zeros(2**17), -1),
    ],
    ids=["bending energy", "diffusion", "lncc"],
)
def test_half_precision_counts_more_voxels_than_a_half_can(form, half, loss, line, expected):
    # 2^17 voxels of the expected loss: a float16 sum would stop at 65504, or at 2048 steps of 1, a bfloat16 at 256.
    images = [line[None, None].to(half)] * (2 if isinstance(loss, LocalNormalizedCrossCorrelationLoss) else 1)
    with dispatch.forced(form):
        assert loss(*images) == expected
