"""The memory layout of the arguments and the number of threads change no result, and a loss changes no argument."""

import copy
import warnings

import pytest
import torch
from every_loss import LOSSES, Each
from loss_options import (
    ERRORS,
    FOCAL_FORMS,
    HISTOGRAMS,
    MATRIX,
    MODES,
    REDUCTIONS,
    REGISTRATION,
    SOFTMAX,
    WINDOWS,
    activations,
    for_labels,
    grid,
    registration_arguments,
    registration_loss,
    values,
    with_options,
)
from support import BACKENDS, assert_all_close, labels, logits, value_and_gradient, value_and_gradients

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
    MaskedDiceLoss,
    MatthewsCorrelationLoss,
    MultiScaleLoss,
    TverskyLoss,
)
from twinloss.fast.runtime import dispatch

# --- memory layouts --------------------------------------------------------------------------------------------------


def layouts(x):
    """Return the same numbers in other layouts."""
    sliced = torch.zeros(2, 4, 9, 5, 2 * x.shape[-1], dtype=x.dtype)[:, 1:, 2:8, :, ::2].copy_(x)
    turned = x.transpose(2, 4).contiguous().transpose(2, 4)
    made = x.to(memory_format=torch.channels_last_3d), x.mT.contiguous().mT, turned, sliced
    assert not any(layout.is_contiguous() for layout in made)
    return made


@BACKENDS
@with_options(
    {
        DiceLoss: [SOFTMAX],
        TverskyLoss: [SOFTMAX | ERRORS],
        GeneralizedDiceLoss: [SOFTMAX],
        GeneralizedWassersteinDiceLoss: MODES,
        FocalLoss: REDUCTIONS,
        DiceCELoss: [SOFTMAX],
        DiceFocalLoss: grid([SOFTMAX], REDUCTIONS),
        GeneralizedDiceFocalLoss: [SOFTMAX],
    },
    others=activations,
)
def test_layout_of_logits_and_labels_does_not_matter(form, loss_class, options):
    x, y = logits(2, 3, 6, 5, 4), labels(2, 1, 6, 5, 4)
    loss = loss_class(**for_labels(loss_class, options))
    expected = value_and_gradient(loss, x, y, form=form)
    if loss_class is DiceLoss and form == "kernel":
        tolerances = 0, 0
    else:
        tolerances = 1e-6, {FocalLoss: 1e-9, DiceFocalLoss: 1e-6, GeneralizedDiceFocalLoss: 1e-6}.get(loss_class, 1e-8)
    for layout in layouts(x):
        assert_all_close(value_and_gradient(loss, layout, y.mT.contiguous().mT, form=form), expected, *tolerances)


@BACKENDS
@with_options(
    {
        BendingEnergyLoss: REDUCTIONS,
        DiffusionLoss: REDUCTIONS,
        LocalNormalizedCrossCorrelationLoss: REDUCTIONS,
        GlobalMutualInformationLoss: HISTOGRAMS,
        MultiScaleLoss: [{"scales": [0, 1.5]}],
    },
    others=[{}],
    of=REGISTRATION,
)
def test_layout_of_a_field_and_of_images_does_not_matter(form, loss_class, options):
    doubles = loss_class in (LocalNormalizedCrossCorrelationLoss, MultiScaleLoss)
    dtype = torch.float64 if doubles else torch.float32
    arguments = registration_arguments(loss_class, 2, 3, 6, 5, 7, dtype=dtype)
    loss = registration_loss(loss_class, options)
    expected = value_and_gradients(loss, *arguments, form=form)
    tolerances = (1e-12, 1e-14) if doubles else (1e-6, 1e-8 if loss_class is GlobalMutualInformationLoss else 1e-6)
    for laid_out in zip(*map(layouts, arguments), strict=True):
        assert_all_close(value_and_gradients(loss, *laid_out, form=form), expected, *tolerances)
    for place, layout in enumerate(map(layouts, arguments)):  # one of two images alone
        laid_out = [*arguments[:place], layout[0], *arguments[place + 1 :]]
        assert_all_close(value_and_gradients(loss, *laid_out, form=form), expected, *tolerances)


# --- nothing changes -------------------------------------------------------------------------------------------------


def _ignoring(dtype):
    """Logits that are no numbers where their label is to be ignored."""
    x, y = logits(2, 3, 40, dtype=dtype), labels(2, 1, 40)
    x[:, :, 3], y[:, :, 3] = float("nan"), 255
    return x, y


def _ignoring_and_masked(dtype):
    return *_ignoring(dtype), torch.rand(2, 1, 40, dtype=dtype)


def _beyond_the_bins(dtype):
    pred, target = registration_arguments(GlobalMutualInformationLoss, 2, 50, dtype=dtype)
    pred[0, 3] = 1.5
    return pred, target


def squares(pred, target):
    return ((pred - 2 * target) ** 2).mean()


WEIGHT = torch.tensor([1.0, 2.0, 3.0])
IGNORE = {"to_onehot_y": True, "ignore_index": 255}
CAREFUL = {
    "masked dice": Each(lambda: MaskedDiceLoss(softmax=True, weight=WEIGHT, **IGNORE), _ignoring_and_masked),
    "tversky": Each(lambda: TverskyLoss(softmax=True, **IGNORE), _ignoring),
    "tversky sigmoid": Each(lambda: TverskyLoss(sigmoid=True, **IGNORE), _ignoring),
    "tversky other_act": Each(lambda: TverskyLoss(other_act=torch.exp, **IGNORE), _ignoring),
    "generalized dice": Each(lambda: GeneralizedDiceLoss(softmax=True, normalize_weights=True, **IGNORE), _ignoring),
    "generalized dice sigmoid": Each(
        lambda: GeneralizedDiceLoss(sigmoid=True, normalize_weights=True, **IGNORE), _ignoring
    ),
    "generalized dice other_act": Each(
        lambda: GeneralizedDiceLoss(other_act=torch.exp, normalize_weights=True, **IGNORE), _ignoring
    ),
    **{
        f"wasserstein {mode}": Each(
            lambda mode=mode: GeneralizedWassersteinDiceLoss(torch.tensor(MATRIX), mode, ignore_index=255), _ignoring
        )
        for mode in ("default", "GDL")
    },
    **{
        f"focal {' '.join(map(str, options.values()))}": Each(
            lambda options=options: FocalLoss(weight=WEIGHT, alpha=[0.1, 0.2, 0.3], **IGNORE, **options), _ignoring
        )
        for options in grid(FOCAL_FORMS, REDUCTIONS)
    },
    "dice ce": Each(lambda: DiceCELoss(softmax=True, ce_weight=WEIGHT, label_smoothing=0.1, **IGNORE), _ignoring),
    **{
        f"dice focal {options['reduction']}": Each(
            lambda options=options: DiceFocalLoss(softmax=True, focal_weight=WEIGHT, **IGNORE, **options), _ignoring
        )
        for options in REDUCTIONS
    },
    **{
        f"{name} spaced": Each(
            lambda make=make: make(normalize=True, spacing=(1.0, 2.0)), lambda dtype: (logits(2, 2, 6, 7, dtype=dtype),)
        )
        for name, make in (("bending energy", BendingEnergyLoss), ("diffusion", DiffusionLoss))
    },
    **{
        f"mutual information {kernel_type}": Each(
            lambda kernel_type=kernel_type: GlobalMutualInformationLoss(kernel_type=kernel_type), _beyond_the_bins
        )
        for kernel_type in ("gaussian", "b-spline")
    },
    "multi-scale of a function": Each(
        lambda: MultiScaleLoss(squares, [0, 1.5], normalize_kernel=True),
        lambda dtype: registration_arguments(MultiScaleLoss, 2, 1, 6, 7, dtype=dtype),
    ),
}


def state(loss):
    """Return copies of all that a loss and the modules within it hold, but for the modules themselves."""
    return [
        copy.deepcopy({name: value for name, value in vars(module).items() if name != "_modules"})
        for module in loss.modules()
    ]


@BACKENDS
@pytest.mark.parametrize(
    "each", [*LOSSES.values(), *CAREFUL.values()], ids=[*LOSSES, *(f"{n}, with care" for n in CAREFUL)]
)
def test_arguments_and_module_stay_as_they_were(form, each):
    loss, arguments = each.make(), each.arguments(torch.float32)
    before, copies = state(loss), [a.clone() for a in arguments]
    arguments[0].requires_grad_()
    with warnings.catch_warnings(), dispatch.forced(form):
        warnings.simplefilter("ignore")
        loss(*arguments).sum().backward()
    assert state(loss) == before
    assert loss.state_dict() == {}
    for argument, copied in zip(arguments, copies, strict=True):
        torch.testing.assert_close(argument.detach(), copied, rtol=0, atol=0, equal_nan=True)


@with_options(
    {
        FocalLoss: values("name", "weight"),
        FocalTverskyLoss: values("name", "weight", "gamma"),
        MatthewsCorrelationLoss: grid([SOFTMAX], values("name", "weight")),
        DiceCELoss: grid([SOFTMAX], values("name", "ce_weight", "weight")),
        DiceFocalLoss: grid([SOFTMAX], values("name", "focal_weight", "weight", "alpha")),
    }
)
def test_weight_that_its_owner_changes_later_stays_as_it_was_given(loss_class, options):
    x, y = logits(2, 3, 7), labels(2, 1, 7)
    options, weight = dict(options), torch.ones(3)
    loss = loss_class(**for_labels(loss_class, {options.pop("name"): weight} | options))
    before = loss(x, y)
    for change in (lambda: weight[0].fill_(5), lambda: weight.mul_(5)):
        change()
        assert torch.equal(loss(x, y), before)


@pytest.mark.parametrize("loss_class", [BendingEnergyLoss, DiffusionLoss])
def test_spacing_that_its_owner_changes_later_stays_as_it_was_given(loss_class):
    spacing = [1.0, 2.0]
    loss, u = loss_class(spacing=spacing), logits(1, 2, 6, 7)
    expected = loss(u)
    spacing[0] = 5.0
    assert torch.equal(loss(u), expected)


# --- threads ---------------------------------------------------------------------------------------------------------


def assert_same_on_any_number_of_threads(loss, *arguments):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 4, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                value = loss(*arguments)
            found.append((value, *value_and_gradients(loss, *arguments)))
    finally:
        torch.set_num_threads(before)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, found[0], strict=True))


@with_options(
    {
        BendingEnergyLoss: grid([{"shape": (1, 3, 30, 31, 67)}], REDUCTIONS),
        DiffusionLoss: grid([{"shape": (1, 3, 30, 31, 67)}], REDUCTIONS),
        LocalNormalizedCrossCorrelationLoss: grid(
            [{"shape": (1, 2, 40, 31, 67), "kernel_size": 5}], WINDOWS, REDUCTIONS
        ),
        GlobalMutualInformationLoss: grid([{"shape": (2, 100_003)}], HISTOGRAMS, values("num_bins", 23, 128)),
        MultiScaleLoss: grid([{"shape": (1, 2, 40, 31, 67)}], values("kernel", "gaussian", "cauchy")),
    }
)
def test_registration_loss_is_bitwise_the_same_on_any_number_of_threads(loss_class, options):
    options = dict(options)
    arguments = registration_arguments(loss_class, *options.pop("shape"))
    if loss_class is MultiScaleLoss:
        options |= {"loss": LocalNormalizedCrossCorrelationLoss(kernel_size=5), "scales": [0, 1, 2.5]}
    assert_same_on_any_number_of_threads(registration_loss(loss_class, options), *arguments)


@with_options({DiceLoss: [SOFTMAX], FocalLoss: FOCAL_FORMS})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_segmentation_loss_is_bitwise_the_same_on_any_number_of_threads(dtype, loss_class, options):
    x, y = logits(2, 3, 70_001, dtype=dtype), labels(2, 1, 70_001)
    loss = loss_class(**for_labels(loss_class, options))
    assert_same_on_any_number_of_threads(lambda x: loss(x, y), x)
