"""The energies of displacement fields on a GPU, or in Triton's interpreter."""

import itertools

import numpy as np
import pytest
import torch
from support import logits

from twinloss import reference
from twinloss.fast import BendingEnergyLoss, DiffusionLoss
from twinloss.fast.kernels.contract import BENDING_ENERGY, DIFFUSION, Differences

REFERENCE = {
    BendingEnergyLoss: (reference.bending_energy_loss, reference.bending_energy_loss_gradient),
    DiffusionLoss: (reference.diffusion_loss, reference.diffusion_loss_gradient),
}
STATISTIC = {BendingEnergyLoss: BENDING_ENERGY, DiffusionLoss: DIFFUSION}
EVERY_LOSS = pytest.mark.parametrize("loss_class", REFERENCE)
STENCILS = pytest.mark.parametrize("stencil", ["compact", "wide"])
MARGIN = {
    (BendingEnergyLoss, "compact"): 1,
    (BendingEnergyLoss, "wide"): 2,
    (DiffusionLoss, "compact"): 0,
    (DiffusionLoss, "wide"): 1,
}
SPACING = (0.5, 3.0, 1.25)
# The errors that are allowed relative to the largest number, by dtype.
ERROR = {torch.float64: 2e-15, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NAN, INF = float("nan"), float("inf")


def found(loss, u, device, upstream=None):
    """Return the value and the gradient of a loss on a device, both on the CPU."""
    u = u.detach().to(device).requires_grad_()
    value = loss(u)
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value)
    (gradient,) = torch.autograd.grad(value, u, upstream)
    return value.detach().cpu(), gradient.cpu()


def expected(loss_class, u, options, upstream=None):
    """Return the value and the gradient of the reference, computed in long double."""
    wide, (energy, slope) = u.double().numpy().astype(np.longdouble), REFERENCE[loss_class]
    with np.errstate(all="ignore"):
        value = np.asarray(energy(wide, **options))
        cotangent = np.ones_like(value) if upstream is None else upstream.numpy().astype(np.longdouble)
        gradient = slope(wide, cotangent=cotangent, **options)
    return tuple(torch.from_numpy(np.asarray(a, np.float64)) for a in (value, gradient))


def assert_close(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=ERROR[dtype] * b.abs().max().item(), equal_nan=True)


@EVERY_LOSS
@STENCILS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("spatial", "dtype"), [((9,), None), ((5, 7), None), ((5, 6, 7), torch.float32)])
def test_value_and_gradient_are_those_of_the_reference(device, loss_class, stencil, reduction, spatial, dtype):
    options = {"reduction": reduction, "stencil": stencil, "normalize": True, "spacing": SPACING[: len(spatial)]}
    for kind in ERROR if dtype is None else (dtype,):
        items, rank = 2 if len(spatial) == 1 else 1, len(spatial)
        u = logits(items, rank, *spatial, dtype=torch.float64).to(kind)
        size = [n - 2 * MARGIN[loss_class, stencil] for n in spatial]
        upstream = logits(items, rank, *size, seed=1).to(kind) if reduction == "none" else torch.tensor(0.75)
        answer = found(loss_class(**options), u, device, upstream)
        assert [each.dtype for each in answer] == [kind, kind]
        assert_close(answer, expected(loss_class, u, options, upstream.double()), kind)


@EVERY_LOSS
def test_float64_in_three_dimensions_is_not_rounded_to_float32(device, loss_class):
    u, options = logits(1, 1, 5, 6, 5, dtype=torch.float64) + 1000, {"stencil": "wide", "reduction": "sum"}
    exact = expected(loss_class, u - 1000, options)
    for a, b in zip(found(loss_class(**options), u, device), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11 * b.abs().max().item())


@EVERY_LOSS
@STENCILS
def test_several_tiles_and_chunks_give_the_value_and_the_gradient_of_the_cpu(device, loss_class, stencil, monkeypatch):
    from twinloss.fast.kernels.cpu import fields as on_cpu
    from twinloss.fast.kernels.gpu import fields

    monkeypatch.setattr(fields, "interpreted", lambda: False)
    for name, number in {"_TILE": 32, "_COLUMNS": 8, "_PLANES": 3, "_PARTS": 2}.items():
        monkeypatch.setattr(fields, name, number)
    count = 6 if loss_class is BendingEnergyLoss else 3
    differences = Differences(np.linspace(0.5, 1.5, count)[None], MARGIN[loss_class, stencil], 3)
    u = logits(1, 7, 5, 9)
    name = STATISTIC[loss_class].name.upper()
    value, gradient = getattr(fields, name).value_and_gradient(u.to(device), differences, 7, torch.float64)
    assert fields._Tiles.of(u).programs == 8
    exact = getattr(on_cpu, name).value_and_gradient(u.double(), differences, 7, torch.float64)
    assert_close((value.cpu(), gradient.cpu()), exact, torch.float32)


@EVERY_LOSS
@STENCILS
@pytest.mark.parametrize("number", [NAN, INF])
def test_nan_and_infinity_spread_as_far_as_in_the_reference(device, loss_class, stencil, number):
    places = [(0, 0), (0, 2), (3, 4), (6, 7)]
    for reduction, place in itertools.product(("sum", "none"), places):
        u = logits(1, 1, 7, 8, dtype=torch.float64)
        u[0, 0][place] = number
        options = {"stencil": stencil, "reduction": reduction}
        answer, exact = found(loss_class(**options), u, device), expected(loss_class, u, options)
        assert torch.equal(answer[0].isnan(), exact[0].isnan())
        assert torch.equal(answer[1].isfinite(), exact[1].isfinite())


@EVERY_LOSS
def test_corners_of_a_volume_that_no_difference_includes_may_be_nan(device, loss_class):
    u, options = logits(1, 1, 5, 5, 5), {"stencil": "wide"}
    exact = found(loss_class(**options), u, device)
    for corner in itertools.product((0, -1), repeat=3):
        u[(0, 0, *corner)] = NAN
    answer = found(loss_class(**options), u, device)
    assert torch.equal(answer[0], exact[0])
    assert torch.equal(answer[1], exact[1])


@EVERY_LOSS
@STENCILS
def test_results_are_bitwise_repeatable_and_do_not_hang_on_the_layout_in_memory(device, loss_class, stencil):
    u, loss = logits(2, 2, 6, 7), loss_class(stencil=stencil)
    first = found(loss, u, device)
    for other in (u, u.mT.contiguous().mT, u[..., None].expand(2, 2, 6, 7, 2)[..., 0], u.flip(-1).flip(-1)):
        again = found(loss, other, device)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])
    last = logits(1, 2, 6, 7).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # the components lie together
    assert torch.equal(found(loss, last, device)[1], found(loss, last.contiguous(), device)[1])


@EVERY_LOSS
def test_value_without_a_gradient_and_a_second_backward_give_the_same_bits(device, loss_class):
    u, loss = logits(1, 1, 5, 5, 6).to(device), loss_class()
    with torch.no_grad():
        value = loss(u)
    again = loss(u.requires_grad_())
    assert torch.equal(value, again)
    (first,) = torch.autograd.grad(again, u, retain_graph=True)
    (second,) = torch.autograd.grad(again, u)
    assert torch.equal(first, second)


@EVERY_LOSS
def test_gradient_of_a_half_that_would_underflow_without_the_slope_of_its_value_does_not(device, loss_class):
    u = (logits(1, 1, 64, dtype=torch.float64) / 2**9).half()
    upstream = torch.tensor(2.0**15)
    answer = found(loss_class(), u, device, upstream)
    exact = expected(loss_class, u, {}, upstream)
    torch.testing.assert_close(answer[1].double(), exact[1], rtol=2e-3, atol=2e-4 * exact[1].abs().max().item())


@EVERY_LOSS
def test_energies_under_autocast_are_not_rounded_to_a_half(device, loss_class):
    u = logits(1, 1, 9).bfloat16()
    with torch.autocast(device, torch.bfloat16):
        value = loss_class(reduction="none")(u.to(device)).cpu()
    exact, _ = expected(loss_class, u, {"reduction": "none"})
    assert value.dtype == torch.float32
    assert_close((value,), (exact,), torch.float32)


@EVERY_LOSS
def test_weights_may_be_a_tensor_on_the_device(device, loss_class):
    weights = np.ones((1, 6 if loss_class is BendingEnergyLoss else 3))
    u, margin = logits(1, 5, 5, 5).to(device), int(loss_class is BendingEnergyLoss)
    kernels = STATISTIC[loss_class].kernels(u)
    made = [
        kernels.energies(u, Differences(each, margin, 3)) for each in (weights, torch.from_numpy(weights).to(device))
    ]
    assert torch.equal(*made)


@EVERY_LOSS
@pytest.mark.parametrize("axis", [0, 1])
def test_offsets_beyond_two_to_the_31_do_not_overflow(device, loss_class, axis):
    shape, far = [(5, 3, 3), (1, 5, 3)][axis], 2**29 + 3
    # Only the pages that are touched take memory.
    promised = torch.empty(4 * far + 16, dtype=torch.float16, device=device)
    u = promised.as_strided((1, 1, *shape), (1, 1, *((far, 3, 1) if axis == 0 else (1, far, 1))))
    u.copy_(logits(1, 1, *shape))
    if axis:
        u = u[:, :, 0]
    for reduction in ("mean", "none"):
        answer = found(loss_class(reduction=reduction), u, device)
        exact = found(loss_class(reduction=reduction), u.contiguous(), device)
        assert torch.equal(answer[0], exact[0])
        assert torch.equal(answer[1], exact[1])
