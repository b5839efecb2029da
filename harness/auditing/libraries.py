"""The losses of other libraries that are audited, with what their documentation says."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from twinloss.harness.auditing.peer import Clause, Peer, is_multiple, is_soft
from twinloss.harness.auditing.traits import excluded_voxels
from twinloss.harness.losses import peers
from twinloss.harness.losses.peers import SMP as SMP_NAME
from twinloss.harness.losses.registration import RANK
from twinloss.harness.model.twin import Case, Twin


def _option(name: str, wanted: Any = None) -> Any:
    """Return a predicate: whether an option is set, or has a value."""

    def covers(twin: Twin, case: Case) -> bool:
        value = case.options.get(name, twin.defaults().get(name))
        return bool(value) if wanted is None else bool(value == wanted)

    return covers


def _soft_without_option(twin: Twin, case: Case) -> bool:
    return is_soft(twin, case) and not case.options.get("soft_label")


def _soft_with_ignored(twin: Twin, case: Case) -> bool:
    return is_soft(twin, case) and case.options.get("ignore_index") is not None


def _large_constants(twin: Twin, case: Case) -> bool:
    return any(case.options.get(name, 0.0) > 0.01 for name in ("smooth_nr", "smooth_dr"))


def _weights_of_channels(twin: Twin, case: Case) -> bool:
    several = case.operands["target"].values.shape[1] > 1
    return several and case.options.get("weight") is not None and not case.options.get("to_onehot_y")


def _components(twin: Twin, case: Case) -> bool:
    x = case.input.values
    return bool(x.shape[1] != x.ndim - 2)


def _flat_axes(twin: Twin, case: Case) -> bool:
    return case.input.values.ndim == 2


def _too_small(twin: Twin, case: Case) -> bool:
    return any(n <= 2 for n in case.input.values.shape[2:])


def _soft_mask(twin: Twin, case: Case) -> bool:
    mask = case.operands["mask"].values
    return not bool(((mask == 0) | (mask == 1)).all())


def _one_class(twin: Twin, case: Case) -> bool:
    return bool(case.input.values.shape[1] == 1)


def _integer_image(twin: Twin, case: Case) -> bool:
    return any(not o.dtype.startswith(("float", "bfloat")) for o in case.operands.values())


def _not_long(twin: Twin, case: Case) -> bool:
    return case.operands["target"].dtype != "int64"


def _class_absent(twin: Twin, case: Case) -> bool:
    """Return whether some class is absent from the target of an item, apart from ignored voxels."""
    x, y = case.input.values, case.operands["target"].values
    index = case.options.get("ignore_index")
    for item in y:
        if y.shape[1] == 1:
            if len(set(np.unique(item[item != index] if index is not None else item))) < max(x.shape[1], 2):
                return True
        elif not item.reshape(len(item), -1).any(-1).all():
            return True
    return False


def _class_absent_from_batch(twin: Twin, case: Case) -> bool:
    y = case.operands["target"].values
    return not bool(np.moveaxis(y, 1, 0).reshape(y.shape[1], -1).any(-1).all())


def _no_class_left(twin: Twin, case: Case) -> bool:
    excluded = excluded_voxels(case)
    return excluded is not None and any(bool(item.all()) for item in excluded)


WEIGHT = {"`weight`": "`weight`: a single value is the same weight for all classes"}
AXES = Clause("inputs without spatial axes", _flat_axes, "`forward`: the shape should be BNH[WD]")
HARD = Clause(
    "targets other than 0 and 1 without `soft_label`", _soft_without_option,
    "`soft_label`: set it if the target contains non-binary values",
)  # fmt: skip
SOFT_IGNORED = Clause(
    "a soft target and `ignore_index`", _soft_with_ignored,
    "`ignore_index`: voxels with this label are excluded, but a voxel of a soft target has no label", excluded=False,
)  # fmt: skip
SMALL = Clause("smoothing constants that are not small", _large_constants, "`smooth_nr`, `smooth_dr`: a small constant")
COMPONENTS = Clause(
    "fields without one component per axis", _components, "`forward`, Raises: ValueError for such a field"
)
SIZES = Clause("axes of at most two voxels", _too_small, "`forward`, Raises: ValueError for such a field")
MASKS = Clause("masks other than 0 and 1", _soft_mask, "the class: it accepts a binary mask")
REDUCTIONS = {"reduction": "`forward`, Raises: ValueError"}
SHAPES = {"shape": "`forward`, Raises: an error when input and target have different shapes"}
SEGMENTATION = (AXES, HARD, SMALL, SOFT_IGNORED)
ANY_RANK = (0, 1, 2, 3)

BINARY_FOCAL = Clause(
    "targets other than 0 and 1", is_soft, "the paper defines the focal loss for hard labels only", excluded=False
)
PROBABILITIES = Clause(
    "class weights and a target with all channels", _weights_of_channels,
    "torch.nn.CrossEntropyLoss: for such targets, the weighted mean divides by the number of voxels", excluded=False,
)  # fmt: skip


def _share_of_each_class(twin: Twin, case: Case) -> bool:
    return isinstance(case.options.get("alpha"), list) and not case.options.get("use_softmax")


def _softmax_without_background(twin: Twin, case: Case) -> bool:
    return bool(case.options.get("use_softmax")) and case.options.get("include_background") is False


def _smoothed_channel(twin: Twin, case: Case) -> bool:
    return bool(case.options.get("label_smoothing")) and case.input.values.shape[1] == 1


def _in_the_upper_half_of_a_bin(twin: Twin, case: Case) -> bool:
    """Return whether a box that is centred on a bin and one that begins there count some voxel in different bins."""
    if case.options.get("kernel_type") != "b-spline":
        return False
    bins = case.options.get("num_bins", twin.defaults()["num_bins"]) - 4
    y = case.operands["target"].values.astype(np.float64)
    y = y[np.isfinite(y).all(tuple(range(1, y.ndim)))]
    low, width = (made(y, axis=tuple(range(1, y.ndim)), keepdims=True) for made in (np.min, np.ptp))
    at = bins * (y - low) / np.where(width, width, 1)
    return bool(((at < bins - 1) & (at % 1 > 0.499)).any())


SOFTMAX = Clause(
    "a softmax and no background", _softmax_without_background,
    "`include_background`: channel 0 is excluded from the loss calculation, and the source code excludes it from the "
    "softmax, too", excluded=False,
)  # fmt: skip
SHARES = Clause(
    "a share of each class without a softmax", _share_of_each_class,
    "`include_background` calls them explicit class weights, and its source code gives negative voxels the weight 1",
    excluded=False,
)  # fmt: skip
SMOOTHED = Clause(
    "label smoothing of one channel", _smoothed_channel,
    "one channel goes to torch.nn.BCEWithLogitsLoss, which has no label smoothing", excluded=False,
)  # fmt: skip
SPLINE = Clause(
    "b-spline windows, and a target in the upper half of a bin", _in_the_upper_half_of_a_bin,
    "Mattes et al. center the box on a bin, as it does; ours counts a voxel in the bin in which it lies, as ITK does",
    excluded=False,
)  # fmt: skip
MULTIPLIED = Clause(
    "masked voxels", lambda twin, case: bool((case.operands["mask"].values != 1).any()),
    "its class: the mask is a weight of input and target, which does not leave voxels out", excluded=False,
)  # fmt: skip
NO_CLASS = Clause(
    "voxels without exactly one class", is_multiple,
    "torch.nn.CrossEntropyLoss: the mean divides by the number of voxels, whatever the sum of their targets",
    excluded=False,
)  # fmt: skip
MILLETARI = "the formula of Milletari et al. (2016), which it cites"
MONAI = (
    Peer("DiceLoss", "dice", "monai.losses", f"its documentation, and {MILLETARI}",
         clauses=SEGMENTATION, ranks=ANY_RANK, promises=SHAPES | REDUCTIONS, quotes=WEIGHT, lowest=0.0, highest=1.0),
    Peer("MaskedDiceLoss", "masked_dice", "monai.losses", f"its documentation, and {MILLETARI}",
         call="loss(x, y, mask)", clauses=(*SEGMENTATION, MASKS), ranks=ANY_RANK, promises=REDUCTIONS,
         quotes=WEIGHT | {"masked voxels": "its class: only the masked region contributes to the loss computation"},
         lowest=0.0, highest=1.0),
    Peer("TverskyLoss", "tversky", "monai.losses", "the formula of Salehi et al. (2017), which it cites",
         clauses=SEGMENTATION, ranks=ANY_RANK, promises=REDUCTIONS, lowest=0.0, highest=1.0),
    Peer("MCCLoss", "matthews_correlation", "monai.losses",
         "the formula of Abhishek and Hamarneh (2021), which it cites", clauses=SEGMENTATION, ranks=ANY_RANK,
         promises=REDUCTIONS, lowest=0.0, highest=2.0, hunted=False),  # its smoothing term is at another place
    Peer("GeneralizedDiceLoss", "generalized_dice", "monai.losses",
         "the formula of Sudre et al. (2017), which it cites",
         clauses=SEGMENTATION, ranks=ANY_RANK, promises=REDUCTIONS, lowest=0.0, highest=1.0),
    Peer("GeneralizedWassersteinDiceLoss", "generalized_wasserstein_dice", "monai.losses",
         "the formula of Fidon et al. (2017), which it cites", channels=2, lowest=0.0, highest=1.0,
         clauses=(SMALL,), ranks=ANY_RANK, promises={"matrix": "Raises: ValueError when dist_matrix is not square"}),
    Peer("FocalLoss", "focal", "monai.losses", "the formula of Lin et al. (2017), which it cites",
         clauses=(BINARY_FOCAL, SHARES, SOFTMAX), ranks=ANY_RANK, promises=SHAPES | REDUCTIONS | {
             "negative weight": "`forward`, Raises: ValueError for a negative weight",
             "weights": "`forward`, Raises: ValueError when the length of weight is not the number of classes",
         }, quotes=WEIGHT | {
             "`ignore_index`": "`ignore_index`: voxels with this label are excluded; `reduction`: the mean divides by "
                               "the number of elements in the output",
             "`reduction`": "`reduction`: for \"sum\", the output is summed; the source code takes the mean over the "
                            "spatial axes first, to be backward compatible",
         }, lowest=0.0),
    Peer("DiceCELoss", "dice_ce", "monai.losses",
         "its documentation: the weighted sum of DiceLoss and torch's cross entropy",
         clauses=(*SEGMENTATION, PROBABILITIES, NO_CLASS, SMOOTHED), ranks=ANY_RANK, promises={
             "shape": "`forward`, Raises: ValueError when the numbers of channels do not fit",
             "lambda": "lambda_dice and lambda_ce should be no less than 0.0",
         }, lowest=0.0),
    Peer("DiceFocalLoss", "dice_focal", "monai.losses",
         "its documentation: the weighted sum of DiceLoss and FocalLoss", options={"use_softmax": False},
         clauses=SEGMENTATION, ranks=ANY_RANK, promises={
             "shape": "`forward`, Raises: ValueError when the numbers of channels do not fit",
             "lambda": "lambda_dice and lambda_focal should be no less than 0.0",
         }, lowest=0.0),
    Peer("GeneralizedDiceFocalLoss", "generalized_dice_focal", "monai.losses",
         "its documentation: the weighted sum of GeneralizedDiceLoss and FocalLoss", options={"use_softmax": False},
         clauses=SEGMENTATION, promises={
             "shape": "`forward`, Raises: ValueError when the numbers of channels do not fit",
             "lambda": "lambda_gdl and lambda_focal should be no less than 0.0",
         }, lowest=0.0),
    Peer("BendingEnergyLoss", "bending_energy", "monai.losses", "its documentation: [1, -2, 1] and central mixed terms",
         call="loss(x)",
         clauses=(COMPONENTS, SIZES),
         promises=REDUCTIONS, lowest=0.0),
    Peer("DiffusionLoss", "diffusion", "monai.losses", "its documentation: central first differences",
         call="loss(x)",
         options={"stencil": "wide"},
         stated={"checkerboard": "its class: central finite differences"}, clauses=(COMPONENTS, SIZES),
         promises=REDUCTIONS, lowest=0.0),
    Peer("LocalNormalizedCrossCorrelationLoss", "lncc", "monai.losses",
         "its documentation: the squared zero-normalised cross-correlation in each window",
         options={"denominator": "clamp"}, names={"ndim": "spatial_dims"}, lowest=-1.0, highest=0.0,
         range_source="its class: the output range is approximately [-1, 0]", clauses=(SMALL,),
         quotes={
             "large intensities": "its class: the output range is approximately [-1, 0]",
             "`kernel_type`": "its class: the kernel can be a triangular window, here of three voxels",
         },
         promises=REDUCTIONS | {"kernel_size": "`kernel_size` must be odd"}),
    Peer("GlobalMutualInformationLoss", "mutual_information", "monai.losses",
         "the equations of the thesis that it cites (section 3.1), and of Mattes et al. for b-spline",
         clauses=(SPLINE,), promises=REDUCTIONS, highest=0.0,
         quotes={
             "the rest of the batch": "`reduction`: the mean is the sum divided by the number of elements; Mattes et "
                                      "al., whom it cites, define the loss and its bins for a single pair of images",
             "value not finite": "`smooth_nr` and `smooth_dr` are constants to avoid nan",
             "`kernel_type`": "`kernel_type`: based on Mattes et al. and adapted from ITK, where a voxel of the last "
                              "bin keeps its position under the cubic window; here it moves to the start of the bin",
         }),
    Peer("MultiScaleLoss", "multi_scale", "monai.losses",
         "its documentation: the wrapped loss of smoothed images, here torch's MSELoss",
         build="{name}(torch.nn.MSELoss(){more})", call="loss(y, x)", options={"loss": "squares", "ndim": RANK},
         promises=REDUCTIONS, lowest=0.0),
    Peer("DeepSupervisionLoss", "deep_supervision", "monai.losses",
         "its documentation: the sum of weighted losses of each level, here of Dice at three levels of one size",
         build="{name}(DiceLoss(softmax=True, to_onehot_y=True){more})",
         call="loss([x.roll(k, 1) for k in range(3)], y)",
         imports=("from monai.losses import DiceLoss",),
         options={"softmax": True, "to_onehot_y": True, "stacked": True}, unlike=("weights",),
         clauses=SEGMENTATION, lowest=0.0),
    Peer("MaskedLoss", "masked", "monai.losses",
         "its documentation: the mask weights input and target of the wrapped loss, here of Dice + cross entropy",
         build="{name}(DiceCELoss(softmax=True, to_onehot_y=True){more})", call="loss(x, y, mask)",
         imports=("from monai.losses import DiceCELoss",),
         options={"softmax": True, "to_onehot_y": True, "loss": "dice_ce"}, unlike=("loss",),
         clauses=(*SEGMENTATION, MULTIPLIED), lowest=0.0),
)  # fmt: skip

ABSENT = Clause(
    "classes that are absent from the target", _class_absent,
    "its Convention block: classes absent from the target of a sample are left out of the mean", excluded=False,
)  # fmt: skip
LONG = Clause("labels of another dtype than int64", _not_long, "its Convention block: target holds int64 class indices")
PLANES = (2,)
KORNIA = (
    Peer("DiceLoss", "dice", "kornia.losses", "its documentation: 1 - 2 |X ∩ Y| / (|X| + |Y|) of each class",
         build='{name}(average="macro"{more})', call="loss(x, y[:, 0])", ranks=PLANES, channels=2,
         options={"softmax": True, "to_onehot_y": True, "smooth_nr": 0.0, "smooth_dr": 1e-8},
         unlike=("weight",), clauses=(LONG, ABSENT), lowest=0.0, highest=1.0),
    Peer("TverskyLoss", "tversky", "kornia.losses", "the formula of Salehi et al. (2017), which it cites",
         call="loss(x, y[:, 0])", ranks=PLANES, channels=2,
         options={"softmax": True, "to_onehot_y": True, "smooth_nr": 0.0, "smooth_dr": 1e-8},
         clauses=(LONG, ABSENT), lowest=0.0, highest=1.0),
    Peer("FocalLoss", "focal", "kornia.losses", "the formula of Lin et al. (2017), which it cites",
         build='{name}(alpha=None, reduction="mean"{more})', call="loss(x, y[:, 0])", ranks=PLANES, channels=2,
         options={"to_onehot_y": True}, unlike=("alpha", "ignore_index", "reduction"), clauses=(LONG,),
         stated={"argument: gamma": "its Convention block: a negative gamma is not validated"}, lowest=0.0),
)  # fmt: skip

ALL_MASKED = Clause(
    "classes that are absent from the target", _class_absent_from_batch,
    "its source code leaves such classes out on purpose, although its documentation does not say so", excluded=False,
)  # fmt: skip
NOT_MEAN = Clause(
    "a reduction other than the mean", lambda twin, case: case.options.get("reduction", "mean") != "mean",
    "its documentation does not name `reduction`, and its source code takes the mean of the classes", excluded=False,
)  # fmt: skip
BINARY = Clause("targets other than 0 and 1", is_soft, "`y_true`: labels, or one channel of 0 and 1 for each class")
SMP = (
    Peer("DiceLoss", "dice", "segmentation_models_pytorch.losses", "its documentation: 1 - the Dice coefficient",
         build='{name}("multilabel"{more})', ranks=PLANES, unlike=("weight", "ignore_index"),
         options={"sigmoid": True, "batch": True, "smooth_nr": 0.0, "smooth_dr": 0.0},
         clauses=(BINARY, ALL_MASKED), lowest=0.0, highest=1.0),
    Peer("TverskyLoss", "tversky", "segmentation_models_pytorch.losses",
         "its documentation: Dice for alpha = beta = 0.5",
         build='{name}("multilabel"{more})', ranks=PLANES, unlike=("ignore_index",),
         options={"sigmoid": True, "batch": True, "smooth_nr": 0.0, "smooth_dr": 0.0},
         clauses=(BINARY, ALL_MASKED), lowest=0.0, highest=1.0),
    Peer("FocalLoss", "focal", "segmentation_models_pytorch.losses",
         "the formula of Lin et al. (2017)", build='{name}("multilabel"{more})', ranks=PLANES,
         options={"use_softmax": False}, unlike=("ignore_index",), clauses=(BINARY, NOT_MEAN),
         stated={"`reduction`": "its documentation does not name `reduction`"}, lowest=0.0),
)  # fmt: skip


def _large_offset(twin: Twin, case: Case) -> bool:
    for operand in case.operands.values():
        finite = operand.values[np.isfinite(operand.values)]
        if finite.size and np.abs(finite).max() > 16 * np.ptp(finite):
            return True
    return False


OFFSET = Clause(
    "large offsets", _large_offset, "Warnings: large offsets relative to local variation can cause rounding errors"
)
# The losses of VoxelMorph; its own module now refers to neurite. They are scores, which grow with the agreement.
NEURITE = (
    Peer("Dice", "dice", "neurite.nn.modules", "its documentation: 2 A B / (A² + B²), as the notes of log_dice say",
         call="1 - loss(x, y).squeeze()", options={"squared_pred": True},
         names={"smooth_nr": "smooth_numerator", "smooth_dr": "smooth_denominator"}, unlike=("reduction",),
         clauses=(SMALL,), lowest=0.0, highest=1.0),
    Peer("NCC", "lncc", "neurite.nn.modules", "its documentation: the squared correlation in each window of 9 voxels",
         call="-loss(x, y).squeeze()", names={"kernel_size": "window_size", "smooth_dr": "eps"}, unlike=("reduction",),
         options={"ndim": RANK, "kernel_size": 9, "smooth_nr": 0.0}, clauses=(OFFSET,), lowest=-1.0, highest=0.0,
         range_source="`forward`, Returns: values in the range [0, 1]",
         stated={"range": "Warnings: large offsets relative to local variation can cause rounding errors"}),
    Peer("SpatialGradient", "diffusion", "neurite.nn.modules", "Balakrishnan et al. (2019), which it cites",
         call="loss(x)", hunted=False, unlike=("reduction",), lowest=0.0),
)  # fmt: skip
LIBRARIES: dict[str, tuple[Peer, ...]] = {
    "monai": MONAI,
    "kornia": KORNIA,
    "segmentation_models_pytorch": SMP,
    "neurite": NEURITE,
}
PACKAGES = {
    "monai": "monai",
    "kornia": "kornia",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "neurite": "neurite",
}


def make_importable(library: str) -> None:
    """Let the losses of segmentation_models_pytorch be imported where its models cannot, for lack of torchvision."""
    if library != SMP_NAME:
        return
    try:
        importlib.import_module(f"{SMP_NAME}.losses")
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == SMP_NAME]:
            del sys.modules[name]
        package, losses = types.ModuleType(SMP_NAME), peers.smp_losses()
        package.__dict__.update(losses=losses, __path__=[], __spec__=ModuleSpec(SMP_NAME, None))
        sys.modules.update({SMP_NAME: package, f"{SMP_NAME}.losses": losses})
