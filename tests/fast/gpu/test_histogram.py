"""The joint histograms of images on a GPU, or in Triton's interpreter."""

import numpy as np
import pytest
import torch

from twinloss import reference
from twinloss.fast import GlobalMutualInformationLoss
from twinloss.fast.kernels.contract import HistogramPlan

KINDS = pytest.mark.parametrize("kernel_type", ["gaussian", "b-spline"])
# The errors that are allowed relative to the largest number, by dtype.
ERROR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NAN, INF = float("nan"), float("inf")


def images(*shape, dtype=torch.float32, seed=0):
    """Return two images in [0, 1] of which one depends on the other."""
    one, other = torch.rand(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return one.to(dtype), (0.8 * (1 - one).square() + 0.2 * other).to(dtype)


def found(options, device, *pair):
    """Return the loss and the gradients of its sum on a device, all on the CPU."""
    pair = [each.detach().to(device).requires_grad_() for each in pair]
    value = GlobalMutualInformationLoss(**options)(*pair)
    gradients = torch.autograd.grad(value.sum(), pair, materialize_grads=True)
    return tuple(each.detach().cpu() for each in (value, *gradients))


def expected(options, pred, target):
    """Return the value and the gradients of the reference, computed in long double."""
    pair = [each.double().numpy().astype(np.longdouble) for each in (pred, target)]
    value, slope = reference.global_mutual_information_loss, reference.global_mutual_information_loss_gradient
    with np.errstate(all="ignore"):
        made = value(*pair, **options)
        cotangent = np.ones_like(made)
        symmetric = options.get("kernel_type", "gaussian") == "gaussian"
        of_target = slope(*reversed(pair), cotangent=cotangent, **options) if symmetric else 0 * pair[1]
        made = made, slope(*pair, cotangent=cotangent, **options), of_target
    return tuple(torch.from_numpy(np.asarray(each, np.float64)) for each in made)


def assert_close(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=ERROR[dtype] * b.abs().max().item())


@KINDS
@pytest.mark.parametrize("dtype", ERROR)
def test_value_and_gradients_are_those_of_the_reference(device, kernel_type, dtype):
    options = {"num_bins": 9, "kernel_type": kernel_type, "reduction": "none"}
    pair = images(2, 1, 7, 5, dtype=dtype)
    answer = found(options, device, *pair)
    assert [each.dtype for each in answer] == [dtype] * 3
    assert_close(answer, expected(options, *pair), dtype)


@pytest.mark.parametrize(
    ("num_bins", "sigma_ratio"), [(2, 0.05), (3, 0.2), (7, 3.0), (6, 50.0), (70, 0.1), (130, 0.05), (5, 1e-200)]
)
def test_any_number_of_bins_and_any_width_of_windows(device, num_bins, sigma_ratio):
    options = {"num_bins": num_bins, "sigma_ratio": sigma_ratio}
    pair = images(1, 40, dtype=torch.float64)
    # At the middle of two bins, and beyond the range.
    pair[0][0, :4] = torch.tensor([0.5 / (num_bins - 1), 1.0, -0.25, 1.5])
    with pytest.warns(UserWarning, match="clamped"):
        answer = found(options, device, *pair)
    exact = expected({**options, "sigma_ratio": max(sigma_ratio, 1e-3)}, *pair)
    if sigma_ratio < 1e-3:  # the reference divides by the square of sigma
        assert_close(answer[:1], exact[:1], torch.float64)
        return
    for a, b in zip(answer, exact, strict=True):
        # The gradients of the widest windows are far below the rounding of a histogram.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * b.abs().max().item() + 1e-22)


@pytest.mark.parametrize("num_bins", [20, 70, 100])
@KINDS
def test_many_bins_of_a_spline_and_programs_with_tails_give_the_histogram_of_the_cpu(
    device, kernel_type, num_bins, monkeypatch
):
    from twinloss.fast.kernels.cpu import histogram as on_cpu
    from twinloss.fast.kernels.gpu import histogram as on_gpu

    monkeypatch.setattr(on_gpu, "_PARTS", 2)
    monkeypatch.setattr(on_gpu, "interpreted", lambda: False)
    monkeypatch.setattr(on_gpu, "processors", lambda _: 5 if num_bins < 70 else 1)
    monkeypatch.setattr(on_gpu, "_CELLS_AT_ONCE", 2**12)
    plan = HistogramPlan(num_bins, 0.1, kernel_type)
    x, y = images(2, 333)
    made = on_gpu.histogram(x.to(device), y.to(device), plan).cpu()
    assert made.dtype == torch.float64
    exact = on_cpu.histogram(x.double(), y.double(), plan)
    torch.testing.assert_close(made, exact, rtol=0, atol=1e-7 / 333 if kernel_type == "gaussian" else 1e-15)
    torch.testing.assert_close(made.sum((1, 2)), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_voxels_that_share_an_extreme_share_its_slope(device):
    options = {"num_bins": 8, "kernel_type": "b-spline"}
    x, y = images(2, 50, dtype=torch.float64)
    x[0, [3, 7, 9]], x[0, [1, 2]], x[1] = -2.0, 5.0, 0.5  # two extremes, and a constant image
    x, y = x + 2**20, y - 2**20  # far from 0, which is read where there are no voxels
    answer = found(options, device, x, y)
    exact = expected(options, x, y)
    for a, b in zip(answer, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert (answer[1][1] == 0).all()


@KINDS
@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.filterwarnings("ignore:intensities beyond:UserWarning")
def test_nan_and_infinity_are_those_of_the_reference(device, kernel_type, number):
    options = {"num_bins": 6, "kernel_type": kernel_type, "reduction": "none"}
    for image in (0, 1):
        pair = images(2, 9, dtype=torch.float64)
        pair[image][0, 4] = number
        answer, exact = found(options, device, *pair), expected(options, *pair)
        assert torch.equal(answer[0].isnan(), exact[0].isnan())
        for a, b in zip(answer[1:], exact[1:], strict=True):
            assert torch.equal(a[1].isfinite(), b[1].isfinite())


@KINDS
def test_results_are_bitwise_repeatable_and_do_not_hang_on_the_layout_in_memory(device, kernel_type):
    options = {"num_bins": 6, "kernel_type": kernel_type}
    x, y = images(2, 1, 5, 6)
    first = found(options, device, x, y)
    for pair in ((x, y), (x.mT.contiguous().mT, y), (x, y.mT.contiguous().mT)):
        for a, b in zip(found(options, device, *pair), first, strict=True):
            assert torch.equal(a, b)
    # Items that are not next to each other, and images of two types.
    wide = torch.cat([x, x], 1).to(device)[:, :1].flatten(1)
    from twinloss.fast.kernels.gpu import histogram

    plan = HistogramPlan(6, 0.5, kernel_type)
    made = histogram.histogram(wide, y.to(device).flatten(1), plan)
    assert torch.equal(made, histogram.histogram(wide.contiguous(), y.to(device).flatten(1), plan))


@KINDS
def test_images_of_different_types(device, kernel_type):
    options = {"num_bins": 6, "kernel_type": kernel_type}
    x, y = images(1, 30)
    for pair in ((x.half(), y), (x.bfloat16(), (9 * y).to(torch.uint8)), (x.half(), y.double())):
        if not pair[1].is_floating_point():
            pair = (pair[0], pair[1].bool().float())
        exact = expected(options, *pair)
        answer = found(options, device, *pair)
        for a, b in zip(answer, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=ERROR[a.dtype] * b.abs().max().item())


@KINDS
def test_one_voxel_has_no_information(device, kernel_type):
    pair = torch.full((1, 1), 0.25), torch.full((1, 1), 0.5)
    value, *gradients = found({"num_bins": 6, "kernel_type": kernel_type}, device, *pair)
    assert abs(value) < 1e-6
    assert all(each.isfinite().all() for each in gradients)


@KINDS
def test_offsets_beyond_two_to_the_31_do_not_overflow(device, kernel_type):
    from twinloss.fast.kernels.gpu import histogram

    plan, far = HistogramPlan(5, 0.5, kernel_type), 2**31 + 5
    promised = torch.empty(far + 64, dtype=torch.float16, device=device)  # only the pages that are touched take memory
    x, y = images(2, 40, dtype=torch.float16)
    distant = promised.as_strided((2, 40), (far, 1))
    distant.copy_(x)
    x, y = x.to(device), y.to(device)
    made = histogram.histogram(distant, y, plan)
    assert torch.equal(made, histogram.histogram(x, y, plan))
    assert torch.equal(histogram.gradient(made, distant, y, plan), histogram.gradient(made, x, y, plan))


def test_only_the_first_images_on_a_gpu_are_checked_for_their_range(monkeypatch):
    loss, (x, y) = GlobalMutualInformationLoss(4), images(1, 20)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))
    loss(x, y)
    loss(x + 1, y)  # no warning, which would be an error
