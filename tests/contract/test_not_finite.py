"""What a NaN or an infinity in one element of the input does to the value, and to every other element of the gradient.

The rule stands in the README: what a voxel adds to a sum spreads as far as that sum does, and no further; what counts
voxels comes from labels, mask and ignore_index alone.
"""

import math

import numpy as np
import pytest
import torch
from loss_options import (
    ACTIVATIONS,
    ERRORS,
    FOCAL_FORMS,
    MATRIX,
    MODES,
    ONEHOT,
    REDUCED,
    REDUCTIONS,
    SIGMOID,
    TWIN,
    for_labels,
    grid,
    usual,
    values,
    with_options,
)
from loss_options import SEGMENTATION as OF_SEGMENTATION
from loss_options import SOFTMAX as OF_SOFTMAX
from support import BACKENDS, assert_all_close, labels, logits, one_hot, value_and_gradient

from twinloss.fast import (
    BendingEnergyLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    DiffusionLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceFocalLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
    MatthewsCorrelationLoss,
    MultiScaleLoss,
    TverskyLoss,
)
from twinloss.harness.judging.trial import examine
from twinloss.harness.losses.catalogue import TWINS, find
from twinloss.harness.model.operand import Operand
from twinloss.harness.model.twin import Case

SOFTMAX = {"softmax": True, "to_onehot_y": True}
AT = (0, 1, 4, 4)
SHAPE = (2, 3, 9, 9)


def item(where):
    return where[0] == 0


def voxel(where):
    return item(where) & (where[2] == AT[2]) & (where[3] == AT[3])


def element(where):
    return voxel(where) & (where[1] == AT[1])


def offsets(where):
    return item(where) & (where[1] == AT[1]), abs(where[2] - AT[2]), abs(where[3] - AT[3])


def window(reach):
    def near(where):
        here, dy, dx = offsets(where)
        return here & (np.maximum(dy, dx) <= reach)

    return near


def of_first_differences(where):
    here, dy, dx = offsets(where)
    return here & (dy + dx <= 1)


def of_second_differences(where):
    """Those along an axis join three neighbours, the mixed ones four corners."""
    here, dy, dx = offsets(where)
    return here & ((dy + dx <= 1) | ((dy % 2 == 0) & (dx % 2 == 0) & (np.maximum(dy, dx) <= 2)))


# The losses, and where in the gradient a NaN in one element of the input shows.
SEGMENTATION = {
    "dice": (DiceLoss(**SOFTMAX), item),
    "dice, sigmoid": (DiceLoss(sigmoid=True, to_onehot_y=True), lambda where: item(where) & (where[1] == AT[1])),
    "tversky": (TverskyLoss(**SOFTMAX), item),
    "focal_tversky": (FocalTverskyLoss(**SOFTMAX), item),
    "matthews_correlation": (MatthewsCorrelationLoss(**SOFTMAX), item),
    "generalized_dice": (GeneralizedDiceLoss(**SOFTMAX), item),
    "generalized_wasserstein_dice": (GeneralizedWassersteinDiceLoss(1 - np.eye(3)), item),
    "focal": (FocalLoss(to_onehot_y=True), voxel),
    "focal, sigmoid": (FocalLoss(to_onehot_y=True, use_softmax=False), element),
    "dice_ce": (DiceCELoss(**SOFTMAX), item),
    "dice_focal": (DiceFocalLoss(**SOFTMAX), item),
    "generalized_dice_focal": (GeneralizedDiceFocalLoss(**SOFTMAX), item),
}
# A loss without a row has the usual options, and the NaN shows in the whole item, as for all losses with a sum.
SEGMENTATION |= {
    TWIN[each].name: (each(**for_labels(each, *usual(each))), item) for each in OF_SEGMENTATION
    if not any(isinstance(loss, each) for loss, _ in SEGMENTATION.values())
}  # fmt: skip
REGISTRATION = {
    "bending_energy": (BendingEnergyLoss(), of_second_differences),
    "diffusion": (DiffusionLoss(), of_first_differences),
    "lncc": (LocalNormalizedCrossCorrelationLoss(ndim=2), window(2)),
    "mutual_information": (GlobalMutualInformationLoss(), item),
    "multi_scale": (MultiScaleLoss(torch.nn.MSELoss(), scales=[0, 0.3]), window(2)),
}
TWO_IMAGES = tuple(twin.name for twin in TWINS if twin.of_images)


def further_arguments(name):
    if name in SEGMENTATION:
        return (labels(2, 1, 9, 9),)
    return (logits(*SHAPE, seed=3, dtype=torch.float64).sigmoid(),) if name in TWO_IMAGES else ()


def called(name):
    loss, where = (SEGMENTATION | REGISTRATION)[name]
    return (lambda x, t: loss(t, x)) if name == "multi_scale" else loss, where


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*SEGMENTATION, *REGISTRATION])
def test_a_nan_spreads_as_far_as_the_sums_that_it_enters_and_changes_no_other_slope(name, dtype, form):
    loss, spreads_to = called(name)
    rest = tuple(t.to(dtype) if t.is_floating_point() else t for t in further_arguments(name))
    x = logits(*SHAPE, dtype=dtype)
    x = x.sigmoid() if name in REGISTRATION else x
    _, clean = value_and_gradient(loss, x, *rest, form=form)
    x[AT] = math.nan
    value, gradient = value_and_gradient(loss, x, *rest, form=form)
    assert value.isnan()
    expected = spreads_to(np.indices(SHAPE))
    assert np.array_equal(~np.isfinite(gradient.numpy()), expected)
    kept = torch.from_numpy(~expected)
    torch.testing.assert_close(gradient[kept], clean[kept], rtol=1e-5, atol=1e-8)


@BACKENDS
@pytest.mark.parametrize("name", [name for name in SEGMENTATION if "sigmoid" not in name])
def test_a_logit_of_plus_infinity_under_softmax_is_a_nan_in_all_classes_of_the_voxel(name, form):
    loss, spreads_to = called(name)
    rest, x = further_arguments(name), logits(*SHAPE)
    x[AT] = math.inf
    value, gradient = value_and_gradient(loss, x, *rest, form=form)
    assert value.isnan()
    assert np.array_equal(~np.isfinite(gradient.numpy()), spreads_to(np.indices(SHAPE)))


@BACKENDS
@pytest.mark.parametrize("name", SEGMENTATION)
@pytest.mark.parametrize("number", [-math.inf, math.inf])
def test_an_infinite_logit_whose_probability_is_0_or_1_has_a_finite_gradient(name, number, form):
    if number > 0 and "sigmoid" not in name:
        pytest.skip("no probability: see above")
    loss, _ = called(name)
    y, x = further_arguments(name)[0], logits(*SHAPE)
    x[AT] = number
    y[0, 0, 4, 4] = AT[1] if number < 0 else 0  # the worst case: the surprisal is infinite
    value, gradient = value_and_gradient(loss, x, y, form=form)
    assert value.isinf() == isinstance(loss, (FocalLoss, DiceCELoss, DiceFocalLoss))
    assert gradient.isfinite().all()


@BACKENDS
@pytest.mark.parametrize("use_softmax", [True, False])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("true_class", [0, 1])
def test_mean_and_sum_of_focal_loss_are_those_of_none_for_logits_that_are_not_finite(
    use_softmax, number, true_class, form
):
    x = torch.tensor([[[number, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    y = torch.tensor([[[true_class, 1]]])
    made = {}
    for reduction in ("none", "mean", "sum"):
        loss = FocalLoss(to_onehot_y=True, use_softmax=use_softmax, reduction=reduction)
        made[reduction] = value_and_gradient(loss, x, y, form=form)
    torch.testing.assert_close(made["none"][0].mean(), made["mean"][0], equal_nan=True)
    torch.testing.assert_close(made["none"][0].mean(-1).sum(), made["sum"][0], equal_nan=True)
    torch.testing.assert_close(made["none"][1] / 4, made["mean"][1], equal_nan=True)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"to_onehot_y": True}, SOFTMAX, {"sigmoid": True, "to_onehot_y": True}, {}])
@pytest.mark.parametrize("classes", [1, 2, 3, 6])
def test_a_nan_does_not_change_how_many_voxels_cross_entropy_is_the_mean_of(classes, options, dtype, form):
    x, y = logits(1, classes, 70, dtype=dtype), labels(1, 1, 70, classes=max(classes, 2))
    target = y if options.get("to_onehot_y") or classes == 1 else one_hot(y, classes)
    options = {} if classes == 1 else options
    loss = DiceCELoss(lambda_dice=0.0, **options)
    _, clean = value_and_gradient(loss, x, target, form=form)
    x[0, 0, 3] = math.nan
    twin, names = find("dice_ce"), ("input", "target")
    case = Case(
        {
            name: Operand(tensor.double().numpy() if name == "input" else tensor.numpy(), str(tensor.dtype)[6:])
            for name, tensor in zip(names, (x, target), strict=True)
        },
        {"lambda_dice": 0.0, **options},
    )
    assert examine(twin, case).kind is None
    assert clean.isfinite().all()


def test_every_loss_is_asked_what_a_nan_does():
    asked = {name.partition(",")[0] for name in SEGMENTATION | REGISTRATION}
    left = {twin.name for twin in TWINS} - {"masked_dice", "deep_supervision", "masked"} - asked  # these call others
    assert not left, f"add {left} to REGISTRATION here: where in the gradient does a NaN in one voxel show?"


@BACKENDS
def test_a_loss_beyond_the_range_of_its_type_is_an_infinity(form):
    # 1 - 1e-5 / p² for a p whose square is the smallest number of float32.
    loss = DiceLoss(squared_pred=True, smooth_dr=0.0)
    value, _ = value_and_gradient(loss, torch.full((1, 1), 4e-23), torch.zeros(1, 1), form=form)
    assert value == -math.inf


# Where a NaN in the logit [1, 2, 3] shows in the unreduced value, and at least where it shows in the gradient.
SHOWS = {
    DiceLoss: ((1, 2), (1, 2)),
    TverskyLoss: ((1, 2), (1, 2)),
    FocalTverskyLoss: ((1, 2), (1, 2)),
    MatthewsCorrelationLoss: ((1, 2), (1, 2)),
    GeneralizedDiceLoss: ((1,), (1,)),
    GeneralizedWassersteinDiceLoss: ((1,), (1,)),
    FocalLoss: ((1, 2, 3), (1, 2, 3)),
    DiceCELoss: (None, (1, 2, 3)),
    DiceFocalLoss: ((1, 2), (1, 2, 3)),
}


@BACKENDS
@with_options(
    {
        DiceLoss: grid(
            [{}, SIGMOID, OF_SOFTMAX, {"other_act": torch.tanh}, {"soft_label": True}, {"squared_pred": True}],
            [{"reduction": "none"}],
            ONEHOT,
        ),
        TverskyLoss: grid([ERRORS | {"reduction": "none"}], ACTIVATIONS, [{}, {"soft_label": True}], ONEHOT),
        FocalTverskyLoss: grid([{"reduction": "none"}], ACTIVATIONS, ONEHOT),
        MatthewsCorrelationLoss: grid([{"reduction": "none"}], [SIGMOID, OF_SOFTMAX], ONEHOT),
        GeneralizedDiceLoss: grid(
            [{"reduction": "none"}], ACTIVATIONS, [{}, {"soft_label": True}, {"normalize_weights": True}], ONEHOT
        ),
        GeneralizedWassersteinDiceLoss: grid(
            [{"dist_matrix": MATRIX, "reduction": "none"}], MODES, values("label", 0, 1, 2)
        ),
        FocalLoss: grid([{"to_onehot_y": True}], values("gamma", 0.0, 0.5, 2.0), FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: grid([{"to_onehot_y": True}], [{}, SIGMOID, OF_SOFTMAX, {"label_smoothing": 0.1}], REDUCED),
        DiceFocalLoss: grid([{"to_onehot_y": True}], [{}, SIGMOID | {"use_softmax": False}, OF_SOFTMAX], REDUCTIONS),
    }
)
def test_nan_reaches_value_and_gradient_and_leaves_other_items_alone(form, loss_class, options):
    options = dict(options)
    x, y = logits(2, 3, 5), labels(2, 1, 5)
    x[1, 2, 3], y[1, 0, 3] = math.nan, options.pop("label", 2)
    target = y if options.get("to_onehot_y", True) else one_hot(y)
    value, gradient = value_and_gradient(loss_class(**options), x, target, form=form)
    of_value, of_gradient = SHOWS[loss_class]
    if options.get("reduction") == "none":
        assert value[of_value].isnan().all()
        assert value[0].isfinite().all()
    else:
        assert value.isnan()
    # The slope of Dice in a probability is the same for any probability.
    activated = {"sigmoid", "softmax", "other_act", "soft_label", "squared_pred"} & set(options)
    assert gradient[of_gradient].isnan().all() or (loss_class is DiceLoss and not activated)
    assert gradient[0].isfinite().all()


@BACKENDS
@pytest.mark.parametrize("loss_class", [BendingEnergyLoss, DiffusionLoss])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_displacement_that_is_not_finite_reaches_value_and_gradient_of_its_component(
    form, loss_class, reduction, poison
):
    u = logits(2, 2, 6, 7, 8)
    u[1, 0, 3, 3, 3] = poison
    value, gradient = value_and_gradient(loss_class(reduction=reduction), u, form=form)
    if reduction == "none":
        at = 2 if loss_class is BendingEnergyLoss else 3  # a bending energy has no border
        assert not value[1, 0, at, at, at].isfinite()
        if loss_class is DiffusionLoss:
            assert not value[1, 0, 3, 4, 3].isfinite()
            assert value[1, 0, 3, 4, 4].isfinite()
        assert value[0].isfinite().all()
        assert value[1, 1].isfinite().all()
    else:
        assert not value.isfinite()
    assert not gradient[1, 0, 3, 3, 3].isfinite()
    assert gradient[0].isfinite().all()
    assert gradient[1, 1].isfinite().all()


@BACKENDS
@with_options(
    {
        FocalLoss: grid(ONEHOT, values("gamma", 0.0, 0.5, 2.0), FOCAL_FORMS, REDUCTIONS),
        DiceFocalLoss: grid(
            # With these smoothing terms, Dice of the class that is neither predicted nor true is 0.
            [{"to_onehot_y": True, "smooth_nr": 1, "smooth_dr": 1}],
            [SIGMOID, OF_SOFTMAX],
            values("gamma", 0.0, 0.5, 2.0),
            FOCAL_FORMS,
            REDUCTIONS,
        ),
    }
)
def test_logit_of_minus_infinity_on_a_wrong_class_contributes_nothing(form, loss_class, options):
    x, y = logits(2, 3, 7), 2 * labels(2, 1, 7, classes=2)
    x[:, 1] = -math.inf
    target, other = (y, y // 2) if options["to_onehot_y"] else (one_hot(y), one_hot(y // 2, 2))
    loss = loss_class(**options)
    value, gradient = value_and_gradient(loss, x, target, form=form)
    without = value_and_gradient(loss, x[:, [0, 2]], other, form=form)
    fewer = 2 / 3 if options["reduction"] == "mean" else 1  # the mean is over classes, too
    if options["reduction"] == "none":
        assert (value[:, 1] == 0).all()
        value = value[:, [0, 2]]
    atol = 1e-9 if loss_class is FocalLoss else 1e-6
    assert_all_close((value, gradient[:, [0, 2]]), [fewer * t for t in without], 1e-6, atol)
    assert (gradient[:, 1] == 0).all()
