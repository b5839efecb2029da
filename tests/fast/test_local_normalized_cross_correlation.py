"""The fast local normalised cross-correlation: documented behaviour and corner cases."""

import itertools

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, exact, logits, value_and_gradient

from twinloss import reference
from twinloss.fast import LocalNormalizedCrossCorrelationLoss
from twinloss.fast.kernels.cpu import correlation as local_correlation
from twinloss.fast.runtime import dispatch
from twinloss.fast.runtime.arguments import ShapeError
from twinloss.harness.judging.trial import examine
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
WINDOWS = pytest.mark.parametrize("kernel_type", ["rectangular", "triangular", "gaussian"])
DENOMINATORS = pytest.mark.parametrize("denominator", ["product", "clamp"])
SPATIAL = pytest.mark.parametrize("spatial", [(9,), (5, 7), (4, 5, 6)])


def pair(*shape, dtype=torch.float64):
    """Two images that have something in common, so that all terms of the formula count."""
    common = logits(*shape, dtype=dtype)
    return common, 0.5 * common + logits(*shape, dtype=dtype, seed=3)


def truth(p, t, **options):
    """Return the reference's value, and the gradient of its sum with respect to p, in long double."""
    return exact(
        reference.local_normalized_cross_correlation_loss,
        reference.local_normalized_cross_correlation_loss_gradient,
        p, t, **options,
    )  # fmt: skip


def weights(size, kernel_type):
    """Return the weights along an axis, by the formula in the documentation."""
    middle = (size + 1) // 2
    if kernel_type == "triangular":
        rising = [j / middle**2 for j in range(1, middle + 1)]
        return np.array(rising + rising[-2::-1], np.longdouble)
    if kernel_type == "gaussian":
        return np.exp([-(np.longdouble(j) ** 2) / (2 * (size / 3) ** 2) for j in range(1 - middle, middle)])
    return np.ones(size, np.longdouble)


def by_definition(p, t, size, kernel_type="rectangular", smooth_nr=1e-5, smooth_dr=1e-5, denominator="product"):
    """Return the losses of all windows of images (B, C, *S), one window after the other, in long double."""
    spatial = p.shape[2:]
    window = weights(size, kernel_type)
    for _ in spatial[1:]:
        window = window[..., np.newaxis] * weights(size, kernel_type)
    margins = [(0, 0), (0, 0)] + [(size // 2, size // 2)] * len(spatial)
    p, t = (np.pad(image.numpy().astype(np.longdouble), margins) for image in (p, t))
    losses = np.empty((*p.shape[:2], *spatial))
    for place in itertools.product(*map(range, losses.shape)):
        here = place[:2] + tuple(slice(x, x + size) for x in place[2:])
        p0, t0 = (image[here] - np.sum(window * image[here]) / np.sum(window) for image in (p, t))
        cross, var_p, var_t = (np.sum(window * a * b) for a, b in ((p0, t0), (p0, p0), (t0, t0)))
        if denominator == "clamp":
            below = max(var_t, smooth_dr) * max(var_p, smooth_dr)
        else:
            below = var_t * var_p + smooth_dr
        losses[place] = -(cross**2 + smooth_nr) / below
    return torch.from_numpy(losses)


def gradients(loss, p, t, form):
    """Return the gradients of the sum of the loss with respect to both images."""
    p, t = p.clone().requires_grad_(), t.clone().requires_grad_()
    with dispatch.forced(form):
        return torch.autograd.grad(loss(p, t).sum(), (p, t))


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@WINDOWS
@DENOMINATORS
@SPATIAL
def test_value_and_gradient_are_those_of_the_reference(form, reduction, kernel_type, denominator, spatial):
    p, t = pair(2, 2, *spatial)
    options = {"kernel_type": kernel_type, "reduction": reduction, "denominator": denominator, "smooth_dr": 0.7}
    options = {"ndim": len(spatial), **options}
    loss = LocalNormalizedCrossCorrelationLoss(**options)
    assert_all_close(value_and_gradient(loss, p, t, form=form), truth(p, t, **options), 1e-12, 1e-13)
    p, t = p.float(), t.float()
    value, slope = truth(p, t, **options)
    found = value_and_gradient(loss, p, t, form=form)
    assert_all_close(found[:1], (value,), 1e-5, 1e-6 * value.abs().max().item())
    assert_all_close(found[1:], (slope,), 0, 1e-5 * slope.abs().max().item())


@WINDOWS
@DENOMINATORS
@SPATIAL
def test_each_window_is_correlated_as_the_definition_says(kernel_type, denominator, spatial):
    p, t = pair(1, 1, *spatial)
    for size in (1, 3, 5, 7):
        options = {"kernel_type": kernel_type, "smooth_nr": 0.3, "smooth_dr": 0.9, "denominator": denominator}
        loss = LocalNormalizedCrossCorrelationLoss(len(spatial), size, reduction="none", **options)
        expected = by_definition(p, t, size, **options)
        for form in ("kernel", "plain"):
            with dispatch.forced(form):
                found = loss(p, t)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@BACKENDS
@pytest.mark.parametrize("size", [2 * k + 1 for k in range(16)])
def test_sum_over_a_window_of_any_length_is_the_sum_of_its_numbers(form, size):
    p, t = pair(1, 1, 37)
    options = {"smooth_nr": 0.1, "smooth_dr": 0.2}
    with dispatch.forced(form):
        found = LocalNormalizedCrossCorrelationLoss(1, size, reduction="none", **options)(p, t)
    torch.testing.assert_close(found, by_definition(p, t, size, **options), rtol=1e-12, atol=1e-14)


@BACKENDS
@REDUCTIONS
@WINDOWS
@SPATIAL
def test_gradients_are_those_of_automatic_differentiation_for_any_upstream(form, reduction, kernel_type, spatial):
    p, t = (image.requires_grad_() for image in pair(2, 2, *spatial))
    loss = LocalNormalizedCrossCorrelationLoss(len(spatial), 5, kernel_type, reduction)
    with dispatch.forced("plain"):
        value = loss(p, t)
        upstream = logits(*value.shape, dtype=torch.float64, seed=5) if value.ndim else torch.tensor(0.7).double()
        expected = torch.autograd.grad(value, (p, t), upstream)
    with dispatch.forced(form):
        assert_all_close(torch.autograd.grad(loss(p, t), (p, t), upstream), expected, 1e-11, 1e-12)
        alone = torch.autograd.grad(loss(p, t.detach()), p, upstream)
        assert_all_close(alone, expected[:1], 1e-11, 1e-12)
        alone = torch.autograd.grad(loss(p.detach(), t), t, upstream)
        assert_all_close(alone, expected[1:], 1e-11, 1e-12)


@BACKENDS
@WINDOWS
@SPATIAL
def test_none_is_of_the_shape_of_the_images_and_mean_and_sum_reduce_it(form, kernel_type, spatial):
    p, t = pair(2, 3, *spatial)
    with dispatch.forced(form):
        none, mean, total = (
            LocalNormalizedCrossCorrelationLoss(len(spatial), 3, kernel_type, reduction)(p, t)
            for reduction in ("none", "mean", "sum")
        )
    assert none.shape == p.shape
    assert mean.shape == total.shape == ()
    torch.testing.assert_close(mean, none.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total, none.sum(), rtol=1e-13, atol=0)


@BACKENDS
@DENOMINATORS
@SPATIAL
def test_loss_is_symmetric_in_the_images(form, denominator, spatial):
    p, t = pair(2, 1, *spatial)
    loss = LocalNormalizedCrossCorrelationLoss(len(spatial), denominator=denominator)
    with dispatch.forced(form):
        torch.testing.assert_close(loss(p, t), loss(t, p), rtol=1e-13, atol=0)
    assert_all_close(gradients(loss, p, t, form), gradients(loss, t, p, form)[::-1], 1e-11, 1e-13)


@BACKENDS
@WINDOWS
@SPATIAL
def test_batch_and_channels_are_compared_one_by_one(form, kernel_type, spatial):
    p, t = pair(3, 2, *spatial)
    loss = LocalNormalizedCrossCorrelationLoss(len(spatial), 3, kernel_type, "none")
    value, gradient = value_and_gradient(loss, p, t, form=form)
    for b, c in itertools.product(range(3), range(2)):
        alone = (slice(b, b + 1), slice(c, c + 1))
        expected = value_and_gradient(loss, p[alone], t[alone], form=form)
        assert_all_close((value[alone], gradient[alone]), expected, 1e-13, 1e-14)


@BACKENDS
@WINDOWS
def test_loss_commutes_with_flips_and_transpositions(form, kernel_type):
    p, t = pair(1, 1, 4, 5, 6)
    loss = LocalNormalizedCrossCorrelationLoss(3, 5, kernel_type, "none")
    expected = value_and_gradient(loss, p, t, form=form)
    for axis in (2, 3, 4):
        found = value_and_gradient(loss, p.flip(axis), t.flip(axis), form=form)
        assert_all_close([image.flip(axis) for image in found], expected, 1e-11, 1e-12)
    for axes in itertools.permutations((2, 3, 4)):
        order, back = (0, 1, *axes), np.argsort((0, 1, *axes)).tolist()
        found = value_and_gradient(loss, p.permute(order), t.permute(order), form=form)
        assert_all_close([image.permute(back) for image in found], expected, 1e-11, 1e-12)


@BACKENDS
@WINDOWS
@pytest.mark.parametrize("slope", [2.5, -0.4])
def test_linear_function_of_the_image_scores_minus_one_inside(form, kernel_type, slope):
    _, t = pair(1, 1, 8, 9, 10)
    loss = LocalNormalizedCrossCorrelationLoss(3, 3, kernel_type, "none", 0.0, 0.0)
    with dispatch.forced(form):
        scores = loss(slope * t + 7, t)
        inside = scores[:, :, 1:-1, 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.full_like(inside, -1), rtol=1e-12, atol=0)
        # Beyond the borders there are zeros in both images, and b + 0 is no linear function of them.
        assert (scores > -1 + 1e-6).any()
        torch.testing.assert_close(loss(slope * t, t), torch.full_like(t, -1), rtol=1e-12, atol=0)


@BACKENDS
@WINDOWS
@pytest.mark.parametrize("constants", [(1e-5, 1e-5), (0.0, 1e-5), (2.0, 0.5), (0.0, 1.0)])
def test_losses_lie_between_minus_the_larger_of_one_and_the_ratio_of_the_constants_and_zero(
    form, kernel_type, constants
):
    p, t = pair(2, 1, 6, 7, 8)
    p[:, :, :4], t[:, :, 2:5] = 0.25, p[:, :, 2:5]
    with dispatch.forced(form):
        losses = LocalNormalizedCrossCorrelationLoss(3, 3, kernel_type, "none", *constants)(p, t)
    nu, delta = constants
    assert (losses <= 0).all()
    assert (losses >= -max(1, nu / delta) * (1 + 1e-12)).all()


@BACKENDS
def test_images_that_have_nothing_in_common_score_zero(form):
    p, t = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, -2.0])
    with dispatch.forced(form):
        losses = LocalNormalizedCrossCorrelationLoss(1, reduction="none", smooth_nr=0.0)(p[None, None], t[None, None])
    assert losses[0, 0, 1] == 0


def test_monai_computes_the_clamped_form():
    monai = pytest.importorskip("monai.losses")
    p, t = pair(2, 1, 7, 8, 9)
    for size, reduction in ((3, "mean"), (5, "sum"), (3, "none")):
        constants = {"smooth_nr": 0.1, "smooth_dr": 2.0}
        theirs = monai.LocalNormalizedCrossCorrelationLoss(3, size, reduction=reduction, **constants)
        ours = LocalNormalizedCrossCorrelationLoss(3, size, reduction=reduction, denominator="clamp", **constants)
        assert_all_close(value_and_gradient(ours, p, t), value_and_gradient(theirs, p, t), 1e-12, 1e-13)


# --- flat windows ----------------------------------------------------------------------------------------------------


@BACKENDS
@WINDOWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nu", [1e-5, 0.0, 3e-5])
def test_flat_window_scores_minus_the_ratio_of_the_constants(form, kernel_type, dtype, nu):
    p, t = torch.full((1, 1, 7, 7, 7), 3.0, dtype=dtype), logits(1, 1, 7, 7, 7, dtype=dtype)
    loss = LocalNormalizedCrossCorrelationLoss(3, 3, kernel_type, "none", smooth_nr=nu)
    for images in ((p, t), (t, p), (p, p)):
        with dispatch.forced(form):
            inside = loss(*images)[:, :, 1:-1, 1:-1, 1:-1]
        torch.testing.assert_close(inside, torch.full_like(inside, -nu / 1e-5), rtol=1e-5, atol=1e-9)


@BACKENDS
@WINDOWS
def test_flat_window_under_clamp_scores_what_the_documentation_says(form, kernel_type):
    nu, delta = 2e-3, 5e-2
    p, (t, _) = torch.full((1, 1, 9), 3.0, dtype=torch.float64), pair(1, 1, 9)
    loss = LocalNormalizedCrossCorrelationLoss(1, 3, kernel_type, "none", nu, delta, denominator="clamp")
    w = torch.from_numpy(weights(3, kernel_type).astype(np.float64))
    around = t[0, 0].unfold(0, 3, 1)
    variance = (w * (around - (w * around).sum(-1, keepdim=True) / w.sum()) ** 2).sum(-1)
    with dispatch.forced(form):
        flat_in_one, flat_in_both = loss(p, t)[0, 0, 1:-1], loss(p, p)[0, 0, 1:-1]
    torch.testing.assert_close(flat_in_one, -nu / (delta * variance.clamp(min=delta)), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat_in_both, torch.full_like(flat_in_both, -nu / delta**2), rtol=1e-12, atol=0)


@BACKENDS
def test_variance_below_the_clamp_has_no_slope(form):
    # The image is so faint that its variance is always clamped: the loss is quadratic in it, apart from ν.
    p, t = pair(1, 1, 5, 6)
    loss = LocalNormalizedCrossCorrelationLoss(2, smooth_nr=0.0, smooth_dr=0.5, denominator="clamp")
    value, gradient = value_and_gradient(loss, 1e-3 * p, t, form=form)
    torch.testing.assert_close(1e-3 * (p * gradient).sum(), 2 * value, rtol=1e-12, atol=0)


@BACKENDS
@WINDOWS
@DENOMINATORS
@REDUCTIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_constant_images_have_a_finite_value_and_gradient(form, kernel_type, denominator, reduction, dtype):
    for constant, other in ((0.0, 0.0), (300.7, 300.7), (0.0, 5.0)):
        p, t = (torch.full((2, 1, 5, 6, 7), c, dtype=dtype) for c in (constant, other))
        options = {"smooth_nr": 1e-2, "smooth_dr": 1e-1, "denominator": denominator}
        loss = LocalNormalizedCrossCorrelationLoss(3, 3, kernel_type, reduction, **options)
        value, gradient = value_and_gradient(loss, p, t, form=form)
        assert value.dtype == gradient.dtype == dtype
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        if constant == 0:
            assert (gradient == 0).all()


@BACKENDS
@WINDOWS
@DENOMINATORS
def test_constant_patch_of_an_image_has_a_finite_value_and_no_gradient_in_its_middle(form, kernel_type, denominator):
    p, t = pair(1, 1, 12, 12, dtype=torch.float32)
    p[..., 2:9, 2:9], t[..., 2:9, 2:9] = 0.75, -2.5
    loss = LocalNormalizedCrossCorrelationLoss(2, 3, kernel_type, "none", denominator=denominator)
    value, gradient = value_and_gradient(loss, p, t, form=form)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    # A voxel that is two windows from the border of the patch lies only in flat windows.
    torch.testing.assert_close(gradient[..., 4:7, 4:7], torch.zeros(1, 1, 3, 3), rtol=0, atol=1e-3)
    expected = truth(p, t, ndim=2, kernel_type=kernel_type, reduction="none", denominator=denominator)
    assert_all_close((value,), expected[:1], 1e-4, 1e-5)


@BACKENDS
@WINDOWS
def test_flat_image_without_smoothing_is_not_a_number(form, kernel_type):
    p, t = torch.zeros(1, 1, 5), logits(1, 1, 5)
    with dispatch.forced(form):
        losses = LocalNormalizedCrossCorrelationLoss(1, 3, kernel_type, "none", 0.0, 0.0)(p, t)
    assert losses.isnan().all()


# --- shapes ----------------------------------------------------------------------------------------------------------


@BACKENDS
@WINDOWS
@pytest.mark.parametrize(
    "spatial", [(1,), (2,), (1, 1), (1, 6), (6, 1), (1, 1, 1), (1, 5, 6), (5, 1, 6), (5, 6, 1), (1, 1, 7), (2, 1, 1)]
)
def test_images_may_be_thinner_than_a_window(form, kernel_type, spatial):
    p, t = pair(2, 1, *spatial)
    for size, reduction in ((3, "none"), (5, "mean"), (11, "none")):
        options = {"kernel_type": kernel_type, "smooth_nr": 0.1, "smooth_dr": 0.2}
        loss = LocalNormalizedCrossCorrelationLoss(len(spatial), size, reduction=reduction, **options)
        by_window = by_definition(p, t, size, **options)
        expected = by_window if reduction == "none" else by_window.mean()
        upstream = logits(1, *expected.shape, dtype=torch.float64, seed=5)[0]
        weighted = value_and_gradient(lambda p, t, loss=loss, by=upstream: by * loss(p, t), p, t, form=form)
        torch.testing.assert_close(weighted[0], upstream * expected, rtol=1e-12, atol=1e-14)
        slope = reference.local_normalized_cross_correlation_loss_gradient(
            p.numpy(), t.numpy(), ndim=len(spatial), kernel_size=size, reduction=reduction, **options,
            cotangent=upstream.numpy(),
        )  # fmt: skip
        torch.testing.assert_close(weighted[1], torch.from_numpy(slope), rtol=1e-11, atol=1e-13)


@BACKENDS
@DENOMINATORS
def test_window_of_one_voxel_is_flat_everywhere(form, denominator):
    p, t = pair(1, 2, 5, 6)
    loss = LocalNormalizedCrossCorrelationLoss(2, 1, smooth_nr=0.3, smooth_dr=0.6, denominator=denominator)
    value, gradient = value_and_gradient(loss, p, t, form=form)
    expected = -0.3 / 0.6 if denominator == "product" else -0.3 / 0.6**2
    torch.testing.assert_close(value.item(), expected, rtol=1e-14, atol=0)
    assert (gradient == 0).all()


@BACKENDS
def test_even_the_zeros_beyond_the_borders_are_samples(form):
    # Windows 0 1 | 1 1 1 | 1 0 of a constant 1: means 2/3 outside, variances 2/3.
    one = torch.ones(1, 1, 3, dtype=torch.float64)
    with dispatch.forced(form):
        losses = LocalNormalizedCrossCorrelationLoss(1, reduction="none", smooth_nr=0.0, smooth_dr=1.0)(one, one)
    edge = -((2 / 3) ** 2) / ((2 / 3) ** 2 + 1)
    expected = torch.tensor([[[edge, 0, edge]]], dtype=torch.float64)
    torch.testing.assert_close(losses, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "shape",
    [(2, 2, 37, 40, 30), (1, 1, 3, 111, 301), (1, 1, 300, 500), (1, 1, 3, 7000), (1, 1, 7000, 3), (1, 1, 70000),
     (1, 1, 40000, 1, 1)],
)  # fmt: skip
def test_images_larger_than_a_tile_have_no_seams(reduction, shape):
    # The plain form has no tiles, bundles of columns or threads.
    p, t = pair(*shape)
    loss = LocalNormalizedCrossCorrelationLoss(len(shape) - 2, 5, reduction=reduction)
    expected = value_and_gradient(loss, p, t, form="plain")
    assert_all_close(value_and_gradient(loss, p, t, form="kernel"), expected, 1e-11, 1e-12)


@pytest.mark.parametrize("least", [2, 3])
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("shape", [(2, 3, 23, 5, 6), (1, 1, 23, 5, 6), (1, 1, 4, 5, 6), (1, 2, 40, 6)])
def test_planes_and_images_in_several_slabs_give_the_same_as_in_one(monkeypatch, shape, kernel_size, least):
    p, t = pair(*shape)
    loss = LocalNormalizedCrossCorrelationLoss(len(shape) - 2, kernel_size)
    expected = value_and_gradient(loss, p, t, form="plain")
    monkeypatch.setattr(local_correlation, "_AT_ONCE", 1)
    monkeypatch.setattr(local_correlation, "_LEAST_PLANES", least)
    monkeypatch.setattr(local_correlation, "_PLANES_OF_REACH", least)
    assert_all_close(value_and_gradient(loss, p, t, form="kernel"), expected, 1e-11, 1e-13)


@pytest.mark.parametrize(
    ("spatial", "ask", "images"),
    [
        ((256, 128, 128), True, 2.5),
        ((256, 128, 128), False, 1.0),
        ((1024, 512), True, 10.5),
        ((4, 300, 900), True, 10.5),
    ],
)
def test_memory_of_a_deep_image_is_that_of_little_more_than_its_gradient(monkeypatch, spatial, ask, images):
    rooms, empty = [], local_correlation.empty
    monkeypatch.setattr(local_correlation, "empty", lambda *given: rooms.append(empty(*given)) or rooms[-1])
    p, t = pair(1, 1, *spatial, dtype=torch.float32)
    LocalNormalizedCrossCorrelationLoss(len(spatial), 9)(p.requires_grad_(ask), t)
    assert images / 2 < sum(room.nbytes for room in rooms) / p.nbytes < images


# --- options and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_spatial_dims_is_another_name_of_ndim(rank):
    p, t = pair(1, 1, *[5] * rank)
    expected = LocalNormalizedCrossCorrelationLoss(rank)(p, t)
    assert LocalNormalizedCrossCorrelationLoss(spatial_dims=rank)(p, t) == expected
    assert LocalNormalizedCrossCorrelationLoss(ndim=rank, spatial_dims=rank)(p, t) == expected


@pytest.mark.parametrize("name", ["smooth_nr", "smooth_dr"])
def test_smoothing_that_is_no_number_is_a_type_error(name):
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        LocalNormalizedCrossCorrelationLoss(**{name: "1e-5"})


@BACKENDS
@pytest.mark.parametrize(
    ("ndim", "shape", "message"),
    [
        (3, (2, 1, 5, 5), r"3 spatial axes.*\(2, 1, 5, 5\)"),
        (2, (2, 1, 5, 5, 5), r"2 spatial axes.*\(2, 1, 5, 5, 5\)"),
        (1, (2, 1), r"1 spatial axes.*\(2, 1\)"),
        (1, (0, 1, 5), r"at least one voxel.*\(0, 1, 5\)"),
        (1, (1, 0, 5), r"at least one voxel.*\(1, 0, 5\)"),
        (2, (1, 1, 5, 0), r"at least one voxel.*\(1, 1, 5, 0\)"),
    ],
)
def test_images_that_do_not_fit_are_a_value_error_that_names_their_shape(form, ndim, shape, message):
    with dispatch.forced(form), pytest.raises(ValueError, match=message):
        LocalNormalizedCrossCorrelationLoss(ndim)(torch.zeros(shape), torch.zeros(shape))


@BACKENDS
@pytest.mark.parametrize("other", [(2, 1, 5, 7), (1, 1, 5, 6), (2, 3, 5, 6), (2, 1, 30), (2, 1, 5)])
def test_images_of_different_shapes_are_an_error_that_names_both(form, other):
    with dispatch.forced(form), pytest.raises(ShapeError) as raised:
        LocalNormalizedCrossCorrelationLoss(2)(torch.zeros(2, 1, 5, 6), torch.zeros(other))
    assert "(2, 1, 5, 6)" in str(raised.value)
    assert str(other) in str(raised.value)
    assert isinstance(raised.value, ValueError)


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("window", [("rectangular", 9), ("gaussian", 3)])
def test_float16_volume_that_is_nearly_all_background_keeps_the_score_of_its_structure(form, window):
    p = torch.zeros(1, 1, 24, 24, 24, dtype=torch.float16)
    t = p.clone()
    p[..., 10:14, 10:14, 10:14], t[..., 11:15, 10:14, 10:14] = pair(1, 1, 4, 4, 4)[0].half(), 0.25
    kernel_type, size = window
    loss = LocalNormalizedCrossCorrelationLoss(3, size, kernel_type, "sum", smooth_nr=0.0)
    value, gradient = value_and_gradient(loss, p, t, form=form)
    expected = truth(p, t, kernel_size=size, kernel_type=kernel_type, reduction="sum", smooth_nr=0.0)
    assert_all_close((value, gradient), expected, 2e-3, 1e-3 * expected[1].abs().max().item())
    assert gradient.isfinite().all()


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_integer_images_are_cast_to_float32(form, dtype):
    p, t = ((10 * image.abs()).to(dtype) for image in pair(1, 1, 6, 7))
    for kernel_type in ("rectangular", "triangular", "gaussian"):
        loss = LocalNormalizedCrossCorrelationLoss(2, 5, kernel_type)
        with dispatch.forced(form):
            assert loss(p, t).dtype == torch.float32
            assert loss(p, t) == loss(p.float(), t.float())
        found = value_and_gradient(loss, p.float(), t, form=form)
        assert_all_close(found, value_and_gradient(loss, p.float(), t.float(), form=form), 0)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_result_is_of_the_type_of_pred_whatever_that_of_the_target(form, dtype):
    p, t = pair(1, 1, 6, 7)
    value, gradient = value_and_gradient(LocalNormalizedCrossCorrelationLoss(2), p.to(dtype), t.float(), form=form)
    assert value.dtype == gradient.dtype == dtype
    (of_t,) = gradients(LocalNormalizedCrossCorrelationLoss(2), p.to(dtype), t.half(), form)[1:]
    assert of_t.dtype == torch.float16


@BACKENDS
@WINDOWS
@DENOMINATORS
def test_float64_is_not_rounded_to_float32_on_the_way(form, kernel_type, denominator):
    p, t = pair(1, 1, 6, 7, 8)
    options = {"kernel_type": kernel_type, "kernel_size": 5, "smooth_nr": 0.1, "smooth_dr": 0.3}
    options["denominator"] = denominator
    value, gradient = value_and_gradient(LocalNormalizedCrossCorrelationLoss(**options), p, t, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = truth(p, t, **options)
    assert_all_close((value, gradient), expected, 1e-13, 1e-13 * expected[1].abs().max().item())


@BACKENDS
@WINDOWS
@pytest.mark.parametrize("size", [3, 9])
def test_faint_contrast_on_a_large_offset_keeps_its_accuracy(form, kernel_type, size):
    shape = (1, 1, 14, 15, 16)
    p, t = ((1e4 + 0.01 * image).float() for image in pair(*shape))  # to a tenth or so of the contrast
    options = {"kernel_size": size, "kernel_type": kernel_type, "smooth_nr": 0.0, "smooth_dr": 1e-9}
    loss = LocalNormalizedCrossCorrelationLoss(reduction="none", **options)
    value, gradient = value_and_gradient(loss, p, t, form=form)
    expected = truth(p, t, reduction="none", **options)
    assert_all_close((value,), expected[:1], 2e-6, 2e-6)
    assert_all_close((gradient,), expected[1:], 0, 1e-6 * expected[1].abs().max().item())


def test_lone_bright_voxels_keep_the_digits_of_a_weak_correlation():
    p, t = torch.tensor([[[[[0.0, 4.4704757]]]]]), torch.tensor([[[[[-4.8816319, -0.0072552]]]]])
    options = {"kernel_size": 9, "kernel_type": "gaussian"}
    value, gradient = value_and_gradient(LocalNormalizedCrossCorrelationLoss(**options), p, t)
    expected = truth(p, t, **options)
    assert_all_close((value,), expected[:1], 1e-6, 0)
    assert_all_close((gradient,), expected[1:], 0, 1e-6 * expected[1].abs().max().item())


@BACKENDS
@WINDOWS
def test_bright_region_leaves_no_trace_in_a_dark_one_of_tiny_contrast(form, kernel_type):
    p, t = (1e-3 * image.float() for image in pair(1, 1, 8, 9, 60))
    p[..., :20] += 1e5
    t[..., :25] -= 3e4
    options = {"kernel_size": 5, "kernel_type": kernel_type, "smooth_nr": 0.0, "smooth_dr": 1e-12}
    loss = LocalNormalizedCrossCorrelationLoss(reduction="none", **options)
    for images in ((p, t), (p.mT.contiguous(), t.mT.contiguous()), (p.movedim(-1, 2), t.movedim(-1, 2))):
        value, gradient = value_and_gradient(loss, *images, form=form)
        expected = truth(*(image.contiguous() for image in images), reduction="none", **options)
        assert_all_close((value,), expected[:1], 1e-6, 1e-6)
        axis = images[0].shape.index(60)
        dark, slope = (image.movedim(axis, -1)[..., 29:] for image in (gradient, expected[1]))
        assert_all_close((dark,), (slope,), 0, 1e-5 * slope.abs().max().item())


@BACKENDS
@REDUCTIONS
@WINDOWS
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_reaches_the_windows_that_see_it_and_no_others(form, reduction, kernel_type, which, poison):
    images = pair(2, 2, 9, 10, 11, dtype=torch.float32)
    images[which][1, 0, 4, 5, 6] = poison
    with dispatch.forced(form):
        assert LocalNormalizedCrossCorrelationLoss(3, 1, kernel_type)(*images).isnan()
    loss = LocalNormalizedCrossCorrelationLoss(3, 3, kernel_type, reduction)
    value, gradient = value_and_gradient(loss, *images, form=form)
    seen = torch.zeros(2, 2, 9, 10, 11, dtype=torch.bool)
    seen[1, 0, 3:6, 4:7, 5:8] = True
    if reduction == "none":
        assert value[seen].isnan().all()
        assert value[~seen].isfinite().all()
    else:
        assert value.isnan()
    assert gradient[seen].isnan().all()
    reached = torch.zeros_like(seen)
    reached[1, 0, 2:7, 3:8, 4:9] = True
    assert gradient[~reached].isfinite().all()


# --- differentiation -------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("which", [0, 1])
def test_gradcheck_of_one_image_and_of_the_clamped_form(form, which):
    images = list(pair(1, 2, 5, 6))
    images[which].requires_grad_()
    loss = LocalNormalizedCrossCorrelationLoss(2, smooth_dr=4.0, denominator="clamp")
    with dispatch.forced(form):
        assert torch.autograd.gradcheck(loss, images)
        assert torch.autograd.gradgradcheck(loss, images)


@BACKENDS
def test_image_compared_with_itself_gets_both_gradients(form):
    p, _ = pair(1, 1, 5, 6, 7)
    loss = LocalNormalizedCrossCorrelationLoss(smooth_dr=0.5)
    _, gradient = value_and_gradient(lambda x: loss(x, x), p, form=form)
    torch.testing.assert_close(gradient, sum(gradients(loss, p, p, form)), rtol=1e-12, atol=1e-14)


@BACKENDS
def test_gradient_can_be_taken_twice_from_one_graph(form):
    p, t = (image.requires_grad_() for image in pair(1, 1, 5, 6, 7))
    with dispatch.forced(form):
        value = LocalNormalizedCrossCorrelationLoss()(p, t)
        first = torch.autograd.grad(value, (p, t), retain_graph=True)
        assert_all_close(torch.autograd.grad(3 * value, (p, t)), [3 * g for g in first], 1e-13, 1e-16)


@BACKENDS
@REDUCTIONS
def test_value_is_the_same_without_a_gradient(form, reduction):
    p, t = pair(1, 1, 5, 6, 7)
    loss = LocalNormalizedCrossCorrelationLoss(reduction=reduction)
    value, _ = value_and_gradient(loss, p, t, form=form)
    with dispatch.forced(form), torch.no_grad():
        found = loss(p.requires_grad_(), t)
    assert not found.requires_grad
    assert torch.equal(found, value)


# --- layouts, threads, state -----------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
def test_target_may_be_one_image_that_is_expanded(form, reduction):
    p, t = pair(2, 3, 6, 5, 7)
    loss, expanded = LocalNormalizedCrossCorrelationLoss(reduction=reduction), t[:1].expand(2, -1, -1, -1, -1)
    expected = value_and_gradient(loss, p, expanded.clone(), form=form)
    assert_all_close(value_and_gradient(loss, p, expanded, form=form), expected, 0)


@BACKENDS
@SPATIAL
def test_upstream_may_be_strided(form, spatial):
    p, t = (image.requires_grad_() for image in pair(2, 2, *spatial))
    upstream = logits(*p.shape[::-1], dtype=torch.float64).permute(*range(p.ndim - 1, -1, -1))
    with dispatch.forced(form):
        value = LocalNormalizedCrossCorrelationLoss(len(spatial), reduction="none")(p, t)
        expected = torch.autograd.grad(value, (p, t), upstream.contiguous(), retain_graph=True)
        assert_all_close(torch.autograd.grad(value, (p, t), upstream), expected, 1e-12, 1e-14)


def test_one_module_serves_images_of_any_size():
    loss = LocalNormalizedCrossCorrelationLoss(2, 5, "triangular", "none")
    for shape in ((1, 1, 6, 7), (3, 2, 4, 3), (1, 1, 6, 7)):
        p, t = pair(*shape)
        torch.testing.assert_close(loss(p, t), by_definition(p, t, 5, "triangular"), rtol=1e-11, atol=1e-13)


@BACKENDS
def test_a_window_without_contrast_or_smoothing_is_infinite(form):
    p, t = pair(1, 1, 4, 4, 4)
    with dispatch.forced(form):
        loss = LocalNormalizedCrossCorrelationLoss(kernel_size=1, smooth_dr=0)
        assert loss(p, t) == -torch.inf


@pytest.mark.parametrize("kernel_size", [9, 31])
def test_a_deep_image_in_several_slabs_gives_the_same_as_the_plain_form(kernel_size):
    p, t = pair(1, 1, 230, 2, 3)
    loss = LocalNormalizedCrossCorrelationLoss(kernel_size=kernel_size)
    found, expected = (value_and_gradient(loss, p, t, form=form) for form in ("kernel", "plain"))
    assert_all_close(found, expected, 1e-11, 1e-14)


@pytest.mark.parametrize("kernel_type", ["triangular", "gaussian"])
def test_a_contrast_of_a_few_roundoffs_is_not_lost_in_the_mean_of_a_weighted_window(kernel_type):
    rng = np.random.default_rng(0)
    pred, steps = rng.integers(-12, 13, (8, 1, 5, 7)) / 4, rng.integers(0, 4, (8, 1, 5, 7))
    pred[:, :, :3] = 0
    operands = {"pred": pred, "target": 8192 * (1 + np.finfo(np.float64).eps * steps)}
    options = {"ndim": 2, "kernel_size": 5, "kernel_type": kernel_type, "smooth_nr": 1.0}
    case = Case({name: Operand(values, "float64") for name, values in operands.items()}, options)
    assert examine(find("lncc"), case).message == ""
