"""The fast loss within a mask: all losses, half precision, errors and corner cases."""

import inspect

import numpy as np
import pytest
import torch
from loss_options import SEGMENTATION, TWIN, for_labels, usual
from support import BACKENDS, assert_all_close, labels, logits, one_hot, value_and_gradient, value_and_gradients

from twinloss import fast, reference
from twinloss.fast import DiceCELoss, DiceLoss, FocalLoss, MaskedDiceLoss, MaskedLoss
from twinloss.fast.runtime import dispatch

ON_LABELS = {"softmax": True, "to_onehot_y": True}
DISTANCES = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]
WRAPPED = {
    "dice": (fast.DiceLoss, ON_LABELS),
    "dice, weights": (fast.DiceLoss, {**ON_LABELS, "weight": [1.0, 2.0, 0.5], "reduction": "none"}),
    "tversky": (fast.TverskyLoss, {"other_act": torch.sigmoid, "to_onehot_y": True, "alpha": 0.3}),
    "focal_tversky": (fast.FocalTverskyLoss, {**ON_LABELS, "weight": [1.0, 2.0, 0.5]}),
    "matthews_correlation": (fast.MatthewsCorrelationLoss, ON_LABELS),
    "matthews_correlation, soft": (fast.MatthewsCorrelationLoss, {**ON_LABELS, "soft_label": True, "batch": True}),
    "generalized_dice": (fast.GeneralizedDiceLoss, ON_LABELS),
    "generalized_wasserstein_dice": (fast.GeneralizedWassersteinDiceLoss, {"dist_matrix": DISTANCES}),
    "generalized_wasserstein_dice, GDL": (
        fast.GeneralizedWassersteinDiceLoss, {"dist_matrix": DISTANCES, "weighting_mode": "GDL", "reduction": "none"},
    ),
    "focal": (fast.FocalLoss, {"to_onehot_y": True, "alpha": 0.3}),
    "focal, none": (fast.FocalLoss, {"to_onehot_y": True, "use_softmax": False, "reduction": "none"}),
    "focal, sum": (fast.FocalLoss, {"to_onehot_y": True, "include_background": False, "reduction": "sum"}),
    "dice_ce": (fast.DiceCELoss, {**ON_LABELS, "ce_weight": [0.5, 1.0, 2.0], "label_smoothing": 0.1}),
    "dice_ce, regions": (fast.DiceCELoss, {"sigmoid": True, "to_onehot_y": True, "multilabel": True}),
    "dice_ce, smoothed regions": (
        fast.DiceCELoss, {"sigmoid": True, "to_onehot_y": True, "multilabel": True, "label_smoothing": 0.1},
    ),
    "dice_focal": (fast.DiceFocalLoss, {**ON_LABELS, "reduction": "sum"}),
    "dice_focal, none": (fast.DiceFocalLoss, {**ON_LABELS, "reduction": "none"}),
}  # fmt: skip
# A loss without a row has the usual options.
WRAPPED |= {
    TWIN[each].name: (each, for_labels(each, *usual(each))) for each in SEGMENTATION
    if each not in [listed for listed, _ in WRAPPED.values()]
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", WRAPPED)
MASKS = pytest.mark.parametrize("kind", ["hard", "soft", "one for all items", "flags"])


def case(kind="soft", dtype=torch.float64):
    x, y = logits(2, 3, 4, 5, dtype=dtype), labels(2, 1, 4, 5)
    mask = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(5)).double()
    hard = mask > 0.4
    made = {"hard": hard.double(), "soft": mask * hard, "one for all items": mask[:1] * hard[:1], "flags": hard}[kind]
    x[(made == 0).expand_as(x)] = torch.nan
    y[..., 0] = 1
    return x, y, made


@BACKENDS
@pytest.mark.parametrize("loss_class", dict.fromkeys(made for made, _ in WRAPPED.values()))
def test_hard_mask_gives_the_loss_of_the_voxels_within_it(form, loss_class):
    options = inspect.signature(loss_class).parameters
    given = {"softmax": True, "to_onehot_y": True, "dist_matrix": DISTANCES}
    loss = loss_class(**{name: value for name, value in given.items() if name in options})
    x, y, mask = logits(1, 3, 30, dtype=torch.float64), labels(1, 1, 30), labels(1, 1, 30, classes=2, seed=3)
    inside = mask[0, 0] == 1
    x[..., ~inside] = torch.nan
    value, gradient = value_and_gradient(MaskedLoss(loss), x, y, mask, form=form)
    rest = (torch.ones(1, 1, int(inside.sum())),) if "mask" in inspect.signature(loss.forward).parameters else ()
    expected = value_and_gradient(loss, x[..., inside], y[..., inside], *rest, form=form)
    assert_all_close((value, gradient[..., inside]), expected, 1e-12, 1e-15)
    assert not gradient[..., ~inside].any()


def exact(name, x, y, mask, ignore_index=None):
    """Return the value and the gradient of the reference."""
    options = {**WRAPPED[name][1], "ignore_index": ignore_index}
    function = name.partition(",")[0]
    found = []
    for of, activation in (("", {}), ("_gradient", {"other_act_derivative": lambda x: s(x) * s(-x)})):
        given = {**options, **({"other_act": s, **activation} if "other_act" in options else {})}
        twin = getattr(reference, f"{function}_loss{of}")

        def wrapped(*arguments, twin=twin, given=given, mask=None, **more):
            return twin(*arguments, mask=mask, **given, **more)

        made = getattr(reference, f"masked_loss{of}")(x.numpy().astype(np.longdouble), y.numpy(), mask.numpy(), wrapped)
        found.append(torch.from_numpy(np.asarray(made, np.float64)))
    return found


def s(x):
    return 1 / (1 + np.exp(-x))


@BACKENDS
@EVERY
@MASKS
def test_value_and_gradient_are_those_of_the_reference(form, name, kind):
    (made, options), (x, y, mask) = WRAPPED[name], case(kind)
    found = value_and_gradient(MaskedLoss(made(**options)), x, y, mask, form=form)
    assert_all_close(found, exact(name, x, y, mask), 1e-11, 1e-14)


@BACKENDS
@EVERY
def test_mask_and_ignored_label_exclude_voxels_together(form, name):
    (made, options), (x, y, mask) = WRAPPED[name], case()
    y[:, :, 1] = 255
    x[:, :, 1] = torch.nan
    found = value_and_gradient(MaskedLoss(made(**options, ignore_index=255)), x, y, mask, form=form)
    assert_all_close(found, exact(name, x, y, mask, 255), 1e-11, 1e-14)


@BACKENDS
@pytest.mark.parametrize("loss_class", [DiceCELoss, FocalLoss, fast.DiceFocalLoss])
def test_mask_and_further_channel_exclude_voxels_together(form, loss_class):
    x, y, mask = case()
    further = one_hot(y)
    further = torch.cat([further, (torch.arange(5) == 2).expand(2, 1, 4, 5)], 1).double()
    x[..., 2] = torch.nan
    found = value_and_gradient(MaskedLoss(loss_class(ignore_index=3)), x, further, mask, form=form)
    labelled = torch.where(torch.arange(5) == 2, 255, y)
    expected = value_and_gradient(
        MaskedLoss(loss_class(to_onehot_y=True, ignore_index=255)), x, labelled, mask, form=form
    )
    assert_all_close(found, expected, 1e-13, 1e-15)


@BACKENDS
def test_dice_within_a_mask_is_masked_dice(form):
    x, y, mask = case()
    expected = value_and_gradient(MaskedDiceLoss(**ON_LABELS), x, y, mask, form=form)
    for loss in (DiceLoss(**ON_LABELS), MaskedDiceLoss(**ON_LABELS)):
        found = value_and_gradient(MaskedLoss(loss), x, y, mask, form=form)
        assert all(map(torch.equal, found, expected))


@EVERY
def test_mask_has_a_gradient(name):
    made, options = WRAPPED[name]
    x, y = logits(2, 3, 6, dtype=torch.float64), (torch.arange(12) % 3).reshape(2, 1, 6)
    loss, mask = MaskedLoss(made(**options)), torch.linspace(0.1, 0.9, 12, dtype=torch.float64).reshape(2, 1, 6)
    assert torch.autograd.gradcheck(lambda x, mask: loss(x, y, mask), (x.requires_grad_(), mask.requires_grad_()))


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["dice", "dice_ce", "focal"])
def test_half_precision_is_rounded_once(form, name, dtype):
    (made, options), (x, y, mask) = WRAPPED[name], case(dtype=torch.float32)
    x, loss = x.to(dtype), MaskedLoss(made(**options))
    found = value_and_gradient(loss, x, y, mask, form=form)
    expected = value_and_gradient(loss, x.float(), y, mask, form=form)
    for half, wide in zip(found, expected, strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


# --- losses that take no mask ----------------------------------------------------------------------------------------


def test_other_loss_gets_the_arguments_times_the_mask():
    x, y, mask = case()
    mse, z = MaskedLoss(torch.nn.MSELoss(reduction="none")), logits(2, 3, 4, 5, dtype=torch.float64, seed=3)
    value, slope, of_mask = value_and_gradients(lambda x, m: mse(x, z, m), x, mask)
    taken = mask != 0
    expected = torch.where(taken, mask * x - mask * z, 0)
    assert_all_close((value, slope), (expected**2, torch.where(taken, 2 * expected * mask, 0)), 1e-14)
    assert of_mask.isfinite().all()
    seen = []
    MaskedLoss(lambda x, y: seen.append(y) or x.sum())(x, y, mask)
    assert torch.equal(seen[0], torch.where(taken, y, 0))  # labels are not multiplied


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_target_keeps_its_type_and_may_lack_the_axis_of_channels(dtype):
    x, y, mask = case()
    seen, target = [], (y > 0).to(dtype)
    for given in (target, target[:, 0]):
        MaskedLoss(lambda x, y: seen.append(y) or x.sum())(x, given, mask)
        reference.masked_loss(
            x.numpy(), given.numpy(), mask.numpy(), lambda x, y: seen.append(torch.from_numpy(y)) or 0
        )
    expected = torch.where(mask != 0, target, False)
    assert all(torch.equal(found, expected) for found in seen[:2])
    assert all(torch.equal(found, expected[:, 0]) for found in seen[2:])
    assert all(found.dtype == dtype for found in seen)


@pytest.mark.parametrize("shape", [(2, 1, 4, 1), (1, 1, 4, 5), (2, 4), (1, 4, 5), (2, 1, 1, 4, 5)])
def test_target_that_a_product_with_the_mask_would_expand_is_an_error(shape):
    x, _, mask = case()
    with pytest.raises(AssertionError, match=r"target has shape .* and input \(2, 3, 4, 5\)"):
        MaskedLoss(torch.nn.MSELoss())(x, torch.zeros(shape), mask)


def test_registration_loss_within_a_mask():
    p, t = (logits(1, 1, 9, 9, seed=seed).sigmoid() for seed in (0, 1))
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 2:7, 2:7] = 1
    lncc = fast.LocalNormalizedCrossCorrelationLoss(2)
    assert torch.equal(MaskedLoss(lncc)(p, t, mask), lncc(p * mask, t * mask))


def test_masked_loss_at_several_levels():
    x, y, mask = case()
    loss, coarse = MaskedLoss(DiceCELoss(**ON_LABELS)), (..., slice(1, None, 2), [0, 2, 4])
    found = fast.DeepSupervisionLoss(loss)([x, x[coarse]], y, mask)
    torch.testing.assert_close(found, loss(x, y, mask) + 0.5 * loss(x[coarse], y[coarse], mask[coarse]))


# --- errors -----------------------------------------------------------------------------------------------------------


def test_without_a_mask_it_warns_and_is_the_wrapped_loss():
    x, y, _ = case()
    x = x.nan_to_num()
    with pytest.warns(UserWarning, match="no mask given: the loss is that of all voxels"):
        found = MaskedLoss(DiceCELoss(**ON_LABELS))(x, y)
    assert torch.equal(found, DiceCELoss(**ON_LABELS)(x, y))


@EVERY
@BACKENDS
@pytest.mark.parametrize("bad", [-0.5, 1.5, float("nan")])
def test_mask_outside_of_0_and_1_is_an_error(name, form, bad):
    made, options = WRAPPED[name]
    x, y, mask = logits(1, 3, 4), labels(1, 1, 4), torch.ones(1, 1, 4)
    mask[..., 1] = bad
    with dispatch.forced(form), pytest.raises(ValueError, match=r"mask values must lie in \[0, 1\]"):
        MaskedLoss(made(**options))(x, y, mask)


@pytest.mark.parametrize("loss", [DiceCELoss(**ON_LABELS), torch.nn.MSELoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 1, 4), AssertionError, r"mask has shape \(2, 1, 4\) and input \(3, 2, 4\)"),
        (torch.ones(3, 2, 4), ValueError, r"expected \(3 or 1, 1, \*\(4,\)\)"),
        (torch.ones(3, 1, 5), ValueError, "mask has shape"),
        (torch.ones(4), ValueError, "mask has shape"),
        ([1.0], TypeError, "mask must be a tensor, got list"),
    ],
)
def test_mask_that_does_not_fit_is_an_error_that_names_the_shapes(loss, mask, error, message):
    with pytest.raises(error, match=message):
        MaskedLoss(loss)(torch.zeros(3, 2, 4), torch.zeros(3, 1 if isinstance(loss, DiceCELoss) else 2, 4), mask)


def test_wrong_losses_and_inputs_are_errors():
    with pytest.raises(TypeError, match=r"got the class DiceLoss: pass DiceLoss\(…\)"):
        MaskedLoss(DiceLoss)
    with pytest.raises(TypeError, match="loss must be a module or another callable"):
        MaskedLoss(None)
    with pytest.raises(TypeError, match=r"not be a DeepSupervisionLoss.*use DeepSupervisionLoss\(MaskedLoss\(…\)\)"):
        MaskedLoss(fast.DeepSupervisionLoss(DiceLoss()))
    with pytest.raises(TypeError, match="not be a MaskedLoss, which itself takes a mask"):
        MaskedLoss(MaskedLoss(DiceLoss()))
    with pytest.raises(ValueError, match=r"input must be \(batch, channels, \*spatial\), got shape \(4,\)"):
        MaskedLoss(torch.nn.MSELoss())(torch.zeros(4), torch.zeros(4), torch.ones(4))
    with pytest.raises(TypeError, match="no option reduction"):
        MaskedLoss(DiceLoss()).reduction = "sum"
