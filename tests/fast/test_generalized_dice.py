"""The fast generalised Dice loss: documented behaviour and corner cases. Its errors stand in test_contract.py."""

import copy
import pickle
from enum import Enum

import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, one_hot, soft, value_and_gradient

from twinloss import reference
from twinloss.fast import DiceLoss, GeneralizedDiceLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
ONEHOT = pytest.mark.parametrize("to_onehot_y", [True, False])
W_TYPES = pytest.mark.parametrize("w_type", ["square", "simple", "uniform"])
ACTIVATIONS = pytest.mark.parametrize(
    "activation", [{}, {"sigmoid": True}, {"softmax": True}, {"other_act": torch.exp}]
)
ON_LABELS = {"softmax": True, "to_onehot_y": True}

# Class volumes 4, 2, 1; then 5, 2, 0; and an item of background alone: 7, 0, 0.
VOLUMES = torch.tensor([[[0, 1, 0, 2, 0, 1, 0]], [[0, 1, 0, 0, 0, 1, 0]], [[0, 0, 0, 0, 0, 0, 0]]])
WEIGHTS = {
    "square": [[1 / 16, 1 / 4, 1], [1 / 25, 1 / 4, 1 / 4], [1 / 49, 1 / 49, 1 / 49]],
    "simple": [[1 / 4, 1 / 2, 1], [1 / 5, 1 / 2, 1 / 2], [1 / 7, 1 / 7, 1 / 7]],
    "uniform": [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
}


def truth(x, target, **options):
    twin, slope = reference.generalized_dice_loss, reference.generalized_dice_loss_gradient
    return exact(twin, slope, x, target, **options)


def weighted(p, g, weights, smooth_nr=1e-5, smooth_dr=1e-5):
    """The loss of each item, (B,), for weights given by hand, (B, C)."""
    w = torch.tensor(weights, dtype=p.dtype)
    i, d = ((w * t.reshape(*p.shape[:2], -1).sum(2)).sum(1) for t in (p * g, p + g))
    return 1 - (2 * i + smooth_nr) / (d + smooth_dr)


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@REDUCTIONS
@W_TYPES
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigmoid": True, "batch": True},
        {"softmax": True, "include_background": False, "ignore_index": 1},
        {"sigmoid": True, "smooth_nr": 0.0, "smooth_dr": 1e-3, "ignore_index": 2, "normalize_weights": True},
        {"softmax": True, "soft_label": True},
    ],
)
def test_value_and_gradient_are_those_of_the_reference(form, reduction, w_type, kind, options):
    x, y = 3 * logits(2, 3, 7, dtype=torch.float64), labels(2, 1, 7)
    target = {"labels": y, "one-hot": one_hot(y), "soft": soft(2, 3, 7)}[kind]
    options = {"to_onehot_y": kind == "labels", "reduction": reduction, "w_type": w_type, **options}
    found = value_and_gradient(GeneralizedDiceLoss(**options), x, target, form=form)
    assert_all_close(found, truth(x, target, **options), 1e-12, 1e-15)
    if options.get("sigmoid") or options.get("softmax"):  # raw numbers of either sign can cancel in the denominator
        single = value_and_gradient(GeneralizedDiceLoss(**options), x.float(), target, form=form)
        assert_all_close(single, truth(x.float(), target, **options), 5e-6, 1e-6)


@BACKENDS
@W_TYPES
@pytest.mark.parametrize(
    ("activation", "probabilities"),
    [({}, lambda x: x), ({"sigmoid": True}, torch.sigmoid), ({"softmax": True}, lambda x: x.softmax(1)),
     ({"other_act": torch.exp}, torch.exp)],
)  # fmt: skip
@ONEHOT
def test_classes_weigh_by_their_volume_and_absent_ones_as_the_largest_of_their_item(
    form, w_type, activation, probabilities, to_onehot_y
):
    x, g = logits(3, 3, 7, dtype=torch.float64), one_hot(VOLUMES)
    loss = GeneralizedDiceLoss(to_onehot_y=to_onehot_y, w_type=w_type, reduction="none", **activation)
    found = value_and_gradient(loss, x, VOLUMES if to_onehot_y else g, form=form)
    expected = value_and_gradient(lambda x: weighted(probabilities(x), g, WEIGHTS[w_type])[:, None, None], x)
    assert_all_close(found, expected, 1e-12, 1e-15)


@BACKENDS
@pytest.mark.parametrize(
    ("w_type", "weights"),
    [("square", [1 / 144, 1 / 4, 1 / 4]), ("simple", [1 / 12, 1 / 2, 1 / 2]), ("uniform", [1, 1, 1])],
)
def test_with_batch_an_absent_class_weighs_as_the_largest_of_the_batch(form, w_type, weights):
    x, y = logits(2, 3, 7, dtype=torch.float64), VOLUMES[1:]
    loss = GeneralizedDiceLoss(w_type=w_type, batch=True, **ON_LABELS)

    def expected(x):
        p, g = (t.movedim(0, 1).flatten(1)[None] for t in (x.softmax(1), one_hot(y)))
        return weighted(p, g, [weights])[0]

    assert_all_close(value_and_gradient(loss, x, y, form=form), value_and_gradient(expected, x), 1e-12, 1e-16)


@BACKENDS
@pytest.mark.parametrize("w_type", ["square", "simple"])
@pytest.mark.parametrize("normalize", [False, True])
@ONEHOT
def test_without_the_background_an_item_of_background_alone_teaches_nothing(form, w_type, normalize, to_onehot_y):
    x = logits(3, 3, 7, dtype=torch.float64)
    options = {"include_background": False, "softmax": True, "to_onehot_y": to_onehot_y, "reduction": "none"}
    options |= {"w_type": w_type, "normalize_weights": normalize, "smooth_nr": 1.0, "smooth_dr": 4.0}
    target = VOLUMES if to_onehot_y else one_hot(VOLUMES)
    value, gradient = value_and_gradient(GeneralizedDiceLoss(**options), x, target, form=form)
    assert value[2] == 1 - 1 / 4
    assert (gradient[2] == 0).all()
    # The others in the batch are those that they are alone.
    alone = value_and_gradient(GeneralizedDiceLoss(**options), x[:2], target[:2], form=form)
    assert_all_close((value[:2], gradient[:2]), alone, 1e-14)
    assert (gradient[:2] != 0).all()


@BACKENDS
@pytest.mark.parametrize("w_type", ["square", "simple"])
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"normalize_weights": True}, {"soft_label": True}])
def test_loss_without_any_class_is_one_minus_the_ratio_of_the_smoothings_with_no_gradient(form, w_type, options):
    x, target = logits(2, 3, 7), torch.zeros(2, 3, 7)
    loss = GeneralizedDiceLoss(sigmoid=True, w_type=w_type, smooth_nr=1.0, smooth_dr=4.0, **options)
    value, gradient = value_and_gradient(loss, x, target, form=form)
    assert value == 1 - 1 / 4
    assert (gradient == 0).all()
    same = GeneralizedDiceLoss(sigmoid=True, w_type=w_type, **options)
    assert value_and_gradient(same, x, target, form=form)[0] == 0


@BACKENDS
@REDUCTIONS
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"smooth_nr": 0.5, "smooth_dr": 2.0}])
def test_uniform_weights_are_dice_of_all_classes_pooled(form, reduction, options):
    x, g = logits(3, 3, 7, dtype=torch.float64), torch.cat([one_hot(VOLUMES)[:2], torch.zeros(1, 3, 7)])
    loss = GeneralizedDiceLoss(sigmoid=True, w_type="uniform", reduction=reduction, **options)
    dice = DiceLoss(sigmoid=True, reduction=reduction, **options)
    value, gradient = value_and_gradient(loss, x, g, form=form)
    pooled = value_and_gradient(dice, x.reshape(3, 1, 21), g.reshape(3, 1, 21), form=form)
    assert_all_close((value, gradient), (pooled[0], pooled[1].reshape(3, 3, 7)), 1e-13, 1e-17)


@BACKENDS
def test_smoothing_is_added_to_numerator_and_denominator(form):
    # w = 1/4 and 1; I = 1 and 1; D = 3 and 3 by hand.
    p, g = torch.tensor([[[1.0, 0, 0], [0, 1, 1]]]), torch.tensor([[[1, 1, 0], [0, 0, 1]]])
    with dispatch.forced(form):
        value = GeneralizedDiceLoss(smooth_nr=0.5, smooth_dr=2.0)(p, g)
    torch.testing.assert_close(value.item(), 1 - (2 * 5 / 4 + 0.5) / (15 / 4 + 2), rtol=1e-6, atol=0)


def test_weights_are_square_and_the_smoothing_is_1e_5_unless_given():
    x = logits(3, 3, 7, dtype=torch.float64)
    expected = weighted(x.softmax(1), one_hot(VOLUMES), WEIGHTS["square"], 1e-5, 1e-5).mean()
    torch.testing.assert_close(GeneralizedDiceLoss(**ON_LABELS)(x, VOLUMES), expected, rtol=1e-13, atol=0)


@BACKENDS
@pytest.mark.parametrize("w_type", ["square", "simple"])
def test_volume_of_a_soft_target_is_its_sum(form, w_type):
    x, g = logits(1, 2, 4, dtype=torch.float64), torch.tensor([[[0.5, 0.25, 0.25, 1.0], [0.25, 0.25, 0.0, 0.0]]])
    weights = {"square": [[1 / 4, 4]], "simple": [[1 / 2, 2]]}[w_type]
    expected = value_and_gradient(lambda x: weighted(x.sigmoid(), g, weights).mean(), x)
    loss = GeneralizedDiceLoss(sigmoid=True, w_type=w_type)
    assert_all_close(value_and_gradient(loss, x, g, form=form), expected, 1e-13, 1e-16)


# --- normalised weights ----------------------------------------------------------------------------------------------


@BACKENDS
@W_TYPES
@pytest.mark.parametrize("background", [True, False])
def test_normalised_weights_of_an_item_sum_to_1(form, w_type, background):
    x, g = logits(2, 3, 7, dtype=torch.float64), one_hot(VOLUMES)[:2]
    first = 0 if background else 1
    weights = [[w / sum(item[first:]) for w in item[first:]] for item in WEIGHTS[w_type][:2]]
    smoothing = {"smooth_nr": 0.5, "smooth_dr": 2.0}

    def expected(x):
        return weighted(x.softmax(1)[:, first:], g[:, first:], weights, **smoothing).mean()

    options = {"include_background": background, "w_type": w_type, "normalize_weights": True, **smoothing}
    found = value_and_gradient(GeneralizedDiceLoss(**options, **ON_LABELS), x, VOLUMES[:2], form=form)
    assert_all_close(found, value_and_gradient(expected, x), 1e-12, 1e-16)


@BACKENDS
@W_TYPES
@pytest.mark.parametrize("batch", [False, True])
def test_normalising_leaves_the_ratio_without_smoothing_as_it_is(form, w_type, batch):
    x = logits(3, 3, 7, dtype=torch.float64)
    options = {"w_type": w_type, "batch": batch, "smooth_nr": 0, "smooth_dr": 0, **ON_LABELS}
    expected = value_and_gradient(GeneralizedDiceLoss(**options), x, VOLUMES, form=form)
    found = value_and_gradient(GeneralizedDiceLoss(normalize_weights=True, **options), x, VOLUMES, form=form)
    assert_all_close(found, expected, 1e-13, 1e-17)


@BACKENDS
def test_normalised_weights_keep_the_smoothing_small_in_a_large_volume(form):
    # All is wrong in 96³ voxels, and the weights are about 5e-12: ν = 1e-5 is more than half of the denominator.
    y = torch.arange(96**3).reshape(1, 1, 96, 96, 96) % 2
    p = one_hot(1 - y, 2).float()
    with dispatch.forced(form):
        assert GeneralizedDiceLoss(to_onehot_y=True)(p, y) < 0.5
        assert GeneralizedDiceLoss(to_onehot_y=True, normalize_weights=True)(p, y).item() > 1 - 1e-10


# --- options ---------------------------------------------------------------------------------------------------------


@BACKENDS
@ONEHOT
def test_background_is_dropped_from_the_loss_and_not_from_the_softmax(form, to_onehot_y):
    x, g = logits(2, 3, 7, dtype=torch.float64), one_hot(VOLUMES)[:2]
    loss = GeneralizedDiceLoss(include_background=False, to_onehot_y=to_onehot_y, softmax=True)
    value, gradient = value_and_gradient(loss, x, VOLUMES[:2] if to_onehot_y else g, form=form)
    weights = [item[1:] for item in WEIGHTS["square"][:2]]
    expected = value_and_gradient(lambda x: weighted(x.softmax(1)[:, 1:], g[:, 1:], weights).mean(), x)
    assert_all_close((value, gradient), expected, 1e-12, 1e-16)
    assert (gradient[:, 0] != 0).all()


@BACKENDS
@W_TYPES
@ACTIVATIONS
def test_one_hot_target_gives_what_its_labels_give(form, w_type, activation):
    x, y = logits(2, 3, 4, 5, dtype=torch.float64), labels(2, 1, 4, 5)
    options = {"reduction": "none", "w_type": w_type, **activation}
    expected = value_and_gradient(GeneralizedDiceLoss(to_onehot_y=True, **options), x, y, form=form)
    found = value_and_gradient(GeneralizedDiceLoss(**options), x, one_hot(y), form=form)
    assert_all_close(found, expected, 1e-13, 1e-16)


@BACKENDS
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_unreduced_loss_broadcasts_and_mean_and_sum_follow_from_it(form, batch, background, spatial):
    options = {"include_background": background, "batch": batch, **ON_LABELS}
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    with dispatch.forced(form):
        none, mean, total = (GeneralizedDiceLoss(reduction=r, **options)(x, y) for r in ("none", "mean", "sum"))
    assert none.shape == (1 if batch else 2, 1, *[1] * len(spatial))
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum())


@BACKENDS
@W_TYPES
@ONEHOT
def test_batch_sums_over_the_items_before_it_divides(form, w_type, to_onehot_y):
    x, target = logits(3, 3, 7, dtype=torch.float64), VOLUMES if to_onehot_y else one_hot(VOLUMES)
    options = {"softmax": True, "to_onehot_y": to_onehot_y, "w_type": w_type}
    found = value_and_gradient(GeneralizedDiceLoss(batch=True, **options), x, target, form=form)
    # The items side by side are one.
    joined = [t.movedim(0, 1).flatten(1)[None] for t in (x, target)]
    expected, slope = value_and_gradient(GeneralizedDiceLoss(**options), *joined, form=form)
    assert_all_close(found, (expected, slope.reshape(3, 3, 7).movedim(1, 0)), 1e-13, 1e-16)


@BACKENDS
@REDUCTIONS
def test_loss_of_a_batch_is_the_reduction_of_those_of_its_items(form, reduction):
    x, y = logits(3, 3, 7, dtype=torch.float64), VOLUMES
    loss = GeneralizedDiceLoss(reduction=reduction, **ON_LABELS)
    with dispatch.forced(form):
        items = [loss(x[b : b + 1], y[b : b + 1]) for b in range(3)]
        found = loss(x, y)
    expected = {"mean": lambda: sum(items) / 3, "sum": lambda: sum(items), "none": lambda: torch.cat(items)}[
        reduction
    ]()
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@BACKENDS
@W_TYPES
@pytest.mark.parametrize("option", [{"softmax": True}, {"to_onehot_y": True}, {"include_background": False}])
def test_single_channel_warns_and_ignores(form, w_type, option):
    x, g = torch.rand(2, 1, 5), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match=f"single channel prediction, `{next(iter(option))}"):
        found = value_and_gradient(GeneralizedDiceLoss(**option, w_type=w_type), x, g, form=form)
    assert_all_close(found, value_and_gradient(GeneralizedDiceLoss(w_type=w_type), x, g, form=form), 0)


@BACKENDS
def test_single_channel_without_smoothing_is_dice(form):
    x, g = logits(2, 1, 5, dtype=torch.float64), labels(2, 1, 5, classes=2)
    unsmoothed = {"smooth_nr": 0, "smooth_dr": 0, "sigmoid": True}
    expected = value_and_gradient(DiceLoss(**unsmoothed), x, g, form=form)
    assert_all_close(value_and_gradient(GeneralizedDiceLoss(**unsmoothed), x, g, form=form), expected, 1e-13, 1e-16)


@BACKENDS
@W_TYPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_prediction_and_soft_target_are_the_minimum_with_soft_label(form, w_type, dtype):
    g = soft(2, 3, 9, dtype=dtype)
    loss = GeneralizedDiceLoss(soft_label=True, w_type=w_type, reduction="none")
    with dispatch.forced(form):
        assert (loss(g, g) == 0).all()
        for seed in range(20):
            p = (g + 0.05 * logits(2, 3, 9, dtype=dtype, seed=seed)).clamp(0, 1)
            assert (loss(p, g) > 0).all()


@BACKENDS
def test_equal_prediction_and_soft_target_are_no_minimum_without_soft_label(form):
    g = soft(1, 3, 9, dtype=torch.float64)
    sharp = one_hot(g.argmax(1, keepdim=True)).double()
    loss = GeneralizedDiceLoss()
    with dispatch.forced(form):
        assert loss(g, g) > 0.1
        assert loss(sharp, g) < loss(g, g)


@BACKENDS
@W_TYPES
def test_soft_label_changes_nothing_for_hard_labels(form, w_type):
    x, y = logits(3, 3, 7, dtype=torch.float64), VOLUMES
    options = {"w_type": w_type, **ON_LABELS}
    expected = value_and_gradient(GeneralizedDiceLoss(**options), x, y, form=form)
    found = value_and_gradient(GeneralizedDiceLoss(soft_label=True, **options), x, y, form=form)
    assert_all_close(found, expected, 1e-13, 1e-17)


def test_enumerated_w_type_is_understood():
    # MONAI's own default is such an enumeration, Weight.SQUARE.
    x, w_type = logits(3, 3, 7), Enum("Weight", {"SIMPLE": "simple"}).SIMPLE
    found = GeneralizedDiceLoss(w_type=w_type, **ON_LABELS)(x, VOLUMES)
    assert torch.equal(found, GeneralizedDiceLoss(w_type="simple", **ON_LABELS)(x, VOLUMES))


@pytest.mark.parametrize("w_type", ["cube", "Square", None, 2])
def test_unknown_w_type_is_a_value_error(w_type):
    with pytest.raises(ValueError, match="w_type must be") as caught:
        GeneralizedDiceLoss(w_type=w_type)
    assert repr(w_type) in str(caught.value)


@BACKENDS
@pytest.mark.parametrize(
    "target_type",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
     torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"ignore_index": 0}, {"batch": True}])
@ONEHOT
def test_target_of_any_type_gives_the_same(form, to_onehot_y, target_type, options):
    x, y = logits(2, 2, 7), labels(2, 1, 7, classes=2)
    target = y if to_onehot_y else one_hot(y, 2)
    loss = GeneralizedDiceLoss(softmax=True, to_onehot_y=to_onehot_y, **options)
    expected = value_and_gradient(loss, x, target, form=form)
    assert_all_close(value_and_gradient(loss, x, target.to(target_type), form=form), expected, 0)


@BACKENDS
def test_volume_of_a_half_target_is_counted_beyond_what_a_half_holds(form):
    x, y = logits(1, 2, 2**17), labels(1, 1, 2**17, classes=2)
    g = one_hot(y, 2)
    loss = GeneralizedDiceLoss(softmax=True)
    expected = value_and_gradient(loss, x, g, form=form)
    for half in (torch.float16, torch.bfloat16):
        assert_all_close(value_and_gradient(loss, x, g.to(half), form=form), expected, 0)


# --- ignored voxels --------------------------------------------------------------------------------------------------


@BACKENDS
@ONEHOT
@ACTIVATIONS
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"batch": True, "include_background": False}])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_ignored_voxels_may_hold_anything_and_the_rest_counts_as_if_cropped(
    form, to_onehot_y, activation, options, poison
):
    x, y = logits(2, 3, 9, dtype=torch.float64), labels(2, 1, 9, classes=2)
    x[:, :, 4:6] = poison
    y[:, :, 4:6] = 255 if to_onehot_y else 2
    target = y if to_onehot_y else one_hot(y)
    keep = [0, 1, 2, 3, 6, 7, 8]
    options = {"to_onehot_y": to_onehot_y, "reduction": "none", **activation, **options}
    loss = GeneralizedDiceLoss(ignore_index=255 if to_onehot_y else 2, **options)
    value, gradient = value_and_gradient(loss, x, target, form=form)
    cropped = value_and_gradient(GeneralizedDiceLoss(**options), x[..., keep], target[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-13, 1e-16)
    assert (gradient[:, :, 4:6] == 0).all()


@BACKENDS
@W_TYPES
def test_ignored_voxels_do_not_count_in_the_volume_of_any_class(form, w_type):
    x, y = logits(2, 3, 9, dtype=torch.float64), labels(2, 1, 9)
    y[0, 0, :4], y[1, 0, 6:] = -1, -1
    options = {"w_type": w_type, "reduction": "none", **ON_LABELS}
    value, gradient = value_and_gradient(GeneralizedDiceLoss(ignore_index=-1, **options), x, y, form=form)
    for item, keep in ((0, slice(4, 9)), (1, slice(0, 6))):
        cut = x[item, None, :, keep], y[item, None, :, keep]
        cropped = value_and_gradient(GeneralizedDiceLoss(**options), *cut, form=form)
        assert_all_close((value[item, None], gradient[item, None, :, keep]), cropped, 1e-13, 1e-16)


@BACKENDS
@W_TYPES
def test_item_that_is_ignored_as_a_whole_has_no_gradient(form, w_type):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    x[0], y[0] = float("nan"), 255
    options = {"w_type": w_type, "reduction": "none", "smooth_nr": 1.0, "smooth_dr": 4.0}
    loss = GeneralizedDiceLoss(ignore_index=255, **options, **ON_LABELS)
    value, gradient = value_and_gradient(loss, x, y, form=form)
    assert value[0] == 1 - 1 / 4
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).all()


@BACKENDS
def test_ignore_index_of_one_channel_is_a_value_of_the_target(form):
    x, g = logits(2, 1, 9), labels(2, 1, 9, classes=2)
    x[..., 4:6], g[..., 4:6] = float("nan"), 7
    keep = [0, 1, 2, 3, 6, 7, 8]
    value, gradient = value_and_gradient(GeneralizedDiceLoss(sigmoid=True, ignore_index=7), x, g, form=form)
    cropped = value_and_gradient(GeneralizedDiceLoss(sigmoid=True), x[..., keep], g[..., keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, 1e-6, 1e-8)
    assert (gradient[..., 4:6] == 0).all()


@pytest.mark.parametrize("ignore_index", [3, -1])
def test_ignore_index_that_names_no_channel_of_a_one_hot_target_is_a_value_error(ignore_index):
    with pytest.raises(ValueError, match=f"ignore_index={ignore_index}"):
        GeneralizedDiceLoss(ignore_index=ignore_index)(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@W_TYPES
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"batch": True, "normalize_weights": True}])
def test_float64_keeps_its_accuracy(form, w_type, options):
    x, y = logits(2, 3, 50, dtype=torch.float64), labels(2, 1, 50)
    options = {"w_type": w_type, "smooth_nr": 0.1, "smooth_dr": 0.7, **ON_LABELS, **options}
    value, gradient = value_and_gradient(GeneralizedDiceLoss(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == torch.float64
    expected = truth(x, y, **options)
    assert_all_close((value,), expected[:1], 1e-14)
    assert_all_close((gradient,), expected[1:], 1e-12, 1e-17)


@BACKENDS
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_nearly_perfect_prediction_keeps_a_relative_accuracy_of_float32(form, activation):
    # 1 - 2I/D would be rounded to a multiple of 6e-8; the loss here is about 1e-8.
    y = labels(1, 1, 1000)
    x = torch.where(one_hot(y) == 1, 10.0, -10.0)
    options = {"to_onehot_y": True, activation: True}
    value, gradient = value_and_gradient(GeneralizedDiceLoss(**options), x, y, form=form)
    expected = truth(x, y, **options)
    assert_all_close((value,), expected[:1], 1e-6)
    assert_all_close((gradient,), expected[1:], 1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@W_TYPES
def test_half_precision_is_computed_in_float32(half, w_type):
    # 2^17 voxels: beyond 65504, the largest float16, and far beyond 256, where bfloat16 stops counting.
    x, y = (4 * logits(1, 2, 2**17)).to(half), labels(1, 1, 2**17, classes=2)
    loss = GeneralizedDiceLoss(w_type=w_type, **ON_LABELS)
    value, gradient = value_and_gradient(loss, x, y)
    wide = value_and_gradient(loss, x.float(), y)
    assert value.dtype == gradient.dtype == half
    assert torch.equal(value, wide[0].to(half))
    assert torch.equal(gradient, wide[1].to(half))
    assert value.isfinite()
    assert gradient.isfinite().all()


@BACKENDS
@W_TYPES
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_saturated_logits_have_a_finite_value_and_gradient(form, w_type, activation, dtype):
    x, y = (1e4 * logits(2, 3, 40).sign()).to(dtype), labels(2, 1, 40)
    options = {"to_onehot_y": True, activation: True, "w_type": w_type}
    value, gradient = value_and_gradient(GeneralizedDiceLoss(**options), x, y, form=form)
    assert value.dtype == gradient.dtype == dtype
    assert value.isfinite()
    assert gradient.isfinite().all()
    wide = truth(x.to(torch.promote_types(dtype, torch.float32)), y, **options)
    assert_all_close((value, gradient), [t.to(dtype) for t in wide], 2 * torch.finfo(dtype).eps, 1e-7)


@BACKENDS
@ACTIVATIONS
@pytest.mark.parametrize("options", [{}, {"soft_label": True}, {"normalize_weights": True}])
@ONEHOT
def test_nan_reaches_value_and_gradient(form, activation, options, to_onehot_y):
    x, y = logits(2, 3, 5), labels(2, 1, 5)
    x[1, 2, 3] = float("nan")
    loss = GeneralizedDiceLoss(to_onehot_y=to_onehot_y, reduction="none", **activation, **options)
    value, gradient = value_and_gradient(loss, x, y if to_onehot_y else one_hot(y), form=form)
    assert value[1].isnan().all()
    assert value[0].isfinite().all()
    assert gradient[1].isnan().all()
    assert gradient[0].isfinite().all()


@BACKENDS
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [([0, 3, 1, -1], "2 voxels with -1, 3"), ([0.0, 0.5, 1.0, 2.0], "1 voxels with 0.5"),
     ([0, 255, 255, 3], "1 voxels with 3")],
)  # fmt: skip
def test_labels_that_name_no_class_are_shown_and_counted(form, wrong, shown):
    loss = GeneralizedDiceLoss(ignore_index=255, **ON_LABELS)
    with dispatch.forced(form), pytest.raises(ValueError, match=shown):
        loss(torch.rand(1, 3, 4), torch.tensor(wrong)[None, None])


@pytest.mark.parametrize("options", [{}, {"batch": True}, {"normalize_weights": True, "include_background": False}])
@W_TYPES
def test_target_that_asks_for_a_gradient_gets_one(w_type, options):
    x = torch.rand(2, 3, 5, dtype=torch.float64)
    target = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: GeneralizedDiceLoss(w_type=w_type, **options)(x, g), target)


@pytest.mark.parametrize("to_onehot_y", [True, False])
@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True, "batch": True, "w_type": "simple"}])
def test_double_backward(to_onehot_y, options):
    x = logits(2, 3, 4, dtype=torch.float64).requires_grad_()
    target = labels(2, 1, 4) if to_onehot_y else soft(2, 3, 4, dtype=torch.float64)
    loss = GeneralizedDiceLoss(to_onehot_y=to_onehot_y, **options)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), x)


# --- layouts, state --------------------------------------------------------------------------------------------------


@BACKENDS
def test_layout_of_the_input_does_not_matter(form):
    x, y = logits(2, 3, 6, 5, 4), labels(2, 1, 6, 5, 4)
    loss = GeneralizedDiceLoss(**ON_LABELS)
    expected = value_and_gradient(loss, x, y, form=form)
    channels_last = x.to(memory_format=torch.channels_last_3d)
    assert not channels_last.is_contiguous()
    assert_all_close(value_and_gradient(loss, channels_last, y.mT.contiguous().mT, form=form), expected, 1e-6, 1e-8)


@BACKENDS
@pytest.mark.parametrize("options", [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.exp}])
def test_input_target_and_module_stay_as_they_were(form, options):
    x, y = logits(2, 3, 40), labels(2, 1, 40)
    y[..., 3] = 255
    loss = GeneralizedDiceLoss(to_onehot_y=True, ignore_index=255, normalize_weights=True, **options)
    before, tensors = copy.deepcopy(vars(loss)), (x.clone(), y.clone())
    value_and_gradient(loss, x, y, form=form)
    assert vars(loss) == before
    assert all(torch.equal(a, b) for a, b in zip(tensors, (x, y), strict=True))


def test_one_module_serves_another_channel_count():
    loss = GeneralizedDiceLoss(w_type="uniform", reduction="none", **ON_LABELS)
    for classes in (3, 5, 2, 3):
        x, y = logits(2, classes, 6, dtype=torch.float64), labels(2, 1, 6, classes=classes)
        expected = weighted(x.softmax(1), one_hot(y, classes), [1] * classes)[:, None, None]
        torch.testing.assert_close(loss(x, y), expected, rtol=1e-13, atol=0)


def test_options_survive_half_copying_and_pickling():
    x = logits(3, 3, 7, dtype=torch.float64)
    loss = GeneralizedDiceLoss(w_type="simple", smooth_nr=0.1, smooth_dr=0.7, normalize_weights=True, **ON_LABELS)
    expected = loss(x, VOLUMES)
    for twin in (copy.deepcopy(loss).half(), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(x, VOLUMES), expected)
