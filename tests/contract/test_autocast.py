"""Under autocast, every loss is float32, like the losses of torch, and is computed as precisely as without."""

from functools import partial

import pytest
import torch
from every_loss import EVERY_LOSS
from support import BACKENDS, assert_all_close

from twinloss.fast import DiceLoss
from twinloss.fast.runtime import dispatch

HALVES = pytest.mark.parametrize("half", dispatch.HALVES)


def _step(each, arguments, dtype=None):
    """Return the loss and its gradient, both computed under autocast if a dtype is given."""
    x = arguments[0].detach().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        value = each(x, *arguments[1:])
        value.backward(torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape))
    return value.detach(), x.grad


@EVERY_LOSS
@BACKENDS
@HALVES
def test_loss_of_halves_is_float32_under_autocast_and_a_half_without(each, form, half):
    arguments = each.arguments(half)
    with dispatch.forced(form):
        value, gradient = _step(each, arguments, half)
        wide = _step(each, [a.float() if a.is_floating_point() else a for a in arguments])
        without = each(*arguments)
    assert (value.dtype, gradient.dtype, without.dtype) == (torch.float32, half, half)
    assert_all_close([value], wide[:1], rtol=1e-6, atol=1e-7)
    assert_all_close([gradient], wide[1:], rtol=4 * torch.finfo(half).eps, atol=torch.finfo(half).tiny)


@EVERY_LOSS
@BACKENDS
@HALVES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_changes_no_digit_of_value_and_gradient(each, form, half, dtype):
    with dispatch.forced(form):
        expected, found = _step(each, each.arguments(dtype)), _step(each, each.arguments(dtype), half)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)


@BACKENDS
def test_scaled_loss_does_not_overflow(form):
    x = torch.zeros(1, 1, 2, dtype=torch.float16, requires_grad=True)
    with dispatch.forced(form), torch.autocast("cpu", torch.float16):
        (DiceLoss(sigmoid=True)(x, torch.ones(1, 1, 2)) * torch.tensor(65536.0)).backward()
    assert_all_close([x.grad], [torch.full((1, 1, 2), -7282.0)], rtol=1e-3)


def one_graph_may_ask_for_autocast():
    """Return whether torch.compile can follow what the losses ask torch about autocast; torch 2.6 breaks the graph."""
    asking = torch.compile(lambda: torch.amp.is_autocast_available("cpu"), fullgraph=True, backend="eager")
    try:
        return asking()
    except torch._dynamo.exc.Unsupported:
        return False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_loss_is_float32_under_autocast_and_a_half_without():
    whole = one_graph_may_ask_for_autocast()
    compiled = torch.compile(DiceLoss(sigmoid=True), fullgraph=whole, backend="aot_eager")
    x, target = torch.zeros(1, 1, 8, dtype=torch.float16), torch.ones(1, 1, 8)
    for enabled, expected in ((True, torch.float32), (False, torch.float16)):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            assert compiled(x, target).dtype == expected


def skipped_steps(loss, steps):
    """Train a network in float16 with a GradScaler; return how many steps it skips, the last scale and loss."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    scaler, skipped = torch.amp.GradScaler(device="cpu", growth_interval=50), 0
    for _ in range(steps):
        image = torch.randn(2, 1, 8, 8)
        target = (image > 0).float()
        with torch.autocast("cpu", torch.float16):
            value = loss(network(image), target)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
    return skipped, scaler.get_scale(), value.item()


def test_training_with_a_gradient_scaler_skips_as_many_steps_as_with_monai():
    from monai.losses import DiceLoss as Theirs

    ours, theirs = (skipped_steps(partial(loss(sigmoid=True)), 200) for loss in (DiceLoss, Theirs))
    assert ours[:2] == theirs[:2]
    assert ours[2] == pytest.approx(theirs[2], abs=0.02)
