"""The fast multi-scale wrapper: documented behaviour and corner cases."""

import itertools
import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, logits, value_and_gradient

from twinloss import reference
from twinloss.fast import DiceLoss, LocalNormalizedCrossCorrelationLoss, MultiScaleLoss, multi_scale
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
KERNELS = pytest.mark.parametrize("kernel", ["gaussian", "cauchy"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (5, 7), (4, 5, 6)])
SCALES = pytest.mark.parametrize("scales", [None, [0], [1], [0, 1, 2], [0.3, 1.5]])


def pair(*shape, dtype=torch.float64):
    """Two images, y_true and y_pred."""
    return logits(*shape, dtype=dtype, seed=3), logits(*shape, dtype=dtype)


def squares(y_pred, y_true):
    """A loss of the user that treats its two images differently."""
    return ((y_pred - 2 * y_true) ** 2).mean()


def squares_by_voxel(y_pred, y_true):
    return (y_pred - 2 * y_true) ** 2


def taps(sigma, kernel="gaussian", normalize=False):
    """Return the kernel along an axis, by the formula in the documentation."""
    if sigma == 0:
        return np.ones(1)
    reach = int(3 * sigma + 0.5) if kernel == "gaussian" else int(5 * sigma)
    j = np.arange(-reach, reach + 1)
    if kernel == "gaussian":
        weights = np.exp(-(j**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    else:
        weights = 1 / ((j / sigma) ** 2 + 1)
    return weights / weights.sum() if normalize or kernel == "cauchy" else weights


def smoothed(images, sigma, kernel="gaussian", normalize=False):
    """Return smoothed images (B, C, *S): each voxel is the sum of all voxels, weighted by their distances."""
    weights = taps(sigma, kernel, normalize)
    reach = len(weights) // 2
    images = images.double().numpy()
    for axis in range(2, images.ndim):
        size = images.shape[axis]
        far = np.subtract.outer(np.arange(size), np.arange(size))
        matrix = np.where(abs(far) <= reach, weights[np.clip(far, -reach, reach) + reach], 0)
        images = np.moveaxis(np.tensordot(matrix, images, (1, axis)), 0, axis)
    return torch.from_numpy(images)


def gradients(loss, y_true, y_pred, form):
    """Return the gradients of the sum of the loss with respect to both images."""
    y_true, y_pred = y_true.clone().requires_grad_(), y_pred.clone().requires_grad_()
    with dispatch.forced(form):
        return torch.autograd.grad(loss(y_true, y_pred).sum(), (y_true, y_pred))


def of_first(y_pred, y_true):
    """Return the first image that the wrapper passes to its loss."""
    return y_pred


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@KERNELS
@SPATIAL
@SCALES
def test_result_is_the_reduced_stack_of_the_losses_of_smoothed_images(form, reduction, kernel, spatial, scales):
    y_true, y_pred = pair(2, 2, *spatial)
    for normalize, loss in itertools.product((False, True), (squares, squares_by_voxel)):
        with dispatch.forced(form):
            found = MultiScaleLoss(loss, scales, kernel, reduction, normalize_kernel=normalize)(y_true, y_pred)
        if scales is None:
            stack = loss(y_pred, y_true)
        else:
            at = [[smoothed(image, s, kernel, normalize) for image in (y_pred, y_true)] for s in scales]
            stack = torch.stack([loss(*images) for images in at])
        expected = {"mean": stack.mean, "sum": stack.sum, "none": lambda stack=stack: stack}[reduction]()
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@BACKENDS
@KERNELS
@SCALES
@pytest.mark.parametrize("spatial", [(9,), (5, 7), (3, 4, 5)])
def test_value_and_gradient_are_those_of_the_reference(form, kernel, scales, spatial):
    y_true, y_pred = pair(1, 2, *spatial)
    ndim = len(spatial)
    value = reference.local_normalized_cross_correlation_loss
    slope = reference.local_normalized_cross_correlation_loss_gradient
    wide = (y_true.numpy().astype(np.longdouble), y_pred.numpy().astype(np.longdouble))
    constants = {"ndim": ndim, "smooth_nr": 0.1, "smooth_dr": 0.4}
    loss = MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(**constants), scales, kernel)
    theirs = (partial(value, **constants), lambda p, t, cotangent: slope(p, t, cotangent=cotangent, **constants))
    options = {"scales": scales, "kernel": kernel}
    expected = (
        reference.multi_scale_loss(*wide, theirs[0], **options),
        reference.multi_scale_loss_gradient(*wide, *theirs, **options),
    )
    expected = [torch.from_numpy(np.asarray(a, np.float64)) for a in expected]
    found = value_and_gradient(lambda p, t: loss(t, p), y_pred, y_true, form=form)
    assert_all_close(found, expected, 1e-12, 1e-13)
    single = value_and_gradient(lambda p, t: loss(t, p), y_pred.float(), y_true.float(), form=form)
    assert_all_close(single, expected, 1e-5, 1e-5 * expected[1].abs().max().item())


@BACKENDS
@KERNELS
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sigma", [0.3, 1, 1.5, 2.0])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_smoothed_delta_is_the_kernel(form, kernel, normalize, sigma, rank):
    weights = taps(sigma, kernel, normalize)
    size = len(weights) + 2
    delta = torch.zeros(1, 1, *[size] * rank, dtype=torch.float64)
    delta[(0, 0, *[size // 2] * rank)] = 1
    expected = np.pad(weights, 1)
    for _ in range(1, rank):
        expected = np.multiply.outer(expected, np.pad(weights, 1))
    loss = MultiScaleLoss(of_first, [sigma], kernel, "none", normalize_kernel=normalize)
    with dispatch.forced(form):
        found = loss(delta, delta)[0, 0, 0]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-14, atol=0)


def test_taps_have_the_documented_reach_and_sum():
    line = torch.zeros(1, 1, 41, dtype=torch.float64)
    line[..., 20] = 1

    def total_and_reach(sigma, kernel, normalize=False):
        loss = MultiScaleLoss(of_first, [sigma], kernel, "none", normalize_kernel=normalize)
        found = loss(line, line)
        return round(found.sum().item(), 2), (found.count_nonzero().item() - 1) // 2

    assert total_and_reach(0.3, "gaussian") == (1.34, 1)
    assert total_and_reach(0.3, "gaussian", True) == (1, 1)
    assert total_and_reach(1, "gaussian") == (1, 3)
    assert total_and_reach(2.5, "gaussian") == (1, 8)
    assert total_and_reach(0.1, "gaussian")[1] == 0
    assert total_and_reach(0.1, "gaussian", True) == (1, 0)
    assert total_and_reach(0.3, "cauchy") == (1, 1)
    assert total_and_reach(0.1, "cauchy") == (1, 0)
    assert total_and_reach(2.5, "cauchy") == (1, 12)


@BACKENDS
def test_narrow_gaussian_of_one_tap_still_scales_the_image(form):
    # σ = 0.1: one tap of 1 / (σ √2π) along each axis; it is the identity only with normalize_kernel.
    y_true, y_pred = pair(1, 1, 4, 5)
    with dispatch.forced(form):
        found = MultiScaleLoss(of_first, [0.1], reduction="none")(y_true, y_pred)[0]
        normalized = MultiScaleLoss(of_first, [0.1], reduction="none", normalize_kernel=True)(y_true, y_pred)[0]
    torch.testing.assert_close(found, y_pred / (0.1 * math.sqrt(2 * math.pi)) ** 2, rtol=1e-13, atol=0)
    torch.testing.assert_close(normalized, y_pred, rtol=1e-15, atol=0)


@BACKENDS
@KERNELS
@SPATIAL
def test_scale_of_zero_leaves_the_images_as_they_are(form, kernel, spatial):
    y_true, y_pred = pair(2, 1, *spatial)
    wrapped = LocalNormalizedCrossCorrelationLoss(len(spatial))
    expected = value_and_gradient(wrapped, y_pred, y_true, form=form)
    for scales in ([0], [0.0], None):
        loss = MultiScaleLoss(wrapped, scales, kernel)
        found = value_and_gradient(lambda p, t, loss=loss: loss(t, p), y_pred, y_true, form=form)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    seen = []
    MultiScaleLoss(lambda p, t: seen.extend((p, t)) or p.sum(), [0], kernel)(y_true, y_pred)
    assert seen[0] is y_pred
    assert seen[1] is y_true


@REDUCTIONS
def test_without_scales_the_result_of_the_loss_is_reduced(reduction):
    y_true, y_pred = pair(2, 1, 6)
    found = MultiScaleLoss(squares_by_voxel, reduction=reduction)(y_true, y_pred)
    stack = squares_by_voxel(y_pred, y_true)
    expected = {"mean": stack.mean(), "sum": stack.sum(), "none": stack}[reduction]
    assert torch.equal(found, expected)


def test_none_stacks_the_results_in_the_order_of_the_scales():
    y_true, y_pred = pair(2, 3, 6, 7)
    loss = MultiScaleLoss(squares_by_voxel, [2, 0, 1], reduction="none")(y_true, y_pred)
    assert loss.shape == (3, 2, 3, 6, 7)
    for k, sigma in enumerate((2, 0, 1)):
        alone = MultiScaleLoss(squares_by_voxel, [sigma], reduction="none")(y_true, y_pred)
        assert torch.equal(loss[k], alone[0])
    assert MultiScaleLoss(squares, [2, 0, 1], reduction="none")(y_true, y_pred).shape == (3,)


def test_wrapped_loss_gets_the_prediction_first():
    y_true, y_pred = torch.zeros(1, 1, 5), torch.ones(1, 1, 5)
    for scales in (None, [0], [0, 0.0]):
        MultiScaleLoss(lambda p, t: torch.testing.assert_close((p, t), (y_pred, y_true)) or p.sum(), scales)(
            y_true, y_pred
        )


@BACKENDS
@pytest.mark.parametrize(
    "loss", [torch.nn.MSELoss(), torch.nn.L1Loss(reduction="none"), torch.nn.functional.huber_loss, DiceLoss()]
)
def test_any_loss_of_two_images_can_be_wrapped(form, loss):
    y_true, y_pred = (image.sigmoid() for image in pair(1, 2, 6, 7))
    found = value_and_gradient(lambda p, t: MultiScaleLoss(loss, [0, 1.5])(t, p), y_pred, y_true, form=form)
    stack = torch.stack([loss(y_pred, y_true), loss(smoothed(y_pred, 1.5), smoothed(y_true, 1.5))])
    torch.testing.assert_close(found[0], stack.mean(), rtol=1e-12, atol=1e-13)
    assert found[1].abs().max() > 0


@BACKENDS
@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, list])
def test_scales_may_be_any_sequence_of_numbers(form, kind):
    y_true, y_pred = pair(1, 1, 6, 7, dtype=torch.float32)
    with dispatch.forced(form):
        expected = MultiScaleLoss(squares, [0.5, 1.0, 2.0])(y_true, y_pred)
        assert MultiScaleLoss(squares, kind([0.5, 1.0, 2.0]))(y_true, y_pred) == expected


def test_monai_smooths_alike():
    monai = pytest.importorskip("monai.losses")
    y_true, y_pred = pair(2, 1, 9, 10, 11)
    for kernel in ("gaussian", "cauchy"):
        for scales, reduction in (([0, 1, 2], "mean"), (None, "mean"), ([1.5], "sum"), ([1, 3], "none")):
            theirs = monai.MultiScaleLoss(torch.nn.MSELoss(), scales, kernel, reduction)
            ours = MultiScaleLoss(torch.nn.MSELoss(), scales, kernel, reduction)
            expected = value_and_gradient(lambda p, t, loss=theirs: loss(t, p), y_pred, y_true)
            found = value_and_gradient(lambda p, t, loss=ours: loss(t, p), y_pred, y_true)
            assert_all_close(found, expected, 1e-5, 1e-7)  # theirs has taps in float32


# --- smoothing -------------------------------------------------------------------------------------------------------


@BACKENDS
@KERNELS
@pytest.mark.parametrize(
    "spatial", [(1,), (2,), (1, 1), (1, 6), (6, 1), (1, 1, 1), (1, 5, 6), (5, 1, 6), (5, 6, 1), (1, 1, 7), (2, 1, 1)]
)
def test_images_may_be_thinner_than_the_kernel(form, kernel, spatial):
    y_true, y_pred = pair(2, 1, *spatial)
    for sigma in (0.5, 2, 5):
        loss = MultiScaleLoss(of_first, [sigma], kernel, "none")
        found = value_and_gradient(lambda p, t, loss=loss: loss(t, p), y_pred, y_true, form=form)
        expected = smoothed(y_pred, sigma, kernel), smoothed(torch.ones_like(y_pred), sigma, kernel)
        assert_all_close((found[0][0], found[1]), expected, 1e-13, 1e-14)


@BACKENDS
@KERNELS
@pytest.mark.parametrize("shape", [(1, 2, 70, 30, 40), (1, 1, 3, 111, 301), (1, 1, 300, 500), (1, 1, 2000)])
def test_images_larger_than_a_tile_are_smoothed_without_seams(form, kernel, shape):
    y_true, y_pred = pair(*shape)
    with dispatch.forced(form):
        found = MultiScaleLoss(of_first, [1.5], kernel, "none")(y_true, y_pred)[0]
    torch.testing.assert_close(found, smoothed(y_pred, 1.5, kernel), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 1, 5, 7000), (1, 1, 7000, 5), (1, 1, 70000), (1, 1, 40000, 1, 1)])
def test_kernel_and_plain_form_agree_on_long_images(shape):
    y_true, y_pred = pair(*shape)
    loss = MultiScaleLoss(of_first, [1.5], reduction="none")
    expected = value_and_gradient(lambda p, t: loss(t, p), y_pred, y_true, form="plain")
    found = value_and_gradient(lambda p, t: loss(t, p), y_pred, y_true, form="kernel")
    assert_all_close(found, expected, 1e-12, 1e-13)


@BACKENDS
@KERNELS
@SPATIAL
def test_smoothing_is_its_own_adjoint(form, kernel, spatial):
    y, x = pair(2, 2, *spatial)
    x.requires_grad_()
    with dispatch.forced(form):
        smooth_x = MultiScaleLoss(of_first, [1.3], kernel, "none")(y, x)[0]
        smooth_y = MultiScaleLoss(of_first, [1.3], kernel, "none")(x, y)[0]
        (back,) = torch.autograd.grad(smooth_x, x, y)
    torch.testing.assert_close((smooth_x * y).sum(), (x * smooth_y).sum(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(back, smooth_y, rtol=1e-12, atol=1e-14)


@BACKENDS
@KERNELS
def test_float32_is_smoothed_to_its_last_digits(form, kernel):
    _, y_pred = pair(1, 1, 12, 13, 14, dtype=torch.float32)
    image = 1e4 + y_pred
    for sigma in (0.7, 5):
        with dispatch.forced(form):
            found = MultiScaleLoss(of_first, [sigma], kernel, "none")(image, image)[0]
        expected = smoothed(image, sigma, kernel)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=2e-7 if form == "kernel" else 3e-6, atol=0)


@BACKENDS
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_reaches_the_voxels_within_the_kernel(form, poison):
    y_true, y_pred = pair(2, 1, 9, 10, 11, dtype=torch.float32)
    y_pred[1, 0, 4, 5, 6] = poison
    with dispatch.forced(form):
        found = MultiScaleLoss(of_first, [0.5], reduction="none")(y_true, y_pred)[0]
    reached = torch.zeros_like(found, dtype=torch.bool)
    reached[1, 0, 2:7, 3:8, 4:9] = True  # int(3 * 0.5 + 0.5) = 2 voxels
    assert not found[reached].isfinite().any()
    assert found[~reached].isfinite().all()


@BACKENDS
@SPATIAL
def test_batch_and_channels_are_smoothed_one_by_one(form, spatial):
    y_true, y_pred = pair(3, 2, *spatial)
    loss = MultiScaleLoss(squares_by_voxel, [0, 1], reduction="none")
    with dispatch.forced(form):
        together = loss(y_true, y_pred)
        for b, c in itertools.product(range(3), range(2)):
            alone = (slice(b, b + 1), slice(c, c + 1))
            torch.testing.assert_close(
                together[:, b : b + 1, c : c + 1], loss(y_true[alone], y_pred[alone]), rtol=1e-14, atol=0
            )


@BACKENDS
@KERNELS
def test_smoothing_commutes_with_flips_and_transpositions(form, kernel):
    y_true, y_pred = pair(1, 1, 4, 5, 6)
    loss = MultiScaleLoss(squares_by_voxel, [0.7, 1.6], kernel, "none")
    with dispatch.forced(form):
        expected = loss(y_true, y_pred)
        for axis in (2, 3, 4):
            found = loss(y_true.flip(axis), y_pred.flip(axis)).flip(axis + 1)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        found = loss(y_true.permute(0, 1, 4, 2, 3), y_pred.permute(0, 1, 4, 2, 3)).permute(0, 1, 2, 4, 5, 3)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


# --- options and errors ----------------------------------------------------------------------------------------------


def test_parameters_of_the_wrapped_loss_are_those_of_the_wrapper():
    wrapped = torch.nn.PReLU(dtype=torch.float64)
    loss = MultiScaleLoss(lambda p, t: p)
    assert list(loss.parameters()) == []

    class Weighted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = wrapped.weight

        def forward(self, y_pred, y_true):
            return self.weight * squares(y_pred, y_true)

    loss = MultiScaleLoss(Weighted(), [0, 1])
    assert len(list(loss.parameters())) == 1
    loss(*pair(1, 1, 6)).backward()
    assert wrapped.weight.grad.item() != 0


@pytest.mark.parametrize(
    ("loss", "scales", "message"),
    [
        ("mse", [1], "loss must be a module or another callable .* got str"),
        (None, [1], "loss must be a module or another callable .* got NoneType"),
        (squares, 2, "scales must be None or a list of numbers, got int"),
        (squares, {1, 2}, "scales must be None or a list of numbers, got set"),
        (squares, ["1"], "scales must be a number, got str"),
        (squares, [None], "scales must be a number, got NoneType"),
    ],
)
def test_argument_of_another_kind_is_a_type_error(loss, scales, message):
    with pytest.raises(TypeError, match=message):
        MultiScaleLoss(loss, scales)


@BACKENDS
@pytest.mark.parametrize("scales", [None, [0], [1]])
@pytest.mark.parametrize("shape", [(2, 3), (5,), (1, 1, 3, 3, 3, 3)])
def test_images_of_another_rank_are_a_value_error_that_names_their_shape(form, scales, shape):
    with dispatch.forced(form), pytest.raises(ValueError, match=r"1 to 3 spatial axes") as raised:
        MultiScaleLoss(squares, scales)(torch.zeros(shape), torch.zeros(shape))
    assert str(shape) in str(raised.value)


@BACKENDS
@pytest.mark.parametrize("scales", [None, [0], [1]])
@pytest.mark.parametrize("shape", [(0, 1, 5), (1, 0, 5), (1, 1, 5, 0), (1, 1, 0, 5)])
def test_images_without_a_voxel_are_a_value_error_that_names_their_shape(form, scales, shape):
    with dispatch.forced(form), pytest.raises(ValueError, match="at least one voxel") as raised:
        MultiScaleLoss(squares, scales)(torch.zeros(shape), torch.zeros(shape))
    assert str(shape) in str(raised.value)


def test_error_of_the_wrapped_loss_comes_through():
    with pytest.raises(ValueError, match="they must be equal"):
        MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(1), [1])(torch.zeros(1, 1, 5), torch.zeros(1, 1, 6))


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
@pytest.mark.parametrize("scales", [None, [0, 1]])
def test_integer_images_are_cast_to_float32(form, dtype, scales):
    y_true, y_pred = ((10 * image.abs()).to(dtype) for image in pair(1, 1, 6, 7))
    loss = MultiScaleLoss(squares, scales)
    with dispatch.forced(form):
        found = loss(y_true, y_pred)
        assert found == loss(y_true.float(), y_pred.float())
        assert found == loss(y_true, y_pred.float())
    assert found.dtype == torch.float32


@BACKENDS
@KERNELS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_constant_images_have_a_finite_value_and_gradient(form, kernel, dtype):
    for constant in (0.0, 300.7):
        y = torch.full((2, 1, 5, 6, 7), constant, dtype=dtype)
        loss = MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(smooth_nr=1e-2, smooth_dr=1e-1), [0, 1, 2], kernel)
        value, gradient = value_and_gradient(lambda p, t, loss=loss: loss(t, p), y, y.clone(), form=form)
        assert value.dtype == gradient.dtype == dtype
        assert value.isfinite()
        assert gradient.isfinite().all()


@BACKENDS
def test_float64_is_not_rounded_to_float32_on_the_way(form):
    y_true, y_pred = pair(1, 1, 6, 7, 8)
    loss = MultiScaleLoss(squares, [0.3, 1.7])
    value, gradient = value_and_gradient(lambda p, t: loss(t, p), y_pred, y_true, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    stack = [squares(smoothed(y_pred, s), smoothed(y_true, s)) for s in (0.3, 1.7)]
    torch.testing.assert_close(value, torch.stack(stack).mean(), rtol=1e-14, atol=0)


# --- differentiation -------------------------------------------------------------------------------------------------


@BACKENDS
@KERNELS
@REDUCTIONS
@SPATIAL
def test_gradcheck_and_gradgradcheck_in_both_images(form, kernel, reduction, spatial):
    images = [image.requires_grad_() for image in pair(1, 1, *spatial)]
    wrapped = LocalNormalizedCrossCorrelationLoss(len(spatial), smooth_dr=0.5)
    for loss in (wrapped, squares_by_voxel):
        with dispatch.forced(form):
            multi = MultiScaleLoss(loss, [0, 0.8], kernel, reduction)
            assert torch.autograd.gradcheck(multi, images, fast_mode=True)
            assert torch.autograd.gradgradcheck(multi, images, fast_mode=True)


def test_graph_of_the_gradient_includes_smoothed_images_that_were_not_kept():
    y_true, y_pred = pair(1, 1, 7, 6, 5)
    loss, found = MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(), [0, 1, 2]), []
    for form in ("kernel", "plain"):
        with dispatch.forced(form):
            y_pred = y_pred.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss(y_true, y_pred), y_pred, create_graph=True)
            found.append((slope.detach(), *torch.autograd.grad((slope**2).sum(), y_pred)))
    assert_all_close(found[0], found[1], 1e-9, 1e-12)


def test_no_smoothed_image_outlives_a_local_correlation(monkeypatch):
    made, smooth = [], multi_scale.smoothed

    def watched(image, taps):
        result = smooth(image, taps)
        made.append(weakref.ref(result.untyped_storage()))
        return result

    monkeypatch.setattr(multi_scale, "smoothed", watched)
    y_true, y_pred = pair(1, 1, 7, 6, 5)
    value = MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(), [1, 2])(y_true, y_pred.requires_grad_())
    assert [each() for each in made] == [None] * 4
    value.backward()
    assert len(made) == 4


def test_an_image_that_is_changed_before_a_graph_of_the_gradient_is_an_error():
    y_true, y_pred = pair(1, 1, 7, 6, 5)
    value = MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(), [1])(y_true, y_pred.requires_grad_())
    y_true.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, y_pred, create_graph=True)


class Cropped(LocalNormalizedCrossCorrelationLoss):
    """A loss of the user that crops and scales the images before it compares them."""

    def forward(self, pred, target):
        return super().forward(pred[..., :4], 2 * target[..., :4])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", [LocalNormalizedCrossCorrelationLoss, Cropped])
@pytest.mark.parametrize("scale", [0, 1])
def test_a_prediction_compared_with_a_view_of_itself_keeps_its_gradient(kind, scale, reduction):
    y_pred = logits(3, 1, 5, 6, dtype=torch.float64).requires_grad_()
    y_true, loss = y_pred.detach()[:1].expand_as(y_pred), MultiScaleLoss(kind(2, reduction=reduction), [scale])
    with dispatch.forced("plain"):
        (expected,) = torch.autograd.grad(loss(y_true, y_pred).mean(), y_pred, create_graph=True)
        second = torch.autograd.grad((expected**2).sum(), y_pred)[0]
    value = loss(y_true, y_pred).mean()
    for again in (False, True, True):
        (found,) = torch.autograd.grad(value, y_pred, retain_graph=True, create_graph=again)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad((found**2).sum(), y_pred)[0], second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0, 1])
def test_a_second_backward_smooths_again_to_the_same_gradient(scale):
    y_true, y_pred = pair(1, 1, 7, 6, 5)
    value = MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(), [scale])(y_true, y_pred.requires_grad_())
    first = torch.autograd.grad(value, y_pred, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(value, y_pred)[0], first, rtol=1e-12, atol=1e-16)


def test_an_image_made_in_inference_mode_may_be_the_target():
    with torch.inference_mode():
        y_true = logits(1, 1, 7, 6, 5)
    y_pred = logits(1, 1, 7, 6, 5, seed=3).requires_grad_()
    MultiScaleLoss(LocalNormalizedCrossCorrelationLoss(), [1])(y_true, y_pred).backward()
    assert y_pred.grad.isfinite().all()


@BACKENDS
def test_smoothing_can_be_differentiated_a_third_time(form):
    y_true, y_pred = pair(1, 1, 7)
    y_pred.requires_grad_()
    with dispatch.forced(form):
        slope = MultiScaleLoss(lambda p, t: (p**4).sum(), [1.0])(y_true, y_pred)
        for _ in range(3):
            (slope,) = torch.autograd.grad(slope.sum(), y_pred, create_graph=True)
    inner, outer = smoothed(y_pred.detach(), 1.0), smoothed(torch.ones_like(y_true), 1.0)
    torch.testing.assert_close(slope.detach(), smoothed(24 * inner * outer**2, 1.0), rtol=1e-12, atol=1e-13)


@BACKENDS
def test_y_true_gets_a_gradient_if_it_requires_one(form):
    y_true, y_pred = pair(1, 2, 5, 6)
    loss = MultiScaleLoss(squares_by_voxel, [0, 1.5])
    both = gradients(loss, y_true, y_pred, form)
    alone = value_and_gradient(loss, y_true, y_pred, form=form)[1]
    torch.testing.assert_close(alone, both[0], rtol=1e-13, atol=1e-14)
    alone = value_and_gradient(lambda p, t: loss(t, p), y_pred, y_true, form=form)[1]
    torch.testing.assert_close(alone, both[1], rtol=1e-13, atol=1e-14)


# --- layouts, threads, state -----------------------------------------------------------------------------------------


def test_scales_are_copied():
    scales = [0.0, 1.5]
    loss, images = MultiScaleLoss(squares, scales), pair(1, 1, 6, 7)
    expected = loss(*images)
    scales[1] = 5.0
    assert torch.equal(loss(*images), expected)
