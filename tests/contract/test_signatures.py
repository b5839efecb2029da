"""Names, order and defaults of the arguments of every loss, as its documentation promises them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from loss_options import TWIN

from twinloss import fast, reference
from twinloss.fast.engine.segmentation.loss import SegmentationLoss

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Documented:
    """What the documentation of a loss promises.

    Attributes:
        options: the options in their order, with defaults.
        keyword_only: options that MONAI 0.5 does not have.
        reference: the function with the same options.
        forward: the arguments of `forward`.
        distributed: whether `process_group` is an option; the reference always sees the data of all ranks.
        required: values for the options without a default.
    """

    options: dict[str, Any]
    keyword_only: dict[str, Any]
    reference: Callable[..., Any]
    forward: tuple[str, ...] = ("input", "target")
    distributed: bool = False
    required: tuple[Any, ...] = ()


_CLASSES = {"include_background": True, "to_onehot_y": False}
_ACTIVATION = _CLASSES | {"sigmoid": False, "softmax": False, "other_act": None}
_REDUCTION = {"reduction": "mean", "smooth_nr": 1e-5, "smooth_dr": 1e-5}
_DICE = _ACTIVATION | {"squared_pred": False, "jaccard": False} | _REDUCTION | {"batch": False}
_DICE_EXTRA = {"weight": None, "soft_label": False, "ignore_index": None}
_FOCAL_EXTRA = {"use_softmax": True, "alpha": None, "ignore_index": None}
DOCUMENTED = {
    fast.DiceLoss: Documented(_DICE, _DICE_EXTRA, reference.dice_loss, distributed=True),
    fast.MaskedDiceLoss: Documented(
        _DICE, _DICE_EXTRA, reference.masked_dice_loss, ("input", "target", "mask"), distributed=True
    ),
    fast.GeneralizedDiceLoss: Documented(
        _ACTIVATION | {"w_type": "square"} | _REDUCTION | {"batch": False},
        {"soft_label": False, "ignore_index": None, "normalize_weights": False},
        reference.generalized_dice_loss,
        distributed=True,
    ),
    fast.GeneralizedWassersteinDiceLoss: Documented(
        {"dist_matrix": REQUIRED, "weighting_mode": "default"} | _REDUCTION,
        {"ignore_index": None},
        reference.generalized_wasserstein_dice_loss,
        required=(1 - np.eye(3),),
    ),
    fast.DiceCELoss: Documented(
        _DICE | {"ce_weight": None, "lambda_dice": 1.0, "lambda_ce": 1.0},
        _DICE_EXTRA | {"label_smoothing": 0.0, "multilabel": False},
        reference.dice_ce_loss,
        distributed=True,
    ),
    fast.DiceFocalLoss: Documented(
        _DICE | {"gamma": 2.0, "focal_weight": None, "lambda_dice": 1.0, "lambda_focal": 1.0},
        _DICE_EXTRA | _FOCAL_EXTRA,
        reference.dice_focal_loss,
        distributed=True,
    ),
    fast.GeneralizedDiceFocalLoss: Documented(
        _ACTIVATION
        | {"w_type": "square"}
        | _REDUCTION
        | {"batch": False, "gamma": 2.0, "weight": None, "lambda_gdl": 1.0, "lambda_focal": 1.0},
        {"soft_label": False, "ignore_index": None, "normalize_weights": False, "use_softmax": True, "alpha": None},
        reference.generalized_dice_focal_loss,
        distributed=True,
    ),
    fast.FocalLoss: Documented(
        _CLASSES | {"gamma": 2.0, "weight": None, "reduction": "mean"}, _FOCAL_EXTRA, reference.focal_loss
    ),
    fast.TverskyLoss: Documented(
        _ACTIVATION | {"alpha": 0.5, "beta": 0.5} | _REDUCTION | {"batch": False},
        _DICE_EXTRA,
        reference.tversky_loss,
        distributed=True,
    ),
    fast.MatthewsCorrelationLoss: Documented(
        _ACTIVATION | _REDUCTION | {"batch": False},
        _DICE_EXTRA,
        reference.matthews_correlation_loss,
        distributed=True,
    ),
    fast.FocalTverskyLoss: Documented(
        _ACTIVATION | {"alpha": 0.3, "beta": 0.7, "gamma": 0.75} | _REDUCTION | {"batch": False},
        _DICE_EXTRA,
        reference.focal_tversky_loss,
        distributed=True,
    ),
    fast.BendingEnergyLoss: Documented(
        {"reduction": "mean"},
        {"stencil": "compact", "normalize": False, "spacing": None},
        reference.bending_energy_loss,
        ("pred",),
    ),
    fast.DiffusionLoss: Documented(
        {"normalize": False, "reduction": "mean"},
        {"stencil": "compact", "spacing": None},
        reference.diffusion_loss,
        ("pred",),
    ),
    fast.LocalNormalizedCrossCorrelationLoss: Documented(
        {"ndim": 3, "kernel_size": 3, "kernel_type": "rectangular"} | _REDUCTION,
        {"spatial_dims": None, "denominator": "product"},
        reference.local_normalized_cross_correlation_loss,
        ("pred", "target"),
    ),
    fast.GlobalMutualInformationLoss: Documented(
        {"num_bins": 23, "sigma_ratio": 0.5, "reduction": "mean", "smooth_nr": 1e-7, "smooth_dr": 1e-7},
        {"kernel_type": "gaussian"},
        reference.global_mutual_information_loss,
        ("pred", "target"),
        distributed=True,
    ),
    fast.DeepSupervisionLoss: Documented(
        {"loss": REQUIRED, "weight_mode": "exp", "weights": None},
        {"interp_mode": "nearest-exact", "stacked": False},
        reference.deep_supervision_loss,
        ("input", "target", "mask"),
        required=(torch.nn.MSELoss(),),
    ),
    fast.MaskedLoss: Documented(
        {"loss": REQUIRED}, {}, reference.masked_loss, ("input", "target", "mask"), required=(fast.DiceLoss(),)
    ),
    fast.MultiScaleLoss: Documented(
        {"loss": REQUIRED, "scales": None, "kernel": "gaussian", "reduction": "mean"},
        {"normalize_kernel": False},
        reference.multi_scale_loss,
        ("y_true", "y_pred"),
        required=(torch.nn.MSELoss(),),
    ),
}


def defaults(callable_, *kinds):
    """Return the parameters of some kinds, by default of all, with their defaults."""
    parameters = inspect.signature(callable_).parameters.values()
    return {p.name: p.default for p in parameters if not kinds or p.kind in kinds}


def of_record(loss_class):
    """Return what the record of a loss says, for a loss that MONAI 0.5 does not have."""
    twin, own = TWIN[loss_class], {"process_group": None, "return_parts": False}
    ordered, named = (
        {name: value for name, value in defaults(loss_class, kind).items() if name not in own}
        for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    )
    required = tuple(twin.usual.options[name] for name in twin.required)
    return Documented(ordered, named, twin.value, twin.operands, "process_group" in defaults(loss_class), required)


LOSSES = [each for name, each in vars(fast).items() if name.endswith("Loss")]
DOCUMENTED |= {each: of_record(each) for each in LOSSES if each not in DOCUMENTED}
EVERY = pytest.mark.parametrize(("loss_class", "documented"), DOCUMENTED.items(), ids=[c.__name__ for c in DOCUMENTED])


@EVERY
def test_documented_arguments_have_their_order_and_defaults(loss_class, documented):
    found = defaults(loss_class, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert list(found.items()) == list(documented.options.items())


@EVERY
def test_options_beyond_the_documentation_are_keyword_only(loss_class, documented):
    fast_only = {"process_group": None} if documented.distributed else {}
    if issubclass(loss_class, SegmentationLoss) and loss_class is not fast.FocalLoss:
        fast_only["return_parts"] = False
    assert defaults(loss_class, inspect.Parameter.KEYWORD_ONLY) == documented.keyword_only | fast_only
    assert set(defaults(loss_class)) == {*documented.options, *documented.keyword_only, *fast_only}


@EVERY
def test_reference_takes_the_same_options_with_the_same_defaults(loss_class, documented):
    found = defaults(documented.reference)
    for argument in (*documented.forward, "mask"):  # MaskedLoss passes the mask to the wrapped loss
        found.pop(argument, None)
    expected = documented.options | documented.keyword_only
    expected.pop("spatial_dims", None)  # another name of ndim
    assert found == expected


@EVERY
def test_forward_takes_the_documented_arguments(loss_class, documented):
    expected = {name: None if name == "mask" else REQUIRED for name in ("self", *documented.forward)}
    assert list(defaults(loss_class.forward).items()) == list(expected.items())


@EVERY
def test_class_is_exported_under_its_name(loss_class, documented):
    assert getattr(fast, loss_class.__name__) is loss_class
    assert loss_class.__name__ in fast.__all__


@EVERY
def test_loss_is_a_torch_loss_module_without_state(loss_class, documented):
    loss = loss_class(*documented.required)
    assert isinstance(loss, torch.nn.modules.loss._Loss)
    assert loss.state_dict() == {}
    assert list(loss.buffers()) == []


@EVERY
@pytest.mark.parametrize("reduction", ["average", None, 3])
def test_unknown_reduction_is_a_value_error(loss_class, documented, reduction):
    if "reduction" not in documented.options:
        pytest.skip("it has no reduction of its own")
    with pytest.raises(ValueError, match="reduction must be") as caught:
        loss_class(*documented.required, reduction=reduction)
    assert repr(reduction) in str(caught.value)


def test_wasserstein_distance_map_is_public_and_takes_the_documented_arguments():
    method = fast.GeneralizedWassersteinDiceLoss.wasserstein_distance_map
    assert list(inspect.signature(method).parameters) == ["self", "flat_proba", "flat_target"]


@pytest.mark.parametrize(
    ("alias", "loss_class"),
    [
        ("Dice", fast.DiceLoss),
        ("dice", fast.DiceLoss),
        ("generalized_dice", fast.GeneralizedDiceLoss),
        ("generalized_wasserstein_dice", fast.GeneralizedWassersteinDiceLoss),
        ("dice_ce", fast.DiceCELoss),
        ("dice_focal", fast.DiceFocalLoss),
        ("generalized_dice_focal", fast.GeneralizedDiceFocalLoss),
    ],
)
def test_alias_names_the_class(alias, loss_class):
    assert getattr(fast, alias) is loss_class
    assert alias in fast.__all__


@EVERY
def test_subclass_without_a_constructor_of_its_own_shows_the_same_arguments(loss_class, documented):
    assert inspect.signature(type("Own", (loss_class,), {})) == inspect.signature(loss_class)
