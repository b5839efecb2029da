"""The statistics of segmentations on a GPU: value and gradient are those of the reference, for all options."""

import math

import numpy as np
import pytest
import torch
from support import labels, logits, one_hot, soft, value_and_gradient
from torch.utils._python_dispatch import TorchDispatchMode

from twinloss.fast import (
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GeneralizedDiceFocalLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    MaskedDiceLoss,
    TverskyLoss,
)
from twinloss.fast.kernels.contract import ROWS, VOXELS, Plan, VoxelInputs
from twinloss.fast.kernels.gpu.compiled import fraction
from twinloss.fast.kernels.gpu.launch import launch
from twinloss.harness.drawing.segmentation_options import BELL
from twinloss.harness.judging.trial import examine
from twinloss.harness.losses.catalogue import find
from twinloss.harness.model import device as tested
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case

SOFTMAX, SIGMOID = {"softmax": True, "to_onehot_y": True}, {"sigmoid": True, "to_onehot_y": True}
DTYPES = ("float32", "float64", "float16", "bfloat16")
# More classes than a program holds in registers.
MANY = 35


@pytest.fixture(autouse=True)
def harness_on(device):
    """Let the harness run the fast twins where the kernels run."""
    tested.use(device)
    yield
    tested.use("cpu")


def distances(classes):
    """Return distances between classes, each of which is different."""
    far = 1 / (2 + np.arange(classes * classes).reshape(classes, classes))
    far[0], far[:, 0] = 1, 1
    np.fill_diagonal(far, 0)
    return far.tolist()


def judge(name, options, dtype="float32", classes=3, target="labels", spatial=(5, 7), mask=None, change=None):
    """Assert that the fast twin is within the bounds of the hunt."""
    x, y = logits(2, classes, *spatial, dtype=torch.float64), labels(2, 1, *spatial, classes=max(classes, 2))
    if not {"softmax", "sigmoid", "other_act"} & set(options) and name not in ("focal", "generalized_wasserstein_dice"):
        x = x.sigmoid()
    x = x.to(getattr(torch, dtype)).double()
    if (ignored := options.get("ignore_index")) is not None:
        y[:, :, ::2, 1::3] = ignored
    if target == "soft":
        y = soft(2, classes, *spatial).to(getattr(torch, dtype)).double()
    elif target == "one-hot":
        y = one_hot(y, max(classes, 1 + (ignored or 0))).double()
    operands = {"input": Operand(x.numpy(), dtype)}
    operands["target"] = Operand(y.numpy(), "int64" if target == "labels" else dtype)
    if mask is not None:
        operands["mask"] = Operand(mask.numpy(), dtype)
    if change is not None:
        change(x, y)
    trial = examine(find(name), Case(operands, options))
    assert trial.kind is None, trial.message


CASES = {
    "dice": ("dice", SOFTMAX),
    "dice_ce": ("dice_ce", SOFTMAX),
    "dice_focal": ("dice_focal", SOFTMAX),
    "dice, soft": ("dice", {"softmax": True}, "soft"),
    "dice_ce, soft": ("dice_ce", {"softmax": True}, "soft"),
    "generalized_dice_focal": ("generalized_dice_focal", SOFTMAX),
    "dice_focal, sigmoid": ("dice_focal", {**SIGMOID, "use_softmax": False}),
}


FURTHER = {"ignore_index": 3}  # of three classes: the target has a further channel


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dice", {"softmax": True}), ("focal", {}), ("dice_ce", {"softmax": True}),
        ("dice_ce", {"sigmoid": True, "multilabel": True}), ("dice_focal", {"softmax": True}),
    ],
)  # fmt: skip
def test_voxels_that_a_further_channel_marks_do_not_count(name, options):
    def poison(x, y):
        x[y[:, 3:].expand_as(x) == 1] = math.nan

    judge(name, options | FURTHER, target="one-hot", change=poison)


def test_regions_are_within_the_bounds_of_the_hunt():
    judge("dice_ce", {"sigmoid": True, "multilabel": True, "ce_weight": [0.5, 1.0, 2.0]}, target="soft")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_base_cases_of_all_types_are_within_the_bounds_of_the_hunt(case, dtype):
    name, options, *target = CASES[case]
    judge(name, options, dtype, 3, *target)


def with_options(**by_name):
    listed = [(name, options, *target) for name, cases in by_name.items() for options, *target in cases]
    return pytest.mark.parametrize("case", listed, ids=lambda case: " ".join([case[0], *case[1], *case[2:]]))


@with_options(
    dice=[
        ({}, "soft"),
        (SIGMOID,),
        ({"other_act": BELL}, "soft"),
        ({**SOFTMAX, "jaccard": True, "batch": True},),
        ({**SOFTMAX, "squared_pred": True, "smooth_nr": 2.0},),
        ({"sigmoid": True, "squared_pred": True}, "soft"),
        ({"softmax": True, "soft_label": True}, "soft"),
        ({**SIGMOID, "soft_label": True},),
        ({**SOFTMAX, "ignore_index": 255, "include_background": False},),
        ({"sigmoid": True, "ignore_index": 1}, "one-hot"),
        ({**SOFTMAX, "reduction": "none"},),
        ({**SOFTMAX, "reduction": "sum", "weight": [1.0, 0.5, 2.0]},),
    ],
    tversky=[({**SOFTMAX, "alpha": 0.3, "beta": 0.7, "ignore_index": 1, "smooth_nr": 0.0},)],
    generalized_dice=[
        (SOFTMAX,),
        ({**SOFTMAX, "w_type": "simple", "normalize_weights": True, "include_background": False},),
        ({**SIGMOID, "w_type": "uniform", "batch": True, "reduction": "sum"},),
        ({"softmax": True}, "soft"),
    ],
    generalized_wasserstein_dice=[
        ({"dist_matrix": distances(3)},),
        ({"dist_matrix": distances(3), "weighting_mode": "GDL", "ignore_index": 2, "reduction": "none"},),
    ],
    focal=[
        ({"to_onehot_y": True},),
        ({"to_onehot_y": True, "gamma": 0.5, "use_softmax": False},),
        ({"gamma": 3.7, "alpha": 0.25}, "soft"),
        ({"to_onehot_y": True, "gamma": 1.0, "ignore_index": 0},),
        ({"gamma": 0.0, "use_softmax": False}, "soft"),
    ],
    dice_ce=[
        ({**SOFTMAX, "label_smoothing": 0.25, "weight": [1.0, 0.5, 2.0]},),
        ({"softmax": True, "label_smoothing": 0.25}, "soft"),
        ({**SIGMOID, "ignore_index": 1},),
    ],
)
def test_options_are_within_the_bounds_of_the_hunt(case):
    name, options, *target = case
    judge(name, options, "float32", 3, *target)


@pytest.mark.parametrize("classes", [1, 2, 6, 20, MANY])
def test_any_number_of_classes(classes):
    judge("dice_focal", SOFTMAX if classes > 1 else {"sigmoid": True}, classes=classes)


@with_options(
    dice=[
        ({**SOFTMAX, "squared_pred": True},),
        (SIGMOID,),
        ({"softmax": True, "soft_label": True, "ignore_index": 1}, "soft"),
    ],
    generalized_wasserstein_dice=[({"dist_matrix": distances(MANY), "weighting_mode": "GDL"},)],
    focal=[({"gamma": 1.0}, "soft")],
    dice_ce=[({**SOFTMAX, "label_smoothing": 0.25, "ignore_index": 255},)],
)
def test_options_of_many_classes_are_within_the_bounds_of_the_hunt(case):
    name, options, *target = case
    judge(name, options, "float32", MANY, *target)


@pytest.mark.parametrize("classes", [3, MANY])
@pytest.mark.parametrize("options", [SOFTMAX, {**SOFTMAX, "squared_pred": True}, {**SIGMOID, "soft_label": True}])
def test_masked_voxels_may_hold_nan_and_soft_masks_are_within_the_bounds(options, classes):
    mask = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask[mask < 0.3] = 0

    def poison(x, y):
        x[(mask == 0).expand_as(x)] = math.nan

    judge("masked_dice", options, "float32", classes, mask=mask, change=poison)


@pytest.mark.parametrize("classes", [3, MANY])
def test_ignored_voxels_may_hold_nan(classes):
    def poison(x, y):
        x[(y == 255).expand_as(x)] = math.nan

    judge("dice_ce", {**SOFTMAX, "ignore_index": 255}, "float32", classes, change=poison)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("classes", [3, MANY])
@pytest.mark.parametrize(("name", "options"), [("dice", SOFTMAX), ("dice", SIGMOID), ("focal", {"to_onehot_y": True})])
@pytest.mark.parametrize("channel", [0, 1])
def test_numbers_that_are_not_finite_have_the_results_of_the_reference(name, options, classes, number, channel):
    def poison(x, y):
        x[0, channel, 2, 3] = number

    judge(name, options, "float32", classes, change=poison)


def test_a_class_whose_logits_are_all_minus_infinity_has_probability_0():
    def remove(x, y):
        x[:, :10] = -math.inf
        y.clamp_(min=10)

    judge("dice_focal", SOFTMAX, "float32", MANY, change=remove)


@pytest.mark.parametrize("classes", [3, MANY])
def test_nearly_perfect_predictions_keep_their_digits(classes):
    def agree(x, y):
        x += 12 * one_hot(y, classes)

    judge("dice_focal", SOFTMAX, "float32", classes, change=agree)


@pytest.mark.parametrize(("name", "classes"), [("dice_ce", 3), ("dice_ce", MANY), ("generalized_dice", 3)])
def test_several_blocks_with_a_tail_and_several_chunks(name, classes):
    judge(name, SOFTMAX, "float32", classes, spatial=(2, 2501) if classes == 3 else (1, 1031))


@pytest.mark.parametrize("spatial", [(), (1,)])
def test_a_single_voxel(spatial):
    judge("dice_ce", SOFTMAX, "float32", 3, spatial=spatial)


def test_an_empty_input_is_an_error(device):
    with pytest.raises(ValueError, match="at least one voxel"):
        DiceLoss(**SOFTMAX)(torch.empty(1, 3, 0, device=device), torch.empty(1, 1, 0, device=device))


@pytest.mark.parametrize("weighting", [{"w_type": "square"}, {"w_type": "simple", "normalize_weights": True}])
def test_weights_of_a_class_that_is_absent_are_those_of_the_reference(weighting):
    def remove(x, y):
        y[0].clamp_(max=1)

    judge("generalized_dice", {**SOFTMAX, **weighting}, "float32", 4, change=remove)


class Declared(GeneralizedDiceLoss):
    pass


class Undeclared(GeneralizedDiceLoss):
    def _weigh(self):
        right = super()._weigh()
        return lambda volume: right(volume)


@pytest.mark.parametrize("batch", [False, True])
def test_weights_that_only_a_function_knows_are_those_that_the_kernel_computes(device, batch):
    given = logits(2, 4, 50).to(device), labels(2, 1, 50, classes=4).to(device)
    options = {**SOFTMAX, "include_background": False, "batch": batch}
    found = value_and_gradient(Undeclared(**options), *given)
    for one, other in zip(found, value_and_gradient(Declared(**options), *given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


LABEL_TYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", LABEL_TYPES)
def test_labels_of_any_type_are_the_same(device, dtype):
    x, y, loss = logits(1, 3, 40).to(device), labels(1, 1, 40, classes=2).to(device), DiceLoss(**SOFTMAX)
    expected, found = value_and_gradient(loss, x, y), value_and_gradient(loss, x, y.to(dtype))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_dense_targets_and_masks_of_any_type_are_the_same(device, dtype):
    x, mask = logits(1, 3, 40).to(device), labels(1, 1, 40, classes=2).to(device)
    y, loss = one_hot(labels(1, 1, 40)).to(device), MaskedDiceLoss(softmax=True)
    expected = value_and_gradient(loss, x, y.float(), mask.float())
    found = value_and_gradient(loss, x, y.to(dtype), mask.to(dtype))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [(3, torch.uint8), (-1, torch.int8), (2**32, torch.int64), (0.5, torch.float32), (math.nan, torch.float32)],
)
@pytest.mark.parametrize("loss", [DiceLoss(**SOFTMAX), FocalLoss(to_onehot_y=True), DiceLoss(**SIGMOID)])
def test_a_label_that_is_no_class_makes_the_loss_nan(device, loss, wrong, dtype):
    y = labels(1, 1, 40).to(dtype).to(device)
    y[0, 0, 7] = wrong
    value, gradient = value_and_gradient(loss, logits(1, 3, 40).to(device), y)
    assert value.isnan()
    assert gradient[0, :, 7].isnan().all()


@pytest.mark.parametrize("wrong", [-0.5, 1.5, math.nan])
def test_a_mask_outside_its_range_makes_the_loss_nan(device, wrong):
    mask = torch.ones(1, 1, 40, device=device)
    mask[0, 0, 7] = wrong
    value, _ = value_and_gradient(MaskedDiceLoss(**SOFTMAX), logits(1, 3, 40).to(device), labels(1, 1, 40), mask)
    assert value.isnan()


@pytest.mark.parametrize(("ignored", "dtype"), [(-1, torch.uint8), (300, torch.uint8), (2**40, torch.int32)])
def test_a_number_to_ignore_that_the_type_of_labels_does_not_hold_excludes_nothing(device, ignored, dtype):
    x, y = logits(1, 3, 40).to(device), labels(1, 1, 40).to(dtype).to(device)
    expected = value_and_gradient(DiceLoss(**SOFTMAX), x, y)
    found = value_and_gradient(DiceLoss(**SOFTMAX, ignore_index=ignored), x, y)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every other": lambda x: torch.stack([x, x], -1)[..., 1],
}


@pytest.mark.parametrize("classes", [3, MANY])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts_give_the_same_bits(device, layout, classes):
    x, y = logits(2, classes, 6, 7).to(device), soft(2, classes, 6, 7).to(device)
    mask, laid = labels(2, 1, 6, 7, classes=2).float().to(device), LAYOUTS[layout]
    loss = MaskedDiceLoss(softmax=True)
    expected = value_and_gradient(loss, x, y, mask)
    moved = laid(x).detach().requires_grad_()
    value = loss(moved, laid(y), laid(mask))
    (gradient,) = torch.autograd.grad(value, moved)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])
    if layout == "channels last":
        assert gradient.stride() == moved.stride()


@pytest.mark.parametrize("loss", [DiceLoss(**SOFTMAX), DiceCELoss(**SOFTMAX), GeneralizedDiceLoss(**SOFTMAX)])
def test_bits_are_the_same_from_run_to_run(device, loss):
    given = logits(2, 3, 2600).to(device), labels(2, 1, 2600).to(device)
    first, second = value_and_gradient(loss, *given), value_and_gradient(loss, *given)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_offsets_beyond_the_range_of_int32(device):
    # Memory is only promised: the system gives pages for those numbers that are written.
    step = 2**30 + 8
    memory = torch.empty(2 * step + 64, dtype=torch.float16, device=device)
    x, y = memory.as_strided((1, 3, 64), (3 * step, step, 1)), labels(1, 1, 64).to(device)
    x.copy_(logits(1, 3, 64))
    kernels, plan = VOXELS.kernels(x), Plan("softmax", "product", "target", labels=True)
    found, near = (kernels.sums(VoxelInputs(each, y), plan, False, None)[0] for each in (x, x.contiguous()))
    assert torch.equal(found, near)
    slopes = torch.ones_like(found)
    of_found, of_near = (kernels.gradient(slopes, VoxelInputs(e, y), plan, None) for e in (x, x.contiguous()))
    assert torch.equal(of_found, of_near)


def test_slopes_beyond_the_range_of_float32_have_a_gradient_within_it(device):
    # The second class is absent, and its probability is exp(-57): ν/M² is 3e44, and the gradient 6e19.
    x, y = torch.tensor([[[0.0], [-57.0]]], device=device), torch.zeros(1, 1, 1, device=device)
    loss = DiceLoss(**SOFTMAX, smooth_nr=1e-5, smooth_dr=0.0)
    expected, found = value_and_gradient(loss, x.double(), y)[1], value_and_gradient(loss, x, y)[1]
    assert expected.abs().max() > 1e19
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_an_upstream_slope_multiplies_the_gradient(device):
    x, y = logits(1, 3, 40).to(device).requires_grad_(), labels(1, 1, 40).to(device)
    value = DiceLoss(**SOFTMAX)(x, y)
    (plain,) = torch.autograd.grad(value, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(value, x, torch.tensor(1024.0, device=device))
    assert torch.equal(scaled, 1024 * plain)


def test_a_second_derivative_is_that_of_the_plain_form(device):
    x, y = logits(1, 3, 2, dtype=torch.float64).to(device).requires_grad_(), labels(1, 1, 2).to(device)
    torch.autograd.gradgradcheck(lambda x: DiceCELoss(**SOFTMAX)(x, y), x, fast_mode=True)


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_the_operator_gives_what_the_node_gives(device):
    x = logits(1, 3, 4, 5).contiguous(memory_format=torch.channels_last).to(device).requires_grad_()
    given = x, labels(1, 1, 4, 5).to(device), None, None, *Plan("softmax", "product", "target", labels=True)
    torch.library.opcheck(torch.ops.twinloss.voxel_sums.default, given, test_utils=["test_schema", "test_faketensor"])
    loss = DiceCELoss(**SOFTMAX)
    (expected,) = torch.autograd.grad(loss(*given[:2]), x)
    with Watched():
        (found,) = torch.autograd.grad(loss(*given[:2]), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "loss",
    [
        DiceLoss(**SOFTMAX), TverskyLoss(**SIGMOID), GeneralizedDiceLoss(**SOFTMAX), DiceCELoss(**SOFTMAX),
        GeneralizedWassersteinDiceLoss(distances(3)), DiceLoss(**SOFTMAX, ignore_index=1),
        FocalLoss(to_onehot_y=True), DiceFocalLoss(**SOFTMAX, weight=[1.0, 2.0, 3.0]),
        GeneralizedDiceFocalLoss(**SOFTMAX),
    ],
    ids=lambda loss: type(loss).__name__,
)  # fmt: skip
def test_no_number_of_the_device_is_read(device, loss, monkeypatch):
    from twinloss.fast.kernels.gpu import voxels

    def read(*_):
        raise AssertionError("this waits for the device")

    x, y = logits(1, 3, 40).to(device).requires_grad_(), labels(1, 1, 40).to(device)
    loss(x, y)  # the first call may upload constants
    with monkeypatch.context() as patched:
        patched.setattr(voxels, "launch", lambda *_, **__: None)  # the interpreter itself reads numbers
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patched.setattr(torch.Tensor, name, read)
        loss(x, y).backward()


@pytest.mark.parametrize(
    ("loss", "launches"),
    [
        (DiceLoss(**SOFTMAX), ["sums", "fraction", "slopes"]),
        (GeneralizedDiceLoss(**SOFTMAX), ["sums", "fraction", "slopes"]),
        (FocalLoss(to_onehot_y=True, ignore_index=1), ["sums", "compound", "slopes"]),
        (DiceCELoss(**SOFTMAX, label_smoothing=0.1), ["sums", "compound", "slopes"]),
        (DiceFocalLoss(**SIGMOID, use_softmax=False), ["sums", "compound", "slopes"]),
        (GeneralizedDiceFocalLoss(**SOFTMAX), ["sums", "compound", "slopes"]),
        (DiceFocalLoss(**SIGMOID), ["sums", "add"] * 2 + ["prepare", "slopes"] * 2),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_step_of_a_loss_takes_three_launches_if_its_terms_share_an_activation(device, loss, launches, monkeypatch):
    from twinloss.fast.kernels.gpu import voxels

    found, launch = [], voxels.launch
    monkeypatch.setattr(
        voxels, "launch", lambda kernel, *_, **__: [found.append(kernel.fn.__name__), launch(kernel, *_, **__)]
    )
    value_and_gradient(loss, logits(1, 3, 40).to(device), labels(1, 1, 40).to(device))
    assert found == launches


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@with_options(
    dice_ce=[
        ({**SOFTMAX, "batch": True, "ce_weight": [1.0, 0.5, 2.0], "include_background": False},),
        ({**SOFTMAX, "weight": [1.0, 0.0, 2.0], "label_smoothing": 0.25, "ignore_index": 1, "jaccard": True},),
        ({"softmax": True, "lambda_dice": 0.5, "lambda_ce": 3.0, "squared_pred": True}, "soft"),
    ],
    dice_focal=[
        ({**SOFTMAX, "include_background": False, "weight": [1.0, 0.5, 2.0], "alpha": 0.25, "ignore_index": 2},),
        ({**SIGMOID, "use_softmax": False, "focal_weight": [1.0, 0.5, 2.0], "alpha": [0.2, 0.5, 0.9], "batch": True},),
        ({"softmax": True, "gamma": 0.5, "ignore_index": 1}, "one-hot"),
    ],
    generalized_dice_focal=[
        ({**SOFTMAX, "include_background": False, "w_type": "simple", "normalize_weights": True, "ignore_index": 2},),
        ({**SIGMOID, "use_softmax": False, "batch": True, "lambda_gdl": 0.5, "weight": [1.0, 0.5, 2.0]},),
        ({"softmax": True, "w_type": "uniform", "lambda_focal": 0.0}, "soft"),
    ],
    focal=[
        ({"to_onehot_y": True, "include_background": False, "alpha": 0.25, "weight": [2.0, 4.0], "ignore_index": 255},),
        ({"use_softmax": False, "alpha": 0.3}, "soft"),
    ],
)
def test_compound_losses_with_weights_and_counts_are_within_the_bounds_of_the_hunt(case, reduction):
    name, options, *target = case
    judge(name, {**options, "reduction": reduction}, "float32", 3, *target)


@pytest.mark.parametrize("name", ["dice_ce", "dice_focal", "focal"])
def test_compound_losses_of_one_channel(name):
    judge(name, {} if name == "focal" else {"sigmoid": True}, "float32", 1)


@pytest.mark.parametrize("loss", [FocalLoss(to_onehot_y=True, ignore_index=7), DiceCELoss(**SOFTMAX, ignore_index=7)])
def test_a_batch_whose_voxels_are_all_ignored_has_no_surprisal(device, loss):
    x, y = logits(1, 3, 40).to(device), torch.full((1, 1, 40), 7, device=device)
    for found, expected in zip(
        value_and_gradient(loss, x, y), value_and_gradient(loss, x, y, form="plain"), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["dice_ce", "dice_focal", "tversky"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_masked_losses_are_within_the_bounds_of_the_hunt(loss, kind):
    mask = torch.linspace(0, 1, 70, dtype=torch.float64).reshape(2, 1, 5, 7)
    judge("masked", {**SOFTMAX, "loss": loss}, mask=mask.round() if kind == "hard" else mask)


def test_compound_losses_of_two_activations(device):
    judge("dice_focal", {**SIGMOID, "use_softmax": True}, "bfloat16")


def test_dice_of_a_compound_loss_is_that_of_the_dice_loss(device):
    given = logits(2, 3, 40).to(device), labels(2, 1, 40).to(device)
    alone = value_and_gradient(DiceLoss(**SOFTMAX), *given)
    within = value_and_gradient(DiceFocalLoss(**SOFTMAX, lambda_focal=0.0), *given)
    for one, other in zip(within, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("base", [DiceCELoss, DiceFocalLoss])
def test_a_subclass_with_a_dice_of_its_own_is_not_replaced_by_kernels(device, base):
    class Doubled(base):
        def dice(self, sums, voxels):
            return 2 * super().dice(sums, voxels)

    given = logits(2, 3, 40).to(device), labels(2, 1, 40).to(device)
    doubled = value_and_gradient(Doubled(**SOFTMAX), *given)
    expected = value_and_gradient(base(**SOFTMAX, lambda_dice=2.0), *given)
    for one, other in zip(doubled, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_sum_of_many_equal_parts_is_rounded_only_a_few_times(device):
    chunks, together = 100_003, 128
    parts = torch.full((1, chunks, len(ROWS), 1), 0.3, dtype=torch.float64, device=device)
    made = torch.empty((len(ROWS), 1, 1), dtype=torch.float64, device=device)
    constants = {"USED": 2 ** len(ROWS) - 1, "CLASSES": 1, "WIDTH": 16, "TOGETHER": together}
    launch(fraction.add, (1, 1), parts, made, chunks, **constants)
    exact = math.fsum(parts[0, :, 0, 0].tolist())
    assert abs(made / exact - 1).max() <= 4 * 2.0**-53
    parts[0, 17], parts[0, -1] = math.inf, math.nan
    launch(fraction.add, (1, 1), parts[:, :-1].contiguous(), made, chunks - 1, **constants)
    assert (made == math.inf).all()
    launch(fraction.add, (1, 1), parts, made, chunks, **constants)
    assert made.isnan().all()
