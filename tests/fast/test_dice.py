"""The fast Dice losses: errors and corner cases."""

import itertools

import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient

from twinloss.fast import DiceFocalLoss, DiceLoss, MaskedDiceLoss
from twinloss.fast.runtime import dispatch

# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AssertionError, ValueError])
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 3, 5)),
        ({}, (2, 1, 4)),
        ({"to_onehot_y": True}, (2, 3, 4)),
        ({"to_onehot_y": True}, (1, 1, 4)),
        ({}, (4,)),
    ],
)
def test_shapes_that_differ_are_named(error, options, shape):
    with pytest.raises(error) as caught:
        DiceLoss(**options)(torch.rand(2, 3, 4), torch.zeros(shape))
    assert str(tuple(shape)) in str(caught.value)
    assert "(2, 3, 4)" in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 2, 0), (1, 0, 3)])
def test_empty_input_is_a_value_error(shape):
    with pytest.raises(ValueError, match="at least one voxel"):
        DiceLoss()(torch.rand(shape), torch.rand(shape))


@pytest.mark.parametrize("weight", [-1.0, [1.0, -2.0], [1.0, float("nan")], float("inf")])
def test_negative_or_undefined_weight_is_a_value_error(weight):
    with pytest.raises(ValueError, match="finite and not negative"):
        DiceLoss(weight=weight)


@pytest.mark.parametrize(("include_background", "count"), [(True, 3), (False, 2)])
def test_weight_of_another_length_names_both_counts(include_background, count):
    loss = DiceLoss(include_background=include_background, weight=[1.0] * 5)
    with pytest.raises(ValueError, match=f"weight has 5 values but {count} classes"):
        loss(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


@pytest.mark.parametrize("value", [-1e-5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["smooth_nr", "smooth_dr"])
def test_smoothing_that_is_negative_or_not_finite_is_a_value_error(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        DiceLoss(**{name: value})


def test_smoothing_that_is_no_number_is_a_type_error():
    with pytest.raises(TypeError, match="smooth_nr must be a number, got str"):
        DiceLoss(smooth_nr="1e-5")


@pytest.mark.parametrize("shape", [(3, 1, 4), (2, 3, 4), (2, 1, 5), (2, 4)])
def test_mask_of_a_wrong_size_names_both_shapes(shape):
    with pytest.raises(ValueError, match="mask has shape") as caught:
        MaskedDiceLoss()(torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.ones(shape))
    assert str(tuple(shape)) in str(caught.value)
    assert "(2, 3, 4)" in str(caught.value)


@BACKENDS
def test_mask_outside_zero_to_one_is_a_value_error(form):
    with dispatch.forced(form), pytest.raises(ValueError, match=r"\[0, 1\], got 0 to 255"):
        MaskedDiceLoss()(torch.rand(1, 2, 2), torch.rand(1, 2, 2), torch.tensor([[[0, 255]]]))


def test_no_mask_warns_and_gives_plain_dice():
    x, y = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    with pytest.warns(UserWarning, match="no mask"):
        value = MaskedDiceLoss()(x, y)
    assert torch.equal(value, DiceLoss()(x, y))


@pytest.mark.parametrize("ignore_index", [0.5, True, "1", float("nan")])
def test_ignore_index_that_is_no_whole_number_is_a_value_error(ignore_index):
    with pytest.raises(ValueError, match="ignore_index must be"):
        DiceLoss(ignore_index=ignore_index)


def test_other_act_that_changes_the_shape_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 3, 4\), it returned \(1, 4\)"):
        DiceLoss(other_act=lambda x: x.sum(1))(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


# --- numbers ---------------------------------------------------------------------------------------------------------


MASKING_ACTIVATIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft_label": True},
        {"sigmoid": True},
        {"sigmoid": True, "squared_pred": True},
        {"softmax": True},
        {"softmax": True, "soft_label": True},
        {"other_act": torch.exp},
    ],
)


@BACKENDS
@MASKING_ACTIVATIONS
@pytest.mark.parametrize("onehot", [True, False])
def test_ignored_voxels_may_hold_nan_and_the_rest_counts_as_if_cropped(form, options, onehot):
    x, y = torch.rand(2, 3, 9), labels(2, 1, 9)
    y[:, :, 4:6] = 2
    if onehot:
        y[:, :, 4:6], ignore, target = 255, 255, y
    else:
        ignore = 2
        y[y == 2] = 1
        y[:, :, 4:6] = 2
        target = torch.nn.functional.one_hot(y[:, 0], 3).movedim(-1, 1).float()
    keep = [0, 1, 2, 3, 6, 7, 8]
    x[:, :, 4:6] = float("nan")
    with dispatch.forced(form):
        value, gradient = value_and_gradient(DiceLoss(to_onehot_y=onehot, ignore_index=ignore, **options), x, target)
        cropped, cropped_gradient = value_and_gradient(
            DiceLoss(to_onehot_y=onehot, **options), x[..., keep], target[..., keep]
        )
    torch.testing.assert_close(value, cropped)
    torch.testing.assert_close(gradient[..., keep], cropped_gradient)
    assert (gradient[:, :, 4:6] == 0).all()


@BACKENDS
@MASKING_ACTIVATIONS
@pytest.mark.parametrize("onehot", [True, False])
@pytest.mark.parametrize("mask_type", [torch.bool, torch.float32, torch.int64])
def test_masked_voxels_may_hold_nan_and_the_rest_counts_as_if_cropped(form, options, onehot, mask_type):
    x, y = torch.rand(2, 3, 9), labels(2, 1, 9)
    target = y if onehot else torch.rand(2, 3, 9).softmax(1)
    mask = torch.ones(1, 1, 9)
    mask[..., 4:6] = 0
    keep = mask[0, 0].bool()
    x[:, :, 4:6] = float("nan")
    options = {"to_onehot_y": onehot, **options}
    with dispatch.forced(form):
        value, gradient = value_and_gradient(MaskedDiceLoss(**options), x, target, mask.to(mask_type))
        cropped, cropped_gradient = value_and_gradient(DiceLoss(**options), x[..., keep], target[..., keep])
    torch.testing.assert_close(value, cropped)
    torch.testing.assert_close(gradient[..., keep], cropped_gradient)
    assert (gradient[..., ~keep] == 0).all()


@pytest.mark.parametrize("classes", [2, 4, 6])
@pytest.mark.parametrize("loss", [DiceLoss, DiceFocalLoss])
def test_ignored_voxels_have_no_gradient_where_an_empty_denominator_makes_slopes_infinite(classes, loss):
    x, y = logits(1, classes, 9), torch.zeros(1, 1, 9, dtype=torch.int64)
    x[:, -1] = -float("inf")  # absent from prediction and target
    y[..., 3:5], x[..., 3:5] = 255, float("nan")
    options = {"to_onehot_y": True, "softmax": True, "smooth_nr": 0, "smooth_dr": 0, "ignore_index": 255}
    gradient = value_and_gradient(loss(**options), x, y, form="kernel")[1]
    assert (gradient[..., 3:5] == 0).all()
    assert gradient[..., :3].isnan().any()


@pytest.mark.parametrize("classes", [2, 4, 6])
def test_one_soft_value_at_the_end_of_a_mask_of_zeros_and_ones_weighs_its_voxel(classes):
    shape = (41, 41, 41)  # more than a chunk
    x, y = logits(1, classes, *shape, dtype=torch.float64), labels(1, 1, *shape, classes=classes)
    mask = (logits(1, 1, *shape) > 0).double()
    mask[..., -1] = 0.25
    loss = MaskedDiceLoss(to_onehot_y=True, softmax=True)
    expected = value_and_gradient(loss, x, y, mask, form="plain")
    assert_all_close(value_and_gradient(loss, x, y, mask, form="kernel"), expected, 1e-12, 1e-20)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_in_any_order_and_equal_ones_have_the_same_softmax(classes, dtype):
    voxels = list(itertools.product([0.0, -3.0, 40.0, -200.0], repeat=classes))
    x = torch.tensor(voxels, dtype=dtype).T.reshape(1, classes, -1)
    y = torch.arange(len(voxels)).remainder(classes).reshape(1, 1, -1)
    loss = DiceFocalLoss(softmax=True, to_onehot_y=True)
    expected = value_and_gradient(loss, x.double(), y, form="plain")
    assert_all_close(value_and_gradient(loss, x, y, form="kernel"), expected, 8 * torch.finfo(dtype).eps, 1e-30)


@BACKENDS
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_an_infinite_logit_is_no_prediction(form, classes):
    x = torch.zeros(1, classes, 5)
    x[:, 1, 2] = float("inf")
    value, gradient = value_and_gradient(
        DiceFocalLoss(softmax=True, to_onehot_y=True), x, labels(1, 1, 5, classes=2), form=form
    )
    assert value.isnan()
    assert gradient[..., 2].isnan().all()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("loss_class", [DiceLoss, DiceFocalLoss])
def test_one_soft_value_at_the_end_of_a_target_of_zeros_and_ones_counts_in_part(loss_class, classes):
    shape = (41, 41, 41)  # more than a chunk
    x, target = logits(1, classes, *shape, dtype=torch.float64), (logits(1, classes, *shape, seed=3) > 0).double()
    target[..., -1] = 0.25
    loss = loss_class(sigmoid=True, **({} if loss_class is DiceLoss else {"use_softmax": False}))
    expected = value_and_gradient(loss, x, target, form="plain")
    assert_all_close(value_and_gradient(loss, x, target, form="kernel"), expected, 1e-12, 1e-20)


def test_activation_comes_before_the_mask():
    # Masking the logits instead would make sigmoid(0) = ½ of every masked voxel, and the loss ½ of what it should be.
    x, y, mask = torch.full((1, 1, 4), 50.0), torch.ones(1, 1, 4), torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert MaskedDiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=0)(x, y, mask) < 1e-20


# --- layouts, threads, state, operators ------------------------------------------------------------------------------


def test_python_threads_may_call_at_once():
    from concurrent.futures import ThreadPoolExecutor

    x, y = logits(1, 3, 100_000), labels(1, 1, 100_000)
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    expected = value_and_gradient(loss, x, y)[1]
    with ThreadPoolExecutor(8) as pool:
        for _, gradient in pool.map(lambda _: value_and_gradient(loss, x, y), range(32)):
            assert torch.equal(gradient, expected)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 3, 5])
@pytest.mark.parametrize("weighing", [False, True])
def test_halves_of_many_parts_and_a_mask_are_those_of_float32(half, classes, weighing):
    # Beyond a chunk of 64512 voxels, which is no whole number of what is widened at a time; for each item, and masked.
    x = logits(2, classes, 66000).to(half)
    y = labels(2, 1, 66000, classes=max(classes, 2))
    mask = torch.rand(2, 1, 66000, generator=torch.Generator().manual_seed(1))
    mask = mask if weighing else mask.round()
    loss = MaskedDiceLoss(sigmoid=classes == 1, softmax=classes > 1, to_onehot_y=classes > 1)
    mask = mask.to(half)
    value, gradient = value_and_gradient(loss, x, y, mask)
    wide_value, wide_gradient = value_and_gradient(loss, x.float(), y, mask)
    assert value == wide_value.to(half)
    assert torch.equal(gradient, wide_gradient.to(half))


def test_a_mask_value_beyond_1_is_an_error_for_halves_too():
    x, mask = logits(1, 2, 8).bfloat16(), torch.ones(1, 1, 8)
    mask[0, 0, 3] = 1.001  # 1 as a bfloat16
    with pytest.raises(ValueError, match="mask values must lie in"):
        MaskedDiceLoss(softmax=True, to_onehot_y=True)(x, labels(1, 1, 8, classes=2), mask)
