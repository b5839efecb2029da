"""Smoothing of images on a GPU, and the losses of images at several scales that are made of it."""

import numpy as np
import pytest
import torch
from support import assert_all_close, logits

from twinloss.fast import LocalNormalizedCrossCorrelationLoss, MultiScaleLoss
from twinloss.fast.kernels.contract import CORRELATION, SMOOTHING
from twinloss.harness.judging.trial import examine
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model import device as tested
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case


@pytest.fixture(autouse=True)
def harness_on(device):
    """Let the harness run the fast twins where the kernels run."""
    tested.use(device)
    yield
    tested.use("cpu")


def judge(*spatial, dtype="float32", **options):
    """Assert that the fast twin is within the bounds of the hunt."""
    common = logits(1, 1, *spatial, dtype=torch.float64)
    p, t = common, common / 2 + logits(1, 1, *spatial, dtype=torch.float64, seed=3)
    images = [image.to(getattr(torch, dtype)).double().numpy() for image in (p, t)]
    operands = {name: Operand(image, dtype) for name, image in zip(("pred", "target"), images, strict=True)}
    trial = examine(find("multi_scale"), Case(operands, {"ndim": len(spatial), **options}))
    assert trial.kind is None, trial.message


def smooth(images, taps, rank):
    return SMOOTHING.kernels(images).smooth(images, taps, rank)


def by_definition(images, taps, rank):
    """Return images (N, D, H, W), each voxel the sum of all others by their distances along the last axes."""
    made, reach = images.double().cpu().numpy(), len(taps) // 2
    for axis in range(4 - rank, 4):
        far = np.subtract.outer(*[np.arange(made.shape[axis])] * 2).T
        matrix = np.where(abs(far) <= reach, np.array(taps)[np.clip(far, -reach, reach) + reach], 0)
        made = np.moveaxis(np.tensordot(matrix, made, (1, axis)), 0, axis)
    return torch.from_numpy(made)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_squares_at_several_scales_in_all_types(dtype):
    judge(4, 5, dtype=dtype, loss="squares", scales=[0, 0.3, 1.5])


@pytest.mark.parametrize("spatial", [(9,), (4, 5), (2, 3, 4)])
def test_correlations_at_several_scales(spatial):
    judge(*spatial, scales=[0.3, 1])


def test_options_of_the_smoothing():
    judge(5, 6, loss="squares", scales=[1, 2], kernel="cauchy", reduction="none")
    judge(2, 3, 4, loss="squares", scales=[0.3], normalize_kernel=True, reduction="sum")


@pytest.mark.parametrize("count", [3, 13, 35])
@pytest.mark.parametrize("shape", [(2, 1, 1, 11), (2, 1, 5, 6), (1, 4, 3, 5)])
def test_any_number_of_taps_along_any_number_of_axes(device, count, shape):
    rank = sum(n > 1 for n in shape[1:])
    taps = np.hanning(count + 2)[1:-1].tolist()
    images = logits(*shape, dtype=torch.float64).to(device)
    found = smooth(images, taps, rank)
    torch.testing.assert_close(found.cpu(), by_definition(images, taps, rank), rtol=1e-13, atol=1e-14)


def test_many_small_programs_and_strided_images(device, monkeypatch):
    from twinloss.fast.kernels.gpu import window

    monkeypatch.setattr(window, "_LANES", 16)
    monkeypatch.setattr(window, "interpreted", lambda: False)
    monkeypatch.setattr(window, "processors", lambda device: 1)
    taps = [0.25, 0.5, 0.125]  # not symmetric, so that a wrong direction shows
    images = logits(1, 16, 7, 3, dtype=torch.float32).to(device)
    expected = by_definition(images, taps, 3).float()
    for given in (images, images.mT.contiguous().mT, torch.stack([images, images], -1)[..., 0]):
        found = smooth(given, taps, 3)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(found, smooth(images, taps, 3))


def test_no_images_stay_none(device):
    assert smooth(torch.empty(0, 2, 3, 4, device=device), [0.5, 0.5, 0.5], 3).shape == (0, 2, 3, 4)


def test_nan_reaches_what_the_taps_reach(device):
    images = logits(1, 1, 7, 8, dtype=torch.float32).to(device)
    images[..., 3, 4] = torch.nan
    reached = torch.zeros(1, 1, 7, 8, dtype=torch.bool)
    reached[..., 2:5, 3:6] = True
    assert torch.equal(smooth(images, [0.25, 0.5, 0.25], 2).isnan().cpu(), reached)


def test_multi_scale_loss_asks_the_kernels_for_its_images(device, monkeypatch):
    asked = []
    for statistic, name in ((SMOOTHING, "smooth"), (CORRELATION, "value_and_gradient")):
        kernels = statistic.kernels(torch.empty(0, device=device))
        true = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *rest, name=name, true=true: (asked.append(name), true(*rest))[1])
    p, t = (logits(1, 1, 4, 5, seed=seed).to(device) for seed in (0, 1))
    loss = MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(2), [1.0])
    p.requires_grad_()
    value = loss(t, p)
    first = torch.autograd.grad(value, p, retain_graph=True)
    assert asked == ["smooth", "smooth", "value_and_gradient", "smooth"]
    # The smoothed images are not kept: a second backward makes them again.
    assert_all_close(torch.autograd.grad(value, p), first, 1e-6, 1e-9)
