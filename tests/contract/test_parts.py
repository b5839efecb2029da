"""`return_parts=True`: every loss returns itself and its parts, which are detached and take no further pass."""

import warnings

import pytest
import torch
from every_loss import DISTANCES
from loss_options import SEGMENTATION, TWIN, for_labels, usual
from support import assert_all_close, labels, logits, value_and_gradient

from twinloss import fast
from twinloss.fast.engine.segmentation.loss import SegmentationLoss
from twinloss.fast.kernels.contract import VOXELS

ON_LABELS = {"softmax": True, "to_onehot_y": True}
WEIGHT = [1.0, 2.0, 3.0]
LOSSES = {
    "dice": (fast.DiceLoss, ON_LABELS),
    "dice weighted": (fast.DiceLoss, ON_LABELS | {"weight": WEIGHT}),
    "dice without background": (fast.DiceLoss, {"sigmoid": True, "to_onehot_y": True, "include_background": False}),
    "masked dice": (fast.MaskedDiceLoss, ON_LABELS | {"batch": True}),
    "tversky": (fast.TverskyLoss, ON_LABELS | {"other_act": torch.sigmoid, "softmax": False}),
    "focal tversky": (fast.FocalTverskyLoss, ON_LABELS),
    "matthews": (fast.MatthewsCorrelationLoss, ON_LABELS | {"ignore_index": 1}),
    "generalized dice": (fast.GeneralizedDiceLoss, ON_LABELS | {"smooth_dr": 0.5}),
    "wasserstein": (fast.GeneralizedWassersteinDiceLoss, {"dist_matrix": DISTANCES}),
    "wasserstein GDL": (fast.GeneralizedWassersteinDiceLoss, {"dist_matrix": DISTANCES, "weighting_mode": "GDL"}),
    "dice ce": (fast.DiceCELoss, ON_LABELS | {"lambda_dice": 0.5, "lambda_ce": 2.0, "weight": WEIGHT}),
    "dice ce regions": (fast.DiceCELoss, {"sigmoid": True, "to_onehot_y": True, "multilabel": True}),
    "dice ce smoothed": (fast.DiceCELoss, ON_LABELS | {"sigmoid": True, "softmax": False, "multilabel": True,
                                                       "label_smoothing": 0.1}),
    "dice focal": (fast.DiceFocalLoss, ON_LABELS | {"lambda_dice": 0.5, "lambda_focal": 2.0}),
    "generalized dice focal": (fast.GeneralizedDiceFocalLoss, ON_LABELS | {"lambda_gdl": 0.5, "alpha": 0.25}),
    "dice focal of two passes": (fast.DiceFocalLoss, {"sigmoid": True, "to_onehot_y": True}),
}  # fmt: skip
# A loss without a row has the usual options on labels.
LOSSES |= {
    TWIN[each].name: (each, for_labels(each, *usual(each))) for each in SEGMENTATION
    if issubclass(each, SegmentationLoss) and each not in [fast.FocalLoss, *(listed for listed, _ in LOSSES.values())]
}  # fmt: skip
POOLED = (fast.GeneralizedDiceLoss, fast.GeneralizedWassersteinDiceLoss)
EVERY = pytest.mark.parametrize("name", LOSSES)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def made(name, reduction="mean", **more):
    """Return the loss of a name, without and with parts, and its arguments."""
    loss_class, options = LOSSES[name]
    if reduction == "none" and loss_class is fast.DiceCELoss:
        pytest.skip("it has no such reduction")
    x, y = logits(2, 3, 5, dtype=torch.float64), labels(2, 1, 5)
    arguments = (x, y, torch.ones(2, 1, 5)) if loss_class is fast.MaskedDiceLoss else (x, y)
    options = options | {"reduction": reduction} | more
    return loss_class(**options), loss_class(**options, return_parts=True), arguments


@EVERY
@REDUCTIONS
def test_parts_leave_value_and_gradient_as_they_are_and_add_up_to_the_loss(name, reduction):
    loss, with_parts, arguments = made(name, reduction)
    expected = value_and_gradient(loss, *arguments)
    assert_all_close(value_and_gradient(lambda *a: with_parts(*a)[0], *arguments), expected, 1e-12, 1e-15)
    value, parts = with_parts(*arguments)
    if isinstance(parts, fast.ClassParts):
        pooled, summed = isinstance(loss, POOLED), reduction == "sum"
        total = parts.by_class.sum() if pooled or summed else parts.by_class.mean()
        assert parts.by_class.ndim == 1
        value = value.mean() if reduction == "none" else value
    else:
        total = sum(parts)
    assert_all_close([total], [value], 1e-12, 1e-15)


@EVERY
@REDUCTIONS
def test_parts_are_detached_and_have_the_dtype_of_the_loss(name, reduction):
    _, loss, (x, *rest) = made(name, reduction)
    for dtype in (torch.float64, torch.bfloat16):
        value, parts = loss(x.to(dtype).requires_grad_(), *rest)
        assert value.requires_grad
        assert not any(part.requires_grad for part in parts)
        assert {part.dtype for part in parts} == {value.dtype} == {dtype}


@EVERY
def test_parts_take_no_further_pass(name, monkeypatch):
    loss, with_parts, arguments = made(name)
    kernels, passes = VOXELS.kernels(arguments[0]), []
    for each in ("sums", "loss"):
        function = getattr(kernels, each)
        monkeypatch.setattr(kernels, each, lambda *a, function=function: passes.append(1) or function(*a))
    loss(*arguments)
    without = len(passes)
    with_parts(*arguments)
    assert len(passes) == 2 * without > 0


@EVERY
def test_parts_by_class_are_those_of_each_class_alone(name):
    loss, with_parts, (x, *rest) = made(name, "none" if LOSSES[name][0] is not fast.DiceCELoss else "mean")
    _, parts = with_parts(x, *rest)
    if isinstance(parts, fast.ClassParts) and not isinstance(loss, POOLED):
        assert_all_close([parts.by_class], [loss(x, *rest).flatten(2).mean((0, 2))], 1e-12)


@pytest.mark.parametrize("name", ["tversky", "focal tversky", "matthews", "generalized dice", "dice ce", "dice focal"])
def test_parts_pass_through_the_compiler(name):
    _, loss, (x, *rest) = made(name)
    x.requires_grad_()
    value, parts = loss(x, *rest)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it compiles
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, *rest)
    assert type(compiled[1]) is type(parts)
    assert_all_close([compiled[0], *compiled[1]], [value, *parts], 1e-12, 1e-15)
    assert_all_close(torch.autograd.grad(compiled[0], x), torch.autograd.grad(value, x), 1e-12, 1e-15)
    assert not any(part.requires_grad for part in compiled[1])


@EVERY
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_parts_pass_through_a_trace_and_torch_func(name):
    _, loss, (x, *rest) = made(name)
    value, parts = loss(x, *rest)
    traced = torch.jit.trace(loss, (torch.zeros_like(x), *rest), check_trace=False)(x, *rest)
    _, of_func = torch.func.grad_and_value(lambda x: loss(x, *rest), has_aux=True)(x)
    for found in (traced, of_func):
        assert_all_close([found[0], *found[1]], [value, *parts], 1e-12, 1e-15)


@pytest.fixture
def world():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@EVERY
def test_parts_are_those_of_all_ranks(name, world):
    if LOSSES[name][0] is fast.GeneralizedWassersteinDiceLoss:
        pytest.skip("it takes no process group")
    _, loss, arguments = made(name, process_group=world)
    _, alone, _ = made(name)
    assert_all_close(loss(*arguments)[1], alone(*arguments)[1], 1e-12)
