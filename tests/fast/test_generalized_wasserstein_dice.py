"""The fast generalised Wasserstein Dice loss: documented behaviour and corner cases."""

import copy

import numpy as np
import pytest
import torch
from support import BACKENDS, assert_all_close, exact, labels, logits, one_hot, value_and_gradient

from twinloss import reference
from twinloss.fast import GeneralizedWassersteinDiceLoss, wasserstein_distance_map
from twinloss.fast.runtime import dispatch

MODES = pytest.mark.parametrize("weighting_mode", ["default", "GDL"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
# Its rows and columns differ: M[y, l] is the distance from the label to the prediction.
MATRIX = [[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.25, 0.0]]
# An item without class 2, one of all three, and one of background alone.
LABELS = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 1, 2, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0, 0]])
ARRAYS = {
    "list": lambda m: m,
    "tuple": lambda m: tuple(map(tuple, m)),
    "numpy double": lambda m: np.array(m, np.float64),
    "numpy float": lambda m: np.array(m, np.float32),
    "numpy half": lambda m: np.array(m, np.float16),
    "torch double": lambda m: torch.tensor(m, dtype=torch.float64),
    "torch float": lambda m: torch.tensor(m, dtype=torch.float32),
    "torch half": lambda m: torch.tensor(m, dtype=torch.float16),
    "torch float that asks for a gradient": lambda m: torch.tensor(m, dtype=torch.float32, requires_grad=True),
}
INTEGERS = {
    "list": lambda m: m,
    "numpy": lambda m: np.array(m),
    "numpy int32": lambda m: np.array(m, np.int32),
    "numpy uint8": lambda m: np.array(m, np.uint8),
    "torch": lambda m: torch.tensor(m),
    "torch int32": lambda m: torch.tensor(m, dtype=torch.int32),
    "torch uint8": lambda m: torch.tensor(m, dtype=torch.uint8),
}


def truth(x, target, **options):
    twin = reference.generalized_wasserstein_dice_loss
    return exact(twin, reference.generalized_wasserstein_dice_loss_gradient, x, target, **options)


def item_by_definition(x, y, matrix, weighting_mode, smooth_nr=1e-5, smooth_dr=1e-5):
    """The loss of one item, () from logits (C, *S) and labels (*S), voxel by voxel."""
    p, y = x.reshape(x.shape[0], -1).softmax(0), y.flatten().tolist()
    distances = [sum(d * p[c, i] for c, d in enumerate(matrix[label])) for i, label in enumerate(y)]
    if weighting_mode == "default":
        alpha = [float(label > 0) for label in y]
    else:
        alpha = [1 / (y.count(label) + 1) for label in y]
    tp = sum(a * (1 - w) for a, w in zip(alpha, distances, strict=True))
    if weighting_mode == "default":
        rest = 2 * tp + sum(distances)
    else:
        rest = sum(a * (2 - w) for a, w in zip(alpha, distances, strict=True))
    return 1 - (2 * tp + smooth_nr) / (rest + smooth_dr)


def by_definition(x, y, *rest):
    """The loss of each item, (B,)."""
    return torch.stack([item_by_definition(*item, *rest) for item in zip(x, y, strict=True)])


# --- the formula -----------------------------------------------------------------------------------------------------


@BACKENDS
@MODES
@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (2, 3, 4)])
def test_loss_of_each_item_is_that_of_its_mode(form, weighting_mode, spatial):
    x, y = logits(3, 3, *spatial, dtype=torch.float64), labels(3, *spatial)
    loss = GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode, reduction="none")
    expected = value_and_gradient(lambda x: by_definition(x, y, MATRIX, weighting_mode), x)
    assert_all_close(value_and_gradient(loss, x, y, form=form), expected, 1e-12, 1e-15)


@BACKENDS
@MODES
def test_absent_class_and_item_of_background_alone_are_no_exception(form, weighting_mode):
    x = logits(3, 3, 7, dtype=torch.float64)
    loss = GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode, reduction="none")
    value, gradient = value_and_gradient(loss, x, LABELS, form=form)
    expected = value_and_gradient(lambda x: by_definition(x, LABELS, MATRIX, weighting_mode), x)
    assert_all_close((value, gradient), expected, 1e-12, 1e-15)
    if weighting_mode == "default":  # the background has no weight: TP = 0
        assert value[2] > 0.99999
        assert (gradient[2] != 0).all()  # ν is left, and with it a slope


@BACKENDS
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_zero_one_distances_and_undecided_logits_give_the_closed_values(form, classes):
    # W = 1 - 1/C everywhere; default: TP = n/C for n voxels of foreground among N.
    x, y = torch.zeros(2, classes, 12, dtype=torch.float64), labels(2, 12, classes=classes)
    matrix, unsmoothed = 1 - np.eye(classes), {"smooth_nr": 0, "smooth_dr": 0, "reduction": "none"}
    n = (y > 0).sum(1).double()
    with dispatch.forced(form):
        default = GeneralizedWassersteinDiceLoss(matrix, **unsmoothed)(x, y)
        gdl = GeneralizedWassersteinDiceLoss(matrix, "GDL", **unsmoothed)(x, y)
    torch.testing.assert_close(default, 1 - 2 * n / (2 * n + 12 * (classes - 1)), rtol=1e-14, atol=0)
    # GDL: Σ α (1 - W) = A/C and Σ α (2 - W) = A (1 + 1/C).
    torch.testing.assert_close(gdl, torch.full_like(gdl, (classes - 1) / (classes + 1)), rtol=1e-14, atol=0)


@BACKENDS
def test_zero_one_distances_of_two_classes_are_the_soft_dice_of_the_foreground(form):
    # W = 1 - p_y: 2 TP + Σ W = Σ over foreground (1 + p_1) + Σ over background p_1 = Σ g + Σ p.
    x, y = logits(2, 2, 9, dtype=torch.float64), labels(2, 9, classes=2)
    loss = GeneralizedWassersteinDiceLoss([[0, 1], [1, 0]], reduction="none")

    def dice(x):
        p = x.softmax(1)[:, 1]
        return 1 - (2 * (p * y).sum(1) + 1e-5) / (p.sum(1) + y.sum(1) + 1e-5)

    assert_all_close(value_and_gradient(loss, x, y, form=form), value_and_gradient(dice, x), 1e-12, 1e-16)


@BACKENDS
@MODES
def test_documented_example_gives_what_it_promises(form, weighting_mode):
    dist_mat = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]], dtype=np.float32)
    wass_loss = GeneralizedWassersteinDiceLoss(dist_matrix=dist_mat, weighting_mode=weighting_mode)
    pred_score = torch.tensor([[1000, 0, 0], [0, 1000, 0], [0, 0, 1000]], dtype=torch.float32)
    grnd = torch.tensor([0, 1, 2], dtype=torch.int64)
    with dispatch.forced(form):
        assert wass_loss(pred_score, grnd) == 0


@BACKENDS
@MODES
def test_confusion_of_near_classes_costs_less(form, weighting_mode):
    y = torch.full((1, 5), 1)
    near, far = 5.0 * one_hot(torch.full((1, 1, 5), 2)), 5.0 * one_hot(torch.full((1, 1, 5), 0))
    loss = GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode)
    with dispatch.forced(form):
        assert loss(near, y) < loss(far, y)


@BACKENDS
def test_distance_is_that_from_the_label_to_the_prediction(form):
    # Sure of 2 where the label is 1, W = 1/2; sure of 1 where it is 2, W = 1/4.
    x, unsmoothed = torch.tensor([[[0.0], [0.0], [1000.0]], [[0.0], [1000.0], [0.0]]]), {"smooth_nr": 0, "smooth_dr": 0}
    with dispatch.forced(form):
        found = GeneralizedWassersteinDiceLoss(MATRIX, reduction="none", **unsmoothed)(x, torch.tensor([[1], [2]]))
    torch.testing.assert_close(found, torch.tensor([1 - 1 / 1.5, 1 - 1.5 / 1.75]))


@BACKENDS
@MODES
@REDUCTIONS
def test_items_of_a_batch_do_not_mix(form, weighting_mode, reduction):
    x = logits(3, 3, 7, dtype=torch.float64)
    loss = GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode, reduction)
    value, gradient = value_and_gradient(loss, x, LABELS, form=form)
    alone = [value_and_gradient(loss, x[b : b + 1], LABELS[b : b + 1], form=form) for b in range(3)]
    values, slopes = (torch.cat([t.reshape(1, *t.shape[-2:]) if t.ndim > 1 else t.reshape(1) for t in parts])
                      for parts in zip(*alone, strict=True))  # fmt: skip
    expected = {"mean": values.mean(), "sum": values.sum(), "none": values}[reduction]
    share = 1 / 3 if reduction == "mean" else 1
    assert_all_close((value, gradient), (expected, share * slopes), 1e-13, 1e-17)


def test_default_is_the_mode_of_fidon_and_the_smoothing_1e_5_unless_given():
    x = logits(3, 3, 7, dtype=torch.float64)
    expected = by_definition(x, LABELS, MATRIX, "default", 1e-5, 1e-5).mean()
    torch.testing.assert_close(GeneralizedWassersteinDiceLoss(MATRIX)(x, LABELS), expected, rtol=1e-13, atol=0)


@BACKENDS
@MODES
def test_smoothing_is_added_to_numerator_and_denominator(form, weighting_mode):
    x = logits(3, 3, 7, dtype=torch.float64)
    loss = GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode, "none", 0.5, 2.0)
    expected = value_and_gradient(lambda x: by_definition(x, LABELS, MATRIX, weighting_mode, 0.5, 2.0), x)
    assert_all_close(value_and_gradient(loss, x, LABELS, form=form), expected, 1e-12, 1e-16)


# --- the distance map ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distance_map_is_equation_6(dtype):
    p = torch.tensor([[[0.5, 0.25, 0.125], [0.25, 0.5, 0.125], [0.25, 0.25, 0.75]],
                      [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=dtype)  # fmt: skip
    y = torch.tensor([[0, 1, 2], [0, 2, 1]])
    found = GeneralizedWassersteinDiceLoss(MATRIX).wasserstein_distance_map(p, y)
    expected = [[0.25 + 0.25, 0.25 + 0.5 * 0.25, 0.125 + 0.25 * 0.125], [0.0, 1.0, 0.5]]
    assert torch.equal(found, torch.tensor(expected, dtype=dtype))
    assert torch.equal(wasserstein_distance_map(p, y, MATRIX), found)


def test_distance_map_is_that_of_the_reference():
    p, y = logits(2, 3, 50, dtype=torch.float64).softmax(1), labels(2, 50)
    matrix = [[0, 3, 3], [3, 0, 1], [3, 0.7, 0]]
    expected = torch.from_numpy(reference.wasserstein_distance_map(p.numpy(), y.numpy(), matrix))
    for found in (
        wasserstein_distance_map(p, y, matrix),
        GeneralizedWassersteinDiceLoss(matrix).wasserstein_distance_map(p, y),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("target_type", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_distance_map_takes_labels_of_any_type(target_type):
    p, y = logits(2, 3, 50).softmax(1), labels(2, 50)
    loss = GeneralizedWassersteinDiceLoss(MATRIX)
    assert torch.equal(loss.wasserstein_distance_map(p, y.to(target_type)), loss.wasserstein_distance_map(p, y))


def test_distance_map_has_a_gradient():
    p, y = logits(2, 3, 4, dtype=torch.float64).softmax(1).detach().requires_grad_(), labels(2, 4)
    loss = GeneralizedWassersteinDiceLoss(MATRIX)
    loss.wasserstein_distance_map(p, y).sum().backward()
    assert torch.equal(p.grad, torch.tensor(MATRIX, dtype=torch.float64)[y].movedim(-1, 1))


# --- the distance matrix ---------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("kind", ARRAYS)
def test_distances_of_any_kind_give_the_same(weighting_mode, kind):
    x = logits(3, 3, 7)
    expected = value_and_gradient(GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode), x, LABELS)
    found = value_and_gradient(GeneralizedWassersteinDiceLoss(ARRAYS[kind](MATRIX), weighting_mode), x, LABELS)
    assert_all_close(found, expected, 0)


@MODES
@pytest.mark.parametrize("kind", INTEGERS)
def test_whole_numbers_are_divided_by_their_maximum(weighting_mode, kind):
    x, whole = logits(3, 3, 7), [[0, 4, 4], [4, 0, 2], [4, 1, 0]]
    expected = value_and_gradient(GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode), x, LABELS)
    found = value_and_gradient(GeneralizedWassersteinDiceLoss(INTEGERS[kind](whole), weighting_mode), x, LABELS)
    assert_all_close(found, expected, 0)


@BACKENDS
@MODES
@pytest.mark.parametrize("factor", [0.125, 8.0, 1e-30, 1e30])
def test_distances_may_have_any_unit(form, weighting_mode, factor):
    x = logits(3, 3, 7, dtype=torch.float64)
    expected = value_and_gradient(GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode), x, LABELS, form=form)
    scaled = GeneralizedWassersteinDiceLoss(factor * np.array(MATRIX), weighting_mode)
    assert_all_close(value_and_gradient(scaled, x, LABELS, form=form), expected, 1e-13, 1e-17)


@pytest.mark.parametrize("kind", ["list", "numpy double", "numpy float", "torch double", "torch float"])
def test_distances_that_their_owner_changes_later_stay_as_they_were_given(kind):
    x, matrix = logits(3, 3, 7), ARRAYS[kind](copy.deepcopy(MATRIX))
    loss = GeneralizedWassersteinDiceLoss(matrix)
    before = loss(x, LABELS)
    matrix[1][2] = matrix[2][1] = 1.0
    assert torch.equal(loss(x, LABELS), before)
    assert not torch.equal(GeneralizedWassersteinDiceLoss(matrix)(x, LABELS), before)


@pytest.mark.parametrize("kind", ["list", "numpy double", "numpy float", "torch double", "torch float"])
def test_distances_that_are_no_maximum_of_1_are_not_divided_in_place(kind):
    doubled = [[2 * d for d in row] for row in MATRIX]
    matrix = ARRAYS[kind](doubled)
    GeneralizedWassersteinDiceLoss(matrix)(logits(3, 3, 7), LABELS)
    assert torch.equal(torch.as_tensor(matrix, dtype=torch.float64), torch.tensor(doubled, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 2), (1, 3, 3)])
@pytest.mark.parametrize("make", [np.ones, torch.ones, lambda shape: np.ones(shape).tolist()])
def test_distances_that_are_not_square_are_a_value_error(make, shape):
    with pytest.raises(ValueError, match="must be a square matrix") as caught:
        GeneralizedWassersteinDiceLoss(make(shape))
    assert str(shape) in str(caught.value)


@MODES
@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0, 1, 1], [1, 0, -0.5], [1, 0.5, 0]], "negative"),
        ([[0, 1, 1], [1, 0, float("nan")], [1, 0.5, 0]], "finite|NaN|negative"),
        ([[0, 1, 1], [1, float("nan"), 1], [1, 1, 0]], "finite|NaN|diagonal"),
        ([[0, 1, float("inf")], [1, 0, 1], [1, 1, 0]], "finite"),
        ([[0, 1, 1], [1, 0.1, 1], [1, 1, 0]], "zero diagonal"),
        ([[1, 0], [0, 1]], "zero diagonal"),
        ([[0, 0], [0, 0]], "greater than 0"),
        ([[0]], "greater than 0"),
    ],
)
def test_distances_that_are_none_are_a_value_error(weighting_mode, matrix, message):
    for make in (list, np.array, torch.tensor):
        with pytest.raises(ValueError, match=message):
            GeneralizedWassersteinDiceLoss(make(matrix), weighting_mode)


@MODES
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_channels_that_are_not_those_of_the_distances_are_a_value_error(weighting_mode, classes):
    loss = GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode)
    with pytest.raises(ValueError, match=f"input has {classes} channels .* dist_matrix 3 classes"):
        loss(torch.rand(2, classes, 5), torch.zeros(2, 5))


@pytest.mark.parametrize(
    "matrix",
    [
        [[0, 0.5, 1], [0.5, 0, 1], [1, 1, 0]],
        [[0, 1, 1], [1, 0, 2], [1, 2, 0]],  # not after the division by 2
        [[0, 1, 1], [0.5, 0, 1], [1, 1, 0]],  # 1 to the class, not from it
        [[0, 1, 0.5], [1, 0, 1], [1, 1, 0]],
    ],
)
def test_background_that_is_nearer_than_1_warns(matrix):
    with pytest.warns(UserWarning, match="background"):
        GeneralizedWassersteinDiceLoss(matrix)


@pytest.mark.parametrize("matrix", [[[0, 2, 2], [2, 0, 1], [2, 1, 0]], [[0, 1], [1, 0]], 1 - np.eye(5)])
def test_background_at_the_largest_distance_does_not_warn(matrix, recwarn):
    GeneralizedWassersteinDiceLoss(matrix)
    assert not recwarn


@BACKENDS
@MODES
@pytest.mark.filterwarnings("ignore:some class is nearer to the background")
def test_background_that_is_nearer_than_1_counts_as_it_is_written(form, weighting_mode):
    x, matrix = logits(3, 3, 7, dtype=torch.float64), [[0, 0.25, 0.5], [0.5, 0, 1], [0.75, 1, 0]]
    loss = GeneralizedWassersteinDiceLoss(matrix, weighting_mode, reduction="none")
    expected = value_and_gradient(lambda x: by_definition(x, LABELS, matrix, weighting_mode), x)
    assert_all_close(value_and_gradient(loss, x, LABELS, form=form), expected, 1e-12, 1e-16)


@pytest.mark.parametrize("weighting_mode", ["gdl", "Default", None, 1])
def test_unknown_weighting_mode_is_a_value_error(weighting_mode):
    with pytest.raises(ValueError, match="weighting_mode must be") as caught:
        GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode)
    assert repr(weighting_mode) in str(caught.value)


# --- shapes and targets ----------------------------------------------------------------------------------------------


@BACKENDS
@MODES
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4), (1,), (2, 1, 3)])
def test_target_has_a_channel_axis_or_none(form, weighting_mode, spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    loss = GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode)
    expected = value_and_gradient(loss, x, y, form=form)
    assert_all_close(value_and_gradient(loss, x, y[:, 0], form=form), expected, 0)


@BACKENDS
@MODES
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4)])
def test_unreduced_loss_is_one_value_per_item_and_mean_and_sum_follow_from_it(form, weighting_mode, spatial):
    x, y = logits(4, 3, *spatial), labels(4, *spatial)
    with dispatch.forced(form):
        none, mean, total = (
            GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode, r)(x, y) for r in ("none", "mean", "sum")
        )
    assert none.shape == (4,)
    assert mean.shape == total.shape == ()
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum())


@MODES
@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (1, 5), (3, 5), (2, 1, 4), (2, 2, 5), (2, 3, 5), (10, 1), (5,)])
def test_target_of_another_size_names_both_shapes(weighting_mode, shape):
    with pytest.raises(ValueError, match="target has shape") as caught:
        GeneralizedWassersteinDiceLoss(MATRIX, weighting_mode)(torch.rand(2, 3, 5), torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert "(2, 3, 5)" in str(caught.value)


# --- numbers ---------------------------------------------------------------------------------------------------------


@BACKENDS
@MODES
def test_nearly_wholly_wrong_prediction_keeps_a_gradient(form, weighting_mode):
    # 1 - W would be rounded to 0 in every voxel, and the slope out of there with it.
    y = torch.full((1, 1, 100), 1)
    x = torch.where(one_hot(y) == 1, -20.0, 0.0)
    x[:, 2] = -20.0
    options = {"dist_matrix": MATRIX, "weighting_mode": weighting_mode, "smooth_nr": 0, "smooth_dr": 0}
    value, gradient = value_and_gradient(GeneralizedWassersteinDiceLoss(**options), x, y, form=form)
    assert_all_close((gradient,), truth(x, y, **options)[1:], 1e-5)
    assert (gradient[:, 1] < 0).all()
    assert value == 1


# --- layouts, state --------------------------------------------------------------------------------------------------


@MODES
def test_distance_map_changes_neither_its_arguments_nor_the_module(weighting_mode):
    p, y = logits(2, 3, 40).softmax(1), labels(2, 40)
    loss = GeneralizedWassersteinDiceLoss(np.array(MATRIX), weighting_mode)
    before, tensors = copy.deepcopy(vars(loss)), (p.clone(), y.clone())
    loss.wasserstein_distance_map(p, y)
    assert vars(loss) == before
    assert all(torch.equal(a, b) for a, b in zip(tensors, (p, y), strict=True))


@BACKENDS
def test_one_module_serves_other_shapes_and_types(form):
    loss = GeneralizedWassersteinDiceLoss(MATRIX, reduction="none")
    for batch, spatial, dtype in ((2, (7,), torch.float64), (1, (), torch.float32), (3, (2, 3), torch.float64)):
        x, y = logits(batch, 3, *spatial, dtype=dtype), labels(batch, *spatial)
        with dispatch.forced(form):
            found = loss(x, y)
        assert found.dtype == dtype
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found, by_definition(x, y, MATRIX, "default"), rtol=tolerance, atol=0)
