"""The fast generalised Dice loss: documented behaviour and corner cases."""

from enum import Enum

import pytest
import torch
from support import BACKENDS, assert_all_close, labels, logits, one_hot, value_and_gradient

from twinloss.fast import DiceLoss, GeneralizedDiceLoss
from twinloss.fast.runtime import dispatch

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
ONEHOT = pytest.mark.parametrize("to_onehot_y", [True, False])
W_TYPES = pytest.mark.parametrize("w_type", ["square", "simple", "uniform"])
ON_LABELS = {"softmax": True, "to_onehot_y": True}

# Class volumes 4, 2, 1; then 5, 2, 0; and an item of background alone: 7, 0, 0.
VOLUMES = torch.tensor([[[0, 1, 0, 2, 0, 1, 0]], [[0, 1, 0, 0, 0, 1, 0]], [[0, 0, 0, 0, 0, 0, 0]]])
WEIGHTS = {
    "square": [[1 / 16, 1 / 4, 1], [1 / 25, 1 / 4, 1 / 4], [1 / 49, 1 / 49, 1 / 49]],
    "simple": [[1 / 4, 1 / 2, 1], [1 / 5, 1 / 2, 1 / 2], [1 / 7, 1 / 7, 1 / 7]],
    "uniform": [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
}


def weighted(p, g, weights, smooth_nr=1e-5, smooth_dr=1e-5):
    """The loss of each item, (B,), for weights given by hand, (B, C)."""
    w = torch.tensor(weights, dtype=p.dtype)
    i, d = ((w * t.reshape(*p.shape[:2], -1).sum(2)).sum(1) for t in (p * g, p + g))
    return 1 - (2 * i + smooth_nr) / (d + smooth_dr)


# --- the formula -----------------------------------------------------------------------------------------------------


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
def test_single_channel_without_smoothing_is_dice(form):
    x, g = logits(2, 1, 5, dtype=torch.float64), labels(2, 1, 5, classes=2)
    unsmoothed = {"smooth_nr": 0, "smooth_dr": 0, "sigmoid": True}
    expected = value_and_gradient(DiceLoss(**unsmoothed), x, g, form=form)
    assert_all_close(value_and_gradient(GeneralizedDiceLoss(**unsmoothed), x, g, form=form), expected, 1e-13, 1e-16)


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
def test_volume_of_a_half_target_is_counted_beyond_what_a_half_holds(form):
    x, y = logits(1, 2, 2**17), labels(1, 1, 2**17, classes=2)
    g = one_hot(y, 2)
    loss = GeneralizedDiceLoss(softmax=True)
    expected = value_and_gradient(loss, x, g, form=form)
    for half in (torch.float16, torch.bfloat16):
        assert_all_close(value_and_gradient(loss, x, g.to(half), form=form), expected, 0)
