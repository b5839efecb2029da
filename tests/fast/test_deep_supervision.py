"""The fast deep supervision: documented behaviour, errors and corner cases."""

from functools import partial

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits

from twinloss import reference
from twinloss.fast import (
    DeepSupervisionLoss,
    DiceCELoss,
    DiceLoss,
    FocalLoss,
    GeneralizedWassersteinDiceLoss,
    MaskedDiceLoss,
)
from twinloss.fast.runtime import dispatch

ON_LABELS = {"softmax": True, "to_onehot_y": True}
# Sizes that are halved and others that are not, of a target of 8 by 9 voxels.
GRIDS = ((8, 9), (4, 5), (2, 3))
INTERP_MODES = pytest.mark.parametrize("interp_mode", ["nearest-exact", "nearest"])


def outputs(*spatial, dtype=torch.float64, items=2, classes=3):
    return [logits(items, classes, *each, dtype=dtype, seed=k) for k, each in enumerate(spatial)]


def value_and_gradients(loss, levels, *rest):
    levels = [level.clone().requires_grad_() for level in levels]
    value = loss(levels, *rest)
    return value.detach(), torch.autograd.grad(value.sum(), levels)


def of_target(x, target):
    """Return the target of a level as its loss."""
    return target.clone()


@BACKENDS
@INTERP_MODES
@pytest.mark.parametrize("weights", [{}, {"weight_mode": "same"}, {"weight_mode": "two"}, {"weights": [0.5, 0, 2]}])
def test_value_and_gradients_are_those_of_the_reference(form, interp_mode, weights):
    x, y, options = outputs(*GRIDS), labels(2, 1, 8, 9), {"interp_mode": interp_mode, **weights}
    loss = DeepSupervisionLoss(DiceCELoss(**ON_LABELS), **options)
    with dispatch.forced(form):
        value, gradients = value_and_gradients(loss, x, y)
    arrays = [level.numpy() for level in x], y.numpy()
    theirs = (partial(each, **ON_LABELS) for each in (reference.dice_ce_loss, reference.dice_ce_loss_gradient))
    expected, slopes = (
        of(*arrays, each, **options)
        for of, each in zip(
            (reference.deep_supervision_loss, reference.deep_supervision_loss_gradient), theirs, strict=True
        )
    )
    assert_all_close((value, *gradients), map(torch.from_numpy, (np.asarray(expected), *slopes)), 1e-12, 1e-15)


@INTERP_MODES
@pytest.mark.parametrize("size", [(5, 7), (4, 9), (2, 3), (1, 1)])
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.uint16, torch.bool, torch.float16, torch.float64], ids=str
)
def test_target_is_sampled_in_its_own_dtype_at_the_nearest_voxels(interp_mode, size, dtype):
    y = labels(2, 1, 8, 9, classes=2).to(dtype)
    loss = DeepSupervisionLoss(of_target, interp_mode=interp_mode)
    seen = []
    loss.loss = lambda x, target: seen.append(target) or x.sum()
    loss([torch.zeros(2, 2, *size)], y)
    expected = torch.nn.functional.interpolate(y.double(), size, mode=interp_mode)
    assert seen[0].dtype == dtype
    assert torch.equal(seen[0].double(), expected)


def test_target_is_not_copied_if_the_sizes_are_whole_multiples():
    y, seen = labels(2, 1, 8, 9), []
    loss = DeepSupervisionLoss(lambda x, target: seen.append(target) or x.sum())
    loss(outputs((8, 9), (4, 3), (2, 1)), y)
    assert all(target.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() for target in seen)
    assert [target.shape[2:] for target in seen] == [(8, 9), (4, 3), (2, 1)]


def test_sizes_whose_quotient_torch_rounds_down_get_the_exact_voxels():
    loss = DeepSupervisionLoss(lambda x, target: target)
    found = loss([torch.zeros(1, 1, 11)], torch.arange(26.0)[None, None])
    assert found[0, 0, 5] == 13  # 11 / 2 · 26 / 11, for which torch takes voxel 12


@BACKENDS
@pytest.mark.parametrize("given", ["list", "stacked", "targets"])
def test_a_list_stacked_outputs_and_a_list_of_targets_give_the_same(form, given):
    x, y = outputs((6, 5), (6, 5)), labels(2, 1, 6, 5)
    loss = DeepSupervisionLoss(DiceLoss(**ON_LABELS), stacked=given == "stacked")
    dice = DiceLoss(**ON_LABELS)
    with dispatch.forced(form):
        found = loss(torch.stack(x, 1) if given == "stacked" else x, [y, y] if given == "targets" else y)
        assert torch.equal(found, dice(x[0], y) + 0.5 * dice(x[1], y))


def test_a_single_output_is_one_level():
    x, y = logits(2, 3, 6), labels(2, 1, 6)
    assert torch.equal(DeepSupervisionLoss(DiceLoss(**ON_LABELS))(x, y), DiceLoss(**ON_LABELS)(x, y))


@BACKENDS
def test_level_of_weight_0_has_a_gradient_of_0_whatever_it_holds(form):
    x, y = outputs((6, 5), (6, 5), (3, 5)), labels(2, 1, 6, 5)
    x[1].fill_(float("nan"))
    loss = DeepSupervisionLoss(DiceLoss(**ON_LABELS), weights=[1, 0, 0.5])
    with dispatch.forced(form):
        value, gradients = value_and_gradients(loss, x, y)
        others = value_and_gradients(DeepSupervisionLoss(DiceLoss(**ON_LABELS), weights=[1, 0.5]), x[::2], y)
    assert torch.equal(value, others[0])
    assert all(map(torch.equal, gradients[::2], others[1]))
    assert torch.equal(gradients[1], torch.zeros_like(x[1]))


@BACKENDS
def test_mask_is_sampled_and_ignored_labels_stay_ignored(form):
    x, y, mask = outputs((6, 4), (3, 2)), labels(2, 1, 6, 4), torch.rand(1, 1, 6, 4, dtype=torch.float64)
    masked, coarse = MaskedDiceLoss(**ON_LABELS), (..., slice(1, None, 2), slice(1, None, 2))
    with dispatch.forced(form):
        expected = masked(x[0], y, mask) + 0.5 * masked(x[1], y[coarse], mask[coarse])
        for each in (mask, [mask, mask[coarse]]):
            torch.testing.assert_close(DeepSupervisionLoss(masked)(x, y, each), expected, rtol=1e-14, atol=0)
        y[:, :, ::2] = 255
        dice = DiceLoss(**ON_LABELS, ignore_index=255)
        expected = dice(x[0], y) + 0.5 * dice(x[1], y[coarse])
        torch.testing.assert_close(DeepSupervisionLoss(dice)(x, y), expected, rtol=1e-14, atol=0)


def test_labels_without_a_channel_are_sampled():
    distances = 1 - np.eye(3)
    loss, x, y = GeneralizedWassersteinDiceLoss(distances), outputs((6, 4), (3, 2)), labels(2, 6, 4)
    expected = loss(x[0], y) + 0.5 * loss(x[1], y[:, 1::2, 1::2])
    assert torch.equal(DeepSupervisionLoss(loss)(x, y), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_losses_of_half_precision_are_added_in_float32(dtype):
    x, y = outputs(*GRIDS, dtype=torch.float32), labels(2, 1, 8, 9)
    x = [level.to(dtype) for level in x]
    loss = DeepSupervisionLoss(DiceLoss(**ON_LABELS), weights=[0.3, 0.3, 0.3])
    wide, slopes = value_and_gradients(loss, [level.float() for level in x], y)
    value, gradients = value_and_gradients(loss, x, y)
    assert value.dtype == gradients[0].dtype == dtype
    assert torch.equal(value, wide.to(dtype))
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient.float(), slope.to(dtype).float(), rtol=1e-2, atol=1e-6)
    with torch.autocast("cpu", dtype):
        assert loss(x, y).dtype == torch.float32


def test_unreduced_losses_of_items_and_classes_are_added():
    x, y = outputs(*GRIDS), labels(2, 1, 8, 9)
    none = DeepSupervisionLoss(DiceLoss(**ON_LABELS, reduction="none"), weights=[1, 0, 2])(x, y)
    assert none.shape == (2, 3, 1, 1)
    torch.testing.assert_close(none.mean(), DeepSupervisionLoss(DiceLoss(**ON_LABELS), weights=[1, 0, 2])(x, y))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_traced_and_differentiated_losses_take_lists():
    loss, y = DeepSupervisionLoss(DiceCELoss(**ON_LABELS)), labels(2, 1, 8, 9)
    x = outputs(*GRIDS, dtype=torch.float32)
    expected = value_and_gradients(loss, x, y)
    others = [level.flip(0).requires_grad_() for level in x]
    for made in (torch.compile(loss, fullgraph=True, backend="eager"), torch.jit.trace(loss, (others, y.flip(0)))):
        value, gradients = value_and_gradients(made, x, y)
        assert_all_close((value, *gradients), (expected[0], *expected[1]), 1e-5, 1e-7)
    assert_all_close(torch.func.grad(lambda levels: loss(levels, y))(x), expected[1], 1e-5, 1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_one_graph_serves_all_sizes():
    torch.compiler.reset()
    loss = DeepSupervisionLoss(DiceCELoss(**ON_LABELS))
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="eager")
    for size in (8, 12):
        x, y = outputs((size, 9), (size // 2, 5), dtype=torch.float32), labels(2, 1, size, 9)
        expected = value_and_gradients(loss, x, y)
        value, gradients = value_and_gradients(compiled, x, y)
        assert_all_close((value, *gradients), (expected[0], *expected[1]), 1e-5, 1e-7)


X, Y = [torch.zeros(2, 2, 4), torch.zeros(2, 2, 2)], torch.zeros(2, 1, 4)
DEEP = partial(DeepSupervisionLoss, DiceLoss(**ON_LABELS))


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (lambda: DeepSupervisionLoss("dice"), (X, Y), TypeError, "loss must be a module or another callable"),
        (lambda: DeepSupervisionLoss(DiceLoss), (X, Y), TypeError, r"got the class DiceLoss: pass DiceLoss\(…\)"),
        (lambda: DEEP("linear"), (X, Y), ValueError, 'weight_mode must be "exp", "same" or "two", got \'linear\''),
        (lambda: DEEP(interp_mode="bilinear"), (X, Y), ValueError, "interp_mode must be"),
        (lambda: DEEP(weights=[1.0, -1.0]), (X, Y), ValueError, r"weights must be finite.*-1\.0"),
        (lambda: DEEP(weights=[0, 0]), (X, Y), ValueError, "one of them must not be 0"),
        (lambda: DEEP(weights=[]), (X, Y), ValueError, "a number for each level"),
        (lambda: DEEP(weights="exp"), (X, Y), TypeError, "weights must be"),
        (lambda: DEEP(weights=[1.0]), (X, Y), ValueError, "weights has 1 values for 2 levels"),
        (DEEP, ([], Y), ValueError, "at least one level"),
        (DEEP, (None, Y), TypeError, "input must be a tensor or a list of tensors, got NoneType"),
        (DEEP, ((level for level in X), Y), TypeError, "input must be a tensor or a list of tensors, got generator"),
        (DEEP, (X, map(torch.clone, [Y, Y])), TypeError, "target must be a tensor or a list of tensors, got map"),
        (DEEP, ([X], Y), TypeError, r"input\[0\] must be a tensor, got list"),
        (lambda: DeepSupervisionLoss(torch.nn.MSELoss()), ([X[0][0, 0, 0]], Y), AssertionError, "without axes"),
        (lambda: DEEP(weights=[1e200, 1.0]), (X, Y), ValueError, r"weights must be at most 1e\+100"),
        (lambda: DeepSupervisionLoss(lambda x, y: 1.0), (X, Y), TypeError, "must return a tensor, got float$"),
        (DEEP, ([X[0], 3], Y), TypeError, r"input\[1\] must be a tensor, got int"),
        (DEEP, (X, [Y]), ValueError, "target has 1 entries for 2 levels"),
        (DEEP, (X, [Y, None]), TypeError, r"target\[1\] must be a tensor"),
        (DEEP, (X, Y[:1]), ValueError, r"target has shape \(1, 1, 4\) and the input of level 0 \(2, 2, 4\)"),
        (DEEP, ([X[0], X[1][:1]], Y), AssertionError, r"the input of level 1 \(1, 2, 2\)"),
        (DEEP, (X, Y[..., 0]), AssertionError, r"the input of level 0 \(2, 2, 4\)"),
        (DEEP, (X, Y[..., :2]), AssertionError, "at least as fine"),
        (DEEP, (torch.zeros(2, 3, 2, 4), Y), AssertionError, "stacked=True"),
        (lambda: DEEP(stacked=True), (X, Y), TypeError, "input must be a single tensor if stacked=True, got list"),
        (lambda: DEEP(stacked=True), (torch.zeros(2), Y), ValueError, "stacked"),
        (lambda: DEEP(stacked=3 * "a"), (X, Y), TypeError, "stacked must be True or False"),
        (lambda: DeepSupervisionLoss(DiceLoss(to_onehot_y=True, return_parts=True)), (X, Y), TypeError, "return_parts"),
        (
            lambda: DeepSupervisionLoss(FocalLoss(to_onehot_y=True, reduction="none")), (X, Y),
            ValueError, r"shapes \[\(2, 2, 2\), \(2, 2, 4\)\], which cannot be added",
        ),
    ],
)  # fmt: skip
def test_wrong_options_and_arguments_are_errors_that_say_what_was_expected(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make()(*arguments)


def test_it_has_no_option_reduction():
    loss = DEEP()
    with pytest.raises(TypeError, match="no option reduction"):
        loss.reduction = "sum"
