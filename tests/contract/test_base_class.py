"""What the base class and the decorator of every forward promise."""

import inspect
import warnings

import pytest
import torch
from every_loss import EVERY_LOSS, LOSSES

from twinloss import fast
from twinloss.fast import (
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GlobalMutualInformationLoss,
    MaskedDiceLoss,
    MaskedLoss,
    MultiScaleLoss,
    TverskyLoss,
)
from twinloss.fast.engine.loss import Loss

CLASSES = [each for name, each in sorted(vars(fast).items()) if name.endswith("Loss")]


def test_every_loss_is_among_those_that_are_tried():
    assert {type(each.make()) for each in LOSSES.values()} == set(CLASSES)


@pytest.mark.parametrize("loss_class", CLASSES, ids=lambda each: each.__name__)
def test_every_loss_derives_from_the_base_and_has_an_entry_point(loss_class):
    assert issubclass(loss_class, Loss)
    forward = loss_class.forward
    assert forward.__wrapped__.__code__.co_filename != forward.__code__.co_filename
    assert forward.__doc__
    assert forward.__name__ == "forward"
    assert inspect.signature(forward) == inspect.signature(forward.__wrapped__)


def test_entry_points_share_no_code():
    # Torch keeps eight compiled graphs of a code object.
    # Both losses of a field have the same forward.
    assert len({loss_class.forward.__code__ for loss_class in CLASSES}) == len(CLASSES) - 1


# --- warnings ---------------------------------------------------------------------------------------------------------

X, TARGET = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
WARNED = {
    "dice": (lambda: DiceLoss(softmax=True), (X, TARGET), "`softmax=True` ignored"),
    "tversky": (lambda: TverskyLoss(to_onehot_y=True), (X, TARGET), "`to_onehot_y=True` ignored"),
    "masked dice": (MaskedDiceLoss, (X, TARGET), "no mask given"),
    "masked": (lambda: MaskedLoss(DiceLoss()), (X, TARGET), "no mask given"),
    "focal": (FocalLoss, (X, TARGET), "`use_softmax=True` ignored"),
    "dice focal": (DiceFocalLoss, (X, TARGET), "`use_softmax=True` ignored"),
    "mutual information": (GlobalMutualInformationLoss, (2 * TARGET, TARGET), "are clamped"),
    "multi-scale": (lambda: MultiScaleLoss(GlobalMutualInformationLoss(), [0]), (2 * TARGET, TARGET), "are clamped"),
}


@pytest.mark.parametrize("name", list(WARNED))
@pytest.mark.parametrize("call", ["module", "forward", "inside of a module"])
def test_warning_of_a_call_points_at_the_line_of_the_call(name, call):
    make, arguments, message = WARNED[name]
    loss = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if call == "module":
            line = inspect.currentframe().f_lineno + 1
            loss(*arguments)
        elif call == "forward":
            line = inspect.currentframe().f_lineno + 1
            loss.forward(*arguments)
        else:
            line = inspect.currentframe().f_lineno + 1
            torch.nn.ModuleList([loss])[0](*arguments)
    assert [message in str(warning.message) for warning in caught] == [True]
    assert (caught[0].filename, caught[0].lineno, caught[0].category) == (__file__, line, UserWarning)


# --- a user's own functions -------------------------------------------------------------------------------------------


def test_other_act_and_what_multi_scale_wraps_stay_under_the_autocast_of_the_caller():
    seen = []

    def activation(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.sigmoid(x)

    def wrapped(pred, true):
        seen.append((pred.flatten(2) @ true.flatten(2).mT).dtype)
        return (pred - true).abs().mean()

    with torch.autocast("cpu", torch.bfloat16):
        DiceLoss(other_act=activation)(X, TARGET)
        assert MultiScaleLoss(wrapped, [0.0])(X, TARGET).dtype == torch.float32
    assert seen == [True, torch.bfloat16]


@EVERY_LOSS
def test_loss_takes_arguments_by_name(each):
    loss = each.make()
    names = list(inspect.signature(loss.forward).parameters)
    arguments = each.arguments(torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "single channel prediction")
        named = loss(**dict(zip(names, arguments, strict=False)))
        assert torch.equal(named, loss(*arguments))


@EVERY_LOSS
@pytest.mark.parametrize("given", [3, None, [0.5], "image"])
def test_argument_that_is_no_tensor_is_a_type_error(each, given):
    arguments = each.arguments(torch.float32)
    if isinstance(given, list) and isinstance(each.make(), fast.DeepSupervisionLoss):
        pytest.skip("it takes lists")
    for place in range(len(arguments)):
        if place < 2:  # without a mask there is a loss
            put = [*arguments[:place], given, *arguments[place + 1 :]]
            expected = f"must be a tensor( or a list of tensors)?, got {type(given).__name__}"
            with pytest.raises(TypeError, match=expected):
                each(*put)
