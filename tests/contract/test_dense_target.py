"""Targets that are not labels: one warning for each loss if they are no shares of the classes."""

import copy
import warnings

import pytest
import torch
from loss_options import taking
from support import BACKENDS, labels, logits, one_hot, soft
from torch._subclasses import FakeTensorMode

from twinloss import fast
from twinloss.fast.runtime import dispatch

TAKE_DENSE_TARGETS = [*taking("to_onehot_y"), fast.MaskedDiceLoss]
EVERY_LOSS = pytest.mark.parametrize("loss_class", TAKE_DENSE_TARGETS, ids=lambda c: c.__name__)
MASK_OF_255 = 255 * one_hot(labels(2, 1, 6)).to(torch.uint8)


def arguments(loss, x, target):
    return (x, target, torch.ones_like(x[:, :1])) if isinstance(loss, fast.MaskedDiceLoss) else (x, target)


def messages(loss, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss(*arguments)
    return [(str(warning.message), warning.filename) for warning in caught]


@EVERY_LOSS
@BACKENDS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.float32])
def test_target_outside_0_to_1_draws_one_warning_that_names_range_mend_and_line(loss_class, form, dtype):
    loss, x = loss_class(), logits(2, 3, 6)
    target = MASK_OF_255.to(dtype)
    state = copy.deepcopy(vars(loss))
    with dispatch.forced(form):
        (message, file), *others = messages(loss, *arguments(loss, x.sigmoid(), target))
        assert not others
        assert messages(loss, *arguments(loss, x.sigmoid(), target)) == []
        assert len(messages(copy.deepcopy(loss), *arguments(loss, x.sigmoid(), target))) == 1
    assert message.startswith("target holds values from 0 to 255")
    assert "(target > 0).float()" in message
    assert "to_onehot_y=True" in message
    assert file == __file__
    assert vars(loss) == state


@pytest.mark.parametrize(
    ("target", "found"), [([-1.0, 1.0], "-1 to 1"), ([0.0, 3.0], "0 to 3"), ([0.0, 1.1], "0 to 1.1")]
)
def test_one_channel_of_other_numbers_than_0_to_1_draws_a_warning(target, found):
    (message, _), *others = messages(fast.DiceLoss(sigmoid=True), torch.zeros(1, 1, 2), torch.tensor([[target]]))
    assert not others
    assert found in message
    assert "to_onehot_y" not in message


@EVERY_LOSS
def test_target_of_a_softmax_that_does_not_sum_to_1_draws_one_warning(loss_class):
    options = {"softmax": True} if loss_class is not fast.FocalLoss else {}
    loss, x = loss_class(**options), logits(2, 3, 6)
    target = torch.rand(2, 3, 6)
    (message, file), *others = messages(loss, *arguments(loss, x, target))
    assert not others
    total = target.sum(1)
    assert f"target sums to values from {total.min():g} to {total.max():g}" in message
    assert file == __file__
    assert messages(loss, *arguments(loss, x, target)) == []


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (fast.DiceLoss(sigmoid=True), None),
        (fast.FocalLoss(use_softmax=False), None),
        (fast.DiceFocalLoss(sigmoid=True, use_softmax=False), None),
        (fast.DiceLoss(False, softmax=True), None),
        (fast.FocalLoss(False), None),
        (fast.DiceCELoss(False), "target sums to"),  # the cross entropy sees the background
        (fast.DiceFocalLoss(sigmoid=True), "target sums to"),
    ],
)
def test_sum_counts_only_where_classes_exclude_each_other_and_all_take_part(loss, message):
    target = one_hot(labels(2, 1, 6)).float()
    target[:, 0] = 0  # no background
    found = messages(loss, logits(2, 3, 6), target)
    assert [text.startswith(message) for text, _ in found] == ([] if message is None else [True])


def test_foreground_of_a_softmax_that_sums_to_more_than_1_draws_a_warning_without_the_background_too():
    (message, _), *_ = messages(fast.DiceLoss(False, softmax=True), logits(2, 3, 6), torch.ones(2, 3, 6))
    assert "from 2 to 2 over the foreground classes" in message


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.float64])
def test_shares_of_classes_draw_no_warning(loss_class, dtype):
    options = {"softmax": True} if loss_class is not fast.FocalLoss else {}
    whole = dtype in (torch.bool, torch.uint8)
    target = (one_hot(labels(2, 1, 6)) if whole else soft(2, 3, 6, dtype=torch.float64)).to(dtype)
    loss = loss_class(**options)
    assert messages(loss, *arguments(loss, logits(2, 3, 6), target)) == []


@pytest.mark.parametrize("softmax", [True, False])
def test_voxels_that_take_no_part_may_hold_anything(softmax):
    x, target, mask = logits(2, 3, 6), one_hot(labels(2, 1, 6)).float(), torch.ones(1, 1, 6)
    mask[..., 4] = 0
    target[..., 4] = 255
    target[..., 2] = torch.tensor([-9.0, 9.0, 1.0])  # ignored
    loss = fast.MaskedDiceLoss(softmax=softmax, sigmoid=not softmax, ignore_index=2)
    assert messages(loss, x, target, mask) == []
    assert len(messages(loss, x, target, torch.ones(1, 1, 6))) == 1


def test_target_of_a_subclass_of_tensor_is_looked_at():
    class Named(torch.Tensor):
        """Like the MetaTensor of MONAI's loaders."""

    assert len(messages(fast.DiceLoss(sigmoid=True), logits(2, 3, 6), MASK_OF_255.as_subclass(Named))) == 1


def test_only_the_first_targets_of_a_loss_are_looked_at():
    loss, x = fast.DiceLoss(sigmoid=True), logits(2, 3, 6)
    for _ in range(8):
        assert messages(loss, x, one_hot(labels(2, 1, 6))) == []
    assert messages(loss, x, MASK_OF_255) == []


def fake(loss, *tensors):
    mode = FakeTensorMode()
    return loss(*(mode.from_tensor(tensor) for tensor in tensors))


@pytest.mark.parametrize(
    "call",
    [
        lambda loss, x, y: torch.compile(loss, fullgraph=True, backend="eager")(x, y),
        lambda loss, x, y: torch.func.vmap(loss)(x[None], y[None]),
        lambda loss, x, y: torch.func.grad(loss)(x, y),
        lambda loss, x, y: loss(x.to("meta"), y.to("meta")),
        lambda loss, x, y: fake(loss, x, y),
    ],
    ids=["compile", "vmap", "grad", "meta", "fake"],
)
def test_nothing_is_said_where_there_are_no_numbers_to_look_at(call):
    assert messages(lambda: call(fast.DiceLoss(sigmoid=True), logits(2, 3, 6), MASK_OF_255.float())) == []


def test_warning_that_is_made_an_error_stops_one_call_alone():
    loss, x = fast.DiceLoss(sigmoid=True), logits(2, 3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="target holds values"):
            loss(x, MASK_OF_255)
    assert loss(x, MASK_OF_255).isfinite()
