"""What the statistics keep between forward and backward: labels in half a byte each, or the gradient itself."""

import weakref

import pytest
import torch
import torch.utils.checkpoint
from support import labels, logits

from twinloss.fast import DiceCELoss, DiceLoss, FocalLoss, MaskedDiceLoss
from twinloss.fast.engine.segmentation import loss as segmentation_loss
from twinloss.fast.engine.segmentation import statistics
from twinloss.fast.kernels.contract import Plan, VoxelInputs
from twinloss.fast.kernels.cpu import voxel_call
from twinloss.fast.kernels.cpu import voxels as on_cpu
from twinloss.fast.runtime.torch_operator import Once

# Tiles hold 4032 voxels of four classes or fewer, chunks sixteen tiles; halves of odd tiles differ by a voxel.
VOXELS = pytest.mark.parametrize("voxels", [1, 2, 7, 4033, 66001])


def gradient(loss, x, *rest):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x, *rest), x)[0]


def unkept(monkeypatch, loss, *arguments):
    """Return the gradient where nothing is kept, as if the losses were traced."""
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "is_traced", lambda tensors: True)
        patch.setattr(segmentation_loss, "is_traced", lambda tensors: True)
        return gradient(loss, *arguments)


@pytest.fixture
def watched(monkeypatch):
    """Collect what each gradient is given that was kept, as if the caches held no input, however small."""
    seen, taken = [], on_cpu._gradient
    monkeypatch.setattr(on_cpu, "_CACHED", 0)

    def watching(slopes, factor, inputs, matrix, plan, kept):
        seen.append(kept)
        return taken(slopes, factor, inputs, matrix, plan, kept)

    monkeypatch.setattr(on_cpu, "_gradient", watching)
    return seen


@VOXELS
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 15])
@pytest.mark.parametrize("ignore_index", [None, 1])
@pytest.mark.parametrize("kind", [DiceLoss, FocalLoss, DiceCELoss])
def test_gradient_by_labels_that_were_kept_is_that_by_the_target(
    monkeypatch, watched, kind, ignore_index, classes, voxels
):
    monkeypatch.setattr(on_cpu, "_MANY", torch.inf)
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
    made, keep = [], voxel_call.VoxelCall.keep_target
    monkeypatch.setattr(on_cpu, "_CACHED", 149)
    monkeypatch.setattr(voxel_call.VoxelCall, "keep_target", lambda self: made.append(keep(self)) or made[-1])
    x, y = logits(1, 3, 50), labels(1, 1, 50)
    for loss in (DiceLoss(softmax=True, to_onehot_y=True), FocalLoss(to_onehot_y=True)):
        loss(x, y)
        with torch.no_grad():
            loss(x.clone().requires_grad_(), y)
        assert not made
        loss(x.clone().requires_grad_(), y)
        assert made.pop().nbytes == 25
        loss(x[:, :, :-1].clone().requires_grad_(), y[:, :, :-1])  # which the caches hold
        assert not made


@pytest.mark.parametrize("loss", [DiceLoss(softmax=True, to_onehot_y=True), FocalLoss(to_onehot_y=True)])
def test_copies_that_were_saved_in_the_place_of_tensors_are_what_counts(loss):
    x, y = logits(1, 3, 50).requires_grad_(), labels(1, 1, 50)
    expected = gradient(loss, x.detach(), y)
    hidden = x * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        value = loss(hidden, y)
    with torch.no_grad():
        hidden.zero_()
    assert torch.equal(torch.autograd.grad(value, x)[0], expected)


@pytest.mark.parametrize("cached", [0, 2**18])
@pytest.mark.parametrize("loss", [DiceLoss(softmax=True, to_onehot_y=True), FocalLoss(to_onehot_y=True)])
def test_nothing_is_kept_beyond_a_backward_for_as_long_as_the_loss(monkeypatch, loss, cached):
    monkeypatch.setattr(on_cpu, "_CACHED", cached)
    x, y = logits(1, 3, 50).requires_grad_(), labels(1, 1, 50)
    hidden = x * 1
    storage = weakref.ref(hidden.untyped_storage())
    value = loss(hidden, y)
    nodes = [value.grad_fn]
    for node in nodes:
        nodes += [each for each, _ in node.next_functions if each is not None]
    (kept,) = [node for node in nodes if getattr(node, "kept", None) is not None]
    value.backward(retain_graph=True)
    large = kept.kept if isinstance(kept.kept, Once) else kept.kept.voxels
    assert large.take() is None
    first = x.grad.clone()
    value.backward()
    assert torch.equal(x.grad, 2 * first)
    del hidden
    assert storage() is None


# --- a gradient that is made with the value ---------------------------------------------------------------------------

FOCAL = pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.0}, {"gamma": 0.5, "alpha": 0.25}, {"reduction": "sum", "include_background": False},
     {"weight": [1.0, 0.0, 3.0, 0.5, 2.0, 1.5]}],
    ids=["default", "cross-entropy", "alpha", "sum", "weight"],
)  # fmt: skip


@pytest.fixture
def small_inputs_too(monkeypatch):
    monkeypatch.setattr(on_cpu, "_MANY", 0)


def focal(classes, options):
    if "weight" in options:
        options = {**options, "weight": options["weight"][:classes]}
    return FocalLoss(to_onehot_y=True, **options)


@FOCAL
@VOXELS
@pytest.mark.parametrize("classes", [3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_made_with_the_value_is_that_made_after_it(monkeypatch, watched, options, voxels, classes, dtype):
    x, y = 4 * logits(2, classes, voxels, dtype=dtype), labels(2, 1, voxels, classes=classes)
    loss, found = focal(classes, options), []
    for many in (x.numel() - 1, x.numel()):
        monkeypatch.setattr(on_cpu, "_MANY", many)
        z = x.clone().requires_grad_()
        value = loss(z, y)
        found.append((value.detach(), *(torch.autograd.grad(f * value, z, retain_graph=True)[0] for f in (1, -8, 3))))
    assert len(watched) == 2 + 3  # of the first, what is asked for once more
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) or (one - other).abs().max() <= 2e-7 * other.abs().max()


@pytest.mark.usefixtures("small_inputs_too")
def test_slopes_that_nobody_foresaw_make_the_gradient_anew(watched):
    x, y = logits(2, 3, 50).requires_grad_(), labels(2, 1, 50)
    plan = Plan("softmax", surprisal="target", gamma=2.0, labels=True)
    foreseen = statistics.statistics(VoxelInputs(x, y), plan, lambda: torch.ones(2, 3))
    (found,) = torch.autograd.grad((foreseen.hits**2).sum(), x)
    after = statistics.statistics(VoxelInputs(x, y), plan)
    (expected,) = torch.autograd.grad((after.hits**2).sum(), x)
    assert torch.equal(found, expected)
    assert len(watched) == 2


@pytest.mark.usefixtures("small_inputs_too")
def test_a_graph_of_a_gradient_made_with_the_value_is_that_of_plain_torch():
    x, y = logits(2, 3, 20, dtype=torch.float64).requires_grad_(), labels(2, 1, 20)
    assert torch.autograd.gradcheck(lambda x: FocalLoss(to_onehot_y=True)(x, y), x)
    assert torch.autograd.gradgradcheck(lambda x: FocalLoss(to_onehot_y=True)(x, y), x)


@pytest.mark.usefixtures("small_inputs_too")
def test_labels_that_name_no_class_are_an_error_where_the_gradient_is_made_with_the_value():
    with pytest.raises(ValueError, match="relabel the target"):
        FocalLoss(to_onehot_y=True)(logits(1, 3, 5).requires_grad_(), torch.full((1, 1, 5), 3))


@pytest.mark.usefixtures("small_inputs_too")
def test_slopes_beyond_float32_are_left_to_the_backward(watched):
    x, y = logits(1, 3, 5).requires_grad_(), labels(1, 1, 5)
    value = FocalLoss(to_onehot_y=True, weight=1e90)(x.double(), y)
    expected = torch.autograd.grad(1e-90 * value, x)[0]
    watched.clear()
    statistic = statistics.statistics(
        VoxelInputs(x, y), Plan("softmax", surprisal="target", gamma=2.0, labels=True),
        lambda: torch.full((1, 3), 1e90, dtype=torch.float64),
    )  # fmt: skip
    found = torch.autograd.grad(statistic.hits.sum() / 15, x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert len(watched) == 1


@pytest.mark.usefixtures("small_inputs_too")
def test_a_nan_reaches_value_and_gradient_though_they_are_made_at_once():
    x, y = logits(1, 3, 5), labels(1, 1, 5)
    x[0, 0, 2] = torch.nan
    x.requires_grad_()
    value = FocalLoss(to_onehot_y=True)(x, y)
    value.backward()
    assert value.isnan()
    assert x.grad[0, :, 2].isnan().all()
    assert x.grad[0, :, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.usefixtures("small_inputs_too")
def test_a_checkpoint_around_a_focal_loss_calls_it_once_more_and_no_oftener():
    x, y, calls = logits(1, 3, 50).requires_grad_(), labels(1, 1, 50), []

    def step(x):
        calls.append(1)
        return FocalLoss(to_onehot_y=True)(x * 1, y)

    value = torch.utils.checkpoint.checkpoint(step, x, use_reentrant=False)
    assert len(calls) == 1
    value.backward()
    assert len(calls) == 2
    torch.testing.assert_close(x.grad, gradient(FocalLoss(to_onehot_y=True), x.detach(), y))


@pytest.mark.parametrize("classes", [1, 3])
def test_halves_that_were_widened_are_let_go_before_the_next(monkeypatch, classes):
    seen, widened = [], voxel_call.VoxelCall.widened

    def watching(self, *span):
        assert not seen or seen[-1]() is None
        part = widened(self, *span)
        seen.append(weakref.ref(part.x))
        return part

    monkeypatch.setattr(voxel_call.VoxelCall, "widened", watching)
    monkeypatch.setattr(voxel_call, "for_each_range", lambda work, chunks, numbers: work(0, chunks))
    options = {"softmax": True, "to_onehot_y": True} if classes > 1 else {"sigmoid": True}
    gradient(
        DiceLoss(**options), logits(2, classes, 200_001).bfloat16(), labels(2, 1, 200_001, classes=max(classes, 2))
    )
    assert len(seen) == 2 * 2 * 4  # of two items four chunks, forward and backward
