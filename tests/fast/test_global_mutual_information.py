"""The fast mutual information: documented behaviour and corner cases."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close

from twinloss import reference
from twinloss.fast import GlobalMutualInformationLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
KINDS = pytest.mark.parametrize("kernel_type", ["gaussian", "b-spline"])
UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}
NAN, INF = float("nan"), float("inf")


def images(*shape, dtype=torch.float32, seed=0, noise=0.2):
    """Two images in [0, 1] of which one tells something about the other."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, *shape, dtype=torch.float64, generator=generator)
    return one.to(dtype), ((1 - noise) * (1 - one).square() + noise * other).to(dtype)


def value_and_gradients(loss, pred, target, form="kernel"):
    """The loss, and the gradients of its sum in both images."""
    pred, target = (image.clone().requires_grad_() for image in (pred, target))
    with dispatch.forced(form):
        value = loss(pred, target)
        gradients = torch.autograd.grad(value.sum(), (pred, target), materialize_grads=True)
    return value.detach(), *gradients


def truth(pred, target, **options):
    """The reference's value and the gradients of its sum in both images, in long double."""

    def slope(a, b):
        ones = np.ones_like(reference.global_mutual_information_loss(a, b, **options))
        return reference.global_mutual_information_loss_gradient(a, b, cotangent=ones, **options)

    a, b = (image.numpy().astype(np.longdouble) for image in (pred, target))
    symmetric = options.get("kernel_type", "gaussian") == "gaussian"
    found = reference.global_mutual_information_loss(a, b, **options), slope(a, b), slope(b, a) if symmetric else 0 * b
    return tuple(torch.from_numpy(np.asarray(array, np.float64)) for array in found)


def information(joint, nu, delta):
    """The mutual information of a joint histogram (K, K)."""
    outer = joint.sum(1)[:, None] * joint.sum(0)
    return (joint * np.log((joint + nu) / (outer + delta) + delta)).sum()


def by_definition(pred, target, bins=23, sigma=0.5, kernel_type="gaussian", nu=1e-7, delta=1e-7):
    """The loss of two images in NumPy, with the weights of all bins."""

    def places(a):
        z = (a - a.min()) * (bins - 4) / (a.max() - a.min()) + 2
        return z, np.clip(np.floor(z), 2, bins - 3)

    def gaussian(a):
        weights = np.exp(-((np.clip(a, 0, 1)[:, None] * (bins - 1) - np.arange(bins)) ** 2) / (2 * sigma**2))
        return weights / weights.sum(1, keepdims=True)

    def cubic(t):
        t = np.abs(t)
        return np.where(t < 1, (4 - 6 * t**2 + 3 * t**3) / 6, np.where(t < 2, (2 - t) ** 3 / 6, 0))

    a, b = (image.double().numpy().ravel() for image in (pred, target))
    if kernel_type == "gaussian":
        first, second = gaussian(a), gaussian(b)
    else:
        first = cubic(np.arange(bins) - places(a)[0][:, None])
        second = np.arange(bins) == places(b)[1][:, None]
    return -information(first.T @ second / a.size, nu, delta)


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@KINDS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_bins": 5},
        {"num_bins": 40, "smooth_nr": 1e-3, "smooth_dr": 1e-9},
        {"smooth_nr": 0.0, "smooth_dr": 1e-2},
    ],
)
def test_value_and_gradient_are_those_of_the_reference(form, reduction, kernel_type, options):
    pred, target = images(2, 1, 9, 8, dtype=torch.float64)
    options = {"reduction": reduction, "kernel_type": kernel_type, **options}
    loss = GlobalMutualInformationLoss(**options)
    assert_all_close(value_and_gradients(loss, pred, target, form), truth(pred, target, **options), 1e-9, 1e-12)
    single = pred.float(), target.float()
    assert_all_close(value_and_gradients(loss, *single, form), truth(*single, **options), 2e-6, 1e-6)


@BACKENDS
@pytest.mark.parametrize("sigma_ratio", [0.05, 0.2, 0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("num_bins", [2, 3, 23])
def test_gaussian_windows_of_any_width_are_those_of_the_reference(form, sigma_ratio, num_bins):
    pred, target = images(2, 60, dtype=torch.float64)
    options = {"sigma_ratio": sigma_ratio, "num_bins": num_bins}
    found = value_and_gradients(GlobalMutualInformationLoss(**options), pred, target, form)
    expected = truth(pred, target, **options)
    assert_all_close(found[:1], expected[:1], 1e-10, 1e-13)
    for slope, of_reference in zip(found[1:], expected[1:], strict=True):
        # What is left of the widest windows' gradients is far below the rounding of a histogram.
        assert_all_close([slope], [of_reference], 0, 1e-9 * of_reference.abs().max().item() + 1e-22)


@BACKENDS
@pytest.mark.parametrize(("num_bins", "sigma_ratio"), [(256, 0.5), (256, 4.0), (64, 300.0)])
def test_many_bins_and_wide_windows(form, num_bins, sigma_ratio):
    pred, target = images(1, 700, dtype=torch.float64)
    with dispatch.forced(form):
        found = GlobalMutualInformationLoss(num_bins, sigma_ratio)(pred, target)
    expected = by_definition(pred, target, num_bins, sigma_ratio)
    torch.testing.assert_close(found.item(), expected, rtol=1e-11, atol=1e-13)


@BACKENDS
@KINDS
@pytest.mark.parametrize("shape", [(50,), (5, 10), (3, 4, 5), (2, 5, 1, 5)])
@pytest.mark.parametrize("options", [{}, {"bins": 9, "nu": 1e-3, "delta": 1e-2}, {"nu": 0.0}])
def test_loss_is_minus_the_information_of_the_joint_histogram(form, kernel_type, shape, options):
    pred, target = images(3, *shape, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(
        options.get("bins", 23), 0.5, "none", options.get("nu", 1e-7), options.get("delta", 1e-7),
        kernel_type=kernel_type,
    )  # fmt: skip
    with dispatch.forced(form):
        found = loss(pred, target)
    expected = [by_definition(a, b, kernel_type=kernel_type, **options) for a, b in zip(pred, target, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-11, atol=1e-13)


@BACKENDS
def test_bits_of_one_image_tell_the_other(form):
    bits = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    loss = GlobalMutualInformationLoss(2, 0.1, "none", **UNSMOOTHED)
    with dispatch.forced(form):
        same, opposite, unrelated = loss(bits, bits), loss(bits, 1 - bits), loss(bits, bits.flip(0))
    expected = torch.full((2,), -math.log(2), dtype=torch.float64)
    torch.testing.assert_close(same, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(opposite, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(unrelated, 0 * expected, rtol=0, atol=1e-14)


def test_gaussian_windows_are_those_of_monai():
    monai = pytest.importorskip("monai.losses")
    pred, target = images(2, 1, 8, 9, 10)
    expected = value_and_gradients(monai.GlobalMutualInformationLoss(), pred, target)
    found = value_and_gradients(GlobalMutualInformationLoss(), pred, target)
    # They compute in float32.
    assert_all_close(found, expected, 1e-4, 1e-6)


@BACKENDS
@KINDS
def test_none_has_a_value_for_each_item_and_mean_and_sum_reduce_it(form, kernel_type):
    pred, target = images(3, 1, 5, 6, dtype=torch.float64)
    with dispatch.forced(form):
        none, mean, total = (
            GlobalMutualInformationLoss(reduction=r, kernel_type=kernel_type)(pred, target)
            for r in ("none", "mean", "sum")
        )
        alone = [GlobalMutualInformationLoss(kernel_type=kernel_type)(pred[[b]], target[[b]]) for b in range(3)]
    assert none.shape == (3,)
    torch.testing.assert_close(none, torch.stack(alone), rtol=1e-13, atol=0)
    torch.testing.assert_close(mean, none.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total, none.sum(), rtol=1e-13, atol=0)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_information_is_symmetric(form, dtype):
    pred, target = images(2, 300, dtype=dtype)
    loss = GlobalMutualInformationLoss(reduction="none")
    value, by_pred, by_target = value_and_gradients(loss, pred, target, form)
    other, by_second, by_first = value_and_gradients(loss, target, pred, form)
    rtol = 1e-6 if dtype == torch.float32 else 1e-12
    assert_all_close((value, by_pred, by_target), (other, by_first, by_second), rtol, 1e-3 * rtol)


@BACKENDS
def test_information_is_not_negative_nor_more_than_the_entropy_of_either_image(form):
    loss = GlobalMutualInformationLoss(reduction="none", **UNSMOOTHED)
    for noise in (0.0, 0.3, 1.0):
        pred, target = images(3, 200, dtype=torch.float64, noise=noise)
        with dispatch.forced(form):
            found = -loss(pred, target)
        assert (found >= 0).all()
        for image in (pred, target):
            z = image[:, :, None] * 22 - torch.arange(23)
            marginal = (-(z**2) / 0.5).softmax(2).mean(1)
            assert (found <= torch.special.entr(marginal).sum(1) + 1e-12).all()


@BACKENDS
@KINDS
def test_voxels_may_trade_places(form, kernel_type):
    pred, target = images(2, 120, dtype=torch.float64)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    loss = GlobalMutualInformationLoss(kernel_type=kernel_type)
    value, by_pred, by_target = value_and_gradients(loss, pred, target, form)
    found = value_and_gradients(loss, pred[:, order], target[:, order], form)
    assert_all_close(found, (value, by_pred[:, order], by_target[:, order]), 1e-11, 1e-14)


@BACKENDS
def test_turned_scale_of_an_image_does_not_matter(form):
    pred, target = images(2, 120, dtype=torch.float64)
    loss = GlobalMutualInformationLoss()
    value, by_pred, by_target = value_and_gradients(loss, pred, target, form)
    found = value_and_gradients(loss, 1 - pred, target, form)
    assert_all_close(found, (value, -by_pred, by_target), 1e-10, 1e-13)


# --- errors ----------------------------------------------------------------------------------------------------------


@BACKENDS
@KINDS
@pytest.mark.parametrize(
    ("of_pred", "of_target", "message"),
    [
        ((2, 1, 5), (2, 1, 6), r"\(2, 1, 5\).*\(2, 1, 6\)"),
        ((2, 1, 5), (1, 1, 5), r"\(2, 1, 5\).*\(1, 1, 5\)"),
        ((2, 1, 5), (2, 5), r"\(2, 1, 5\).*\(2, 5\)"),
        ((2, 0), (2, 0), r"\(2, 0\)"),
        ((0, 5), (0, 5), r"\(0, 5\)"),
        ((), (), r"\(\)"),
    ],
)
def test_images_that_do_not_fit_are_a_value_error_that_names_their_shapes(
    form, kernel_type, of_pred, of_target, message
):
    loss = GlobalMutualInformationLoss(kernel_type=kernel_type)
    with dispatch.forced(form), pytest.raises(ValueError, match=message):
        loss(torch.zeros(of_pred), torch.zeros(of_target))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_prediction_of_other_than_floating_point_numbers_is_a_type_error(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        GlobalMutualInformationLoss()(torch.zeros(1, 5, dtype=dtype), torch.zeros(1, 5))


@BACKENDS
@KINDS
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_target_of_any_type_gives_the_same(form, kernel_type, dtype):
    pred, _ = images(2, 40)
    target = torch.arange(80).reshape(2, 40) % 3 == 0
    loss = GlobalMutualInformationLoss(kernel_type=kernel_type)
    with dispatch.forced(form):
        made = loss(pred, target.to(dtype))
        same = loss(pred.double(), target.double()) if dtype == torch.float64 else loss(pred, target.float())
        assert torch.equal(made, same)


# --- intensities beyond the bins -------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("which", ["pred", "target"])
@pytest.mark.parametrize("value", [-0.1, 1.1, INF, -INF])
def test_intensities_beyond_the_unit_interval_warn_once_for_each_module(form, which, value):
    pred, target = images(1, 30)
    {"pred": pred, "target": target}[which][0, 4] = value
    loss = GlobalMutualInformationLoss()
    with dispatch.forced(form):
        with pytest.warns(UserWarning, match=r"beyond \[0, 1\] are clamped"):
            loss(pred, target)
        loss(pred, target)
        with pytest.warns(UserWarning, match="beyond"):
            GlobalMutualInformationLoss()(pred, target)


def test_warning_points_at_the_line_that_calls_the_module():
    with pytest.warns(UserWarning, match="beyond") as caught:
        GlobalMutualInformationLoss()(torch.full((1, 5), 2.0), torch.zeros(1, 5))
    assert caught[0].filename == __file__


def test_swapped_arguments_of_a_b_spline_draw_one_warning_as_their_gradient_is_0():
    fixed, moving = torch.rand(1, 1, 50), torch.rand(1, 1, 50).requires_grad_()
    loss = GlobalMutualInformationLoss(kernel_type="b-spline")
    with pytest.warns(UserWarning, match="only the target requires a gradient") as caught:
        loss(fixed, moving).backward()
    assert caught[0].filename == __file__
    assert (moving.grad == 0).all()
    loss(fixed, moving)  # says nothing again, nor do the following
    other = GlobalMutualInformationLoss(kernel_type="b-spline")
    with torch.no_grad():
        other(fixed, moving)
    other(moving, fixed)
    other(moving, torch.rand(1, 1, 50).requires_grad_())
    GlobalMutualInformationLoss()(fixed, moving)


def test_intensities_of_the_unit_interval_do_not_warn_nor_do_any_of_a_b_spline():
    GlobalMutualInformationLoss()(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]]))
    GlobalMutualInformationLoss(kernel_type="b-spline")(torch.tensor([[-7.0, 9.0]]), torch.tensor([[1.0, 5.0]]))


@BACKENDS
@pytest.mark.filterwarnings("ignore:intensities beyond")
def test_intensities_beyond_the_unit_interval_count_as_its_ends_and_have_no_gradient(form):
    pred, target = images(2, 30, dtype=torch.float64)
    pred[0, :3] = torch.tensor([-0.5, 1.5, INF])
    target[1, :2] = torch.tensor([-INF, 1 + 1e-15])
    loss = GlobalMutualInformationLoss()
    value, by_pred, by_target = value_and_gradients(loss, pred, target, form)
    clamped = value_and_gradients(loss, pred.clamp(0, 1), target.clamp(0, 1), form)
    assert_all_close((value,), clamped[:1], 1e-14)
    for image, found, inside in ((pred, by_pred, clamped[1]), (target, by_target, clamped[2])):
        beyond = (image < 0) | (image > 1)
        assert (found[beyond] == 0).all()
        assert_all_close([found[~beyond]], [inside[~beyond]], 1e-12, 1e-15)
        # The ends themselves still have one.
        assert (inside[beyond] != 0).all()


# --- b-spline --------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_b_spline_does_not_see_brightness_and_contrast(form, dtype):
    # Sums and products of these are exact.
    pred, target = ((image * 1024).round() for image in images(2, 200, dtype=dtype))
    loss = GlobalMutualInformationLoss(kernel_type="b-spline")
    value, by_pred, _ = value_and_gradients(loss, pred, target, form)
    found = value_and_gradients(loss, 4 * pred - 3000, target / 2 + 500, form)
    assert_all_close(found, (value, by_pred / 4, 0 * target), 1e-6 if dtype == torch.float32 else 1e-13, 1e-12)


@BACKENDS
def test_b_spline_gradient_is_at_right_angles_to_brightness_and_contrast(form):
    pred, target = images(2, 200, dtype=torch.float64)
    _, gradient, _ = value_and_gradients(GlobalMutualInformationLoss(kernel_type="b-spline"), pred, target, form)
    scale = gradient.abs().sum(1)
    assert (gradient.sum(1).abs() <= 1e-13 * scale).all()
    assert ((gradient * pred).sum(1).abs() <= 1e-13 * scale).all()


@BACKENDS
def test_b_spline_shares_the_slope_of_an_extreme_among_the_voxels_that_attain_it(form):
    pred, target = images(1, 60, dtype=torch.float64)
    pred[0, :3], pred[0, 3:5] = -0.25, 1.25
    target[0, :5] = 0.5  # so that they differ in nothing else
    _, gradient, _ = value_and_gradients(GlobalMutualInformationLoss(kernel_type="b-spline"), pred, target, form)
    assert_all_close([gradient[0, :3]], [gradient[0, :1].expand(3)], 1e-13)
    assert_all_close([gradient[0, 3:5]], [gradient[0, 3:4].expand(2)], 1e-13)
    # All three moved as one: the slope by finite differences.
    loss, h = GlobalMutualInformationLoss(kernel_type="b-spline"), 1e-5
    up, down = pred.clone(), pred.clone()
    up[0, :3] += h
    down[0, :3] -= h
    slope = (loss(up, target) - loss(down, target)) / (2 * h)
    torch.testing.assert_close(gradient[0, :3].sum(), slope, rtol=1e-6, atol=0)


@BACKENDS
def test_b_spline_takes_each_item_by_its_own_range(form):
    pred, target = images(2, 50, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(reduction="none", kernel_type="b-spline")
    with dispatch.forced(form):
        expected = loss(pred, target)
        pred[1], target[0] = 100 * pred[1], 7 - target[0] * 0 + 3 * target[0]
        torch.testing.assert_close(loss(pred, target), expected, rtol=1e-12, atol=0)


@BACKENDS
def test_b_spline_has_a_gradient_all_over_the_range(form):
    pred = torch.linspace(0, 1, 500, dtype=torch.float64)[None]
    _, target = images(1, 500, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(8, kernel_type="b-spline")
    _, gradient, _ = value_and_gradients(loss, pred, target, form)
    assert (gradient != 0).all()


@BACKENDS
def test_b_spline_target_has_no_gradient(form):
    pred, target = images(2, 50)
    _, _, by_target = value_and_gradients(GlobalMutualInformationLoss(kernel_type="b-spline"), pred, target, form)
    assert (by_target == 0).all()


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@KINDS
@REDUCTIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("constant", ["pred", "target", "both"])
def test_constant_image_tells_nothing_and_has_a_finite_gradient(form, kernel_type, reduction, dtype, constant):
    pred, target = images(2, 1, 5, 6, dtype=dtype)
    pred = torch.full_like(pred, 0.3) if constant != "target" else pred
    target = torch.full_like(target, 0.7) if constant != "pred" else target
    loss = GlobalMutualInformationLoss(reduction=reduction, kernel_type=kernel_type)
    value, by_pred, by_target = value_and_gradients(loss, pred, target, form)
    assert value.dtype == by_pred.dtype == by_target.dtype == dtype
    assert (value.abs() < 1e-5).all()
    assert by_pred.isfinite().all()
    assert by_target.isfinite().all()
    if kernel_type == "b-spline" and constant != "target":
        assert (by_pred == 0).all()


@BACKENDS
@KINDS
def test_constant_item_leaves_the_others_alone(form, kernel_type):
    pred, target = images(3, 50, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(reduction="none", kernel_type=kernel_type)
    expected = value_and_gradients(loss, pred, target, form)
    pred[1] = 0.25
    found = value_and_gradients(loss, pred, target, form)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[[0, 2]], b[[0, 2]], rtol=1e-13, atol=0)


@BACKENDS
@KINDS
def test_image_of_one_voxel_tells_nothing(form, kernel_type):
    for shape in ((2,), (2, 1), (1, 1, 1, 1, 1)):
        found = value_and_gradients(
            GlobalMutualInformationLoss(kernel_type=kernel_type), torch.full(shape, 0.4), torch.full(shape, 0.6), form
        )
        assert found[0].abs() < 1e-5
        assert all(gradient.isfinite().all() for gradient in found[1:])


@BACKENDS
@KINDS
def test_float16_volume_that_is_nearly_all_background(form, kernel_type):
    pred, target = torch.zeros(2, 1, 1, 20, 21, 22, dtype=torch.float16)
    pred[..., 9:12, 10, 10:13], target[..., 9:12, 10, 11:13] = 0.8, 0.9
    value, by_pred, by_target = value_and_gradients(
        GlobalMutualInformationLoss(kernel_type=kernel_type), pred, target, form
    )
    expected = by_definition(pred, target, kernel_type=kernel_type)
    torch.testing.assert_close(value.item(), expected, rtol=1e-3, atol=1e-6)
    assert by_pred.isfinite().all()
    assert by_target.isfinite().all()


@BACKENDS
def test_little_information_keeps_its_accuracy_in_float32(form):
    pred, target = images(1, 8000, noise=1.0)
    value, by_pred, by_target = value_and_gradients(GlobalMutualInformationLoss(), pred, target, form)
    expected = value_and_gradients(GlobalMutualInformationLoss(), pred.double(), target.double(), "plain")
    assert value.abs() < 0.02
    assert_all_close((value,), expected[:1], 2e-7)
    for found, exact in ((by_pred, expected[1]), (by_target, expected[2])):
        assert_all_close([found], [exact], 0, 1e-6 * exact.abs().max().item())


@BACKENDS
@pytest.mark.parametrize("num_bins", [2, 23])
@pytest.mark.parametrize("sigma_ratio", [1e-200, 1e-30, 1e-3, 0.02, 1e30, 1e100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_of_extreme_width_have_a_finite_value_and_gradient(form, num_bins, sigma_ratio, dtype):
    pred, target = images(2, 100, dtype=dtype)
    found = value_and_gradients(GlobalMutualInformationLoss(num_bins, sigma_ratio), pred, target, form)
    assert all(tensor.isfinite().all() for tensor in found)


@BACKENDS
@KINDS
@pytest.mark.parametrize("smooth", [(0.0, 0.0), (1e-7, 0.0), (0.0, 1e-7)])
def test_empty_bins_add_nothing_without_smoothing(form, kernel_type, smooth):
    pred, target = images(2, 100, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(23, 0.2, "mean", *smooth, kernel_type=kernel_type)
    found = value_and_gradients(loss, pred, target, form)
    tiny = GlobalMutualInformationLoss(23, 0.2, "mean", *(nu or 1e-14 for nu in smooth), kernel_type=kernel_type)
    assert_all_close(found, value_and_gradients(tiny, pred, target, form), 1e-6, 1e-6)


@BACKENDS
@KINDS
@REDUCTIONS
@pytest.mark.parametrize("which", ["pred", "target"])
def test_nan_reaches_value_and_gradient_of_its_item(form, kernel_type, reduction, which):
    pred, target = images(2, 50)
    {"pred": pred, "target": target}[which][1, 7] = NAN
    loss = GlobalMutualInformationLoss(reduction=reduction, kernel_type=kernel_type)
    value, *gradients = value_and_gradients(loss, pred, target, form)
    if reduction == "none":
        assert value[0].isfinite()
        assert value[1].isnan()
    else:
        assert value.isnan()
    for gradient in gradients[: 1 if kernel_type == "b-spline" else 2]:
        assert gradient[0].isfinite().all()
        assert gradient[1].isnan().all()


INFINITE = """
import torch
from twinloss.fast import GlobalMutualInformationLoss
from twinloss.fast.runtime import dispatch
for form in ("plain", "kernel"):
    for which in (0, 1):
        for value in (float("inf"), -float("inf"), float("nan")):
            pair = [torch.rand(2, 9000), torch.rand(2, 9000)]
            pair[which][1, 7] = value
            x = pair[0].requires_grad_()
            with dispatch.forced(form):
                loss = GlobalMutualInformationLoss(reduction="none", kernel_type="b-spline")(x, pair[1])
                loss.sum().backward()
            assert loss[0].isfinite() and loss[1].isnan(), (form, which, value, loss)
            assert x.grad[0].isfinite().all() and x.grad[1].isnan().all(), (form, which, value)
"""


def test_range_without_end_makes_a_b_spline_nan():
    # In a process of its own: an index that is no number would take it down.
    subprocess.run([sys.executable, "-c", INFINITE], check=True, capture_output=True, text=True)


@BACKENDS
@KINDS
def test_float64_is_not_rounded_to_float32_on_the_way(form, kernel_type):
    pred, target = images(2, 400, dtype=torch.float64)
    options = {"kernel_type": kernel_type, "smooth_nr": 0.1, "smooth_dr": 0.3, "sigma_ratio": 0.7}
    found = value_and_gradients(GlobalMutualInformationLoss(**options), pred, target, form)
    assert all(tensor.dtype == torch.float64 for tensor in found)
    expected = truth(pred, target, **options)
    assert_all_close(found[:1], expected[:1], 1e-13)
    for slope, exact in zip(found[1:], expected[1:], strict=True):
        assert_all_close([slope], [exact], 0, 1e-12 * exact.abs().max().item())


# --- differentiation -------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("num_bins", [2, 7])
def test_gradcheck_and_gradgradcheck_of_gaussian_windows(form, reduction, num_bins):
    pair = [image.requires_grad_() for image in images(2, 6, dtype=torch.float64)]
    loss = GlobalMutualInformationLoss(num_bins, 0.5, reduction)
    with dispatch.forced(form):
        assert torch.autograd.gradcheck(loss, pair, fast_mode=True)
        assert torch.autograd.gradgradcheck(loss, pair, atol=1e-4, fast_mode=True)


@BACKENDS
@REDUCTIONS
def test_gradcheck_and_gradgradcheck_of_b_splines(form, reduction):
    pred, target = images(2, 7, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(6, reduction=reduction, kernel_type="b-spline")
    with dispatch.forced(form):
        assert torch.autograd.gradcheck(lambda x: loss(x, target), pred.requires_grad_(), fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x: loss(x, target), pred, atol=1e-4, fast_mode=True)


@BACKENDS
@KINDS
def test_gradient_is_computed_of_the_image_that_asks_for_it(form, kernel_type):
    pred, target = images(2, 50, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(kernel_type=kernel_type)
    _, by_pred, by_target = value_and_gradients(loss, pred, target, form)
    with dispatch.forced(form):
        alone = pred.clone().requires_grad_()
        assert_all_close(torch.autograd.grad(loss(alone, target), alone), (by_pred,), 1e-13, 1e-18)
        if kernel_type == "gaussian":
            alone = target.clone().requires_grad_()
            assert_all_close(torch.autograd.grad(loss(pred, alone), alone), (by_target,), 1e-13, 1e-18)


# --- layouts, threads, state -----------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("options", [{}, {"num_bins": 60, "sigma_ratio": 2.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_and_plain_form_agree_beyond_one_chunk(kernel_type, options, dtype):
    # No multiple of a tile, a block or a chunk.
    pred, target = images(1, 33_001, dtype=dtype)
    loss = GlobalMutualInformationLoss(kernel_type=kernel_type, **options)
    expected = value_and_gradients(loss, pred, target, "plain")
    found = value_and_gradients(loss, pred, target, "kernel")
    rtol = 1e-6 if dtype == torch.float32 else 1e-12
    assert_all_close(found[:1], expected[:1], rtol)
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert_all_close([a], [b], 0, rtol * b.abs().max().item())
