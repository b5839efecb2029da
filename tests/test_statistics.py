"""What the statistics keep between forward and backward: labels in half a byte each."""

import pytest
import torch
from support import labels, logits

from twinloss.fast import DiceCELoss, DiceLoss, FocalLoss, MaskedDiceLoss, fraction, statistics

# Tiles hold 4032 voxels of four classes or fewer, chunks sixteen tiles; halves of odd tiles differ by a voxel.
VOXELS = pytest.mark.parametrize("voxels", [1, 2, 7, 4033, 66001])


def gradient(loss, x, *rest):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x, *rest), x)[0]


def unkept(monkeypatch, loss, *arguments):
    """The gradient where nothing is kept, as if somebody looked into the losses."""
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "looked_into", lambda tensors: True)
        patch.setattr(fraction, "looked_into", lambda tensors: True)
        return gradient(loss, *arguments)


@pytest.fixture
def watched(monkeypatch):
    """The arguments `kept` of all gradients that are taken."""
    seen, taken = [], statistics.gradient_of_voxels

    def watching(*arguments):
        seen.append(arguments[7])
        return taken(*arguments)

    monkeypatch.setattr(statistics, "gradient_of_voxels", watching)
    monkeypatch.setattr(fraction, "gradient_of_voxels", watching)
    return seen


@VOXELS
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 15])
@pytest.mark.parametrize("ignore_index", [None, 1])
@pytest.mark.parametrize("kind", [DiceLoss, FocalLoss, DiceCELoss])
def test_gradient_by_labels_that_were_kept_is_that_by_the_target(
    monkeypatch, watched, kind, ignore_index, classes, voxels
):
    x, y = logits(2, classes, voxels), labels(2, 1, voxels, classes=max(classes, 2))
    options = {"to_onehot_y": classes > 1, "ignore_index": ignore_index}
    if kind is FocalLoss:
        options["use_softmax"] = classes > 1
    else:
        options["softmax" if classes > 1 else "sigmoid"] = True
    expected = unkept(monkeypatch, kind(**options), x, y)
    watched.clear()
    found = gradient(kind(**options), x, y)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-12, equal_nan=True)
    assert [kept.shape for kept in watched] == [(2, 1, (voxels + 1) // 2)]


@VOXELS
def test_voxels_that_a_mask_leaves_out_are_kept_as_such(monkeypatch, watched, voxels):
    x, y = logits(2, 4, voxels), labels(2, 1, voxels, classes=4)
    mask = labels(1, 1, voxels, classes=2).float()
    loss = MaskedDiceLoss(softmax=True, to_onehot_y=True)
    expected = unkept(monkeypatch, loss, x, y, mask)
    watched.clear()
    torch.testing.assert_close(gradient(loss, x, y, mask), expected, rtol=2e-6, atol=1e-12)
    assert watched[0] is not None


@pytest.mark.parametrize("case", ["weights", "soft", "channels", "halves", "classes"])
def test_nothing_is_kept_of_what_half_a_byte_cannot_hold(watched, case):
    classes, options = (16 if case == "classes" else 3), {"softmax": True, "to_onehot_y": True}
    x, y, mask = logits(1, classes, 50), labels(1, 1, 50, classes=classes), torch.ones(1, 1, 50)
    if case == "weights":
        mask *= 0.5
    elif case == "soft":
        x, y, options = x[:, :1], torch.full((1, 1, 50), 0.5), {"sigmoid": True}
    elif case == "channels":
        y, options = labels(1, classes, 50, classes=2), {"sigmoid": True}
    elif case == "halves":
        x = x.bfloat16()
    gradient(MaskedDiceLoss(**options), x, y, mask)
    assert watched == [None]


def test_a_target_that_changes_before_backward_is_an_error_still():
    x, y = logits(1, 3, 50).requires_grad_(), labels(1, 1, 50)
    for loss in (DiceLoss(softmax=True, to_onehot_y=True), FocalLoss(to_onehot_y=True)):
        value = loss(x, y)
        y.add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def test_room_is_made_where_a_gradient_will_be_asked_for_and_nowhere_else(monkeypatch):
    made, keep = [], statistics._Kernels.keep
    monkeypatch.setattr(statistics._Kernels, "keep", lambda self: made.append(keep(self)) or made[-1])
    x, y = logits(1, 3, 50), labels(1, 1, 50)
    for loss in (DiceLoss(softmax=True, to_onehot_y=True), FocalLoss(to_onehot_y=True)):
        loss(x, y)
        with torch.no_grad():
            loss(x.clone().requires_grad_(), y)
        assert not made
        loss(x.clone().requires_grad_(), y)
        assert made.pop().nbytes == 25
