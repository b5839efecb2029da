"""Properties that all segmentation losses of the reference have in common."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import twinloss.reference
from twinloss.reference.steps.activation import (
    log_sigmoid,
    log_softmax,
    log_softmax_adjoint,
    sigmoid,
    sigmoid_adjoint,
    softmax,
    softmax_adjoint,
)

SHAPE = (2, 3, 4, 5)
MATRIX = [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]]


def options_for_labels(name):
    """Return the options with which a loss takes logits and labels."""
    given = {"softmax": True, "to_onehot_y": True, "dist_matrix": MATRIX}
    taken = inspect.signature(getattr(twinloss.reference, name)).parameters
    return {option: value for option, value in given.items() if option in taken} if "ignore_index" in taken else None


# The losses of a segmentation, but for those that wrap one.
EXPORTED = [name for name in twinloss.reference.__all__ if name.endswith("_loss")]
LOSSES = {name: options for name in EXPORTED if (options := options_for_labels(name)) is not None}
every_loss = pytest.mark.parametrize("name", LOSSES)


def logits(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def labels(shape=SHAPE, classes=3):
    return np.random.default_rng(1).integers(0, classes, (shape[0], 1, *shape[2:]))


def one_hot(y, classes=3):
    return (y == np.arange(classes).reshape(1, -1, *[1] * (y.ndim - 2))).astype(float)


def evaluate(name, x, y, mask=None, **options):
    """Return the value and the gradient of a loss."""
    if name == "masked_dice_loss":
        rest = (y, np.ones((1, 1, *x.shape[2:])) if mask is None else mask)
    else:
        rest = (y,)
    options = LOSSES[name] | options
    forms = (getattr(twinloss.reference, f) for f in (name, f"{name}_gradient"))
    return tuple(form(x, *rest, **options) for form in forms)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignored", [0, 2, 255])
def test_ignoring_voxels_equals_removing_them_even_if_they_are_not_finite(name, reduction, ignored):
    x, y = logits((1, 3, 40)), labels((1, 3, 40))
    y[0, 0, ::3] = ignored
    kept = y[0, 0] != ignored
    x[:, :, ~kept] = np.array([np.nan, np.inf, -np.inf])[:, np.newaxis]
    value, gradient = evaluate(name, x, y, ignore_index=ignored, reduction=reduction)
    mask = np.ones((1, 1, kept.sum()))
    cropped = evaluate(name, x[:, :, kept], y[:, :, kept], mask, reduction=reduction)
    assert np.allclose(value, cropped[0], rtol=1e-14, atol=0)
    assert np.allclose(gradient[:, :, kept], cropped[1], rtol=1e-12, atol=1e-18)
    assert np.all(gradient[:, :, ~kept] == 0)


@every_loss
def test_gradient_is_0_if_all_voxels_are_ignored(name):
    value, gradient = evaluate(name, logits(), np.full((2, 1, 4, 5), 255), ignore_index=255)
    assert np.isfinite(value)
    assert np.all(gradient == 0)


@pytest.mark.parametrize("name", [n for n in LOSSES if "wasserstein" not in n])
@pytest.mark.parametrize("ignored", [None, 0, 1])
def test_one_hot_target_and_its_labels_have_the_same_loss(name, ignored):
    from_labels = evaluate(name, logits(), labels(), ignore_index=ignored)
    target = one_hot(labels())
    got = evaluate(name, logits(), target, to_onehot_y=False, ignore_index=ignored)
    assert np.array_equal(got[0], from_labels[0])
    assert np.array_equal(got[1], from_labels[1])


@pytest.mark.parametrize("name", [n for n in LOSSES if "wasserstein" not in n])
def test_softmax_labels_and_background_are_not_for_a_single_channel(name):
    x, y = np.exp(-np.abs(logits((2, 1, 6)))), labels((2, 1, 6), 2)
    plain = {"softmax": False, "to_onehot_y": False} if "softmax" in LOSSES[name] else {}
    expected = evaluate(name, x, y, **plain)
    got = evaluate(name, x, y, include_background=False)
    assert np.array_equal(got[0], expected[0])
    assert np.array_equal(got[1], expected[1])


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_input_without_spatial_axes_is_one_voxel(name, reduction):
    if name == "dice_ce_loss" and reduction == "none":
        reduction = "mean"
    x, y = logits((4, 3)), np.array([[0], [2], [1], [1]])
    value, gradient = evaluate(name, x, y, np.ones((4, 1)), reduction=reduction)
    expected = evaluate(name, x[..., np.newaxis], y[..., np.newaxis], reduction=reduction)
    assert np.array_equal(value, expected[0].reshape(value.shape))
    assert np.array_equal(gradient, expected[1][..., 0])
    if reduction == "none" and "generalized" not in name:
        assert value.shape == (4, 3)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_of_a_batch_is_the_reduction_of_the_losses_of_its_items(name, reduction):
    x, y = logits(), labels()
    items = [evaluate(name, x[b : b + 1], y[b : b + 1], reduction=reduction) for b in range(2)]
    value, gradient = evaluate(name, x, y, reduction=reduction)
    scale = 2 if reduction == "mean" else 1
    assert np.isclose(value, sum(v for v, _ in items) / scale, rtol=1e-14)
    assert np.allclose(gradient, np.concatenate([g for _, g in items]) / scale, rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "dice_ce_loss"])
def test_reduction_mean_is_the_mean_of_reduction_none(name):
    none, _ = evaluate(name, logits(), labels(), reduction="none")
    assert np.isclose(evaluate(name, logits(), labels())[0], none.mean(), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("dice_loss", {}, (2, 3, 1, 1)),
        ("dice_loss", {"batch": True, "include_background": False}, (1, 2, 1, 1)),
        ("masked_dice_loss", {"batch": True}, (1, 3, 1, 1)),
        ("tversky_loss", {"include_background": False}, (2, 2, 1, 1)),
        ("generalized_dice_loss", {}, (2, 1, 1, 1)),
        ("generalized_dice_loss", {"batch": True}, (1, 1, 1, 1)),
        ("generalized_wasserstein_dice_loss", {}, (2,)),
        ("focal_loss", {}, (2, 3, 4, 5)),
        ("focal_loss", {"include_background": False}, (2, 2, 4, 5)),
        ("dice_focal_loss", {"batch": True, "include_background": False}, (2, 2, 4, 5)),
        ("generalized_dice_focal_loss", {"batch": True, "include_background": False}, (2, 2, 4, 5)),
    ],
)
def test_without_reduction_the_shape_is_broadcastable(name, options, shape):
    value, gradient = evaluate(name, logits(), labels(), reduction="none", **options)
    assert value.shape == shape
    assert gradient.shape == SHAPE


@every_loss
def test_arguments_are_not_modified(name):
    x, y, mask = logits(), labels(), np.ones((1, 1, 4, 5))
    for a in (x, y, mask):
        a.flags.writeable = False
    assert not any(np.shares_memory(got, x) for got in evaluate(name, x, y, mask))


@every_loss
def test_memory_layout_does_not_change_a_bit(name):
    x, y = logits(), labels()
    expected = evaluate(name, x, y)
    wide = np.zeros((2, 6, 8, 5))
    wide[:, 1:4, ::2] = x
    for same in (np.asfortranarray(x), np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1), wide[:, 1:4, ::2]):
        got = evaluate(name, same, np.asfortranarray(y))
        assert np.array_equal(got[0], expected[0])
        assert np.array_equal(got[1], expected[1])


@every_loss
def test_gradient_of_softmax_sums_to_zero_over_the_classes(name):
    _, gradient = evaluate(name, logits(), labels())
    assert np.abs(gradient).max() > 1e-4
    assert np.abs(gradient.sum(axis=1)).max() < 1e-16


@every_loss
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_saturated_logits_are_finite_and_silent(name, scale):
    value, gradient = evaluate(name, logits() * scale, labels())
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@every_loss
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_non_finite_results_raise_no_warning(name, wrong):
    x = logits()
    x[1, 2, 0, 0] = wrong
    value, gradient = evaluate(name, x, labels())
    assert np.isnan(value)
    assert np.isnan(gradient[1]).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", [{}, {"sigmoid": True}, {"other_act": np.exp}])
def test_overlaps_of_non_finite_inputs_raise_no_warning(wrong, activation):
    x = logits()
    x[1, 2, 0, 0] = wrong
    for name in ("dice_loss", "masked_dice_loss", "generalized_dice_loss", "tversky_loss", "focal_tversky_loss"):
        for soft in (False, True):
            evaluate(name, x, labels(), softmax=False, soft_label=soft, **activation)


@every_loss
def test_without_smoothing_an_empty_class_is_silent(name):
    smooth = {} if name == "focal_loss" else {"smooth_nr": 0, "smooth_dr": 0}
    evaluate(name, np.full(SHAPE, [[[-np.inf]], [[0.0]], [[-np.inf]]]), np.ones((2, 1, 4, 5)), **smooth)


@every_loss
def test_signature_names_every_option_as_keyword_only_with_its_default(name):
    shown = [inspect.signature(getattr(twinloss.reference, form)).parameters for form in (name, f"{name}_gradient")]
    for parameters in shown:
        assert list(parameters)[:2] == ["input", "target"]
        options = list(parameters.values())[2 + (name == "masked_dice_loss") :]
        assert all(p.kind is p.KEYWORD_ONLY for p in options)
        assert {p.name for p in options if p.default is p.empty} <= {"dist_matrix"}
    assert shown[1].keys() - shown[0].keys() <= {"other_act_derivative", "cotangent"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'sofmax'"):
        evaluate(name, logits(), labels(), sofmax=True)


def test_every_loss_and_its_gradient_are_exported():
    files = {path.stem for path in Path(twinloss.reference.__file__).parent.glob("*.py")} - {"__init__"}
    names = {f"{name}_{form}" for name in {*files, "masked_dice"} for form in ("loss", "loss_gradient")}
    assert set(twinloss.reference.__all__) == names | {"wasserstein_distance_map"}


def test_activations_hold_at_huge_logits():
    x = np.array([[1e4, -1e4]])
    assert np.array_equal(softmax(x), [[1, 0]])
    assert np.array_equal(log_softmax(x), [[0, -2e4]])
    assert np.array_equal(sigmoid(x), [[1, 0]])
    assert np.array_equal(log_sigmoid(x), [[0, -1e4]])


def test_logarithms_do_not_cancel_where_p_is_close_to_1():
    assert np.isclose(log_softmax(np.array([[50.0, 0.0]]))[0, 0], -np.exp(-50), rtol=1e-15)
    assert np.isclose(log_sigmoid(np.array(50.0)), -np.exp(-50), rtol=1e-15)


def test_adjoints_do_not_cancel_where_p_is_close_to_1():
    tiny = np.exp(-50)
    x, up = np.array([[50.0, 0.0]]), np.array([[1.0, 0.0]])
    assert np.allclose(softmax_adjoint(up, softmax(x)), [[tiny, -tiny]], rtol=1e-14, atol=0)
    assert np.allclose(log_softmax_adjoint(up, log_softmax(x)), [[tiny, -tiny]], rtol=1e-14, atol=0)
    assert np.isclose(sigmoid_adjoint(np.array(1.0), np.array(50.0)), tiny, rtol=1e-14, atol=0)
