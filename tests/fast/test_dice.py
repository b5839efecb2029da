"""The fast Dice losses: errors and corner cases. Signatures: test_contract.py; wrong values: the harness."""

import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient

from twinloss import reference
from twinloss.fast import DiceFocalLoss, DiceLoss, MaskedDiceLoss
from twinloss.fast.runtime import dispatch

LOSSES = pytest.mark.parametrize("loss_class", [DiceLoss, MaskedDiceLoss])


# --- errors ----------------------------------------------------------------------------------------------------------


@LOSSES
def test_other_act_that_cannot_be_called_is_a_type_error(loss_class):
    with pytest.raises(TypeError, match="other_act must be None or callable, got str"):
        loss_class(other_act="tanh")


@LOSSES
@pytest.mark.parametrize(
    "activations",
    [
        {"sigmoid": True, "softmax": True},
        {"sigmoid": True, "other_act": torch.tanh},
        {"softmax": True, "other_act": abs},
    ],
)
def test_two_activations_are_a_value_error(loss_class, activations):
    with pytest.raises(ValueError, match="give at most one"):
        loss_class(**activations)


@pytest.mark.parametrize("reduction", ["average", None, 3])
def test_unknown_reduction_is_a_value_error(reduction):
    with pytest.raises(ValueError, match="reduction must be"):
        DiceLoss(reduction=reduction)


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


@BACKENDS
@pytest.mark.parametrize(
    ("wrong", "shown"), [([0, 3, 1, -1], "2 voxels with -1, 3"), ([0.0, 0.5, 1.0, 2.0], "1 voxels with 0.5"),
                         ([0.0, float("nan"), 1.0, 2.0], "1 voxels with nan")],
)  # fmt: skip
def test_labels_that_name_no_class_are_shown_and_counted(form, wrong, shown):
    with dispatch.forced(form), pytest.raises(ValueError, match=shown):
        DiceLoss(to_onehot_y=True)(torch.rand(1, 3, 4), torch.tensor(wrong)[None, None])


@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 2, 0), (1, 0, 3)])
def test_empty_input_is_a_value_error(shape):
    with pytest.raises(ValueError, match="at least one voxel"):
        DiceLoss()(torch.rand(shape), torch.rand(shape))


def test_integer_input_is_a_type_error():
    with pytest.raises(TypeError, match="floating-point"):
        DiceLoss()(torch.ones(1, 2, 3, dtype=torch.int64), torch.rand(1, 2, 3))


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


@pytest.mark.parametrize("ignore_index", [3, -1])
def test_ignore_index_that_names_no_channel_of_a_one_hot_target_is_a_value_error(ignore_index):
    with pytest.raises(ValueError, match=f"ignore_index={ignore_index}"):
        DiceLoss(ignore_index=ignore_index)(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


@pytest.mark.parametrize("ignore_index", [0.5, True, "1", float("nan")])
def test_ignore_index_that_is_no_whole_number_is_a_value_error(ignore_index):
    with pytest.raises(ValueError, match="ignore_index must be"):
        DiceLoss(ignore_index=ignore_index)


def test_other_act_that_changes_the_shape_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 3, 4\), it returned \(1, 4\)"):
        DiceLoss(other_act=lambda x: x.sum(1))(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


# --- one channel, no spatial axes, shapes of the result --------------------------------------------------------------


@pytest.mark.parametrize("option", [{"softmax": True}, {"to_onehot_y": True}, {"include_background": False}])
def test_single_channel_warns_and_ignores(option):
    x, y = torch.rand(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match="single channel prediction"):
        value = DiceLoss(**option)(x, y)
    assert torch.equal(value, DiceLoss()(x, y))


@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4), (2, 1, 3, 2)])
@pytest.mark.parametrize(("batch", "background"), list(itertools.product([False, True], repeat=2)))
def test_unreduced_loss_broadcasts_and_mean_and_sum_follow_from_it(spatial, batch, background):
    options = {"include_background": background, "batch": batch, "softmax": True, "to_onehot_y": True}
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    none = DiceLoss(reduction="none", **options)(x, y)
    assert none.shape == (1 if batch else 2, 3 if background else 2, *[1] * len(spatial))
    torch.testing.assert_close(DiceLoss(reduction="mean", **options)(x, y), none.mean())
    torch.testing.assert_close(DiceLoss(reduction="sum", **options)(x, y), none.sum())


def test_enumerated_reduction_is_understood():
    from enum import Enum

    reduction = Enum("Reduction", {"SUM": "sum"})
    assert DiceLoss(reduction=reduction.SUM).reduction == "sum"


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("target_type", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
                                         torch.float16, torch.bfloat16, torch.float32, torch.float64])  # fmt: skip
@pytest.mark.parametrize("options", [{"softmax": True, "to_onehot_y": True}, {"sigmoid": True}])
def test_target_of_any_type_gives_the_same(form, target_type, options):
    x, y = logits(2, 2, 7), labels(2, 1, 7, classes=2)
    target = y if "to_onehot_y" in options else torch.cat([1 - y, y], 1)
    with dispatch.forced(form):
        expected = value_and_gradient(DiceLoss(**options), x, target)
        found = value_and_gradient(DiceLoss(**options), x, target.to(target_type))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@BACKENDS
def test_float64_keeps_its_accuracy(form):
    x, y = logits(2, 3, 50, dtype=torch.float64), labels(2, 1, 50)
    options = {"softmax": True, "to_onehot_y": True, "squared_pred": True, "weight": [0.1, 0.2, 0.7]}
    with dispatch.forced(form):
        value, gradient = value_and_gradient(DiceLoss(**options), x, y)
    truth = (x.numpy().astype(np.longdouble), y.numpy())
    assert value.dtype == gradient.dtype == torch.float64
    np.testing.assert_allclose(value.numpy(), np.float64(reference.dice_loss(*truth, **options)), rtol=1e-14)
    np.testing.assert_allclose(
        gradient, np.float64(reference.dice_loss_gradient(*truth, **options)), rtol=1e-12, atol=1e-17
    )


def test_nearly_perfect_prediction_keeps_a_relative_accuracy_of_float32():
    # 1 - 2I/D would be rounded to a multiple of 6e-8; the loss here is about 1e-8.
    y = labels(1, 1, 1000)
    x = torch.where(torch.arange(3)[:, None] == y[0], 20.0, 0.0)[None]
    options = {"softmax": True, "to_onehot_y": True}
    value, gradient = value_and_gradient(DiceLoss(**options), x, y)
    truth = (x.numpy().astype(np.longdouble), y.numpy())
    np.testing.assert_allclose(value.numpy(), np.float64(reference.dice_loss(*truth, **options)), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.float64(reference.dice_loss_gradient(*truth, **options)), rtol=1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    # 2^17 voxels: beyond 65504, the largest float16, and far beyond 256, where bfloat16 stops counting.
    x, y = logits(1, 2, 2**17).to(half), labels(1, 1, 2**17, classes=2)
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    value, gradient = value_and_gradient(loss, x, y)
    exact, exact_gradient = value_and_gradient(loss, x.float(), y)
    assert value.dtype == gradient.dtype == half
    assert value == exact.to(half)
    assert torch.equal(gradient, exact_gradient.to(half))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_saturated_logits_have_a_finite_value_and_gradient(activation):
    x, y = 1e4 * logits(2, 3, 40).sign(), labels(2, 1, 40)
    value, gradient = value_and_gradient(DiceLoss(to_onehot_y=True, **{activation: True}), x, y)
    assert value.isfinite()
    assert gradient.isfinite().all()


@BACKENDS
@pytest.mark.parametrize("options", [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.tanh},
                                     {"soft_label": True}, {"squared_pred": True}])  # fmt: skip
@pytest.mark.parametrize("onehot", [True, False])
@pytest.mark.parametrize("poison", [float("nan")])
def test_nan_reaches_value_and_gradient(form, options, onehot, poison):
    x, y = torch.rand(2, 3, 5), labels(2, 1, 5)
    x[1, 2, 3] = poison
    target = y if onehot else torch.rand(2, 3, 5).softmax(1)
    with dispatch.forced(form):
        value, gradient = value_and_gradient(DiceLoss(to_onehot_y=onehot, reduction="none", **options), x, target)
    assert value[1, 2].isnan().all()
    assert value[0].isfinite().all()
    assert gradient[1, 2].isnan().all() or options == {}  # without an activation dL/dp of others may stay finite


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


def test_target_that_asks_for_a_gradient_gets_one():
    x, target = torch.rand(2, 3, 5, dtype=torch.float64), torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: DiceLoss()(x, t), target)


@pytest.mark.parametrize(
    "options",
    [
        {"softmax": True, "to_onehot_y": True},
        {"sigmoid": True, "squared_pred": True},
        {"softmax": True, "jaccard": True},
    ],
)
def test_double_backward(options):
    x = logits(2, 3, 4, dtype=torch.float64).requires_grad_()
    target = labels(2, 1, 4) if "to_onehot_y" in options else torch.rand(2, 3, 4, dtype=torch.float64).softmax(1)
    assert torch.autograd.gradgradcheck(lambda x: DiceLoss(**options)(x, target), x)


# --- layouts, threads, state, operators ------------------------------------------------------------------------------


def test_layout_of_the_input_does_not_matter():
    x, y = logits(2, 3, 6, 5, 4), labels(2, 1, 6, 5, 4)
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    expected = value_and_gradient(loss, x, y)
    strided = torch.empty(2, 6, 6, 10, 4)[:, ::2, :, 1::2]
    strided.copy_(x)
    for layout in (x.to(memory_format=torch.channels_last_3d), x.transpose(2, 4).contiguous().transpose(2, 4), strided):
        assert not layout.is_contiguous()
        for found, wanted in zip(value_and_gradient(loss, layout, y.mT.contiguous().mT), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_is_bitwise_the_same_on_any_number_of_threads(dtype):
    x, y = logits(2, 3, 70_001, dtype=dtype), labels(2, 1, 70_001)
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4, 2):
            torch.set_num_threads(threads)
            results.append(value_and_gradient(loss, x, y))
    finally:
        torch.set_num_threads(before)
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_python_threads_may_call_at_once():
    from concurrent.futures import ThreadPoolExecutor

    x, y = logits(1, 3, 100_000), labels(1, 1, 100_000)
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    expected = value_and_gradient(loss, x, y)[1]
    with ThreadPoolExecutor(8) as pool:
        for _, gradient in pool.map(lambda _: value_and_gradient(loss, x, y), range(32)):
            assert torch.equal(gradient, expected)


def test_input_target_and_module_stay_as_they_were():
    x, y, mask = logits(2, 3, 40), labels(2, 1, 40), torch.rand(2, 1, 40)
    loss = MaskedDiceLoss(softmax=True, to_onehot_y=True, weight=torch.tensor([1.0, 2.0, 3.0]))
    before, tensors = copy.deepcopy(loss.__dict__), [t.clone() for t in (x, y, mask)]
    value_and_gradient(loss, x, y, mask)
    assert loss.__dict__ == before
    assert all(torch.equal(a, b) for a, b in zip(tensors, (x, y, mask), strict=True))


def test_one_module_serves_another_channel_count():
    loss = DiceLoss(softmax=True, to_onehot_y=True, weight=2.0)
    for classes in (3, 5, 2):
        x, y = logits(2, classes, 6), labels(2, 1, 6, classes=classes)
        torch.testing.assert_close(loss(x, y), 2 * DiceLoss(softmax=True, to_onehot_y=True)(x, y))


def test_weight_survives_half_and_copying():
    x, y = logits(1, 2, 6, dtype=torch.float64), labels(1, 1, 6, classes=2)
    loss = DiceLoss(softmax=True, to_onehot_y=True, weight=np.array([0.1, 0.9]))
    expected = loss(x, y)
    for twin in (copy.deepcopy(loss).half(), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(x, y), expected)
    assert loss.state_dict() == {}


def test_operators_pass_opcheck():
    x, y, mask = logits(2, 3, 5, dtype=torch.float64), labels(2, 1, 5), torch.rand(1, 1, 5, dtype=torch.float64)
    for options in [("softmax", "product", "none", 0.0, True, None), ("sigmoid", "squared", "target", 2.0, True, 1)]:
        for m in (None, mask):
            arguments = (x.clone().requires_grad_(), y, m, None, *options)
            torch.library.opcheck(torch.ops.twinloss.voxel_sums.default, arguments)
            torch.library.opcheck(
                torch.ops.twinloss.voxel_sums_backward.default,
                (torch.rand(8, 2, 3, dtype=x.dtype), x, y, m, None, *options),
            )


def test_compiles_without_a_graph_break():
    x, y = logits(2, 3, 50), labels(2, 1, 50)
    loss = DiceLoss(softmax=True, to_onehot_y=True, weight=[1.0, 2.0, 3.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it compiles
        found = value_and_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, y)
    for a, b in zip(found, value_and_gradient(loss, x, y), strict=True):
        torch.testing.assert_close(a, b)


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
