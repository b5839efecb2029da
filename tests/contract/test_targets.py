"""The targets of segmentation losses: labels, one-hot and soft targets of any type, one channel, ignored voxels."""

import pytest
import torch
from loss_options import (
    ACTIVATIONS,
    ERRORS,
    EXPONENTS,
    FOCAL_FORMS,
    MODES,
    ONEHOT,
    REDUCED,
    REDUCTIONS,
    SIGMOID,
    SOFTMAX,
    W_TYPES,
    for_labels,
    grid,
    usual,
    values,
    with_options,
)
from support import BACKENDS, assert_all_close, labels, logits, one_hot, soft, value_and_gradient

from twinloss.fast import (
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    MatthewsCorrelationLoss,
    TverskyLoss,
)
from twinloss.fast.runtime import dispatch

WEIGHT = [0.5, 2.0, 3.0]
ANY_TYPE = pytest.mark.parametrize(
    "target_type",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
     torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str,
)  # fmt: skip
# The losses that take targets with a channel for each class, without a warning for one channel.
DENSE = {
    DiceLoss: [{}],
    TverskyLoss: [ERRORS],
    FocalTverskyLoss: EXPONENTS[:1],
    MatthewsCorrelationLoss: [{}],
    GeneralizedDiceLoss: [{}],
    FocalLoss: [{"use_softmax": False}],
    DiceCELoss: [{}],
    DiceFocalLoss: [{"use_softmax": False}],
}
ONE_CHANNEL = {c: options if c is FocalLoss else grid(options, [SIGMOID]) for c, options in DENSE.items()}


# --- types and kinds of targets --------------------------------------------------------------------------------------


@BACKENDS
@ANY_TYPE
@with_options(
    {
        DiceLoss: [SOFTMAX | {"to_onehot_y": True}, SIGMOID | {"to_onehot_y": False}],
        TverskyLoss: grid([SOFTMAX | ERRORS], [{}, {"soft_label": True}, {"ignore_index": 0}, {"batch": True}], ONEHOT),
        GeneralizedDiceLoss: grid([SOFTMAX], [{}, {"soft_label": True}, {"ignore_index": 0}, {"batch": True}], ONEHOT),
        GeneralizedWassersteinDiceLoss: grid([{"dist_matrix": [[0, 1], [1, 0]]}], MODES, [{}, {"ignore_index": 0}]),
        FocalLoss: grid(FOCAL_FORMS, values("reduction", "mean", "none"), ONEHOT),
        DiceCELoss: grid([SIGMOID | {"label_smoothing": 0.1, "ce_weight": 2.0}], ONEHOT),
        DiceFocalLoss: grid([SIGMOID | {"focal_weight": 2.0}], values("reduction", "mean", "none"), ONEHOT),
    },
    others=lambda loss_class: grid(usual(loss_class), [{"to_onehot_y": True}]),
)
def test_target_of_any_type_gives_the_same(form, target_type, loss_class, options):
    x, y = logits(2, 2, 7), labels(2, 1, 7, classes=2)
    target = y if options.get("to_onehot_y", True) else one_hot(y, 2)
    loss = loss_class(**options)
    expected = value_and_gradient(loss, x, target, form=form)
    assert_all_close(value_and_gradient(loss, x, target.to(target_type), form=form), expected, 0)


@BACKENDS
@ANY_TYPE
@with_options(ONE_CHANNEL | {DiceCELoss: [SIGMOID | {"label_smoothing": 0.1, "ce_weight": 2.0}]})
def test_target_of_one_channel_and_any_type_gives_the_same(form, target_type, loss_class, options):
    x, target = logits(2, 1, 7), labels(2, 1, 7, classes=2)
    loss = loss_class(**options)
    expected = value_and_gradient(loss, x, target, form=form)
    assert_all_close(value_and_gradient(loss, x, target.to(target_type), form=form), expected, 0)


OF_ONE_HOT = {
    TverskyLoss: (torch.float64, 1e-13, 1e-16),
    FocalTverskyLoss: (torch.float64, 1e-13, 1e-16),
    MatthewsCorrelationLoss: (torch.float64, 1e-13, 1e-16),
    GeneralizedDiceLoss: (torch.float64, 1e-13, 1e-16),
    FocalLoss: (torch.float32, 1e-6, 1e-9),
    DiceCELoss: (torch.float64, 1e-13, 1e-15),
    DiceFocalLoss: (torch.float32, 1e-6, 1e-6),
}


@BACKENDS
@with_options(
    {
        TverskyLoss: grid([ERRORS], REDUCTIONS, ACTIVATIONS),
        FocalTverskyLoss: grid(EXPONENTS, ACTIVATIONS),
        MatthewsCorrelationLoss: [SIGMOID, SOFTMAX, {"other_act": torch.sigmoid}],
        GeneralizedDiceLoss: grid([{"reduction": "none"}], W_TYPES, ACTIVATIONS),
        FocalLoss: grid(FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: grid([SOFTMAX], REDUCED, [{}, {"ce_weight": WEIGHT}, {"weight": WEIGHT, "label_smoothing": 0.3}]),
        DiceFocalLoss: grid(
            [SOFTMAX], REDUCTIONS, FOCAL_FORMS, [{}, {"focal_weight": WEIGHT}, {"weight": WEIGHT, "alpha": 0.3}]
        ),
    }
)
def test_one_hot_target_gives_what_its_labels_give(form, loss_class, options):
    dtype, *tolerances = OF_ONE_HOT[loss_class]
    x, y = logits(2, 3, 4, 5, dtype=dtype), labels(2, 1, 4, 5)
    expected = value_and_gradient(loss_class(to_onehot_y=True, **options), x, y, form=form)
    assert_all_close(value_and_gradient(loss_class(**options), x, one_hot(y), form=form), expected, *tolerances)


@BACKENDS
@with_options(
    {
        loss_class: grid(
            options,
            [{"to_onehot_y": True}, {"include_background": False}, *([SOFTMAX] if loss_class is not FocalLoss else [])],
        )
        for loss_class, options in (DENSE | {GeneralizedDiceLoss: W_TYPES}).items()
    }
)
def test_single_channel_warns_and_ignores_an_option_for_classes(form, loss_class, options):
    ignored = next(name for name in ("softmax", "to_onehot_y", "include_background") if name in options)
    x, g = torch.rand(2, 1, 5, generator=torch.Generator().manual_seed(0)), labels(2, 1, 5, classes=2)
    with pytest.warns(UserWarning, match=f"single channel prediction, `{ignored}"):
        found = value_and_gradient(loss_class(**options), x, g, form=form)
    others = {name: value for name, value in options.items() if name != ignored}
    assert_all_close(found, value_and_gradient(loss_class(**others), x, g, form=form), 0)


# --- voxels that are ignored -----------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
CROPPED = {
    TverskyLoss: (torch.float64, 1e-13, 1e-16),
    GeneralizedDiceLoss: (torch.float64, 1e-13, 1e-16),
    GeneralizedWassersteinDiceLoss: (torch.float64, 1e-13, 1e-16),
    FocalLoss: (torch.float32, 1e-6, 1e-9),
    DiceCELoss: (torch.float32, 1e-5, 1e-7),
    DiceFocalLoss: (torch.float32, 1e-5, 1e-6),
}
IGNORED_OVERLAP = [{}, {"soft_label": True}, {"batch": True, "include_background": False}]
# Index 3 of three classes is a further channel of the target.
BY_LABEL_OR_CHANNEL = [
    {"to_onehot_y": True, "ignore_index": 255},
    *grid([{"to_onehot_y": False}], values("ignore_index", 2, 3)),
]


@BACKENDS
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@with_options(
    {
        TverskyLoss: grid([ERRORS | {"reduction": "none"}], ACTIVATIONS, IGNORED_OVERLAP, BY_LABEL_OR_CHANNEL),
        GeneralizedDiceLoss: grid([{"reduction": "none"}], ACTIVATIONS, IGNORED_OVERLAP, BY_LABEL_OR_CHANNEL),
        GeneralizedWassersteinDiceLoss: grid(MODES, REDUCTIONS, values("ignore_index", 255, -1, 2)),
        FocalLoss: grid([{"gamma": 0.5}], FOCAL_FORMS, REDUCTIONS, BY_LABEL_OR_CHANNEL),
        DiceCELoss: grid(
            REDUCED, ACTIVATIONS, [{}, {"ce_weight": WEIGHT, "label_smoothing": 0.3}], BY_LABEL_OR_CHANNEL
        ),
        DiceFocalLoss: grid(REDUCTIONS, ACTIVATIONS, FOCAL_FORMS, BY_LABEL_OR_CHANNEL),
    }
)
def test_ignored_voxels_may_hold_anything_and_the_rest_counts_as_if_cropped(form, poison, loss_class, options):
    dtype, *tolerances = CROPPED[loss_class]
    x, y = logits(2, 3, 9, dtype=dtype), labels(2, 1, 9, classes=2)
    x[:, :, 4:6], y[:, :, 4:6] = poison, options["ignore_index"]
    options = for_labels(loss_class, options)
    target = y if options.get("to_onehot_y", True) else one_hot(y, max(3, options["ignore_index"] + 1))
    keep, by_voxel = (
        [0, 1, 2, 3, 6, 7, 8],
        options.get("reduction") == "none" and loss_class in (FocalLoss, DiceFocalLoss),
    )
    loss = loss_class(**options)

    def kept(x, target):
        value = loss(x, target)
        return value[..., keep] if by_voxel else value

    value, gradient = value_and_gradient(kept, x, target, form=form)
    whole = loss_class(**{name: value for name, value in options.items() if name != "ignore_index"})
    cropped = value_and_gradient(whole, x[..., keep], target[:, :3, keep], form=form)
    assert_all_close((value, gradient[..., keep]), cropped, *tolerances)
    assert (gradient[:, :, 4:6] == 0).all()
    if by_voxel and loss_class is FocalLoss:
        value, gradient = value_and_gradient(loss, x, target, form=form)
        assert (value[..., 4:6] == 0).all()
        assert (gradient[:, :, 4:6] == 0).all()


@BACKENDS
@with_options(ONE_CHANNEL)
def test_one_loss_takes_labels_to_ignore_and_then_a_channel_that_marks_them(form, loss_class, options):
    x, y = logits(2, 1, 9, dtype=torch.float64), labels(2, 1, 9, classes=2)
    marked = torch.cat([1 - y, y], 1)  # label 1 is ignored, and so is what the second channel marks
    loss = loss_class(**options, ignore_index=1)
    for target in (y, marked, y):
        found = value_and_gradient(loss, x, target, form=form)
        assert_all_close(found, value_and_gradient(loss_class(**options, ignore_index=1), x, target, form=form), 0, 0)


@BACKENDS
@with_options(
    {
        TverskyLoss: [SOFTMAX | ERRORS],
        GeneralizedDiceLoss: grid([SOFTMAX], W_TYPES),
        GeneralizedWassersteinDiceLoss: MODES,
    }
)
def test_items_may_ignore_different_voxels(form, loss_class, options):
    x, y = logits(2, 3, 9, dtype=torch.float64), labels(2, 1, 9)
    y[0, 0, :4], y[1, 0, 6:] = -1, -1
    options = for_labels(loss_class, options | {"reduction": "none"})
    value, gradient = value_and_gradient(loss_class(ignore_index=-1, **options), x, y, form=form)
    for item, keep in ((0, slice(4, 9)), (1, slice(0, 6))):
        cut = x[item, None, :, keep], y[item, None, :, keep]
        cropped = value_and_gradient(loss_class(**options), *cut, form=form)
        assert_all_close((value[item, None], gradient[item, None, :, keep]), cropped, 1e-13, 1e-16)


@BACKENDS
@with_options(
    {
        TverskyLoss: [SOFTMAX | ERRORS],
        GeneralizedDiceLoss: grid([SOFTMAX], W_TYPES),
        GeneralizedWassersteinDiceLoss: MODES,
    }
)
def test_item_that_is_ignored_as_a_whole_has_no_gradient(form, loss_class, options):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    x[0], y[0] = NAN, 255
    options = for_labels(loss_class, options | {"reduction": "none", "smooth_nr": 1.0, "smooth_dr": 4.0})
    value, gradient = value_and_gradient(loss_class(ignore_index=255, **options), x, y, form=form)
    assert (value[0] == 1 - 1 / 4).all()
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).all()


@BACKENDS
@with_options(ONE_CHANNEL | {DiceCELoss: grid([SIGMOID], values("label_smoothing", 0.0, 0.3))})
def test_ignore_index_of_one_channel_is_a_value_of_the_target(form, loss_class, options):
    x, g = logits(2, 1, 9), labels(2, 1, 9, classes=2)
    x[..., 4:6], g[..., 4:6] = NAN, 7
    keep = [0, 1, 2, 3, 6, 7, 8]
    value, gradient = value_and_gradient(loss_class(ignore_index=7, **options), x, g, form=form)
    cropped = value_and_gradient(loss_class(**options), x[..., keep], g[..., keep], form=form)
    tolerances = {FocalLoss: (1e-6, 1e-9), DiceCELoss: (1e-5, 1e-7), DiceFocalLoss: (1e-5, 1e-7)}
    assert_all_close((value, gradient[..., keep]), cropped, *tolerances.get(loss_class, (1e-6, 1e-8)))
    assert (gradient[..., 4:6] == 0).all()


@pytest.mark.parametrize("ignore_index", [3, -1])
@with_options({loss_class: [{}] for loss_class in DENSE} | {FocalLoss: FOCAL_FORMS})
def test_ignore_index_that_names_no_channel_of_a_one_hot_target_is_a_value_error(ignore_index, loss_class, options):
    with pytest.raises(ValueError, match=f"ignore_index={ignore_index}"):
        loss_class(ignore_index=ignore_index, **options)(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


# --- labels that are no class ----------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ([0, 3, 1, -1], "2 voxels with -1, 3"),
        ([0.0, 0.5, 1.0, 2.0], "1 voxels with 0.5"),
        ([0.0, NAN, 1.0, 2.0], "1 voxels with nan"),
        ([0, 255, 255, 3], "1 voxels with 3"),
    ],
)
@with_options(
    {
        DiceLoss: [SOFTMAX],
        TverskyLoss: [SOFTMAX],
        GeneralizedDiceLoss: [SOFTMAX],
        GeneralizedWassersteinDiceLoss: [{}],
        FocalLoss: grid(FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: [SOFTMAX],
        DiceFocalLoss: REDUCTIONS,
    }
)
def test_labels_that_name_no_class_are_shown_and_counted(form, wrong, shown, loss_class, options):
    for ignored in ({"ignore_index": 255}, {}):
        if ignored or 255 not in wrong:
            loss = loss_class(**for_labels(loss_class, options | ignored))
            with dispatch.forced(form), pytest.raises(ValueError, match=shown):
                loss(torch.rand(1, 3, 4), torch.tensor(wrong)[None, None])


# --- gradients of targets --------------------------------------------------------------------------------------------


@with_options(
    {
        DiceLoss: [{}],
        TverskyLoss: grid([ERRORS], [{}, {"batch": True}, {"sigmoid": True, "include_background": False}]),
        GeneralizedDiceLoss: grid(
            W_TYPES, [{}, {"batch": True}, {"normalize_weights": True, "include_background": False}]
        ),
        FocalLoss: grid(FOCAL_FORMS, REDUCTIONS),
        DiceCELoss: grid([SOFTMAX], [{}, {"ce_weight": WEIGHT}, {"label_smoothing": 0.2, "weight": WEIGHT}]),
        DiceFocalLoss: grid([SOFTMAX], REDUCTIONS, FOCAL_FORMS),
    }
)
def test_target_that_asks_for_a_gradient_gets_one(loss_class, options):
    x, target = logits(2, 3, 4, dtype=torch.float64), soft(2, 3, 4, dtype=torch.float64).requires_grad_()
    x = x if loss_class is FocalLoss or {"sigmoid", "softmax"} & set(options) else x.sigmoid()
    loss = loss_class(**options)
    assert torch.autograd.gradcheck(lambda target: loss(x, target), target)


# --- overlaps: Dice, Tversky, generalised Dice -----------------------------------------------------------------------

# Class volumes 4, 2, 1; then 5, 2, 0; and an item of background alone.
VOLUMES = torch.tensor([[[0, 1, 0, 2, 0, 1, 0]], [[0, 1, 0, 0, 0, 1, 0]], [[0, 0, 0, 0, 0, 0, 0]]])
BATCHES = grid([SOFTMAX], values("batch", False, True), values("include_background", False, True))


@BACKENDS
@with_options({DiceLoss: BATCHES, TverskyLoss: grid([ERRORS], BATCHES), GeneralizedDiceLoss: BATCHES})
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 4), (2, 1, 3, 2)])
def test_unreduced_loss_broadcasts_and_mean_and_sum_follow_from_it(form, loss_class, options, spatial):
    x, y = logits(2, 3, *spatial), labels(2, 1, *spatial)
    options = for_labels(loss_class, options)
    with dispatch.forced(form):
        none, mean, total = (loss_class(reduction=r, **options)(x, y) for r in ("none", "mean", "sum"))
    channels = 1 if loss_class is GeneralizedDiceLoss else 3 if options["include_background"] else 2
    assert none.shape == (1 if options["batch"] else 2, channels, *[1] * len(spatial))
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum())


@BACKENDS
@with_options({TverskyLoss: grid([SOFTMAX | ERRORS], ONEHOT), GeneralizedDiceLoss: grid([SOFTMAX], W_TYPES, ONEHOT)})
def test_batch_sums_over_the_items_before_it_divides(form, loss_class, options):
    x, y = logits(3, 3, 7, dtype=torch.float64), VOLUMES
    target = y if options["to_onehot_y"] else one_hot(y)
    found = value_and_gradient(loss_class(batch=True, **options), x, target, form=form)
    # The items side by side are one.
    joined = [t.movedim(0, 1).flatten(1)[None] for t in (x, target)]
    expected, slope = value_and_gradient(loss_class(**options), *joined, form=form)
    assert_all_close(found, (expected, slope.reshape(3, 3, 7).movedim(1, 0)), 1e-13, 1e-16)


OVERLAPS = {TverskyLoss: [ERRORS], GeneralizedDiceLoss: W_TYPES}


@BACKENDS
@with_options({TverskyLoss: grid([SOFTMAX | ERRORS], REDUCTIONS), GeneralizedDiceLoss: grid([SOFTMAX], REDUCTIONS)})
@pytest.mark.parametrize("y", [VOLUMES, labels(3, 1, 7)], ids=["volumes", "random"])
def test_loss_of_a_batch_is_the_reduction_of_those_of_its_items(form, loss_class, options, y):
    x = logits(3, 3, 7, dtype=torch.float64)
    loss = loss_class(**for_labels(loss_class, options))
    with dispatch.forced(form):
        items = torch.cat([loss(x[b : b + 1], y[b : b + 1]).reshape(1, -1) for b in range(3)])
        found = loss(x, y)
    expected = {"mean": items.mean(), "sum": items.sum(), "none": items}[options["reduction"]]
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-14, atol=0)


@BACKENDS
@with_options(OVERLAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_prediction_and_soft_target_are_the_minimum_with_soft_label(form, loss_class, options, dtype):
    g = soft(2, 3, 9, dtype=dtype)
    loss = loss_class(soft_label=True, reduction="none", **options)
    with dispatch.forced(form):
        assert (loss(g, g) == 0).all()
        for seed in range(20):
            p = (g + 0.05 * logits(2, 3, 9, dtype=dtype, seed=seed)).clamp(0, 1)
            assert (loss(p, g) > 0).all()


@BACKENDS
@pytest.mark.parametrize("loss_class", OVERLAPS)
def test_equal_prediction_and_soft_target_are_no_minimum_without_soft_label(form, loss_class):
    g = soft(1, 3, 9, dtype=torch.float64)
    sharp = one_hot(g.argmax(1, keepdim=True)).double()
    loss = loss_class()
    with dispatch.forced(form):
        assert loss(g, g) > 0.1
        assert loss(sharp, g) < loss(g, g)


@BACKENDS
@with_options({TverskyLoss: grid([ERRORS], ACTIVATIONS), GeneralizedDiceLoss: grid([SOFTMAX], W_TYPES)})
@pytest.mark.parametrize("y", [VOLUMES, labels(3, 1, 7)], ids=["volumes", "random"])
def test_soft_label_changes_nothing_for_hard_labels(form, loss_class, options, y):
    x = logits(3, 3, 7, dtype=torch.float64)
    if "other_act" in options:
        x = x.sigmoid().log()  # whose exponentials lie in [0, 1]
    elif not ({"sigmoid", "softmax"} & set(options)):
        x = x.sigmoid()
    options = for_labels(loss_class, options)
    expected = value_and_gradient(loss_class(**options), x, y, form=form)
    found = value_and_gradient(loss_class(soft_label=True, **options), x, y, form=form)
    assert_all_close(found, expected, 1e-13, 1e-17 if loss_class is GeneralizedDiceLoss else 0)
