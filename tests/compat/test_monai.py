"""The losses of `twinloss.compat.monai` are those of MONAI 1.6: signatures, values, gradients, shapes and errors."""

import copy
import inspect
import pickle
import warnings

import monai.losses
import numpy as np
import pytest
import torch

from twinloss.compat import monai as ours
from twinloss.fast.runtime import dispatch

WRAPPERS = {"DeepSupervisionLoss", "MaskedLoss"}
CLASSES = sorted({name for name in ours.__all__ if name.endswith("Loss")} - WRAPPERS)
DISTANCES = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]])

FLAG = (True, False)


def half_tanh(x):
    return 0.5 + 0.5 * torch.tanh(x)


DICE = {
    "include_background": FLAG, "to_onehot_y": FLAG, "sigmoid": FLAG, "softmax": FLAG,
    "other_act": (None, half_tanh), "squared_pred": FLAG, "jaccard": FLAG, "reduction": ("mean", "sum", "none"),
    "smooth_nr": (1e-5, 0.0, 1.0), "smooth_dr": (1e-5, 1.0), "batch": FLAG, "soft_label": FLAG,
}  # fmt: skip


def without(options, *names):
    return {name: values for name, values in options.items() if name not in names}


OPTIONS = {
    "DiceLoss": DICE | {"weight": (None, 2.0, "by class"), "ignore_index": (None, 1)},
    "MaskedDiceLoss": without(DICE, "to_onehot_y") | {"weight": (None, 2.0, "by class")},
    "TverskyLoss": without(DICE, "squared_pred", "jaccard")
    | {"alpha": (0.5, 0.0, 0.3), "beta": (0.5, 2.0), "ignore_index": (None, 1)},
    "MCCLoss": without(DICE, "squared_pred", "jaccard", "soft_label") | {"smooth_nr": (0.0, 1e-5, 1.0)},
    "GeneralizedDiceLoss": without(DICE, "squared_pred", "jaccard") | {"w_type": ("square", "simple", "uniform")},
    "GeneralizedWassersteinDiceLoss": {
        "weighting_mode": ("default", "GDL"), "reduction": DICE["reduction"], "smooth_nr": (1e-5, 1.0),
        "smooth_dr": (1e-5, 1.0),
    },
    "FocalLoss": {
        "include_background": FLAG, "to_onehot_y": FLAG, "gamma": (2.0, 0.0, 0.5, 3.0),
        "alpha": (None, 0.25, "by class"), "weight": (None, 2.0, "by class"), "reduction": DICE["reduction"],
        "use_softmax": FLAG,
    },
    "DiceCELoss": without(DICE, "soft_label") | {
        "reduction": ("mean", "sum"), "weight": (None, "all classes"), "lambda_dice": (1.0, 0.0),
        "lambda_ce": (1.0, 0.5), "label_smoothing": (0.0, 0.1),
    },
    "DiceFocalLoss": without(DICE, "soft_label") | {
        "gamma": (2.0, 0.5), "weight": (None, 2.0, "by class"), "lambda_dice": (1.0, 0.5), "lambda_focal": (1.0, 0.0),
        "alpha": (None, 0.25),
    },
    "GeneralizedDiceFocalLoss": without(DICE, "soft_label", "squared_pred", "jaccard") | {
        "w_type": ("square", "simple", "uniform"), "gamma": (2.0, 0.5), "weight": (None, 2.0, "by class"),
        "lambda_gdl": (1.0, 0.5), "lambda_focal": (1.0, 0.0),
    },
    "BendingEnergyLoss": {"normalize": FLAG, "reduction": DICE["reduction"]},
    "DiffusionLoss": {"normalize": FLAG, "reduction": DICE["reduction"]},
    "LocalNormalizedCrossCorrelationLoss": {
        "kernel_size": (5, 3), "kernel_type": ("rectangular", "gaussian", "triangular"), "reduction": DICE["reduction"],
        "smooth_nr": (0.0, 1e-5, 1.0), "smooth_dr": (1e-5, 1.0),
    },
    "GlobalMutualInformationLoss": {
        "kernel_type": ("gaussian", "b-spline"), "num_bins": (23, 8), "sigma_ratio": (0.5, 1.0),
        "reduction": DICE["reduction"], "smooth_nr": (1e-7, 1e-3), "smooth_dr": (1e-7, 1e-3),
    },
    "MultiScaleLoss": {
        "scales": (None, [0, 1.5], [2]), "kernel": ("gaussian", "cauchy"), "reduction": DICE["reduction"],
    },
}  # fmt: skip
FIELDS = {"BendingEnergyLoss", "DiffusionLoss"}
IMAGES = {"LocalNormalizedCrossCorrelationLoss", "GlobalMutualInformationLoss", "MultiScaleLoss"}


def draw(rng, choices):
    """Draw values of options: about half of them keep their default."""
    return {name: values[rng.integers(len(values))] for name, values in choices.items() if rng.random() < 0.5}


def weights(rng, options, channels):
    """Replace the names of weights by numbers, as many as MONAI asks for."""
    included = channels - (channels > 1 and not options.get("include_background", True))
    counts = {"by class": included, "all classes": channels}
    return {
        name: rng.random(counts[value]) if isinstance(value, str) and value in counts else value
        for name, value in options.items()
    }


def is_listed(name, options, channels):
    """Return whether MONAI differs in a way that the report lists."""
    dropped = channels > 1 and not options.get("include_background", True)
    if channels - dropped == 1 and (options.get("weight") is not None or options.get("use_softmax")):
        return True
    if channels == 1 and options.get("label_smoothing"):
        return True
    if name == "FocalLoss" and not options.get("use_softmax"):
        return isinstance(options.get("alpha"), np.ndarray)
    return False


def segmentation(rng, name, options, channels):
    """Return input, target and mask of a segmentation loss."""
    shape = (2, channels, *rng.integers(3, 6, rng.integers(1, 4)))
    active = any(options.get(act) for act in ("sigmoid", "softmax" if channels > 1 else "", "other_act"))
    logits = active or name in (
        "FocalLoss",
        "DiceFocalLoss",
        "GeneralizedDiceFocalLoss",
        "GeneralizedWassersteinDiceLoss",
    )
    x = torch.tensor(rng.normal(size=shape) if logits else rng.random(shape))
    labels = torch.tensor(rng.integers(channels if channels > 1 else 2, size=(2, 1, *shape[2:])))
    if name == "GeneralizedWassersteinDiceLoss":
        return x, labels
    target = labels
    if channels > 1 and not options.get("to_onehot_y"):
        target = torch.nn.functional.one_hot(labels[:, 0], channels).movedim(-1, 1).double()
        if options.get("soft_label"):
            target = torch.tensor(rng.random(shape)).softmax(1)
    elif channels == 1:
        target = labels.double()
    return (
        (x, target, (torch.tensor(rng.random((2, 1, *shape[2:]))) < 0.7).double())
        if name == "MaskedDiceLoss"
        else (x, target)
    )


def case(rng, name):
    """Draw a call: positional arguments of the constructor, options, and arguments of forward."""
    options = draw(rng, OPTIONS[name])
    rank = int(rng.integers(1, 4))
    if name in FIELDS:
        return (), options, (torch.tensor(rng.normal(size=(2, rank, *rng.integers(3, 6, rank)))),)
    if name in IMAGES:
        if options.get("kernel_type") == "triangular":  # of three voxels, MONAI's has one
            options["kernel_size"] = 5
        mutual = name == "GlobalMutualInformationLoss"
        shape = (2, 2, *rng.integers(4, 7, rank))
        first = () if mutual else (torch.nn.MSELoss(),) if name == "MultiScaleLoss" else (rank,)
        return first, options, (torch.tensor(rng.random(shape)), torch.tensor(rng.random(shape)))
    channels = 3 if "Wasserstein" in name else int(rng.integers(1, 4))
    options = weights(rng, options, channels)
    active = [act for act in ("sigmoid", "softmax", "other_act") if options.get(act)]
    for act in active[1:]:
        del options[act]
    if options.get("soft_label"):  # soft targets mark no voxels
        options.pop("ignore_index", None)
    if channels == 1 and options.get("ignore_index"):
        options["ignore_index"] = 0
    first = (DISTANCES,) if "Wasserstein" in name else ()
    given = segmentation(rng, name, options, channels)
    return None if is_listed(name, options, channels) else (first, options, given)


def answer(library, name, first, options, given):
    """Return the loss, and the gradient of its random combination in each floating-point argument but the mask."""
    tensors = [each.clone().requires_grad_(k == 0) for k, each in enumerate(given)]
    numbers = {
        key: torch.tensor(value) if isinstance(value, np.ndarray) and key != "alpha" else value
        for key, value in options.items()
    }
    if isinstance(numbers.get("alpha"), np.ndarray):
        numbers["alpha"] = numbers["alpha"].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = getattr(library, name)(*first, **numbers)(*tensors)
    upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    loss.backward(upstream)
    return loss.detach(), tensors[0].grad


@pytest.mark.parametrize("name", CLASSES)
def test_values_and_gradients_are_those_of_monai(name):
    rng, compared = np.random.default_rng(3), 0
    while compared < 30:
        drawn = case(rng, name)
        if drawn is None:
            continue
        compared += 1
        ours_, theirs = (answer(library, name, *drawn) for library in (ours, monai.losses))
        for mine, other in zip(ours_, theirs, strict=True):
            # MONAI computes some losses in float32, whatever the dtype of the input.
            atol = 1e-5 * float(other.abs().max())
            assert mine.shape == other.shape, drawn[:2]
            assert torch.allclose(mine.double(), other.double(), rtol=0, atol=atol, equal_nan=True), drawn[:2]


@pytest.mark.parametrize("name", ours.__all__)
def test_arguments_are_those_of_monai_and_then_ours(name):
    mine, theirs = (list(inspect.signature(getattr(each, name)).parameters.values()) for each in (ours, monai.losses))
    for ours_, monais in zip(mine, theirs, strict=False):
        default = getattr(monais.default, "value", monais.default)  # a member of an enum
        assert (ours_.name, ours_.kind, ours_.default) == (monais.name, monais.kind, default)
    further = mine[len(theirs) :]
    assert len(mine) >= len(theirs)
    assert (
        all(each.kind in (each.KEYWORD_ONLY, each.VAR_KEYWORD) for each in further) or name == "MaskedDiceLoss"
    )  # ignore_index
    calls = [inspect.signature(getattr(each, name).forward) for each in (ours, monai.losses)]
    assert list(calls[0].parameters)[: len(calls[1].parameters)] == list(calls[1].parameters)


def test_all_losses_that_both_have_are_there():
    from twinloss import fast

    shared = {name for name in vars(monai.losses) if name.endswith("Loss")} & set(fast.__all__)
    assert shared <= set(ours.__all__)


def test_number_of_axes_of_a_window_is_called_as_in_monai():
    with pytest.raises(ValueError, match="spatial_dims must be 1, 2 or 3, got 4"):
        ours.LocalNormalizedCrossCorrelationLoss(4)


def test_enums_of_monai_are_options():
    from monai.utils import LossReduction, Weight

    loss = ours.GeneralizedDiceLoss(w_type=Weight.SIMPLE, reduction=LossReduction.SUM)
    assert (loss.w_type, loss.reduction) == ("simple", "sum")


def test_options_of_the_fast_losses_are_keyword_arguments():
    x = torch.rand(1, 2, 3)
    given = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    regions = ours.DiceCELoss(sigmoid=True, multilabel=True, lambda_dice=0.0)(x, given)
    torch.testing.assert_close(regions, torch.nn.functional.binary_cross_entropy_with_logits(x, given))
    assert ours.DiffusionLoss(stencil="compact").stencil == "compact"
    with pytest.raises(TypeError, match="unexpected keyword argument 'smoothing'"):
        ours.DiceLoss(smoothing=1.0)


@pytest.mark.filterwarnings("ignore:target sums to values")
def test_regions_have_the_cross_entropy_of_monai():
    """Overlapping regions do not sum to 1, so that a mean over their volumes would differ."""
    x, regions = torch.randn(2, 3, 4, 4), (torch.rand(2, 3, 4, 4) < 0.5).float()
    mine = ours.DiceCELoss(sigmoid=True, lambda_dice=0.0)(x, regions)
    torch.testing.assert_close(mine, monai.losses.DiceCELoss(sigmoid=True, lambda_dice=0.0)(x, regions))


@pytest.mark.parametrize("stencil", ["BendingEnergyLoss", "DiffusionLoss"])
def test_field_without_one_component_per_axis_is_refused(stencil):
    with pytest.raises(ValueError, match="one component for each of its 2 spatial axes, got shape"):
        getattr(ours, stencil)()(torch.zeros(1, 1, 5, 5))


def test_alpha_without_background_is_ignored_with_a_warning_at_the_line_of_the_user():
    x, y = torch.randn(1, 3, 4), torch.randint(3, (1, 1, 4))
    loss = ours.FocalLoss(to_onehot_y=True, include_background=False, use_softmax=True, alpha=0.25)
    with pytest.warns(UserWarning, match="`alpha` is ignored") as told:
        value = loss(x, y)
    assert told[0].filename == __file__
    loss.alpha = None
    assert value == loss(x, y)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dense", [False, True])
def test_focal_loss_of_a_foreground_softmax_leaves_ignored_voxels_out(reduction, dense):
    x, y = torch.randn(2, 3, 6), torch.randint(3, (2, 1, 6))
    y[:, :, 4:] = 1 if dense else 255
    options = {"include_background": False, "use_softmax": True, "reduction": reduction}
    kept = y != 1 if dense else y != 255
    target = torch.nn.functional.one_hot(y[:, 0], 3).movedim(-1, 1) if dense else y
    x = torch.where(kept, x, torch.nan)
    loss = ours.FocalLoss(to_onehot_y=not dense, ignore_index=1 if dense else 255, **options)
    found = loss(x, target)
    each = monai.losses.FocalLoss(to_onehot_y=True, **{**options, "reduction": "none"})
    each = torch.where(kept, each(x.nan_to_num(), torch.where(kept, y, 0)), 0)
    expected = {
        "none": each,
        "sum": (each.sum((1, 2)) / kept.sum((1, 2))).sum(),
        "mean": each.sum() / kept.sum() / 2,
    }[reduction]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_constant_image_has_no_mutual_information(form):
    x = torch.zeros(1, 1, 4)
    with dispatch.forced(form):
        assert abs(float(ours.GlobalMutualInformationLoss("b-spline")(x, torch.rand(1, 1, 4)))) < 1e-5


def test_losses_are_copied_and_pickled():
    x, y = torch.rand(2, 3, 4), torch.randint(3, (2, 1, 4))
    for name in ("DiceLoss", "FocalLoss", "DiceCELoss", "DiceFocalLoss"):
        loss = getattr(ours, name)(to_onehot_y=True, include_background=False)
        for made in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert made(x, y) == loss(x, y)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_mode": "same"}, {"weight_mode": "two"}, {"weights": [1.0, 0.0, 0.25]}, {"weights": [1.0, 2, 3, 4]}],
    ids=str,
)
@pytest.mark.parametrize("single", [False, True])
def test_deep_supervision_is_that_of_monai(options, single):
    levels = [torch.randn(2, 3, 9, 8), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 2, 2)]
    y = torch.randint(3, (2, 1, 9, 8)).float()
    answers = []
    for library in (ours, monai.losses):
        inner = library.DiceCELoss(softmax=True, to_onehot_y=True)
        x = [level.clone().requires_grad_() for level in levels]
        loss = library.DeepSupervisionLoss(inner, **options)(x[0] if single else x, y)
        answers.append((loss.detach(), *torch.autograd.grad(loss, x, materialize_grads=True)))
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(
    ("build", "labels"),
    [
        (lambda library: library.MaskedLoss(library.DiceLoss(sigmoid=True)), False),
        (lambda library: library.MaskedLoss(library.FocalLoss, gamma=1.0), False),
        (lambda library: library.MaskedLoss(torch.nn.MSELoss()), False),
        (lambda library: library.MaskedLoss(library.DiceLoss, True, True, softmax=True), True),
    ],
)
@pytest.mark.parametrize("items", [1, 2])
def test_masked_loss_multiplies_logits_as_monai_does(build, labels, items):
    x, mask = torch.randn(2, 3, 5, requires_grad=True), (torch.rand(items, 1, 5) < 0.6).float()
    y = torch.randint(3, (2, 1, 5)).float() if labels else (torch.rand(2, 3, 5) < 0.5).float()
    answers = []
    for library in (ours, monai.losses):
        loss = build(library)(x, y, mask)
        answers.append((loss.detach(), *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*answers)


def test_masked_loss_without_a_mask_warns():
    x = torch.rand(1, 1, 4)
    with pytest.warns(UserWarning, match="no mask given"):
        assert ours.MaskedLoss(ours.DiceLoss)(x, x) == ours.DiceLoss()(x, x)


@pytest.mark.parametrize("smooth", [(0.0, 1e-5), (1.0, 1.0)])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, "target"])
@pytest.mark.parametrize("g", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
def test_correlation_of_constant_or_perfect_predictions_is_that_of_monai(smooth, p, g):
    y = torch.tensor([[g]])
    x = y if p == "target" else torch.full_like(y, p)
    options = {"smooth_nr": smooth[0], "smooth_dr": smooth[1]}
    torch.testing.assert_close(ours.MCCLoss(**options)(x, y), monai.losses.MCCLoss(**options)(x, y))


@pytest.mark.parametrize("smooth_dr", [0.0, 1e-5])
def test_correlation_of_a_perfect_prediction_has_a_finite_gradient(smooth_dr):
    x = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], requires_grad=True)  # class 0 is absent
    loss = ours.MCCLoss(smooth_dr=smooth_dr)(x, x.detach())
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros(1, 2, 2))


def test_masked_loss_masks_the_logits_of_a_wrapped_wrapper_too():
    x, y, mask = torch.randn(2, 3, 5), (torch.rand(2, 3, 5) < 0.5).float(), (torch.rand(2, 1, 5) < 0.6).float()
    answers = [
        library.MaskedLoss(library.DeepSupervisionLoss(library.DiceLoss(sigmoid=True)))(x, y, mask)
        for library in (ours, monai.losses)
    ]
    torch.testing.assert_close(*answers)
